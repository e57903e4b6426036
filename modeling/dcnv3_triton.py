"""DCNv3 on CUDA: a Triton kernel forward, another backward.

A program takes some (output pixel, group) pairs. It computes the P places of each once and reads the four rows of D
contiguous channels around each place; only the result is written. Backward reads the same rows for the gradients by
place and mask, and adds to the value's gradient atomically: the order of those sums, and with it the last bits,
differs from run to run. float16, bfloat16 and float32 are read and written; places, weights and sums are float32.

Letters as in dcnv3.py. Pairs are counted in the order of memory, (N, Ho, Wo, G).
"""

import torch
from torch import Tensor

from .dcnv3_gather import Geometry


try:
    import triton
    from triton import knobs
    from triton import language as tl
except ImportError as missing:  # dcnv3.py looks for Triton before it imports this file
    raise ImportError("modeling/dcnv3_triton.py needs Triton: install the package `triton`") from missing


def triton_forward(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """Arguments and result as those of `dcnv3`, without float64."""
    output = value.new_empty(*offset.shape[:3], value.shape[3])
    if output.numel() > 0:
        tensors = (value.contiguous(), offset.contiguous(), mask.contiguous())
        with torch.cuda.device_of(value):
            _forward_kernel[_programs](*tensors, output, **_sizes(value, offset, geometry))
    return output


def triton_backward(
    grad_output: Tensor, value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by value, offset and mask, each in its tensor's dtype."""
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    if grad_output.numel() > 0:
        tensors = (grad_output.contiguous(), value.contiguous(), offset.contiguous(), mask.contiguous())
        gradients = (grad_value, grad_offset, grad_mask)
        with torch.cuda.device_of(value):
            _backward_kernel[_programs](*tensors, *gradients, **_sizes(value, offset, geometry))
    return grad_value.to(value.dtype), grad_offset, grad_mask


def _programs(arguments: dict) -> tuple[int]:
    return (triton.cdiv(arguments["pairs"], arguments["BLOCK"]),)


def _sizes(value: Tensor, offset: Tensor, geometry: Geometry) -> dict[str, int | float]:
    batch, height, width, channels = value.shape
    _, out_height, out_width, _ = offset.shape
    pairs = batch * out_height * out_width * geometry.groups
    if max(pairs, height * width) >= 2**30:  # counted in int32 by the kernels, up to the end of the last program
        raise ValueError(f"dcnv3 takes less than 2**30 output pixels x groups at a time, got {pairs}: split the batch")
    return {
        "pairs": pairs,
        "groups": geometry.groups,
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "stride": geometry.stride,
        "dilation": geometry.dilation,
        "middle": geometry.middle,
        "padding": geometry.padding,
        "offset_scale": geometry.offset_scale,
        "KERNEL_SIZE": geometry.kernel_size,
        "CHANNELS": channels // geometry.groups,
        "PADDED_CHANNELS": triton.next_power_of_2(channels // geometry.groups),
    }


# The kernels wait for memory: what matters is how many pairs, each reading D channels in 4·P places, are in flight.
# Triton's interpreter, which the tests use without a GPU, has nothing to time and takes the first.
_CONFIGURATIONS = [
    triton.Config({"BLOCK": block}, num_warps=warps)
    for block, warps in ((32, 4), (16, 2), (16, 4), (32, 2), (64, 4), (64, 8), (128, 8))
][: 1 if knobs.runtime.interpret else None]
_TUNED_BY = ["CHANNELS", "KERNEL_SIZE"]  # and the dtypes


@triton.jit
def _place(offset, column, row, point, here, height, width, dilation, middle, offset_scale, KERNEL_SIZE: tl.constexpr):
    """Where a point of each pair lies: left and upper pixel, share of the right and lower one, inside or not."""
    grid_x = (point // KERNEL_SIZE) * dilation - middle
    grid_y = (point % KERNEL_SIZE) * dilation - middle
    x = column + offset_scale * (grid_x + tl.load(offset + 2 * point, mask=here, other=0).to(tl.float32))
    y = row + offset_scale * (grid_y + tl.load(offset + 2 * point + 1, mask=here, other=0).to(tl.float32))
    inside = here & (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(inside, x, 0)  # far outside may be no int32
    y = tl.where(inside, y, 0)
    left = tl.floor(x).to(tl.int32)
    top = tl.floor(y).to(tl.int32)
    return left, top, x - left, y - top, inside


@triton.jit
def _corner(x, y, inside, image, channel, height, width, channels, CHANNELS: tl.constexpr):
    """Where the D channels of one corner of each pair are in memory, (BLOCK, D), and whether they exist."""
    exists = inside & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = image + (y * width + x).to(tl.int64) * channels
    return at[:, None] + channel[None, :], exists[:, None] & (channel < CHANNELS)[None, :]


@triton.autotune(_CONFIGURATIONS, key=_TUNED_BY)
@triton.jit
def _forward_kernel(
    value,
    offset,
    mask,
    output,
    pairs,
    groups,
    height,
    width,
    out_height,
    out_width,
    stride,
    dilation,
    middle,
    padding,
    offset_scale,
    KERNEL_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED_CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    POINTS: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED_CHANNELS)
    here = pair < pairs
    pixel = pair // groups
    column = (pixel % out_width) * stride + (middle - padding)
    row = (pixel // out_width % out_height) * stride + (middle - padding)
    channels = groups * CHANNELS
    image = (pixel // (out_width * out_height)).to(tl.int64) * height * width * channels + pair % groups * CHANNELS
    pair = pair.to(tl.int64)

    total = tl.zeros((BLOCK, PADDED_CHANNELS), dtype=tl.float32)
    for point in range(POINTS):
        left, top, right_share, lower_share, inside = _place(
            offset + pair * (2 * POINTS), column, row, point, here, height, width, dilation, middle, offset_scale,
            KERNEL_SIZE,
        )  # fmt: skip
        weight = tl.load(mask + pair * POINTS + point, mask=here, other=0).to(tl.float32)
        for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            x = left + corner % 2
            y = top + corner // 2
            share_x = right_share if corner % 2 == 1 else 1 - right_share
            share_y = lower_share if corner // 2 == 1 else 1 - lower_share
            at, exists = _corner(x, y, inside, image, channel, height, width, channels, CHANNELS)
            rows = tl.load(value + at, mask=exists, other=0).to(tl.float32)
            total += (weight * share_x * share_y)[:, None] * rows

    at = pair[:, None] * CHANNELS + channel[None, :]
    tl.store(output + at, total.to(output.dtype.element_ty), mask=here[:, None] & (channel < CHANNELS)[None, :])


# Tuning runs the kernel repeatedly: what it adds to must start from zero each time.
@triton.autotune(_CONFIGURATIONS, key=_TUNED_BY, reset_to_zero=["grad_value"])
@triton.jit
def _backward_kernel(
    grad_output,
    value,
    offset,
    mask,
    grad_value,
    grad_offset,
    grad_mask,
    pairs,
    groups,
    height,
    width,
    out_height,
    out_width,
    stride,
    dilation,
    middle,
    padding,
    offset_scale,
    KERNEL_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED_CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    POINTS: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED_CHANNELS)
    here = pair < pairs
    pixel = pair // groups
    column = (pixel % out_width) * stride + (middle - padding)
    row = (pixel // out_width % out_height) * stride + (middle - padding)
    channels = groups * CHANNELS
    image = (pixel // (out_width * out_height)).to(tl.int64) * height * width * channels + pair % groups * CHANNELS
    pair = pair.to(tl.int64)

    at = pair[:, None] * CHANNELS + channel[None, :]
    exists = here[:, None] & (channel < CHANNELS)[None, :]
    gradient = tl.load(grad_output + at, mask=exists, other=0).to(tl.float32)
    for point in range(POINTS):
        left, top, right_share, lower_share, inside = _place(
            offset + pair * (2 * POINTS), column, row, point, here, height, width, dilation, middle, offset_scale,
            KERNEL_SIZE,
        )  # fmt: skip
        weight = tl.load(mask + pair * POINTS + point, mask=here, other=0).to(tl.float32)
        by_x = tl.zeros((BLOCK,), dtype=tl.float32)
        by_y = tl.zeros((BLOCK,), dtype=tl.float32)
        by_mask = tl.zeros((BLOCK,), dtype=tl.float32)
        for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            x = left + corner % 2
            y = top + corner // 2
            share_x = right_share if corner % 2 == 1 else 1 - right_share
            share_y = lower_share if corner // 2 == 1 else 1 - lower_share
            at, exists = _corner(x, y, inside, image, channel, height, width, channels, CHANNELS)
            rows = tl.load(value + at, mask=exists, other=0).to(tl.float32)
            product = tl.sum(rows * gradient, axis=1)
            by_mask += share_x * share_y * product
            by_x += share_y * product if corner % 2 == 1 else -share_y * product
            by_y += share_x * product if corner // 2 == 1 else -share_x * product
            by_rows = (weight * share_x * share_y)[:, None] * gradient
            tl.atomic_add(grad_value + at, by_rows, mask=exists, sem="relaxed")

        at_x = pair * (2 * POINTS) + 2 * point
        scaled = weight * offset_scale
        tl.store(grad_offset + at_x, (scaled * by_x).to(grad_offset.dtype.element_ty), mask=here)
        tl.store(grad_offset + at_x + 1, (scaled * by_y).to(grad_offset.dtype.element_ty), mask=here)
        tl.store(grad_mask + pair * POINTS + point, by_mask.to(grad_mask.dtype.element_ty), mask=here)
