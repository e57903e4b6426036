"""Feature alignment: an earlier map tells a coarser one, brought to its size, where each place should have been read.

Paper: Huang et al., "FaPN: Feature-aligned Pyramid Network for Dense Image Prediction", ICCV 2021 (sections 3.2, 3.3).
What differs from its own code is as in the library of HFGD's authors: the gate has two convolutions, and all channels
move together (one deformable group, not eight).
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d, deform_conv2d
from transformers.utils.generic import maybe_autocast

from .layers import resize


PLACES = 9  # that a 3x3 kernel reads


class PlainConv(nn.Conv2d):
    """A 1x1 convolution without bias or norm: a class of its own, because it starts from other weights.

    Args:
        in_channels: channels read.
        out_channels: channels written.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False)


class FeatureSelection(nn.Module):
    """Raises the channels of a map that matter, by its mean over the image, and projects it (FSM).

    Args:
        in_channels: channels of the map.
        channels: channels written.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            PlainConv(in_channels, in_channels),
            nn.ReLU(inplace=True),
            PlainConv(in_channels, in_channels),
            nn.Sigmoid(),
        )
        self.project = PlainConv(in_channels, channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.project(feature_map + feature_map * self.gate(feature_map))


class DeformableConv(DeformConv2d):
    """A 3x3 convolution whose nine places move, and count more or less, as another map tells (Zhu et al., "Deformable
    ConvNets v2", CVPR 2019).

    In a model, what tells starts from zeros: no place moves, and each counts half. Places and samples are float32 also
    under autocast and in a model of half precision: bfloat16 has no names for the columns of a wide map, and
    torchvision no kernel for it on the CPU.

    Args:
        channels: channels of both maps, and channels written.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.offset = nn.Conv2d(channels, 3 * PLACES, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        """Features (batch, channels, h, w), and the map of this size that tells: (batch, channels, h, w)."""
        precise = torch.promote_types(features.dtype, torch.float32)
        weight, offset_weight = self.weight.to(precise), self.offset.weight.to(precise)
        assert self.bias is not None and self.offset.bias is not None
        bias, offset_bias = self.bias.to(precise), self.offset.bias.to(precise)
        with maybe_autocast(features.device.type, enabled=False):  # unlike torch.autocast also on the meta device
            told = F.conv2d(guide.to(precise), offset_weight, offset_bias, padding=1)
            offset, mask = told.split([2 * PLACES, PLACES], dim=1)  # (y, x) in pixels, and a weight, of each place
            output = deform_conv2d(features.to(precise), offset, weight, bias, padding=(1, 1), mask=mask.sigmoid())
        return output.to(features.dtype)


class FeatureAlignment(nn.Module):
    """One step down a pyramid: a coarser level, aligned with an earlier map and added to it (FAM).

    Args:
        in_channels: channels of the earlier map.
        channels: channels of the levels.
        align_corners: how the coarser level is resized.
    """

    def __init__(self, in_channels: int, channels: int, align_corners: bool):
        super().__init__()
        self.select = FeatureSelection(in_channels, channels)
        self.guide = PlainConv(2 * channels, channels)
        self.align = DeformableConv(channels)
        self.align_corners = align_corners

    def forward(self, feature_map: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The level of the earlier map's size, (batch, channels, h, w)."""
        selected = self.select(feature_map)
        level = resize(level, selected.shape[-2:], self.align_corners)
        guide = self.guide(torch.cat([selected, 2 * level], dim=1))
        return self.align(level, guide).relu() + selected


__all__ = ["DeformableConv", "FeatureAlignment", "PlainConv"]
