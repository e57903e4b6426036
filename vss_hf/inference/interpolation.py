"""Bilinear interpolation of small maps to a frame, of which any rows or any pixels can be had without the others.

A pixel of the frame is a weighted mean of few pixels of the small map, its support, with weights of 0 or more. Where
one class has the highest logit in the whole support, it has it in the pixel, too: `agreed` finds the labels of most
pixels of a frame without interpolating anything.
"""

from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vss_hf.modeling.dense import bilinear_weights


class Support(NamedTuple):
    """What the pixels along one axis are made of.

    Args:
        index: int64 (N, n), positions in the small map; where a pixel needs fewer than n, its first again.
        weight: (N, n), of each position; 0 for those again.
    """

    index: Tensor
    weight: Tensor


class Cells(NamedTuple):
    """What holds the supports along one axis.

    Args:
        index: int64 (M, n), the positions of each cell.
        of_pixel: int64 (N,), the cell that holds each pixel's support.
    """

    index: Tensor
    of_pixel: Tensor


class Interpolation:
    """Bilinear interpolation in several steps as one, wy @ image @ wx^T.

    Args:
        wy: (H, h) on the CPU, fp32 or fp64: what the image's rows count in each row of the result, 0 or more; no row
            is all 0.
        wx: (W, w) on the CPU, of the columns.
        device: of the images.
    """

    def __init__(self, wy: Tensor, wx: Tensor, device: torch.device):
        self.used = wy != 0  # on the CPU: choosing a block's rows does not wait for the device
        self.size = (len(wy), len(wx))
        self.wy, self.wx = wy.to(device), wx.to(device)

    def rows(self, image: Tensor, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 of the result (stop - start, C, W), free to be overwritten, of an image (h, C, w)."""
        used = self._used(start, stop)
        wide = image[used].to(self.wx.dtype) @ self.wx.t()  # (used, C, W)
        return (self.wy[start:stop, used] @ wide.flatten(1)).view(stop - start, *wide.shape[1:])

    def _used(self, start: int, stop: int) -> slice | Tensor:
        """The image's rows that some rows of the result are made of; in a mosaic of windows they are far apart."""
        rows = torch.nonzero(self.used[start:stop].any(dim=0))[:, 0]
        first, end = int(rows[0]), int(rows[-1]) + 1
        return slice(first, end) if end - first == len(rows) else rows.to(self.wy.device)

    def at(self, image: Tensor, pixels: Tensor) -> Tensor:
        """Some pixels of the result (P, C), free to be overwritten, of an image (h, C, w).

        Args:
            pixels: int64 (P,), row * W + column of each; 1 at least.
        """
        y, x = pixels // self.size[1], pixels % self.size[1]
        (rows, of_rows), (columns, of_columns) = self.vertical, self.horizontal
        rows = rows[y]
        top, bottom = int(rows.min()), int(rows.max()) + 1  # pixels that follow each other need few of the rows
        index = (rows[:, :, None] - top) * image.shape[2] + columns[x][:, None]  # (P, n, n)
        weight = of_rows[y][:, :, None] * of_columns[x][:, None]
        table = image[top:bottom].transpose(1, 2).reshape(-1, image.shape[1]).to(self.wx.dtype)  # (rows * w, C)
        return F.embedding_bag(index.flatten(1), table, per_sample_weights=weight.flatten(1), mode="sum")

    def agreed(self, classes: Tensor) -> Tensor:
        """The class of every pixel (H, W) whose whole support has it, and -1 elsewhere, of classes (h, w)."""
        for dim, support in enumerate((self.vertical, self.horizontal)):
            first, *others = support.index.unbind(dim=1)
            agreed = classes.index_select(dim, first)
            for other in others:
                agreed = torch.where(agreed == classes.index_select(dim, other), agreed, -1)
            classes = agreed
        return classes

    @cached_property
    def vertical(self) -> Support:
        """Of the rows."""
        return support_of(self.wy)

    @cached_property
    def horizontal(self) -> Support:
        """Of the columns."""
        return support_of(self.wx)

    @cached_property
    def cells(self) -> tuple[Cells, Cells]:
        """Of the rows and of the columns."""
        return cells_of(self.vertical), cells_of(self.horizontal)


def support_of(weights: Tensor) -> Support:
    """The support of each row of a matrix (N, n), 0 or more."""
    number = int((weights != 0).sum(dim=1).max())
    largest = weights.topk(number, dim=1)
    index = torch.where(largest.values > 0, largest.indices, largest.indices[:, :1])
    return Support(index, largest.values)


def cells_of(support: Support) -> Cells:
    """Cells that hold the supports: one for each position where a support begins, as long as the longest; of windows
    side by side, whose supports lie in several of them, one for each different support."""
    first, last = support.index.amin(dim=1), support.index.amax(dim=1)
    length = int((last - first).max()) + 1
    if length > support.index.shape[1] + 1:
        return Cells(*torch.unique(support.index.sort(dim=1).values, dim=0, return_inverse=True))
    starts, of_pixel = first.unique(return_inverse=True)
    index = starts[:, None] + torch.arange(length, device=starts.device)
    return Cells(index.clamp(max=int(last.max())), of_pixel)


@lru_cache(maxsize=16)  # for frame after frame of a video: matrices of a frame's height and width
def bilinear(
    shape: tuple[int, int], size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Interpolation:
    """As `F.interpolate(..., mode="bilinear")` does it.

    Args:
        shape: (h, w) of the images.
        size: (H, W) wanted.
        align_corners: as in `F.interpolate`.
        dtype: in which to compute, fp32 or fp64.
        device: of the images.
    """
    like = torch.empty(0, dtype=dtype)
    wy, wx = (bilinear_weights(n, wanted, align_corners, like) for n, wanted in zip(shape, size, strict=True))
    return Interpolation(wy, wx, device)
