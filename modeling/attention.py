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
        # Without a scale their products leave half precision's range.
        query, key, value = (
            projection(features).flatten(2).transpose(1, 2).unsqueeze(1).float()  # (B, 1, h*w, channels)
            for projection in (self.query, self.key, self.value)
        )
        with maybe_autocast(features.device.type, enabled=False):  # unlike torch.autocast also on the meta device
            context = fused_attention(query, key, value, scale=1.0)
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
        query, key, value = (
            projection(features).unflatten(1, (self.num_heads, -1)).permute(0, 4, 1, 3, 2)  # (B, w, heads, h, c)
            for projection in (self.query, self.key, self.value)
        )
        scale = query.shape[-1] ** -0.5
        value = attend(query, key, value, scale)  # along columns
        query, key, value = (tensor.transpose(1, 3) for tensor in (query, key, value))  # (B, h, heads, w, c)
        value = attend(query, key, value, scale)  # along rows
        return features + value.permute(0, 2, 4, 1, 3).flatten(1, 2)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention within each line of (batch, lines, heads, places, channels)."""
    batch = query.shape[0]
    lines = (tensor.flatten(0, 1) for tensor in (query, key, value))
    return fused_attention(*lines, scale=scale).unflatten(0, (batch, -1))


def fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(query · key * scale) · value by a kernel that keeps no map of all pairs, on the CPU, too.

    Args:
        query, key: (..., places, c).
        value: (..., places, C), C at least c.
        scale: factor of the products.

    Returns:
        (..., places, C).
    """
    if query.device.type == "cpu":  # its kernel wants queries as wide as values; zeros change no product
        query, key = (F.pad(tensor, (0, value.shape[-1] - tensor.shape[-1])) for tensor in (query, key))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


__all__ = ["AxialAttention", "SelfAttention"]
