"""Deformable convolution of version 3 (DCNv3), the operator of InternImage (Wang et al., CVPR 2023, section 3.1).

A convolution with a k x k kernel reads k² fixed neighbours of a pixel. Here each output pixel and each group of
channels reads k² places of its own, a regular grid plus learned offsets, and sums them with weights of its own.

`dcnv3` is the function, `DCNv3` the layer that makes value, offset and mask from its input. There are two
implementations: dcnv3_triton.py on CUDA where Triton is installed, dcnv3_gather.py otherwise (`_implementation`).
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dcnv3_gather import Geometry, compute_dtype, gather_backward, gather_forward, grid_sample_forward


def dcnv3(
    value: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    groups: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    offset_scale: float = 1.0,
) -> Tensor:
    """Weighted sum of k·k bilinear samples of `value` per output pixel and group; outside the map everything is 0.

    Point p = kx·k + ky (columns are the slow index) of output pixel (i, j) lies on the map at

        x = j·stride - padding + m + offset_scale·(kx·dilation - m + offset_x),   m = dilation·(k - 1) // 2

    and y likewise from i and ky: `offset_scale` stretches the regular grid too.

    Places are computed and samples summed in float32 (float64 if `value` or `offset` is) whatever the dtypes, which
    may differ: bfloat16 has no names for the columns of a wide map. Works under autocast, torch.compile and gradient
    checkpointing. Second derivatives are refused. While torch.export or torch.onnx traces, plain `grid_sample` is
    written instead: slower, with all k·k samples in memory, but portable.

    Args:
        value: (N, H, W, C), floating point; channel c belongs to group c // (C / G).
        offset: (N, Ho, Wo, G·k·k·2) in pixels, each pair (x, y). Places may be as far outside as they like.
        mask: (N, Ho, Wo, G·k·k), the samples' weights, used as they are.
        groups: G.
        kernel_size: k.
        padding: how far the grid reaches over the map's edge; decides the output's size.

    Returns:
        (N, Ho, Wo, C) in the dtype of `value`, with Ho = (H + 2·padding - dilation·(k - 1) - 1) // stride + 1.

    Raises:
        ValueError: shapes, dtypes, devices or settings do not fit together.
    """
    geometry = Geometry(groups, kernel_size, stride, padding, dilation, float(offset_scale))
    _check(value, offset, mask, geometry)
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return grid_sample_forward(value, offset, mask, geometry)
    *grid, offset_scale = geometry
    return _operator(value, offset, mask, grid, offset_scale)


def _check(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> None:
    for name in ("groups", "kernel_size", "stride", "dilation"):
        if getattr(geometry, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(geometry, name)}")
    if geometry.padding < 0:
        raise ValueError(f"padding must not be negative, got {geometry.padding}")
    for name, tensor in (("value", value), ("offset", offset), ("mask", mask)):
        if tensor.ndim != 4 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating point and (batch, height, width, channels),"
                f" got {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}: move one of them")

    batch, height, width, channels = value.shape
    groups, points = geometry.groups, geometry.points
    if channels % groups:
        raise ValueError(f"the channels of value must be a multiple of groups={groups}, got {channels}")
    for name, tensor, per_pixel in (("offset", offset, groups * points * 2), ("mask", mask, groups * points)):
        expected = (batch, geometry.out_size(height), geometry.out_size(width), per_pixel)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name} must be {expected} for value {tuple(value.shape)} and {geometry}, got {tuple(tensor.shape)}"
            )


# --- the operator as torch knows it: opaque to torch.compile, which would unroll the loops over blocks into its graph


@torch.library.custom_op("vss_hf::dcnv3", mutates_args=())
def _operator(value: Tensor, offset: Tensor, mask: Tensor, grid: list[int], offset_scale: float) -> Tensor:
    forward, _ = _implementation(value, offset)
    return forward(value, offset, mask, _geometry(grid, offset_scale))


@torch.library.custom_op("vss_hf::dcnv3_backward", mutates_args=())
def _operator_backward(
    grad_output: Tensor, value: Tensor, offset: Tensor, mask: Tensor, grid: list[int], offset_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    _, backward = _implementation(value, offset)
    return backward(grad_output, value, offset, mask, _geometry(grid, offset_scale))


def _geometry(grid: list[int], offset_scale: float) -> Geometry:
    groups, kernel_size, stride, padding, dilation = grid
    return Geometry(groups, kernel_size, stride, padding, dilation, offset_scale)


def _implementation(value: Tensor, offset: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward."""
    # The Triton kernels compute in float32 and add up gradients in any order: float64, which is for checks, and
    # torch.use_deterministic_algorithms take the path that keeps to them.
    exact = compute_dtype(value, offset) == torch.float64 or torch.are_deterministic_algorithms_enabled()
    if value.is_cuda and not exact and _triton_is_installed():
        from .dcnv3_triton import triton_backward, triton_forward

        return triton_forward, triton_backward
    return gather_forward, gather_backward


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@_operator.register_fake
def _(value: Tensor, offset: Tensor, mask: Tensor, grid: list[int], offset_scale: float) -> Tensor:
    return value.new_empty(*offset.shape[:3], value.shape[3])


