r"""Semantic FPN: a feature pyramid, every level upsampled to the finest and added.

    maps --> FeaturePyramid: 1x1 convs, (+ next level upsampled, nearest), 3x3 convs --> levels
    level at stride 4 * 2^n --> n times (3x3 conv, BatchNorm, ReLU, 2x bilinear) --> sum over levels --> logits

Paper: see configuration_semantic_fpn.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_semantic_fpn import SemanticFPNConfig
from .layers import ConvNormAct, PixelClassifier, resize
from .modeling_auxiliary import AuxiliarySegmenterModel


class PyramidConv(nn.Conv2d):
    """A convolution with a bias that is no classifier: a class of its own, because it starts from other weights."""


class FeaturePyramid(nn.Module):
    """A top-down pathway with lateral connections (Lin et al., "Feature Pyramid Networks", CVPR 2017); no norms.

    Args:
        in_channels: channels of the maps, the finest map first.
        channels: width of every level.
    """

    def __init__(self, in_channels: list[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(PyramidConv(width, channels, 1) for width in in_channels)
        self.out = nn.ModuleList(PyramidConv(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        levels = [lateral(m) for lateral, m in zip(self.lateral, feature_maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            above = F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
            levels[i - 1] = levels[i - 1] + above
        return [out(level) for out, level in zip(self.out, levels, strict=True)]


class ScaleBranch(nn.Module):
    """Brings one level to the finest level's size, 2x at a time.

    Args:
        in_channels: channels of the level.
        channels: width.
        doublings: how many times; with 0 there is one convolution all the same.
        align_corners: how maps are resized.
    """

    def __init__(self, in_channels: int, channels: int, doublings: int, align_corners: bool):
        super().__init__()
        self.doublings = doublings
        self.align_corners = align_corners
        widths = [in_channels] + [channels] * max(1, doublings)
        self.convs = nn.ModuleList(ConvNormAct(a, b, 3) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, level: torch.Tensor, size: torch.Size) -> torch.Tensor:
        for conv in self.convs:
            level = conv(level)
            if self.doublings:
                height, width = level.shape[-2:]
                level = resize(level, (2 * height, 2 * width), self.align_corners)
        return resize(level, size, self.align_corners)  # twice a size that was rounded up is too large


class SemanticFPNHead(nn.Module):
    """The feature pyramid, its branches, and a classifier on their sum.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: SemanticFPNConfig, channels: list[int]):
        super().__init__()
        self.pyramid = FeaturePyramid(channels, config.pyramid_channels)
        doublings = [int(math.log2(stride // config.feature_strides[0])) for stride in config.feature_strides]
        self.branches = nn.ModuleList(
            ScaleBranch(config.pyramid_channels, config.channels, times, config.align_corners) for times in doublings
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = PixelClassifier(config.channels, config.num_labels, config.cosine_scale)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        levels = self.pyramid(feature_maps)
        size = levels[0].shape[-2:]
        total = sum(branch(level, size) for branch, level in zip(self.branches, levels, strict=True))
        return self.classifier(self.dropout(total))  # (B, K, h, w)


class SemanticFPNForSemanticSegmentation(AuxiliarySegmenterModel):
    """Semantic FPN with its loss; `logits` have the stride of the backbone's first map.

    Args:
        config: the model's configuration.
    """

    config: SemanticFPNConfig
    config_class = SemanticFPNConfig

    def __init__(self, config: SemanticFPNConfig):
        super().__init__(config)
        self.decode_head = SemanticFPNHead(config, self.backbone.channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The pyramid's convolutions as in the original (Glorot and Bengio 2010)."""
        if isinstance(module, PyramidConv):
            init.xavier_uniform_(module.weight)
            assert module.bias is not None
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


__all__ = ["SemanticFPNForSemanticSegmentation"]
