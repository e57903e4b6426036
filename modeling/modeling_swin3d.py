r"""Video Swin: torchvision's network, as a backbone with the maps of a clip's last frame.

    clip (B, T, 3, H, W) -> patches -> stage1 -> merging -> stage2 -> merging -> stage3 -> merging -> stage4
                                         | slot of the last frame, norm |                   |             |
                                         v stride 4                     v 8                 v 16          v 32

Paper: see configuration_swin3d.py. Between the layers maps are (B, T', h, w, C), T' time slots, and T' = T with
patches of one frame.
"""

from typing import Any

import torch
from torch import nn
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d
from transformers import AutoConfig, PreTrainedModel, SwinBackbone
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput

from .configuration_swin3d import Swin3DConfig
from .feature_maps import FeatureMaps
from .inflate_swin import fit_to_clips, inflate_swin


class Swin3DBackbone(FeatureMaps, PreTrainedModel):
    """Video Swin without its classifier. As the 2-D Swin backbone of transformers, it has a norm for every map.

    Args:
        config: the backbone's configuration.
    """

    config: Swin3DConfig
    config_class = Swin3DConfig
    base_model_prefix = "swin3d"
    main_input_name = "pixel_values_videos"
    input_modalities: Any = ("video",)
    _no_split_modules = ["SwinTransformerBlock"]

    def __init__(self, config: Swin3DConfig):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.num_features = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        network = SwinTransformer3d(
            list(config.patch_size),
            config.embed_dim,
            list(config.depths),
            list(config.num_heads),
            list(config.window_size),
            mlp_ratio=config.mlp_ratio,
            stochastic_depth_prob=config.drop_path_rate,
            num_classes=1,
        )
        self.patch_embed, self.features = network.patch_embed, network.features
        for module in self.features.modules():
            if isinstance(module, ShiftedWindowAttention3d):  # follows from the window; a megabyte in each of them
                index: Any = module.relative_position_index
                module.register_buffer("relative_position_index", index, persistent=False)
        returned = zip(self.out_features, self.channels, strict=True)
        self.hidden_states_norms = nn.ModuleDict({stage: nn.LayerNorm(width) for stage, width in returned})
        self.post_init()

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        r"""Compute the feature maps of the last frame of clips.

        Args:
            pixel_values_videos: float (batch, num_frames, 3, height, width), normalised, oldest frame first; any
                number of frames, any height and width from 32 up.
            output_hidden_states: also return the maps of all stages before their norms, whatever `out_features` says.
            output_attentions: accepted and ignored.
            return_dict: `False` for a plain tuple.

        Returns:
            BackboneOutput: with `feature_maps`, each (batch, channels, h, w), in the order of `out_features`. A map's
                size is the frame's divided by its stride, rounded up.

        Raises:
            ValueError: these are no clips.
        """
        if pixel_values_videos.ndim != 5 or not pixel_values_videos.shape[1]:
            raise ValueError(
                f"pixel_values_videos is {tuple(pixel_values_videos.shape)}: expected (batch, num_frames, 3, height, "
                "width); single images are clips of one frame"
            )
        return super().forward(pixel_values_videos, output_hidden_states, output_attentions, return_dict)

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        # torchvision would fill an incomplete patch of frames with black ones behind the last frame.
        missing = -pixel_values.shape[1] % self.config.patch_size[0]
        clips = torch.cat([pixel_values[:, :1]] * missing + [pixel_values], dim=1) if missing else pixel_values
        hidden_states = self.patch_embed(clips.transpose(1, 2))  # (B, T', h, w, C)
        maps = []
        for index, layer in enumerate(self.features):
            if index % 2:
                hidden_states = layer(hidden_states)  # patch merging
            else:
                hidden_states = self.run_stage(layer, hidden_states)
                maps.append(self.pool_time(hidden_states).permute(0, 3, 1, 2))
        return maps

    def run_stage(self, stage: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The stage's blocks one after the other, each with its own gradient checkpoint."""
        for block in stage:
            if self.gradient_checkpointing and self.training:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states)
            else:
                hidden_states = block(hidden_states)
        return hidden_states

    def pool_time(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """One map (B, h, w, C) from the time slots (B, T', h, w, C)."""
        return hidden_states[:, -1] if self.config.time_pooling == "last" else hidden_states.mean(dim=1)

    def returned_map(self, name: str, feature_map: torch.Tensor) -> torch.Tensor:
        return self.hidden_states_norms[name](feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def pretrained_tensors(self, source: str) -> dict[str, torch.Tensor]:
        """The tensors of a pretrained Swin or Video Swin for this network.

        Args:
            source: folder or Hub id of a Swin for images in transformers format, e.g. a classifier, or of a
                `vss_swin3d` with any patches and windows.

        Returns:
            Tensors by our names. Their shapes fit if width, depths and heads are the same.

        Raises:
            ValueError: the source is another model.
        """
        config: Any = AutoConfig.from_pretrained(source)
        if config.model_type == self.config.model_type:
            return fit_to_clips(stored_tensors(type(self), source, config), config.window_size, self.config)
        if config.model_type != "swin":
            raise ValueError(f"'{config.model_type}' is no Swin; expected a model of type 'swin' or 'vss_swin3d'")
        stages = [f"stage{index + 1}" for index in range(len(config.depths))]
        config.set_output_features_output_indices(out_features=stages, out_indices=None)
        return inflate_swin(stored_tensors(SwinBackbone, source, config), self.config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """torchvision's: truncated normal for linear layers and position biases, PyTorch's default for the rest."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv3d, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, ShiftedWindowAttention3d):
            init.trunc_normal_(module.relative_position_bias_table, std=0.02)
            index: Any = module.relative_position_index
            init.copy_(index, relative_position_index(module.window_size))


def relative_position_index(window: list[int]) -> torch.Tensor:
    """Where the bias of each pair of a window's N places stands in the table of position biases: long (N, N)."""
    holder: Any = nn.Module()
    holder.window_size = window
    ShiftedWindowAttention3d.define_relative_position_index(holder)
    return holder.relative_position_index


def stored_tensors(model_class: Any, source: str, config: Any) -> dict[str, torch.Tensor]:
    """The tensors that `source` has for a model, by the model's names; not those that the model starts anew."""
    model, report = model_class.from_pretrained(source, config=config, use_safetensors=True, output_loading_info=True)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in report["missing_keys"]}


__all__ = ["Swin3DBackbone"]
