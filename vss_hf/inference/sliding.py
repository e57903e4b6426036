"""How the logits of a view lie in the frame: windows, padding and resizing as one interpolation along each axis.

A view (a resized, perhaps mirrored frame) goes through the model as a whole or in windows. The logits of each window
are upsampled to its input's size, padding is cut off, windows are averaged where they overlap, and the average is
resized to the frame's size, as mmsegmentation does it. Each of these steps is linear and works on rows and columns
apart. So all of them together are two matrices, and rows of the result can be had without a full-size map:

    scores (H, K, W)  =  wy (H, h)  @  logits (h, K, w)  @  wx^T (w, W)

where the logits of all windows stand side by side, as a mosaic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .interpolation import Interpolation
from .score_maps import MaskScores, ScoreMap, normalised_scores


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride` pixels, the last one moved back to end with the image
    (mmsegmentation's `slide_inference`).

    Args:
        length: pixels of the view.
        window: pixels of a window; a view that is shorter has one window, of its own length.
        stride: pixels from one window to the next.
    """
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


@dataclass(frozen=True)
class Axis:
    """One axis of a view.

    Args:
        length: pixels of the view.
        starts: where its windows begin.
        window: pixels of each window.
        padded: pixels of the model's input, of which the first `window` are the window.
        frame: pixels of the frame.
        mirrored: the view's last pixel is the frame's first.
    """

    length: int
    starts: tuple[int, ...]
    window: int
    padded: int
    frame: int
    mirrored: bool = False

    @classmethod
    def of(cls, length: int, window: int, stride: int, divisor: int, frame: int, mirrored: bool = False) -> "Axis":
        """The axis for the settings of `TTA`; a view shorter than a window has one, of its own length."""
        window = min(window, length)
        starts = window_starts(length, window, stride)
        return cls(length, tuple(starts), window, window + -window % divisor, frame, mirrored)

    def weights(self, logits: int, align_corners: bool, dtype: torch.dtype) -> list[Tensor]:
        """What the logits of each window count in each pixel of the frame.

        Args:
            logits: numbers along the axis of one window's logits.
            align_corners: of both interpolations.
            dtype: fp32, or fp64.

        Returns:
            (frame, logits) for every window, on the CPU. Together, all that a pixel takes sums to 1.
        """
        covering = torch.zeros(self.length, dtype=dtype)
        for start in self.starts:
            covering[start : start + self.window] += 1
        identity = torch.eye(logits, dtype=dtype)[None]
        upsampled = resized(identity, self.padded, align_corners)[..., : self.window]  # (1, logits, window)
        weights = []
        for start in self.starts:
            place = torch.zeros(1, logits, self.length, dtype=dtype)
            here = slice(start, start + self.window)
            place[..., here] = upsampled / covering[here]
            in_frame = resized(place, self.frame, align_corners)[0].t()  # (frame, logits)
            weights.append(in_frame.flip(0) if self.mirrored else in_frame)
        return weights


def resized(lines: Tensor, length: int, align_corners: bool) -> Tensor:
    """Linear interpolation of (1, C, n) to (1, C, length)."""
    return F.interpolate(lines, size=length, mode="linear", align_corners=align_corners)


def mosaic(windows: Sequence[Tensor], columns: int) -> Tensor:
    """The logits (K, h, w) of windows, row by row, `columns` in each, as one (K, rows * h, columns * w)."""
    rows = [torch.cat(list(windows[i : i + columns]), dim=2) for i in range(0, len(windows), columns)]
    return torch.cat(rows, dim=1)


class Window(NamedTuple):
    """Where one window's masks lie in the frame.

    Args:
        rows, columns: of the frame, those that the window reaches.
        share: (rows, 1, columns), what it counts there, beside the windows that overlap with it.
        interpolation: of its logits, to these rows and columns.
    """

    rows: slice
    columns: slice
    share: Tensor
    interpolation: Interpolation


class WindowedMasks(ScoreMap):
    """Scores of a mask classification model whose windows have queries of their own, averaged where they overlap.

    Where the view has not the frame's size, each window's masks are resized to the frame before their sigmoid, as
    `MaskScores` does it; mmsegmentation resizes the average of the scores.

    Args:
        class_logits: (queries, num_labels + 1) of each window, row by row.
        mask_logits: (queries, h, w) of each window.
        size: (height, width) of the frame.
        windows: where each of them lies.
        normalised: as for `MaskScores`.
    """

    def __init__(
        self,
        class_logits: Sequence[Tensor],
        mask_logits: Sequence[Tensor],
        size: tuple[int, int],
        windows: Sequence[Window],
        normalised: bool = False,
    ):
        super().__init__(class_logits[0].shape[-1] - 1, size, mask_logits[0].device)
        self.normalised = normalised
        self.windows = windows
        self.scores = [
            MaskScores(classes, masks, window.interpolation.size, interpolation=window.interpolation)
            for classes, masks, window in zip(class_logits, mask_logits, windows, strict=True)
        ]

    def rows(self, start: int, stop: int) -> Tensor:
        total = torch.zeros((stop - start, self.num_labels, self.size[1]), device=self.device)
        for window, scores in zip(self.windows, self.scores, strict=True):
            top, bottom = max(start, window.rows.start), min(stop, window.rows.stop)
            if top < bottom:
                first, last = top - window.rows.start, bottom - window.rows.start
                here = scores.rows(first, last) * window.share[first:last]
                total[top - start : bottom - start, :, window.columns] += here
        return normalised_scores(total) if self.normalised else total


class Placement:
    """How the logits of a view come to lie in the frame.

    Args:
        vertical, horizontal: of the view.
        shape: (h, w) of one window's logits.
        align_corners: of the interpolation.
        dtype: in which to compute.
        device: of the logits.
    """

    def __init__(
        self,
        vertical: Axis,
        horizontal: Axis,
        shape: tuple[int, int],
        align_corners: bool,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.columns = len(horizontal.starts)
        self.vertical = vertical.weights(shape[0], align_corners, dtype)
        self.horizontal = horizontal.weights(shape[1], align_corners, dtype)
        self.device = device

    @cached_property
    def whole(self) -> Interpolation:
        """Of the mosaic of all windows."""
        return Interpolation(torch.cat(self.vertical, dim=1), torch.cat(self.horizontal, dim=1), self.device)

    @cached_property
    def windows(self) -> list[Window]:
        """Of each window by itself, row by row."""
        vertical, horizontal = ([covered(weights) for weights in axis] for axis in (self.vertical, self.horizontal))
        return [
            Window(rows, columns, (of_y[:, None, None] * of_x).to(self.device), Interpolation(wy, wx, self.device))
            for rows, of_y, wy in vertical
            for columns, of_x, wx in horizontal
        ]


def covered(weights: Tensor) -> tuple[slice, Tensor, Tensor]:
    """The pixels (frame, n) that a window reaches, its share in each of them, and the weights there, summing to 1.

    All pixels of a small frame may lie beside a window.
    """
    share = weights.sum(dim=1)
    inside = torch.nonzero(share)[:, 0].tolist()
    here = slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)
    return here, share[here], weights[here] / share[here, None]


def crops(pixels: Tensor, vertical: Axis, horizontal: Axis) -> Iterator[Tensor]:
    """The windows of a view (n, 3, h, w), row by row, padded at the bottom and at the right with 0, the mean colour
    after normalisation."""
    for top in vertical.starts:
        for left in horizontal.starts:
            window = pixels[..., top : top + vertical.window, left : left + horizontal.window]
            right, below = horizontal.padded - horizontal.window, vertical.padded - vertical.window
            yield F.pad(window, (0, right, 0, below)) if right or below else window
