"""DCNv3 with torch operations alone, for every device: samples as weighted sums of rows of a table.

One image with a border of zeros is a table with a row of D channels per (pixel, group). The upper left corner of a
bilinear sample is row `cell`, the other three are fixed distances further. `F.embedding_bag` sums the rows of all
points of an output pixel and group while it reads them, so the samples themselves, P times the map, are never made.
Places and weights are computed for a block of output rows at a time, while they are in the cache.

Letters as in dcnv3.py: N images, G groups of D channels, P points, map H x W, output Ho x Wo.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


# Samples (output pixels x groups x points) at a time: on the CPU small enough for the cache, elsewhere enough to hide
# kernel launches.
_BLOCK_SAMPLES_CPU = 2**16
_BLOCK_SAMPLES_ACCELERATOR = 2**22


class Geometry(NamedTuple):
    """Where the regular grid of a DCNv3 lies; see `dcnv3`."""

    groups: int
    kernel_size: int
    stride: int
    padding: int
    dilation: int
    offset_scale: float

    @property
    def points(self) -> int:
        return self.kernel_size**2

    @property
    def middle(self) -> int:
        """From the first to the middle row of the kernel, rounded down."""
        return self.dilation * (self.kernel_size - 1) // 2

    def out_size(self, size: int) -> int:
        """Height or width of the output for that of the map."""
        return (size + 2 * self.padding - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1

    def grid(self, out_height: int, out_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Places without learned offsets: x (Wo, 1, P), y (Ho, 1, 1, P). Columns are the slow part of P."""

        def numbers(count: int) -> Tensor:
            return torch.arange(count, dtype=like.dtype, device=like.device)

        steps = (numbers(self.kernel_size) * self.dilation - self.middle) * self.offset_scale
        columns = numbers(out_width) * self.stride + (self.middle - self.padding)
        rows = numbers(out_height) * self.stride + (self.middle - self.padding)
        x = columns[:, None, None] + steps.repeat_interleave(self.kernel_size)
        y = rows[:, None, None, None] + steps.repeat(self.kernel_size)
        return x, y


def compute_dtype(value: Tensor, offset: Tensor) -> torch.dtype:
    """The dtype of places, weights and sums."""
    return torch.float64 if torch.float64 in (value.dtype, offset.dtype) else torch.float32


