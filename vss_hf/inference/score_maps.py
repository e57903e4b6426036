"""Class probabilities of one frame, of which a few rows at a time are computed.

Whatever probabilities come from (one pass of a model, several views of a frame, several models, the frames before),
labels need only rows of their sum, a block at a time: no (num_labels, height, width) tensor exists unless one is asked
for. A map holds what is small: logits or mask logits as the model gave them.

    maps = score_maps(model, outputs, (480, 853))            # one for each frame of the batch
    labels = WeightedScores([(0.5, maps[0]), (0.5, other)]).labels()
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vss_hf.modeling.dense import UpsampledRows, block_rows, full_precision, rows_first

from .scores import align_corners, is_mask_classification


class ScoreMap(ABC):
    """Scores of all classes at every pixel of one frame.

    Args:
        num_labels: classes.
        size: (height, width).
        device: where the rows are computed.
    """

    def __init__(self, num_labels: int, size: tuple[int, int], device: torch.device):
        self.num_labels, self.size, self.device = num_labels, size, device

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Scores of some rows: (stop - start, num_labels, width), fp32 (fp64 of fp64 logits), at least 0, to be kept
        as they are: two calls may give the same tensor."""

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, scores (stop - start, num_labels, width)) from the first row to the last."""
        yield from self._blocks(self.rows)

    def _blocks(self, rows: Callable[[int, int], Tensor]) -> Iterator[tuple[int, int, Tensor]]:
        height, width = self.size
        if not width:
            return
        number = block_rows(self.num_labels, width, torch.empty(0, device=self.device))
        for start in range(0, height, number):
            stop = min(start + number, height)
            with torch.no_grad(), full_precision(self.device):
                scores = rows(start, stop)
            yield start, stop, scores

    def labels(self) -> Tensor:
        """(height, width), uint8 (int64 for more than 255 classes): the highest score; the first class wins a tie."""
        labels = self._empty_labels()
        for start, stop, scores in self.blocks():
            labels[start:stop] = scores.max(dim=1).indices
        return labels

    def confidence(self, labels: Tensor) -> Tensor:
        """The share of the scores that given labels (height, width) have: fp32 (height, width), 0..1."""
        confidence = torch.empty(self.size, device=self.device)
        for start, stop, scores in self.blocks():
            chosen = scores.gather(1, labels[start:stop, None].to(self.device, torch.int64))[:, 0]
            confidence[start:stop] = chosen / scores.sum(dim=1).clamp(min=1e-12)
        return confidence

    def _empty_labels(self) -> Tensor:
        dtype = torch.uint8 if self.num_labels <= 255 else torch.int64
        return torch.empty(self.size, dtype=dtype, device=self.device)

    def dense(self) -> Tensor:
        """All scores, fp32 (num_labels, height, width): num_labels numbers for every pixel."""
        scores = torch.empty((self.num_labels, *self.size), device=self.device)
        for start, stop, block in self.blocks():
            scores[:, start:stop] = block.transpose(0, 1)
        return scores


class Interpolation:
    """Bilinear interpolation in several steps as one, wy @ image @ wx^T, of which any rows can be had.

    Args:
        wy: (H, h) on the CPU, fp32 or fp64: what the image's rows count in each row of the result; no row is all 0.
        wx: (W, w) on the CPU, of the columns.
        device: of the images.
    """

    def __init__(self, wy: Tensor, wx: Tensor, device: torch.device):
        used = (wy != 0).int()
        self.first = used.argmax(dim=1).tolist()  # on the CPU: choosing a block's rows does not wait for the device
        self.last = (used.shape[1] - used.flip(1).argmax(dim=1)).tolist()
        self.size = (len(wy), len(wx))
        self.wy, self.wx = wy.to(device), wx.to(device)

    def rows(self, image: Tensor, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 of the result (stop - start, C, W), free to be overwritten, of an image (h, C, w)."""
        span = slice(min(self.first[start:stop]), max(self.last[start:stop]))
        wide = image[span].to(self.wx.dtype) @ self.wx.t()  # (span, C, W)
        return (self.wy[start:stop, span] @ wide.flatten(1)).view(stop - start, *wide.shape[1:])


class LogitScores(ScoreMap):
    """The softmax of logits that are upsampled bilinearly.

    Args:
        logits: (num_labels, h, w) of one frame, any floating type.
        size: (height, width) wanted.
        align_corners: of the interpolation.
        mirrored: the logits are those of the frame's mirror image, left to right.
        interpolation: to `size`, if it is another one; then the two above do not count.
    """

    def __init__(
        self,
        logits: Tensor,
        size: tuple[int, int],
        align_corners: bool = False,
        mirrored: bool = False,
        interpolation: Interpolation | None = None,
    ):
        super().__init__(len(logits), size, logits.device)
        self.resampled = resampled_rows(logits, size, align_corners, mirrored, interpolation)

    def logits(self, start: int, stop: int) -> Tensor:
        """The logits of some rows: (stop - start, num_labels, width), fp32 or fp64, free to be overwritten."""
        return self.resampled(start, stop)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.logits(start, stop).softmax(dim=1)


