"""Layers that several decode heads share."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU; keeps the map's size.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        kernel_size: odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def resize_concat(feature_maps: list[torch.Tensor], align_corners: bool = False) -> torch.Tensor:
    """Resize maps (batch, c_i, h_i, w_i) bilinearly to the first and concatenate: (batch, sum c_i, h_0, w_0)."""
    size = feature_maps[0].shape[-2:]
    resized = [
        m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="bilinear", align_corners=align_corners)
        for m in feature_maps
    ]
    return resized[0] if len(resized) == 1 else torch.cat(resized, dim=1)
