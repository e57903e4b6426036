"""HFGD's extra encodings: what the backbone's last map passes before it is classified, or upsampled.

Each takes the map (batch, in_channels, h, w) and returns three things: the high-level features (batch, out_channels,
h, w); the features (batch, channels, h, w) that class-aware regularisation is computed of, or None; and coarse logits
(batch, num_labels, h, w) with a loss of their own, or None. The layers are those of the heads of CAR's authors, which
HFGD's paper names for its settings. Papers: see configuration_hfgd.py.
"""

from typing import Any

import torch
from torch import nn

from .attention import Projection, SelfAttention
from .configuration_hfgd import HFGDConfig, map_strides
from .layers import ConvNormAct, FCNHead, resize_concat
from .modeling_ocrnet import ObjectAttention, gather_regions


Encoded = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class Identity(nn.Module):
    """No context: an FCN's two convolutions where the result is classified, a projection where it is only upsampled.

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's last map.
    """

    def __init__(self, config: HFGDConfig, in_channels: int):
        super().__init__()
        width, out_channels = config.encoding_channels, config.high_level_channels
        if config.guidance or config.upsampler == "none":
            self.convs = nn.Sequential(ConvNormAct(in_channels, width, 3), ConvNormAct(width, out_channels))
        else:
            self.convs = nn.Sequential(ConvNormAct(in_channels, out_channels))

    def forward(self, feature_map: torch.Tensor) -> Encoded:
        return self.convs(feature_map), None, None


class SelfAttentionEncoding(nn.Module):
    """A 3x3 convolution, self-attention, and a last convolution (Wang et al., "Non-local Neural Networks", CVPR 2018).

    With CAR (Huang et al., ECCV 2022) the regularised features are those of a linear layer, and what follows it is a
    1x1 convolution.

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's last map.
    """

    def __init__(self, config: HFGDConfig, in_channels: int):
        super().__init__()
        width, out_channels = config.encoding_channels, config.high_level_channels
        with_car = config.extra_encoding == "sa_car"
        self.conv = ConvNormAct(in_channels, width, 3)
        self.attention = SelfAttention(width, config.key_channels)
        self.linear = Projection(width, width) if with_car else None
        self.out = ConvNormAct(width, out_channels, 1 if with_car else 3)

    def forward(self, feature_map: torch.Tensor) -> Encoded:
        features = self.attention(self.conv(feature_map))
        if self.linear is None:
            return self.out(features), None, None
        features = self.linear(features)
        return self.out(features), features, None


class ContextAugmentedEncoder(nn.Module):
    """CAE: a wide linear layer, a narrow one, self-attention with CAR, and a trailing convolution (section 3.2).

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's last map.
    """

    def __init__(self, config: HFGDConfig, in_channels: int):
        super().__init__()
        layer = ConvNormAct if config.linear_activation else Projection
        wide, width = config.wide_channels, config.encoding_channels
        self.wide_linear = layer(in_channels, wide)
        self.narrow_linear = layer(wide, width)
        self.attention = SelfAttention(width, config.key_channels)
        self.linear = Projection(width, width)
        self.out = ConvNormAct(width, config.high_level_channels)

    def forward(self, feature_map: torch.Tensor) -> Encoded:
        features = self.attention(self.narrow_linear(self.wide_linear(feature_map)))
        features = self.linear(features)  # (B, encoding_channels, h, w)
        return self.out(features), features, None


class AtrousPyramid(nn.Module):
    """ASPP: a 1x1 convolution, dilated ones of three reaches, and the mean.

    DeepLabV3's (Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017) as CAR's authors
    have it: the dilations are 3, 6 and 9 at stride 32 and reach as many pixels at others; the last convolution is 1x1.

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's last map.
    """

    def __init__(self, config: HFGDConfig, in_channels: int):
        super().__init__()
        width, factor = config.high_level_channels, max(1, 32 // last_stride(config.backbone_config))
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, width))
        self.branches = nn.ModuleList(
            [ConvNormAct(in_channels, width)]
            + [ConvNormAct(in_channels, width, 3, dilation * factor) for dilation in (3, 6, 9)]
        )
        self.out = ConvNormAct(5 * width, width)

    def forward(self, feature_map: torch.Tensor) -> Encoded:
        branches = [branch(feature_map) for branch in self.branches]
        mean = self.image_pool(feature_map).expand_as(branches[0])  # what resizing a 1x1 map gives
        return self.out(torch.cat([mean, *branches], dim=1)), None, None


class ObjectContext(nn.Module):
    """OCR: every place attends to the mean features of soft regions, one for each class (Yuan et al., ECCV 2020).

    As CAR's authors have it, the coarse head that tells the regions reads the same map. Their code also swaps regions
    and channels before the attention; here it is the paper's.

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's last map.
    """

    def __init__(self, config: HFGDConfig, in_channels: int):
        super().__init__()
        width = config.encoding_channels
        assert config.num_labels is not None  # id2label has a default
        self.coarse_head = FCNHead(in_channels, in_channels, config.num_labels, dropout=config.classifier_dropout)
        self.pixel_conv = ConvNormAct(in_channels, width, 3)
        self.attention = ObjectAttention(width, max(1, width // 2), config.high_level_channels)

    def forward(self, feature_map: torch.Tensor) -> Encoded:
        coarse_logits = self.coarse_head(feature_map)  # (B, K, h, w): always, because the regions follow from it
        pixels = self.pixel_conv(feature_map)  # (B, encoding_channels, h, w)
        return self.attention(pixels, gather_regions(pixels, coarse_logits)), None, coarse_logits


class PyramidPooling(nn.Module):
    """PPM: the means over grids of 1, 2, 3 and 6 cells a side beside the map, and a 3x3 convolution.

    PSPNet's (Zhao et al., CVPR 2017), every grid's features as wide as in UperNet (Xiao et al., ECCV 2018).

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's last map.
    """

    def __init__(self, config: HFGDConfig, in_channels: int):
        super().__init__()
        width = config.encoding_channels
        self.align_corners = config.align_corners
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(in_channels, width)) for scale in (1, 2, 3, 6)
        )
        self.out = ConvNormAct(in_channels + 4 * width, config.high_level_channels, 3)

    def forward(self, feature_map: torch.Tensor) -> Encoded:
        pooled = [pool(feature_map) for pool in self.pools]
        return self.out(resize_concat([feature_map, *pooled], self.align_corners)), None, None


def last_stride(backbone_config: Any) -> int:
    """Pixels per place of the backbone's last map; 32 if its configuration does not tell."""
    strides = map_strides(backbone_config)
    return strides[-1] if strides else getattr(backbone_config, "output_stride", None) or 32


ENCODINGS: dict[str, type[nn.Module]] = {
    "identity": Identity,
    "aspp": AtrousPyramid,
    "ocr": ObjectContext,
    "sa": SelfAttentionEncoding,
    "sa_car": SelfAttentionEncoding,
    "cae": ContextAugmentedEncoder,
    "ppm": PyramidPooling,
}


def build_encoding(config: HFGDConfig, in_channels: int) -> nn.Module:
    """The configured encoding of a map of `in_channels`."""
    return ENCODINGS[config.extra_encoding](config, in_channels)


__all__ = ["build_encoding"]