class MaskScores(ScoreMap):
    """Scores of a mask classification model (modeling/dense_masks.py).

    Args:
        class_logits: (queries, num_labels + 1) of one frame, the last being "no object".
        mask_logits: (queries, h, w).
        size: (height, width) wanted.
        mirrored: as for `LogitScores`.
        normalised: divide by the sum over the classes, so that a pixel counts as much as another model's; as published
            the scores of pixels that no query claims are nearly 0.
        interpolation: as for `LogitScores`.
    """

    def __init__(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        size: tuple[int, int],
        mirrored: bool = False,
        normalised: bool = False,
        interpolation: Interpolation | None = None,
    ):
        super().__init__(class_logits.shape[-1] - 1, size, mask_logits.device)
        self.classes = class_logits.detach().float().softmax(dim=-1)[:, :-1].t()  # (K, Q)
        masks = mask_logits.float() if interpolation is None else mask_logits
        self.resampled = resampled_rows(masks, size, False, mirrored, interpolation)
        self.normalised = normalised

    def rows(self, start: int, stop: int) -> Tensor:
        masks = self.resampled(start, stop).float().sigmoid_()  # (rows, Q, W)
        scores = self.classes @ masks  # (rows, K, W)
        return normalised_rows(scores) if self.normalised else scores


def resampled_rows(
    image: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    mirrored: bool,
    interpolation: Interpolation | None,
) -> Callable[[int, int], Tensor]:
    """What gives rows (stop - start, C, width) of an image (C, h, w), resized to `size`; see `LogitScores`."""
    if interpolation is not None:
        # Not in fp32 as below: of many views half-precision logits take half the memory, and blocks are converted.
        return partial(interpolation.rows, image.detach().transpose(0, 1).contiguous())
    upsampled = UpsampledRows(rows_first(image.flip(-1) if mirrored else image), size, align_corners)
    return lambda start, stop: upsampled.block(start, stop).logits


def normalised_rows(scores: Tensor) -> Tensor:
    """Scores (rows, num_labels, width), at least 0, made to sum to 1 over the classes."""
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


class WeightedScores(ScoreMap):
    """The weighted sum of several maps of one frame.

    Args:
        members: (weight, map); one at least, of equal classes and size. The sum is not divided by the weights' sum.
    """

    def __init__(self, members: Sequence[tuple[float, ScoreMap]]):
        if not members:
            raise ValueError("no scores to add up: expected one map at least")
        first = members[0][1]
        for _, one in members:
            if (one.num_labels, one.size) != (first.num_labels, first.size):
                raise ValueError(
                    f"scores of {one.num_labels} classes at {one.size} and of {first.num_labels} at {first.size} "
                    "(height, width) have no sum"
                )
        super().__init__(first.num_labels, first.size, first.device)
        self.members = list(members)

    def rows(self, start: int, stop: int) -> Tensor:
        weight, first = self.members[0]
        total = first.rows(start, stop) * weight
        for weight, one in self.members[1:]:
            total.add_(one.rows(start, stop).to(total.device), alpha=weight)
        return total


class DenseScores(ScoreMap):
    """Scores that are there as a tensor.

    Args:
        scores: (num_labels, height, width), floating, at least 0.
    """

    def __init__(self, scores: Tensor):
        super().__init__(len(scores), (scores.shape[1], scores.shape[2]), scores.device)
        self.scores = scores

    def rows(self, start: int, stop: int) -> Tensor:
        return self.scores[:, start:stop].transpose(0, 1).float()


def score_maps(
    model: Any, outputs: Any, size: tuple[int, int], *, mirrored: bool = False, normalised: bool = False
) -> list[ScoreMap]:
    """The scores of each frame of a batch.

    Args:
        model: as for `semantic_scores`.
        outputs: its output for a batch.
        size: (height, width) wanted.
        mirrored: the batch held mirror images, left to right; the maps are of the frames themselves.
        normalised: as for `MaskScores`; the scores of a per-pixel model always sum to 1.
    """
    if is_mask_classification(model, outputs):
        pairs = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        return [MaskScores(classes, masks, size, mirrored, normalised) for classes, masks in pairs]
    return [LogitScores(logits, size, align_corners(model), mirrored) for logits in outputs.logits]
