"""What a frame shares with the frame before: where its pixels lay there, and whether they still look the same."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .flow import LucasKanade, Raft, along, as_tensor


THUMBNAIL = 16  # cells along each side of the pictures by which scene cuts are found


class FromBefore(NamedTuple):
    """How a frame comes from the one before; h x w cells of it.

    Args:
        flow: fp32 (2, h, w), where each cell lay, in cells (x, y) from its own place; None: nothing moves.
        difference: fp32 (h, w), how much the colours differ from those there: the mean over RGB, 0..1; infinite where
            the flow leads out of the frame.
    """

    flow: Tensor | None
    difference: Tensor


class Motion:
    """The frames of a video one after the other, each with what it shares with the one before.

    Args:
        flow: optical flow; None: pixels are compared in place.
        scene_cut: a frame whose thumbnail differs from the last one's by more (mean over RGB, 0..1) begins another
            scene.
        stride: pixels along the side of a cell.
    """

    def __init__(self, flow: LucasKanade | Raft | None, scene_cut: float, stride: int = 1):
        self.flow, self.scene_cut, self.stride = flow, scene_cut, stride
        self.before: np.ndarray | None = None

    def reset(self) -> None:
        """A new video begins."""
        self.before = None

    def step(self, image: np.ndarray, device: torch.device) -> FromBefore | None:
        """The next frame of the video.

        Args:
            image: uint8 (H, W, 3).
            device: where the result shall be.

        Returns:
            None where nothing of the frame before is of use: at the first frame, at one of another size, and after a
            scene cut.
        """
        before, self.before = self.before, image.copy()  # callers like to reuse their buffers
        if before is None or before.shape != image.shape or self._is_cut(before, image):
            return None
        pictures = [self._cells(as_tensor(one, device)) for one in (image, before)]
        if self.flow is None:
            return FromBefore(None, (pictures[0] - pictures[1]).abs().mean(dim=0))
        flow = self._cells(self.flow(image, before).to(device)) / self.stride
        difference = (pictures[0] - along(pictures[1], flow)).abs().mean(dim=0)
        return FromBefore(flow, difference.masked_fill(~leads_inside(flow), math.inf))

    def _cells(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, self.stride, ceil_mode=True)

    def _is_cut(self, before: np.ndarray, image: np.ndarray) -> bool:
        return float((thumbnail(before) - thumbnail(image)).abs().mean()) > self.scene_cut


def thumbnail(image: np.ndarray) -> Tensor:
    """fp32 (3, 16, 16), 0..1: so small that the motion of things hardly matters."""
    return F.adaptive_avg_pool2d(as_tensor(image, torch.device("cpu")), THUMBNAIL)


def leads_inside(flow: Tensor) -> Tensor:
    """Whether a flow (2, h, w) leads to a place inside the frame, bool (h, w)."""
    height, width = flow.shape[1:]
    x = torch.arange(width, device=flow.device) + flow[0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def check_motion_fields(photometric: float | None, scene_cut: float) -> None:
    """Raise where a setting that steps share is outside its range."""
    if photometric is not None and not 0 < photometric <= 1:
        raise ValueError(f"photometric: expected a number above 0, up to 1, or null; found {photometric}")
    if not 0 < scene_cut <= 1:
        raise ValueError(f"scene_cut: expected a number above 0, up to 1 (never); found {scene_cut}")
