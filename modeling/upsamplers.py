"""HFGD's upsamplers: from the high-level features and the backbone's earlier maps to features of stride 4 or 2.

Each takes the earlier maps, the finest first, and the high-level features (batch, channels, h/32, w/32), and returns
features (batch, channels, h/4, w/4), or of stride 2. Papers: see configuration_hfgd.py.
"""

import torch
from torch import nn

from .configuration_hfgd import HFGDConfig
from .feature_alignment import FeatureAlignment
from .layers import BatchNorm2d, ConvNormAct, ResizedConv2d, resize


class Doubling(nn.Module):
    """A 3x3 convolution, and a map of twice the size, or of `size`.

    Args:
        channels: width.
        align_corners: how the map is resized.
    """

    def __init__(self, channels: int, align_corners: bool):
        super().__init__()
        self.conv = ConvNormAct(channels, channels, 3)
        self.align_corners = align_corners

    def forward(self, features: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
        return resize(self.conv(features), size, self.align_corners)


class SemanticBranches(nn.Module):
    """Brings every level to the output's size, convolving and doubling it by turns; adds them up; a last convolution.

    The finest level has one convolution, and the others one before each doubling. At stride 2 every branch has one
    convolution and doubling more (section 3.3; the finest level's own convolution stays).

    Args:
        config: the model's configuration.
        out_kernel_size: of the last convolution.
    """

    def __init__(self, config: HFGDConfig, out_kernel_size: int = 1):
        super().__init__()
        channels, align_corners = config.channels, config.align_corners
        self.align_corners = align_corners
        self.doubles_again = config.output_stride == 2
        self.finest = ConvNormAct(channels, channels, 3)
        self.branches = nn.ModuleList(
            nn.ModuleList(Doubling(channels, align_corners) for _ in range(doublings + self.doubles_again))
            for doublings in range(4)
        )
        self.out = ConvNormAct(channels, channels, out_kernel_size)

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """Levels (batch, channels, h, w) at strides 4, 8, 16 and 32: (batch, channels, h, w) at 4 or 2."""
        sizes = [tuple(level.shape[-2:]) for level in levels]
        if self.doubles_again:
            height, width = sizes[0]
            sizes = [self.size_of_stride_2(*sizes[0]), *sizes]
        total = None
        for index, (branch, level) in enumerate(zip(self.branches, levels, strict=True)):
            features = self.finest(level) if index == 0 else level
            doublings = list(branch.children())
            # From the level's own size to the finer levels', one after the other.
            for double, size in zip(doublings, reversed(sizes[: len(doublings)]), strict=True):
                features = double(features, size)
            total = features if total is None else total + features
        return self.out(total)

    def size_of_stride_2(self, height: int, width: int) -> tuple[int, int]:
        """Twice a size; where corners are aligned, as 257 is of 129 (strides 2 and 4 of 513 pixels)."""
        less = 1 if self.align_corners else 0
        return 2 * height - less, 2 * width - less


class SemanticFPN(nn.Module):
    """A feature pyramid, and a branch for each of its levels (Kirillov et al., "Panoptic Feature Pyramid Networks").

    The high-level features are the top level, as they are. U-SFPN, the paper's (section 3.3), convolves the earlier
    maps with 3x3 kernels instead of 1x1; both are 256 channels wide throughout. That its last convolution is 3x3, too,
    follows from nothing but Table 9: with it the multiply-accumulates are the paper's within 3 % at both strides.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: HFGDConfig, channels: list[int]):
        super().__init__()
        kernel_size = 3 if config.upsampler == "usfpn" else 1
        self.lateral = nn.ModuleList(ConvNormAct(width, config.channels, kernel_size) for width in channels[:-1])
        self.branches = SemanticBranches(config, kernel_size)
        self.align_corners = config.align_corners

    def forward(self, earlier_maps: list[torch.Tensor], high_level: torch.Tensor) -> torch.Tensor:
        laterals = [lateral(m) for lateral, m in zip(self.lateral, earlier_maps, strict=True)]
        return self.branches(add_top_down(laterals, high_level, self.align_corners))


class FaPN(nn.Module):
    """As Semantic FPN, but every level is aligned with the earlier map before it is added (see FeatureAlignment).

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: HFGDConfig, channels: list[int]):
        super().__init__()
        self.alignments = nn.ModuleList(
            FeatureAlignment(width, config.channels, config.align_corners) for width in channels[:-1]
        )
        self.branches = SemanticBranches(config)

    def forward(self, earlier_maps: list[torch.Tensor], high_level: torch.Tensor) -> torch.Tensor:
        levels = [high_level]
        for alignment, feature_map in zip(reversed(self.alignments), reversed(earlier_maps), strict=True):
            levels.insert(0, alignment(feature_map, levels[0]))
        return self.branches(levels)


