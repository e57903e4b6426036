"""Layers that several models share."""

import torch
from torch import nn
from torch.nn import functional as F

from .dense import bilinear_weights


SHORTEST = 1e-3  # length of a vector in a cosine at least; its inverse bounds the gradient of features that are all 0


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


class PixelClassifier(nn.Conv2d):
    """The last layer of a head: a 1x1 convolution, or the cosine between a pixel's features and each class's weight.

    With a cosine, logit_y = scale * <w_y, f> / (|w_y| |f|), without bias: neither a class whose weight has grown long
    nor a pixel with large features stands out by that (Zhuang et al., "5th Place Solution for VSPW 2021", eq. 2).
    The weight has the same name and shape either way. In float16 features can be 65,504 long at most.

    Args:
        in_channels: channels read.
        num_labels: classes.
        cosine_scale: factor of the cosines, above 0; None for a plain convolution with a bias.
        dropout: probability of dropping a channel in training; for heads that have no dropout layer themselves.
    """

    def __init__(self, in_channels: int, num_labels: int, cosine_scale: float | None = None, dropout: float = 0.0):
        super().__init__(in_channels, num_labels, kernel_size=1, bias=cosine_scale is None)
        self.cosine_scale = cosine_scale
        self.dropout = dropout

    def forward(self, input: torch.Tensor, stop_gradient: bool = False) -> torch.Tensor:
        """Logits (batch, num_labels, h, w); with `stop_gradient` the classifier does not learn from them."""
        if self.dropout:
            input = F.dropout2d(input, self.dropout, self.training)
        weight, bias = self.weight, self.bias
        if stop_gradient:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        if self.cosine_scale is None:
            return F.conv2d(input, weight, bias)
        # The products in the model's precision, the lengths in fp32. Dividing products by them instead of features
        # saves a second map of all channels.
        precise = torch.promote_types(weight.dtype, torch.float32)
        normalised = F.normalize(weight.to(precise), dim=1, eps=SHORTEST)
        products = F.conv2d(input, normalised.to(weight.dtype))  # (B, K, h, w)
        lengths = torch.linalg.vector_norm(input, dim=1, keepdim=True, dtype=precise)  # (B, 1, h, w)
        return (products * (self.cosine_scale / lengths.clamp(min=SHORTEST))).to(products.dtype)


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
        cosine_scale: of the classifier, see `PixelClassifier`.
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
        cosine_scale: float | None = None,
    ):
        super().__init__()
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.Sequential(
            *[ConvNormAct(a, b, kernel_size) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.merge = ConvNormAct(in_channels + channels, channels, kernel_size) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = PixelClassifier(channels, num_labels, cosine_scale)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output = self.convs(features)  # (B, channels, h, w)
        if self.merge is not None:
            output = self.merge(torch.cat([features, output], dim=1))
        return self.classifier(self.dropout(output))  # (B, num_labels, h, w)


def same_size(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two maps have one size; while a model is exported for all sizes, whether they always have."""
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import, and rarely needed

        return all(statically_known_true(a == b) for a, b in zip(one, other, strict=True))
    return one == other


def resize(features: torch.Tensor, size: tuple[int, ...], align_corners: bool = False) -> torch.Tensor:
    """Resize a map (batch, channels, h, w) bilinearly to `size`, if it has another."""
    if same_size(features.shape[-2:], size):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)


def resize_concat(feature_maps: list[torch.Tensor], align_corners: bool = False) -> torch.Tensor:
    """Resize maps (batch, c_i, h_i, w_i) bilinearly to the first and concatenate: (batch, sum c_i, h_0, w_0)."""
    resized = [resize(m, feature_maps[0].shape[-2:], align_corners) for m in feature_maps]
    return resized[0] if len(resized) == 1 else torch.cat(resized, dim=1)


class ResizedConv2d(nn.Conv2d):
    """A 3x3 convolution, without bias, of maps that are resized to the first one and concatenated, without doing so.

    Equal to `conv(resize_concat(feature_maps))`, up to rounding. Convolving and resizing are linear, so every map is
    convolved along its rows while it still has few of them, once for each row of the kernel; resizing the results to
    all rows, shifted by the kernel's row, is one matrix product. For a pyramid of strides 4, 8, 16, 32 that is less
    than half of the arithmetic, and the concatenated map, the largest tensor of a head, does not exist.

    Args:
        in_channels: channels of all maps together.
        out_channels: channels written.
        align_corners: how maps are resized.
    """

    def __init__(self, in_channels: int, out_channels: int, align_corners: bool = False):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.align_corners = align_corners

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Convolve maps (batch, c_i, h_i, w_i), c_i adding up to `in_channels`: (batch, out_channels, h_0, w_0)."""
        first, *others = feature_maps
        kernel, *kernels = self.weight.split([m.shape[1] for m in feature_maps], dim=1)
        output = F.conv2d(first, kernel, padding=1)
        for feature_map, kernel in zip(others, kernels, strict=True):
            if same_size(feature_map.shape[-2:], first.shape[-2:]):
                output = output + F.conv2d(feature_map, kernel, padding=1)
            else:
                output = output + self.convolve_resized(feature_map, kernel, first.shape[-2:])
        return output

    def convolve_resized(self, feature_map: torch.Tensor, kernel: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Convolve one map (batch, c, h, w), as if resized to (H, W), with a kernel (out_channels, c, 3, 3)."""
        height, (new_height, new_width) = feature_map.shape[-2], size
        wide = resize(feature_map, (height, new_width), self.align_corners)  # (B, c, h, W)
        by_row = kernel.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (out * 3, c, 1, 3)
        products = F.conv2d(wide, by_row, padding=(0, 1))  # (B, out * 3, h, W)
        products = products.unflatten(1, (-1, 3)).flatten(2, 3)  # (B, out, 3 * h, W)

        precise = torch.empty(0, dtype=torch.promote_types(products.dtype, torch.float32), device=products.device)
        weights = bilinear_weights(height, new_height, self.align_corners, precise)  # (H, h)
        # What the kernel's row i reads: the row i - 1 below; 0 outside of the map.
        padded = F.pad(weights, (0, 0, 1, 1))
        weights = torch.cat([padded[i : i + new_height] for i in range(3)], dim=1)  # (H, 3 * h)
        return weights.to(products.dtype) @ products
