"""Attention over places of a map that never keeps a map of all pairs of places."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils.generic import maybe_autocast


class Projection(nn.Conv2d):
    """A 1x1 convolution with a bias that is no classifier: a class of its own, because it starts from other weights.

    Args:
        in_channels: channels read.
        out_channels: channels written.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)


class SelfAttention(nn.Module):
    """Every place attends to every place; the result is added to the place's own features.

    Queries and keys are not scaled, nothing follows the values. Source: the head "NL" of CAR's authors (Huang et al.,
    "CAR: Class-aware Regularizations for Semantic Segmentation", ECCV 2022), after Wang et al., "Non-local Neural
    Networks", CVPR 2018. Their queries and keys start from the same weights.

    Args:
        channels: width of the features and values.
        key_channels: width of queries and keys.
    """

    def __init__(self, channels: int, key_channels: int):
        super().__init__()
        self.query = Projection(channels, key_channels)
        self.key = Projection(channels, key_channels)
        self.value = Projection(channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (batch, channels, h, w) of the same shape."""
        query, key, value = (
            in_float32(projection(features)).flatten(2).mT.unsqueeze(1).contiguous()  # (B, 1, h*w, c)
            for projection in (self.query, self.key, self.value)
        )  # in half precision their products without a scale would be infinite
        query, key = as_wide_as_values(query, key, value)
        context = attend(query, key, value, scale=1.0)
        context = context.squeeze(1).transpose(1, 2).unflatten(2, features.shape[-2:])
        return features + context.to(features.dtype)


class AxialAttention(nn.Module):
    """Every place attends to its column, then to its row, with several heads; the result is added to its features.

    Both steps use the same queries and keys; the second one's values are the first one's result. One (height, height)
    map per column, and one (width, width) map per row, are all that is compared. HFGD's paper says no more than "axial
    attention" (section 3.1; Ho et al., "Axial Attention in Multidimensional Transformers", 2019); that it has a
    residual connection, four heads, and narrow queries and keys is what its authors' library does elsewhere, or our
    choice.

    Args:
        channels: width of the features and values, a multiple of `num_heads`.
        key_channels: width of queries and keys, a multiple of `num_heads`.
        num_heads: groups of channels that attend separately.
    """

    def __init__(self, channels: int, key_channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = Projection(channels, key_channels)
        self.key = Projection(channels, key_channels)
        self.value = Projection(channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (batch, channels, h, w) of the same shape."""
        # A place's channels side by side, as the kernels want them: then columns and rows are views.
        query, key, value = (
            projection(features).movedim(1, -1).contiguous().unflatten(-1, (self.num_heads, -1))  # (B, h, w, heads, c)
            for projection in (self.query, self.key, self.value)
        )
        scale = query.shape[-1] ** -0.5
        if (
            features.device.type == "cpu"
        ):  # where half precision is no faster, and with narrow heads several times slower
            query, key, value = (in_float32(tensor) for tensor in (query, key, value))
        query, key = as_wide_as_values(query, key, value)

        columns = (tensor.flatten(2, 3).transpose(1, 2) for tensor in (query, key, value))  # (B, w * heads, h, c)
        value = attend(*columns, scale=scale)
        value = value.transpose(1, 2).unflatten(2, (-1, self.num_heads))  # (B, h, w, heads, c)

        rows = (tensor.flatten(0, 1).transpose(1, 2) for tensor in (query, key, value))  # (B * h, heads, w, c)
        value = attend(*rows, scale=scale)
        value = value.transpose(1, 2).flatten(2).unflatten(0, (features.shape[0], -1))  # (B, h, w, channels)
        return features + value.movedim(-1, 1).to(features.dtype)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(query · key * scale) · value, of tensors (batch, heads, places, c), in their precision."""
    with maybe_autocast(query.device.type, enabled=False):  # unlike torch.autocast also on the meta device
        return F.scaled_dot_product_attention(query, key, value, scale=scale)


def as_wide_as_values(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys (..., c), on the CPU with zeros up to the width of the values (..., C), C at least c.

    Its kernel that keeps no map of all pairs wants three tensors of one width. Zeros change no product.
    """
    if query.device.type != "cpu":
        return query, key
    missing = (0, value.shape[-1] - query.shape[-1])
    return F.pad(query, missing), F.pad(key, missing)


def in_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


__all__ = ["AxialAttention", "SelfAttention"]
