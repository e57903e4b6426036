r"""VOLO, the Vision Outlooker, as a backbone for segmentation.

    image -> stem (stride 2) -> patches (stride 8) -> outlookers -> 2x2 convolution (stride 16) -> + positions
                 |                                        |             -> transformer blocks, in several stages
               "stem"                                 "stage1"                      |              |
                                                                                "stage2"  ...  "stage4"

Paper: see configuration_volo.py. The layers are timm's, under timm's names, which are the original's too. The
classifier's parts (two class-attention blocks, norm, heads) are left out. Letters: B batch, C channels, h and w a map.
"""

from typing import Any, ClassVar

import torch
from timm.models.volo import Downsample, Outlooker, PatchEmbed, Transformer, outlooker_blocks, transformer_blocks
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_volo import GRID_STRIDE, SMALLEST_IMAGE, VOLOConfig
from .feature_maps import FeatureMaps


PATCH_SIZE = 8


def resize_position_embedding(embedding: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Position embedding (1, h, w, C) for a grid of another `size`: bicubic, computed in fp32."""
    if tuple(embedding.shape[1:3]) == tuple(size):
        return embedding
    resized = F.interpolate(embedding.permute(0, 3, 1, 2).float(), size=size, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(embedding.dtype)


def parts_of(side: int, stride: int) -> int:
    """A side divided by a stride, rounded up; in this form torch.export, too, knows what comes of it."""
    return (side - 1) // stride + 1


class VOLOBackbone(FeatureMaps, PreTrainedModel):
    """VOLO without its classifier; images have at least 32 x 32 pixels, and maps the sizes that `pad_input` tells.

    Args:
        config: the backbone's configuration.
    """

    config: VOLOConfig
    config_class = VOLOConfig
    timm_prefix: ClassVar[str] = ""  # our name of a tensor is this and timm's name
    _supports_sdpa = True
    _no_split_modules = ["Outlooker", "Transformer"]

    def __init__(self, config: VOLOConfig):
        super().__init__(config)
        self.num_features = [config.stem_channels, *config.hidden_sizes]
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(
            stem_conv=True,
            stem_stride=2,
            patch_size=PATCH_SIZE,
            in_chans=config.num_channels,
            hidden_dim=config.stem_channels,
            embed_dim=config.hidden_sizes[0],
        )
        stages = [build_stage(config, index) for index in range(len(config.depths))]
        # The original's numbering: outlookers, downsampling, transformers.
        self.network = nn.ModuleList(
            [stages[0], Downsample(config.hidden_sizes[0], config.hidden_sizes[1]), *stages[1:]]
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, *config.grid, config.hidden_sizes[-1]))
        # BatchNorm has normalised the stem's map.
        normalised = [name for name in self.out_features if name != "stem"] if config.tap_norm else []
        self.norms = nn.ModuleDict({name: nn.LayerNorm(self.out_feature_channels[name]) for name in normalised})
        self.post_init()

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        height, width = pixel_values.shape[-2:]
        if height < SMALLEST_IMAGE or width < SMALLEST_IMAGE:
            raise ValueError(
                f"pixel_values is {height} x {width} pixels; VOLO needs at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE}"
            )
        if not self.config.pad_input:
            return self.stage_maps(pixel_values)
        right, below = (parts_of(side, GRID_STRIDE) * GRID_STRIDE - side for side in (width, height))
        maps = self.stage_maps(F.pad(pixel_values, (0, right, 0, below)))
        # The stem and the outlookers have positions that lie entirely in the padding; stride 16 has none.
        strides = [2, PATCH_SIZE] + [GRID_STRIDE] * (len(maps) - 2)
        return [m[..., : parts_of(height, s), : parts_of(width, s)] for m, s in zip(maps, strides, strict=True)]

    def stage_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """One map (B, C, h, w) for the stem and each stage, of an image as it is."""
        assert self.patch_embed.conv is not None  # because of stem_conv
        stem = self.patch_embed.conv(pixel_values)
        tokens = self.patch_embed.proj(stem).permute(0, 2, 3, 1)  # (B, h, w, C) from here on
        outlookers, downsample, *transformers = self.network
        tokens = self.run_stage(outlookers, tokens)
        maps = [stem, tokens.permute(0, 3, 1, 2)]
        tokens = downsample(tokens)
        tokens = tokens + resize_position_embedding(self.pos_embed, tokens.shape[1:3])
        for stage in transformers:
            tokens = self.run_stage(stage, tokens)
            maps.append(tokens.permute(0, 3, 1, 2))
        return maps

    def fit_pretrained(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pretrained tensors by our names, with position embeddings of this backbone's grid."""
        rows_and_columns = (self.pos_embed.shape[1], self.pos_embed.shape[2])
        return {**tensors, "pos_embed": resize_position_embedding(tensors["pos_embed"], rows_and_columns)}

    def run_stage(self, stage: Any, tokens: torch.Tensor) -> torch.Tensor:
        """The stage's blocks one after the other, each with its own gradient checkpoint."""
        for block in stage:
            if self.gradient_checkpointing and self.training:
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        return tokens

    def returned_map(self, name: str, feature_map: torch.Tensor) -> torch.Tensor:
        """The map (B, C, h, w) after the LayerNorm over its channels, if it has one."""
        if name == "stem" or not self.config.tap_norm:
            return feature_map
        return self.norms[name](feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The original's: truncated normal for linear layers and positions, PyTorch's default for convolutions."""
        if module is self:
            init.trunc_normal_(self.pos_embed, std=0.02)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            super()._init_weights(module)


def build_stage(config: VOLOConfig, index: int) -> nn.Sequential:
    """The blocks of one stage: outlookers for `index` 0, else transformer blocks."""
    shared: dict[str, Any] = dict(
        index=index,
        dim=config.hidden_sizes[index],
        layers=config.depths,
        num_heads=config.num_heads[index],
        mlp_ratio=config.mlp_ratios[index],
        qkv_bias=config.qkv_bias,
    )
    if index == 0:
        blocks: Any = outlooker_blocks(Outlooker, **shared)  # in a Sequential, although the annotation says Module
        return blocks
    blocks = transformer_blocks(Transformer, drop_path_rate=config.drop_path_rate, **shared)
    for block in blocks:
        block.attn.fused_attn = config._attn_implementation != "eager"  # else torch's scaled_dot_product_attention
    return blocks


__all__ = ["VOLOBackbone"]
