"""HFGD's extra encodings: what the backbone's last map passes before it is classified, or upsampled.

Each takes the map (batch, in_channels, h, w) and returns three things: the high-level features (batch, out_channels,
h, w); the features (batch, channels, h, w) that class-aware regularisation is computed of, or None; and coarse logits
(batch, num_labels, h, w) with a loss of their own, or None. The layers are those of the heads of CAR's authors, which
HFGD's paper names for its settings. Papers: see configuration_hfgd.py.
"""

import torch
from torch import nn

from .attention import Projection, SelfAttention
from .configuration_hfgd import HFGDConfig
from .layers import ConvNormAct


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


ENCODINGS: dict[str, type[nn.Module]] = {
    "identity": Identity,
    "sa": SelfAttentionEncoding,
    "sa_car": SelfAttentionEncoding,
    "cae": ContextAugmentedEncoder,
}


def build_encoding(config: HFGDConfig, in_channels: int) -> nn.Module:
    """The configured encoding of a map of `in_channels`."""
    return ENCODINGS[config.extra_encoding](config, in_channels)


__all__ = ["build_encoding"]
