"""transformers' models while they are traced for any image size.

Swin pads maps by remainders (`8 - height % 8`), and only where there is one. A tracer turns the remainders of one
stage into those of the next, until no expression is ever simplified, and takes the branch of the sample. Here the
padded size is a rounded quotient, which simplifies, and padding is always an operation, if mostly by 0. Mask2Former
makes tensors and grids of sizes, and adaptive pooling parts of them, which a tracer takes for constants. Here they are
computed. For ONNX, attention and deformable convolution are written with simpler operators. The numbers are the same,
but for rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from transformers.models.mask2former import modeling_mask2former as mask2former
from transformers.models.maskformer import modeling_maskformer_swin as maskformer_swin
from transformers.models.swin import modeling_swin as swin

from .modeling import feature_alignment


@contextmanager
def models_of_any_size(plain: bool) -> Iterator[None]:
    """Inside, Swin's three paddings and tensors of sizes are such that every size stays a short expression.

    Args:
        plain: also write attention as products and a softmax, and deformable convolution as sampling and products,
            for a format without torch's and torchvision's operators.
    """
    with ExitStack() as stack:
        if plain:
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
            stack.enter_context(mock.patch.object(feature_alignment, "deform_conv2d", deformable_conv))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, tensor_of_sizes(getattr(torch, name))))
        points = mock.patch.object(
            mask2former.Mask2FormerPixelDecoderEncoderOnly, "get_reference_points", staticmethod(reference_points)
        )
        stack.enter_context(points)
        stack.enter_context(mock.patch.object(F, "adaptive_avg_pool2d", pooled_to))
        for module, prefix in ((swin, "Swin"), (maskformer_swin, "MaskFormerSwin")):
            for name, method in PADDINGS.items():
                stack.enter_context(mock.patch.object(getattr(module, f"{prefix}{name}"), "maybe_pad", method))
        yield


def tensor_of_sizes(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor`, or the like of it, for rows of symbolic sizes, too."""

    def made(data: Any, **settings: Any) -> torch.Tensor:
        rows = data if isinstance(data, list) else []
        if not any(isinstance(size, torch.SymInt) for row in rows if isinstance(row, tuple) for size in row):
            return make(data, **settings)
        return torch.stack([torch.stack([torch.full((), size, **settings) for size in row]) for row in rows])

    return made


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` of a model in eval mode, of which ONNX's exporter knows some shapes only."""
    assert not is_causal and not dropout_p  # no image model here has either
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if hidden else scores + attn_mask
    return scores.softmax(-1) @ value


def deformable_conv(
    features: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    padding: tuple[int, int],
    mask: torch.Tensor,
) -> torch.Tensor:
    """torchvision's `deform_conv2d` of 3x3 places; ONNX has it from opset 19 on, and few programs run it."""
    assert weight.shape[-2:] == (3, 3) and padding == (1, 1)
    height, width = features.shape[-2:]
    rows = torch.arange(height, device=features.device, dtype=features.dtype)[:, None]
    columns = torch.arange(width, device=features.device, dtype=features.dtype)
    output = bias[:, None, None]
    for place in range(9):
        y = rows + (place // 3 - 1) + offset[:, 2 * place]  # (B, h, w), pixels
        x = columns + (place % 3 - 1) + offset[:, 2 * place + 1]
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        read = F.grid_sample(features, grid, align_corners=False) * mask[:, place, None]
        output = output + F.conv2d(read, weight[:, :, place // 3, place % 3, None, None])
    return output


def pooled_to(features: torch.Tensor, output_size: int | tuple[int, int]) -> torch.Tensor:
    """`F.adaptive_avg_pool2d` as matrix products; ONNX's exporter takes the parts' length from the traced size."""
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    if rows == columns == 1:
        return features.mean((-2, -1), keepdim=True)
    height, width = features.shape[-2:]
    return averages(height, rows, features) @ features @ averages(width, columns, features).t()


def averages(size: Any, parts: int, like: torch.Tensor) -> torch.Tensor:
    """A matrix (parts, size) that averages each of the parts of an axis, which may overlap by one."""
    part = torch.arange(parts, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    inside = (place >= part * size // parts) & (place < ((part + 1) * size + parts - 1) // parts)
    weights = inside.to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


def reference_points(sizes: list[tuple[Any, Any]], valid_ratios: torch.Tensor, device: Any) -> torch.Tensor:
    """Centres (B, places, levels, 2) of the places of all levels, x and y in 0..1.

    Args:
        sizes: height and width of each level.
        valid_ratios: (B, levels, 2), which part of a level is no padding: all of it, where pictures are not padded.
        device: of the result.
    """
    levels = []
    for height, width in sizes:
        y = (torch.arange(height, device=device, dtype=valid_ratios.dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=valid_ratios.dtype) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        levels.append(torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1))  # (h * w, 2)
    return torch.cat(levels)[None, :, None] * valid_ratios[:, None]


def padding_to(size: Any, multiple: int) -> Any:
    """How much is missing to a multiple."""
    return ((size - 1) // multiple + 1) * multiple - size


def pad_image(layer: Any, pixel_values: torch.Tensor, height: Any, width: Any) -> torch.Tensor:
    """(B, 3, H, W) to whole patches."""
    of_height, of_width = layer.patch_size
    return F.pad(pixel_values, (0, padding_to(width, of_width), 0, padding_to(height, of_height)))


def pad_pairs(layer: Any, features: torch.Tensor, height: Any, width: Any) -> torch.Tensor:
    """(B, h, w, C) to even sizes."""
    return F.pad(features, (0, 0, 0, padding_to(width, 2), 0, padding_to(height, 2)))


def pad_windows(layer: Any, features: torch.Tensor, height: Any, width: Any) -> tuple[torch.Tensor, tuple[int, ...]]:
    """(B, h, w, C) to whole windows; and what the layer takes for the padding, which says that it is to be cut off."""
    right, below = padding_to(width, layer.window_size), padding_to(height, layer.window_size)
    return F.pad(features, (0, 0, 0, right, 0, below)), (0, 0, 0, 1, 0, 1)


PADDINGS = {"PatchEmbeddings": pad_image, "PatchMerging": pad_pairs, "Layer": pad_windows}
