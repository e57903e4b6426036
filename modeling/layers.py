"""Layers that several models share."""

import torch
from torch import nn
from torch.nn import functional as F


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that trains on a single value per channel, too: a globally pooled map, or a 1x1 map of a small image.

    One value has no variance, so torch refuses it. The running statistics stand in, as they do in evaluation.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU; keeps the map's size, or divides it by `stride`, rounding up.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        kernel_size: odd.
        dilation: distance between the kernel's samples.
        groups: groups of channels that do not mix; `in_channels` for a depthwise convolution.
        stride: distance between the kernel's places.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        groups: int = 1,
        stride: int = 1,
    ):
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False),
            BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SeparableConvNormAct(nn.Sequential):
    """A 3x3 convolution of each channel alone, then a 1x1 convolution across channels, each with BatchNorm and ReLU.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        dilation: distance between the samples of the 3x3 kernels.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1):
        super().__init__(
            ConvNormAct(in_channels, in_channels, 3, dilation=dilation, groups=in_channels),
            ConvNormAct(in_channels, out_channels),
        )


class FCNHead(nn.Module):
    """Convolutions and a classifier on one map (Long et al., "Fully Convolutional Networks", CVPR 2015).

    Args:
        in_channels: channels of the map.
        channels: width of the convolutions.
        num_labels: classes.
        num_convs: convolutions before the classifier, at least 1.
        kernel_size: of the convolutions, odd.
        concat_input: one more convolution reads the map beside the output of the others.
        dropout: probability of dropping whole channels before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_labels: int,
        *,
        num_convs: int = 1,
        kernel_size: int = 3,
        concat_input: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.Sequential(
            *[ConvNormAct(a, b, kernel_size) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.merge = ConvNormAct(in_channels + channels, channels, kernel_size) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_labels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output = self.convs(features)  # (B, channels, h, w)
        if self.merge is not None:
            output = self.merge(torch.cat([features, output], dim=1))
        return self.classifier(self.dropout(output))  # (B, num_labels, h, w)


def resize(features: torch.Tensor, size: tuple[int, ...], align_corners: bool = False) -> torch.Tensor:
    """Resize a map (batch, channels, h, w) bilinearly to `size`, if it has another."""
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)


def resize_concat(feature_maps: list[torch.Tensor], align_corners: bool = False) -> torch.Tensor:
    """Resize maps (batch, c_i, h_i, w_i) bilinearly to the first and concatenate: (batch, sum c_i, h_0, w_0)."""
    resized = [resize(m, feature_maps[0].shape[-2:], align_corners) for m in feature_maps]
    return resized[0] if len(resized) == 1 else torch.cat(resized, dim=1)