def gather_forward(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """Arguments and result as those of `dcnv3`."""
    output = value.new_empty(*offset.shape[:3], value.shape[3])
    for index in range(len(value)):
        table, corners = _table(value[index], compute_dtype(value, offset), geometry)
        for block in _blocks(value, offset[index], mask[index], geometry):
            cell = block.cell.flatten(0, 2)  # (rows · Wo · G, P)
            of_corners = (
                F.embedding_bag(cell, table[corner:], per_sample_weights=weight.flatten(0, 2), mode="sum")
                for corner, weight in zip(corners, block.corner_weights(), strict=True)
            )
            output[index, block.rows] = functools.reduce(Tensor.add_, of_corners).view_as(output[index, block.rows])
    return output


def gather_backward(
    grad_output: Tensor, value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by value, offset and mask, each in its tensor's dtype."""
    dtype = compute_dtype(value, offset)
    grad_value, grad_offset, grad_mask = (t.new_empty(t.shape) for t in (value, offset, mask))
    for index in range(len(value)):
        table, corners = _table(value[index], dtype, geometry)
        grad_table = torch.zeros_like(table)
        workspace = None
        for block in _blocks(value, offset[index], mask[index], geometry):
            gradient = grad_output[index, block.rows].to(dtype).reshape(*block.cell.shape[:3], -1)
            if workspace is None:  # the first block is the largest; fresh memory each time costs as much as the work
                workspace = table.new_empty(block.cell.numel(), table.shape[1])
            by_place, by_mask = _gradients_of_samples(table, corners, gradient, block, workspace)
            by_place *= geometry.offset_scale
            grad_offset[index, block.rows] = by_place.flatten(2)
            grad_mask[index, block.rows] = by_mask.flatten(2)
            _add_gradient_of_table(grad_table, corners, gradient, block)
        height, width, channels = value.shape[1:]
        grad_value[index] = grad_table.view(height + 2, width + 2, channels)[1:-1, 1:-1]
    return grad_value, grad_offset, grad_mask


def grid_sample_forward(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """What `gather_forward` computes, in operations that exporters know; makes all samples."""
    batch, height, width, channels = value.shape
    _, out_height, out_width, _ = offset.shape
    groups, points = geometry.groups, geometry.points
    offset = offset.to(compute_dtype(value, offset))
    value_dtype, dtype = value.dtype, offset.dtype

    grid_x, grid_y = geometry.grid(out_height, out_width, like=offset)
    shift = offset.reshape(batch, out_height, out_width, groups, points, 2) * geometry.offset_scale
    x = (shift[..., 0] + grid_x + 0.5) * (2 / width) - 1  # -1 and 1 are the outer edges of the map
    y = (shift[..., 1] + grid_y + 0.5) * (2 / height) - 1
    places = torch.stack((x, y), dim=-1).permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, -1, points, 2)
    maps = value.to(dtype).reshape(batch, height, width, groups, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, places, align_corners=False)  # (N·G, D, Ho·Wo, P)
    weights = mask.to(dtype).reshape(batch, out_height * out_width, groups, points).transpose(1, 2).flatten(0, 1)
    output = (samples * weights[:, None]).sum(-1).reshape(batch, channels, out_height, out_width)
    return output.permute(0, 2, 3, 1).to(value_dtype)


# --- one image as a table, and what is read from it


def _table(image: Tensor, dtype: torch.dtype, geometry: Geometry) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The rows ((H + 2)·(W + 2)·G, D) of an image (H, W, C) with its border, and how far the four corners of a sample
    are apart in it: upper left, upper right, lower left, lower right."""
    bordered = F.pad(image.to(dtype), (0, 0, 1, 1, 1, 1))
    to_right = geometry.groups
    to_below = bordered.shape[1] * geometry.groups
    rows = bordered.view(-1, image.shape[2] // geometry.groups)
    return rows, (0, to_right, to_below, to_below + to_right)


class _Block(NamedTuple):
    """The samples of some output rows; all tensors are (rows, Wo, G, P)."""

    rows: slice
    cell: Tensor  # row of the table with the upper left corner, int32
    right: Tensor  # share of the right corners, 0..1
    lower: Tensor  # share of the lower corners, 0..1
    mask: Tensor
    # False where the place was moved to the border, or is on it, and so does not follow the offset.
    free_x: Tensor
    free_y: Tensor

    def corner_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lower = self.mask * self.lower
        upper = self.mask - lower
        lower_right, upper_right = lower * self.right, upper * self.right
        return upper - upper_right, upper_right, lower - lower_right, lower_right


def _blocks(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Iterator[_Block]:
    """The samples of one image, from its offset (Ho, Wo, G·P·2) and mask (Ho, Wo, G·P)."""
    height, width = value.shape[1:3]
    out_height, out_width, _ = offset.shape
    groups, points = geometry.groups, geometry.points
    like = torch.empty(0, dtype=compute_dtype(value, offset), device=value.device)
    grid_x, grid_y = geometry.grid(out_height, out_width, like)
    group = torch.arange(groups, dtype=torch.int32, device=value.device)[:, None]

    block_samples = _BLOCK_SAMPLES_CPU if value.device.type == "cpu" else _BLOCK_SAMPLES_ACCELERATOR
    block_rows = max(1, block_samples // max(1, out_width * groups * points))
    for start in range(0, out_height, block_rows):
        rows = slice(start, min(start + block_rows, out_height))
        shift = offset[rows].to(like.dtype).reshape(-1, out_width, groups, points, 2) * geometry.offset_scale
        column, right, free_x = _cell_along_axis(shift[..., 0] + (grid_x + 1), width)
        row, lower, free_y = _cell_along_axis(shift[..., 1] + (grid_y[rows] + 1), height)
        cell = row.mul_(width + 2).add_(column).mul_(groups).add_(group)
        block_mask = mask[rows].to(like.dtype).reshape(cell.shape)
        yield _Block(rows, cell, right, lower, block_mask, free_x, free_y)


def _cell_along_axis(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places on a map with a border, 0..size + 1, as the pixel before each, the share of the pixel after it, and
    whether it is inside. Places further out read zeros wherever they are: they move to the edge of the border."""
    place.clamp_(0, size + 1)
    inside = (place > 0) & (place < size + 1)
    before = place.int().clamp_(0, size)  # a place that is NaN must not become an index outside the table
    return before, place.sub_(before), inside


def _gradients_of_samples(
    table: Tensor, corners: tuple[int, ...], gradient: Tensor, block: _Block, workspace: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by place (rows, Wo, G, P, 2), as (x, y), and by mask (rows, Wo, G, P); `gradient` (rows, Wo, G, D)."""
    cell = block.cell.flatten()
    rows = workspace[: len(cell)]

    def products(corner: int) -> Tensor:
        torch.index_select(table[corner:], 0, cell, out=rows)
        return rows.view(*block.cell.shape, -1).mul_(gradient[..., None, :]).sum(-1)

    upper_left, upper_right, lower_left, lower_right = (products(corner) for corner in corners)
    upper = torch.lerp(upper_left, upper_right, block.right)
    lower = torch.lerp(lower_left, lower_right, block.right)
    by_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, block.lower) * block.mask * block.free_x
    by_y = (lower - upper) * block.mask * block.free_y
    return torch.stack((by_x, by_y), dim=-1), torch.lerp(upper, lower, block.lower)


def _add_gradient_of_table(grad_table: Tensor, corners: tuple[int, ...], gradient: Tensor, block: _Block) -> None:
    """Adds to each row of the table the weighted gradients (rows, Wo, G, D) of the samples that read it.

    Sorted by cell, the samples of one cell lie together: again sums of rows, always in the same order.
    """
    sorted_cells, order = block.cell.flatten().sort(stable=True)
    cells, sizes = sorted_cells.unique_consecutive(return_counts=True)
    starts = sizes.cumsum(0) - sizes
    pairs = order // block.cell.shape[-1]
    gradient = gradient.flatten(0, 2)
    for corner, weight in zip(corners, block.corner_weights(), strict=True):
        ordered = weight.flatten().index_select(0, order)  # weight[order] takes ten times as long on the CPU
        sums = F.embedding_bag(pairs, gradient, starts, per_sample_weights=ordered, mode="sum")
        grad_table[corner:].index_add_(0, cells, sums)
