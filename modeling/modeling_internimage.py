"""InternImage: stages of residual blocks, each a deformable convolution (DCNv3) and a perceptron.

    image -> stem (stride 4) -> stage1 -> downsample -> stage2 -> downsample -> stage3 -> downsample -> stage4
                                  |                       |                       |                       |
                                  v stride 4              v 8                     v 16                    v 32

Paper: see configuration_internimage.py. Letters: B batch, C channels, H and W the map's size. Between the convolutions
maps are (B, H, W, C), because norms, linear layers and DCNv3 work on the last axis. Every stride 2 rounds up.
"""

import torch
from timm.layers import DropPath, Mlp
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_internimage import InternImageConfig
from .dcnv3 import DCNv3
from .feature_maps import FeatureMaps


EPS = 1e-6  # of every LayerNorm


class InternImageStem(nn.Module):
    """Image (B, 3, H, W) to (B, H / 4, W / 4, C) in two convolutions of stride 2.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(channels // 2, eps=EPS)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.act(self.norm1(self.conv1(pixel_values).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class InternImageDownsample(nn.Module):
    """(B, H, W, C) to (B, H / 2, W / 2, 2C).

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels, eps=EPS)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class InternImageBlock(GradientCheckpointingLayer):
    """Two residual branches, DCNv3 and a perceptron, normalised before, after or on both sides of the branch.

    Args:
        config: the backbone's configuration.
        channels: C.
        groups: of the deformable convolution.
        drop_path: probability of skipping a branch in training.
    """

    def __init__(self, config: InternImageConfig, channels: int, groups: int, drop_path: float):
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.dcn = DCNv3(
            channels,
            groups,
            dw_kernel_size=config.dw_kernel_size,
            offset_scale=config.offset_scale,
            center_feature_scale=config.center_feature_scale,
        )
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = Mlp(channels, int(channels * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.res_post_norm1 = nn.LayerNorm(channels, eps=EPS) if config.res_post_norm else nn.Identity()
        self.res_post_norm2 = nn.LayerNorm(channels, eps=EPS) if config.res_post_norm else nn.Identity()
        self.layer_scale1 = self.layer_scale2 = None
        if config.layer_scale is not None:
            self.layer_scale1 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
            self.layer_scale2 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.post_norm:
            branch1 = self.norm1(self.dcn(hidden_states))
        else:
            branch1 = self.res_post_norm1(self.dcn(self.norm1(hidden_states)))
        hidden_states = hidden_states + self.drop_path(scaled(branch1, self.layer_scale1))
        if self.post_norm:
            branch2 = self.norm2(self.mlp(hidden_states))
        else:
            branch2 = self.res_post_norm2(self.mlp(self.norm2(hidden_states)))
        return hidden_states + self.drop_path(scaled(branch2, self.layer_scale2))


def scaled(branch: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """A branch (..., C) times its factors (C,), if it has any."""
    return branch if factor is None else branch * factor


class InternImageStage(nn.Module):
    """Blocks at one resolution.

    Args:
        config: the backbone's configuration.
        index: which stage, from 0.
    """

    def __init__(self, config: InternImageConfig, index: int):
        super().__init__()
        channels, first, total = config.widths[index], sum(config.depths[:index]), sum(config.depths)
        self.blocks = nn.ModuleList(
            InternImageBlock(
                config,
                channels,
                config.groups[index],
                drop_path=config.drop_path_rate * (first + block) / max(total - 1, 1),
            )
            for block in range(config.depths[index])
        )
        self.post_norm_block_ids = list(config.level2_post_norm_block_ids or ()) if index == 2 else []
        self.post_norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPS) for _ in self.post_norm_block_ids)
        # With post_norm every branch ends normalised already; G, with centre features, has this norm all the same.
        ends_with_norm = not config.post_norm or config.center_feature_scale
        self.norm = nn.LayerNorm(channels, eps=EPS) if ends_with_norm else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if index in self.post_norm_block_ids:
                hidden_states = self.post_norms[self.post_norm_block_ids.index(index)](hidden_states)
        return self.norm(hidden_states)


class InternImageBackbone(FeatureMaps, PreTrainedModel):
    """InternImage without its classifier; images have three channels.

    Args:
        config: the backbone's configuration.
    """

    config: InternImageConfig
    config_class = InternImageConfig
    base_model_prefix = "internimage"
    _no_split_modules = ["InternImageBlock"]

    def __init__(self, config: InternImageConfig):
        super().__init__(config)
        self.num_features = [config.channels, *config.widths]
        self.stem = InternImageStem(config.channels)
        self.stages = nn.ModuleList(InternImageStage(config, index) for index in range(len(config.depths)))
        self.downsamples = nn.ModuleList(InternImageDownsample(width) for width in config.widths[:-1])
        self.post_init()

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        hidden_states = self.stem(pixel_values)
        maps = [hidden_states]
        for index, stage in enumerate(self.stages):
            hidden_states = stage(self.downsamples[index - 1](hidden_states) if index else hidden_states)
            maps.append(hidden_states)
        return [map_.permute(0, 3, 1, 2).contiguous() for map_ in maps]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The perceptrons' own start, as in the original; convolutions, norms and DCNv3's layers know theirs."""
        if type(module) is nn.Linear:  # DCNv3's are subclasses
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.Linear)):
            module.reset_parameters()
        elif isinstance(module, InternImageBlock) and self.config.layer_scale is not None:
            for factors in (module.layer_scale1, module.layer_scale2):
                assert factors is not None  # as the configuration has them
                init.constant_(factors, self.config.layer_scale)


__all__ = ["InternImageBackbone"]
