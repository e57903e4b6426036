"""Temporal consistency (TC): how well the labels of a frame, moved along the optical flow, agree with its neighbour's.

No ground truth is involved: a constant prediction scores 1, as do wrong labels that stick to their things. Two
definitions are in use, so that the protocol is named in every result:

| protocol        | which labels are moved    | moved from outside the frame | score                            |
|-----------------|---------------------------|------------------------------|----------------------------------|
| "paper"         | frame t-1's, onto frame t | left out                     | mIoU of each video, then the mean|
| "vspw-official" | frame t+1's, onto frame t | class 0                      | one mIoU of all frames together  |

- "paper": Liu et al., "Efficient Semantic Video Segmentation with Per-frame Inference", ECCV 2020, evaluation metrics.
  The mean is over the classes that occur in either of the two. A video of one frame has no score.
- "vspw-official": `TC_cal.py` of VSPW_code. The mean is over the classes that occur in frame t. Its grid is made for
  corners that are aligned and read as if they were not, which shifts the frame's last row and column outside; this is
  repeated here. It scores the first 100 videos of a split: give it those alone to compare with published numbers.

Published numbers come from RAFT ("raft-things", 20 updates); another flow gives another score.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._tensors import as_label_map


PROTOCOLS = ("paper", "vspw-official")


class TemporalConsistency:
    """Streaming TC. Feed the frames of one video in order, then call `end_video()`.

    Args:
        num_labels: classes; predictions are 0..num_labels-1, and 255 is "no class", which is left out.
        flow: called as flow(first, second) with two frames as `add_frame` gets them; returns the optical flow,
            floating (2, H, W), in pixels (x, y): what first shows at p, second shows at p + flow[:, p].
        protocol: "paper" or "vspw-official" (module docstring).

    Raises:
        ValueError: unknown protocol.
    """

    def __init__(self, num_labels: int, flow: Callable[[Any, Any], Tensor], protocol: str = "paper"):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}; known are {', '.join(map(repr, PROTOCOLS))}")
        self.num_labels, self.flow, self.protocol = num_labels, flow, protocol
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._videos: list[Tensor] = []
        self._forget_video()

    def add_frame(self, prediction: Any, image: Any) -> None:
        """Adds the next frame of the current video.

        Args:
            prediction: predicted labels (H, W), tensor or array of any integer dtype.
            image: the frame, as `flow` wants it, e.g. uint8 (H, W, 3).

        Raises:
            ValueError: the shape is not (H, W) or differs from the previous frame's or the flow's, the dtype is not
                integer, or a value is neither a class nor 255.
        """
        prediction = as_label_map(prediction, "prediction")
        self._check(prediction)
        if self._before is not None:
            self._counts += self._pair(*self._before, prediction, image)
        self._before = (prediction.clone(), image.copy() if hasattr(image, "copy") else image)

    def end_video(self) -> None:
        """Ends the current video; the next frame may have another size. No effect when no frame was added."""
        if self._before is not None:
            self._videos.append(self._counts)
        self._forget_video()

    @property
    def totals(self) -> Tensor:
        """What was counted in the videos that have ended, int64 (videos, num_labels, 3): for each class the pixels
        that have it in both maps, in the frame's own, and in the one that was moved onto it."""
        return torch.stack(self._videos) if self._videos else torch.zeros(0, self.num_labels, 3, dtype=torch.int64)

    def add_totals(self, totals: Tensor) -> None:
        """Adds the `totals` of videos that were counted elsewhere."""
        self._videos += list(totals)

    def compute(self) -> dict[str, Any]:
        """The score of the videos that have ended.

        Returns:
            `tc`: 0..1, or None where no video has two frames; `per_video`: the mIoU of each video, or None; `videos`:
            number of videos with a score; `protocol`.
        """
        per_video = [self._mean_iou(counts) for counts in self._videos]
        scored = [value for value in per_video if value is not None]
        if self.protocol == "paper":
            tc = sum(scored) / len(scored) if scored else None
        else:
            tc = self._mean_iou(self.totals.sum(0))
        return {"tc": tc, "per_video": per_video, "videos": len(scored), "protocol": self.protocol}

    # --- inside

    def _forget_video(self) -> None:
        self._before: tuple[Tensor, Any] | None = None
        self._counts = torch.zeros(self.num_labels, 3, dtype=torch.int64)

    def _check(self, prediction: Tensor) -> None:
        if prediction.ndim != 2:
            raise ValueError(f"prediction has shape {tuple(prediction.shape)}; expected (height, width)")
        if self._before is not None and prediction.shape != self._before[0].shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} after {tuple(self._before[0].shape)}; "
                "call end_video() between videos"
            )
        wrong = prediction[(prediction < 0) | ((prediction >= self.num_labels) & (prediction != 255))]
        if wrong.numel():
            raise ValueError(f"prediction holds {int(wrong[0])}; expected classes 0..{self.num_labels - 1}, or 255")

    def _pair(self, before: Tensor, image_before: Any, now: Tensor, image: Any) -> Tensor:
        """Counts (num_labels, 3) of two successive frames."""
        if self.protocol == "paper":
            moved, inside = warp_labels(before[None], self._flow(image, image_before, now))
            return pair_counts(now, torch.where(inside, moved[0], 255), self.num_labels)
        return pair_counts(before, warp_as_published(now, self._flow(image_before, image, now)), self.num_labels)

    def _flow(self, first: Any, second: Any, prediction: Tensor) -> Tensor:
        flow = self.flow(first, second)
        if flow.shape != (2, *prediction.shape):
            raise ValueError(
                f"the flow has shape {tuple(flow.shape)}; expected (2, height, width) of the prediction, which is "
                f"{tuple(prediction.shape)}"
            )
        return flow.to(prediction.device)

    def _mean_iou(self, counts: Tensor) -> float | None:
        both, own, moved = counts.double().unbind(1)
        present = own > 0 if self.protocol == "vspw-official" else own + moved > 0
        if not present.any():
            return None
        return (both / (own + moved - both))[present].mean().item()


