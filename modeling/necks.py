"""Necks: what lies between a backbone and the decode heads."""

from collections.abc import Sequence

import torch
from torch import nn

from .layers import ConvNormAct, resize


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with BatchNorm and ReLU.

    Args:
        in_channels: channels read.
        out_channels: channels written, by both.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3))


class UNetNeck(nn.Module):
    """U-Net decoder for a backbone with maps at strides 2, 8 and 16, such as VOLO.

    From stride 16 the map grows to 8, joined by the backbone's map there; to 4, where the backbone has none; and to 2,
    joined by the stem's. Source: BetterThing (see configuration_volo.py), sections 3.3 and 3.5, which say no more than
    that a U-Net combines "the last 3 output feature maps" and leads from 32x32 to 256x256. Reading the three
    resolutions that VOLO has, double convolutions as in Ronneberger et al. 2015 ("U-Net"), and bilinear resizing are
    this package's choices.

    Args:
        in_channels: channels of the maps at strides 2, 8 and 16.
        channels: widths at strides 8, 4 and 2; the last one is not used when `out_stride` is 4.
        out_stride: 2 or 4; the stride of the result.
        align_corners: how maps are resized.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: Sequence[int] = (512, 256, 256),
        out_stride: int = 2,
        align_corners: bool = False,
    ):
        super().__init__()
        if len(in_channels) != 3 or len(channels) != 3 or out_stride not in (2, 4):
            raise ValueError(
                f"UNetNeck(in_channels={list(in_channels)}, channels={list(channels)}, out_stride={out_stride}): "
                "expected three channels (strides 2, 8, 16), three widths (strides 8, 4, 2), and out_stride 2 or 4"
            )
        in_2, in_8, in_16 = in_channels
        width_8, width_4, width_2 = channels
        self.out_channels = width_2 if out_stride == 2 else width_4
        self.align_corners = align_corners
        self.conv_8 = DoubleConv(in_16 + in_8, width_8)
        self.conv_4 = DoubleConv(width_8, width_4)
        self.conv_2 = DoubleConv(width_4 + in_2, width_2) if out_stride == 2 else None

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine the maps.

        Args:
            feature_maps: three, each (batch, channels, h, w), at strides 2, 8 and 16.

        Returns:
            (batch, out_channels, h, w) of the size of the first map, or half of it (rounded up) for `out_stride` 4.
        """
        map_2, map_8, map_16 = feature_maps
        height, width = map_2.shape[-2:]
        features = self.conv_8(torch.cat([resize(map_16, map_8.shape[-2:], self.align_corners), map_8], dim=1))
        features = self.conv_4(resize(features, ((height + 1) // 2, (width + 1) // 2), self.align_corners))
        if self.conv_2 is None:
            return features
        return self.conv_2(torch.cat([resize(features, (height, width), self.align_corners), map_2], dim=1))