class UperNet(nn.Module):
    """A feature pyramid, a 3x3 convolution of each level, and one of all levels at the finest size (Xiao et al. 2018).

    The high-level features are the top level, as they are: UperNet's own pyramid pooling is the encoding `"ppm"`.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: HFGDConfig, channels: list[int]):
        super().__init__()
        width, align_corners = config.channels, config.align_corners
        self.align_corners = align_corners
        self.lateral = nn.ModuleList(ConvNormAct(in_channels, width) for in_channels in channels[:-1])
        self.convs = nn.ModuleList(ConvNormAct(width, width, 3) for _ in channels[:-1])
        self.merge = nn.Sequential(
            ResizedConv2d(len(channels) * width, width, align_corners), BatchNorm2d(width), nn.ReLU(inplace=True)
        )

    def forward(self, earlier_maps: list[torch.Tensor], high_level: torch.Tensor) -> torch.Tensor:
        laterals = [lateral(m) for lateral, m in zip(self.lateral, earlier_maps, strict=True)]
        *levels, top = add_top_down(laterals, high_level, self.align_corners)
        return self.merge([*(conv(level) for conv, level in zip(self.convs, levels, strict=True)), top])


class DeepLabV3Plus(nn.Module):
    """The first map, narrowed, beside the high-level features, and two convolutions (Chen et al., ECCV 2018).

    DeepLabV3+'s own pyramid pooling is the encoding `"aspp"`. The convolutions are plain ones, as in the library of
    HFGD's authors.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: HFGDConfig, channels: list[int]):
        super().__init__()
        width, early = config.channels, config.low_level_channels
        self.align_corners = config.align_corners
        self.low_level = ConvNormAct(channels[0], early)
        self.refine = nn.Sequential(ConvNormAct(early + width, width, 3), ConvNormAct(width, width, 3))

    def forward(self, earlier_maps: list[torch.Tensor], high_level: torch.Tensor) -> torch.Tensor:
        early = self.low_level(earlier_maps[0])
        high_level = resize(high_level, early.shape[-2:], self.align_corners)
        return self.refine(torch.cat([early, high_level], dim=1))


def add_top_down(laterals: list[torch.Tensor], top: torch.Tensor, align_corners: bool) -> list[torch.Tensor]:
    """A pyramid's levels (batch, channels, h, w), the finest first: each lateral plus the level above it, resized."""
    levels = [top]
    for lateral in reversed(laterals):
        levels.insert(0, lateral + resize(levels[0], lateral.shape[-2:], align_corners))
    return levels


UPSAMPLERS: dict[str, type[nn.Module]] = {
    "semantic_fpn": SemanticFPN,
    "usfpn": SemanticFPN,
    "fapn": FaPN,
    "upernet": UperNet,
    "deeplabv3plus": DeepLabV3Plus,
}


def build_upsampler(config: HFGDConfig, channels: list[int]) -> nn.Module | None:
    """The configured upsampler on maps of these widths; None for `"none"`."""
    return None if config.upsampler == "none" else UPSAMPLERS[config.upsampler](config, channels)


__all__ = ["build_upsampler"]