@_operator_backward.register_fake
def _(
    grad_output: Tensor, value: Tensor, offset: Tensor, mask: Tensor, grid: list[int], offset_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), offset.new_empty(offset.shape), mask.new_empty(mask.shape)


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.grid, ctx.offset_scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return *_operator_backward(grad_output, *ctx.saved_tensors, ctx.grid, ctx.offset_scale), None, None


def _refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("dcnv3 has no second derivative: backward with create_graph=False")


_operator.register_autograd(_backward, setup_context=_save_for_backward)
_operator_backward.register_autograd(_refuse_second_derivative)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at 0. It does so itself, because transformers initialises layer by layer."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class XavierLinear(nn.Linear):
    """A linear layer that starts as Glorot and Bengio 2010 say, its bias at 0."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class DCNv3(nn.Module):
    """The DCNv3 layer of InternImage (Wang et al., CVPR 2023, section 3.1): where to look and with which weights
    comes from a depthwise convolution of the input.

    Args:
        channels: C, read and written.
        groups: G, each of C / G channels has its own sampling places and weights.
        kernel_size: side of the sampled grid, odd.
        dw_kernel_size: side of the depthwise convolution's kernel, odd; by default `kernel_size`.
        offset_scale: stretches the grid and the learned offsets.
        center_feature_scale: mix the result with the unsampled value, by a learned share per pixel and group.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        offset_scale: float = 1.0,
        center_feature_scale: bool = False,
    ):
        super().__init__()
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        if groups < 1 or channels % groups:
            raise ValueError(f"channels must be a multiple of groups, got channels={channels}, groups={groups}")
        for name, size in (("kernel_size", kernel_size), ("dw_kernel_size", dw_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise ValueError(f"{name} must be odd and positive, so that the map keeps its size, got {size}")
        self.groups = groups
        self.kernel_size = kernel_size
        self.offset_scale = offset_scale

        points = kernel_size**2
        self.input_proj = XavierLinear(channels, channels)
        self.dw_conv = nn.Conv2d(channels, channels, dw_kernel_size, padding=dw_kernel_size // 2, groups=channels)
        self.dw_norm = nn.LayerNorm(channels, eps=1e-6)
        # Both start at 0: at first every pixel is the plain average over the regular grid.
        self.offset = ZeroLinear(channels, groups * points * 2)
        self.mask = ZeroLinear(channels, groups * points)
        self.center_feature_scale_proj = ZeroLinear(channels, groups) if center_feature_scale else None
        self.output_proj = XavierLinear(channels, channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        value = self.input_proj(hidden_states)
        context = self.dw_conv(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        context = F.gelu(self.dw_norm(context))
        per_group = (*hidden_states.shape[:3], self.groups, -1)
        weights = self.mask(context).reshape(per_group).softmax(-1).flatten(3)
        output = dcnv3(
            value,
            self.offset(context),
            weights,
            groups=self.groups,
            kernel_size=self.kernel_size,
            padding=self.kernel_size // 2,
            offset_scale=self.offset_scale,
        )
        if self.center_feature_scale_proj is not None:
            share = self.center_feature_scale_proj(context).sigmoid()[..., None]  # (batch, height, width, groups, 1)
            output = torch.lerp(output.reshape(per_group), value.reshape(per_group), share).flatten(3)
        return self.output_proj(output)