def warp_labels(labels: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of another frame as they would lie in this one: those of the pixel where the flow leads, rounded.

    Args:
        labels: (n, H, W), any dtype.
        flow: (2, H, W), in pixels (x, y), from this frame to the other.

    Returns:
        (n, H, W), and whether the flow leads to a pixel of the other frame, bool (H, W); elsewhere the labels are
        those of the nearest one.
    """
    height, width = flow.shape[1:]
    # float64: whole numbers plus a half stay exact for any size, so that rounding does not depend on the position.
    x = (torch.arange(width, device=flow.device) + flow[0].double() + 0.5).floor()
    y = (torch.arange(height, device=flow.device)[:, None] + flow[1].double() + 0.5).floor()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, rows = x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()
    return labels[:, rows, columns], inside


def warp_as_published(labels: Tensor, flow: Tensor) -> Tensor:
    """`flowwarp` of TC_cal.py: see the module docstring for its grid.

    Args:
        labels: (H, W).
        flow: (2, H, W), as for `warp_labels`.
    """
    height, width = labels.shape
    x = torch.arange(width, device=flow.device, dtype=torch.float32) + flow[0].float()
    y = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None] + flow[1].float()
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    moved = F.grid_sample(labels[None, None].float(), grid[None], mode="nearest", align_corners=False)
    return moved[0, 0].to(labels.dtype)


def pair_counts(own: Tensor, moved: Tensor, num_labels: int) -> Tensor:
    """For each class the pixels that have it in both maps, in the first and in the second; pixels where either is 255
    are left out. int64 (num_labels, 3), on the CPU.

    Args:
        own, moved: (H, W), classes or 255.
        num_labels: classes.
    """
    known = (own != 255) & (moved != 255)
    own, moved = own[known].long(), moved[known].long()
    maps = (own[own == moved], own, moved)
    return torch.stack([one.bincount(minlength=num_labels) for one in maps], dim=1).cpu()
