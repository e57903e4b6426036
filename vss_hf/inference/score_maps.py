"""Class probabilities of one frame, of which a few rows at a time are computed.

Whatever probabilities come from (one pass of a model, several views of a frame, several models, the frames before),
labels need only rows of their sum, a block at a time: no (num_labels, height, width) tensor exists unless one is asked
for. A map holds what is small: logits or mask logits as the model gave them.

    maps = score_maps(model, outputs, (480, 853))            # one for each frame of the batch
    labels = WeightedScores([(0.5, maps[0]), (0.5, other)]).labels()
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from vss_hf.modeling.dense import block_rows, full_precision, upsampled_argmax
from vss_hf.modeling.dense_masks import upsampled_mask_argmax

from .interpolation import Cells, Interpolation, bilinear
from .scores import align_corners, is_mask_classification


# Labels of a frame are made pixel by pixel if at most num_labels / (num_labels + this) of them need the scores, else
# row by row: what a single pixel costs beside its scores is as much as this many scores.
PIXEL_COST = 60
# A frame's pixels are made in so many parts, from the top to the bottom: each takes a copy of the logits that it needs
# and num_labels scores a pixel, a few times.
UNSURE_PARTS = 16
ROUNDING = 1e-5  # scores of one pixel computed in two ways differ less


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

    def sure_labels(self) -> Tensor | None:
        """The class (height, width) that certainly has the highest score, found without the scores, and -1 where that
        would need them; None: nothing is known without scores."""
        return None

    def at(self, pixels: Tensor) -> Tensor:
        """Scores of some pixels: (P, num_labels), as `rows` gives them. Maps with `sure_labels` have it.

        Args:
            pixels: int64 (P,), row * width + column of each.
        """
        raise NotImplementedError

    def ranking(self, start: int, stop: int) -> Tensor:
        """As `rows`, but any numbers that rank the classes as the scores do, for maps where such cost less."""
        return self.rows(start, stop)

    def ranking_at(self, pixels: Tensor) -> Tensor:
        """As `at`, in the way of `ranking`."""
        return self.at(pixels)

    def labels(self) -> Tensor:
        """(height, width), uint8 (int64 for more than 255 classes): the highest score; the first class wins a tie."""
        # Not on a GPU: how many pixels are left would have to be waited for, and blocks are fast there.
        with torch.no_grad(), full_precision(self.device):
            sure = self.sure_labels() if self.device.type == "cpu" else None
        if sure is not None:
            unsure = torch.nonzero(sure.flatten() < 0)[:, 0]
            if len(unsure) <= sure.numel() * self.num_labels / (self.num_labels + PIXEL_COST):
                return self._completed(sure, unsure)
        labels = self._empty_labels()
        for start, stop, ranking in self._blocks(self.ranking):
            labels[start:stop] = ranking.max(dim=1).indices
        return labels

    def _completed(self, sure: Tensor, unsure: Tensor) -> Tensor:
        """The labels, of which all but those of some pixels are known."""
        labels = sure.to(self._empty_labels().dtype).flatten()
        first_pixels = torch.arange(1, UNSURE_PARTS, device=unsure.device) * labels.numel() // UNSURE_PARTS
        for pixels in unsure.tensor_split(torch.searchsorted(unsure, first_pixels).tolist()):
            if not len(pixels):
                continue
            with torch.no_grad(), full_precision(self.device):
                labels[pixels] = self.ranking_at(pixels).max(dim=1).indices.to(labels.dtype)
        return labels.view(self.size)

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


class LogitScores(ScoreMap):
    """The softmax of logits that are upsampled bilinearly.

    Args:
        logits: (num_labels, h, w) of one frame, finite, any floating type.
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
        self.image = rows_first(logits, mirrored)  # (h, K, w)
        self.interpolation = interpolation or bilinear_of(logits, size, align_corners)

    def ranking(self, start: int, stop: int) -> Tensor:
        """The logits of some rows: (stop - start, num_labels, width), fp32 or fp64, free to be overwritten."""
        return self.interpolation.rows(self.image, start, stop)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.ranking(start, stop).softmax(dim=1)

    def sure_labels(self) -> Tensor:
        return self.interpolation.agreed(self.image.max(dim=1).indices)

    def ranking_at(self, pixels: Tensor) -> Tensor:
        """The logits of some pixels: (P, num_labels), fp32 or fp64, free to be overwritten."""
        return self.interpolation.at(self.image, pixels)

    def at(self, pixels: Tensor) -> Tensor:
        return self.ranking_at(pixels).softmax(dim=1)


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
        self.masks = rows_first(mask_logits, mirrored)  # (h, Q, w)
        self.interpolation = interpolation or bilinear_of(mask_logits, size, align_corners=False)
        self.normalised = normalised

    def rows(self, start: int, stop: int) -> Tensor:
        masks = self.interpolation.rows(self.masks, start, stop).float().sigmoid_()  # (rows, Q, W)
        scores = self.classes @ masks  # (rows, K, W)
        return normalised_scores(scores) if self.normalised else scores

    def at(self, pixels: Tensor) -> Tensor:
        masks = self.interpolation.at(self.masks, pixels).float().sigmoid_()  # (P, Q)
        scores = masks @ self.classes.t()  # (P, K)
        return normalised_scores(scores) if self.normalised else scores

    def sure_labels(self) -> Tensor:
        """A class is sure where its score with each mask at its lowest in the pixel's support is more than that of any
        other class with each mask at its highest."""
        vertical, horizontal = self.interpolation.cells
        labels = torch.empty((len(vertical.index), len(horizontal.index)), dtype=torch.int64)
        number = block_rows(2 * (self.num_labels + len(self.masks[0])), labels.shape[1], self.classes)
        for rows in torch.arange(len(labels)).split(number):
            lowest, highest = (
                self.classes @ extreme_masks(self.masks, vertical.index[rows], horizontal, extreme).sigmoid_()
                for extreme in (torch.minimum, torch.maximum)
            )  # (rows, K, columns)
            best = lowest.max(dim=1, keepdim=True)
            others = highest.scatter_(1, best.indices, 0).amax(dim=1)
            found, score = best.indices[:, 0], best.values[:, 0]
            labels[rows] = torch.where(score > others + ROUNDING * (1 + score), found, -1)
        return labels[vertical.of_pixel][:, horizontal.of_pixel]


def extreme_masks(masks: Tensor, rows: Tensor, horizontal: Cells, extreme: Callable[..., Tensor]) -> Tensor:
    """The lowest or highest mask logits, fp32 (M, Q, columns), of each cell's support.

    Args:
        masks: (h, Q, w).
        rows: int64 (M, n), the supports of some cells along the rows.
        horizontal: the cells along the columns.
        extreme: torch.minimum or torch.maximum.
    """
    of_rows = reduce(extreme, (masks[row] for row in rows.unbind(dim=1)))  # (M, Q, w)
    columns = horizontal.index.unbind(dim=1)
    return reduce(extreme, (of_rows.index_select(2, column) for column in columns)).float()


def rows_first(image: Tensor, mirrored: bool) -> Tensor:
    """(C, h, w) as (h, C, w), contiguous. It keeps its type: of many views half-precision logits take half the memory,
    and what is computed of them is converted."""
    image = image.detach()
    return (image.flip(-1) if mirrored else image).transpose(0, 1).contiguous()


def bilinear_of(image: Tensor, size: tuple[int, int], align_corners: bool) -> Interpolation:
    """The interpolation of an image (C, h, w) to `size`."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return bilinear((image.shape[1], image.shape[2]), size, align_corners, dtype, image.device)


def normalised_scores(scores: Tensor) -> Tensor:
    """Scores (n, num_labels, ...), at least 0, made to sum to 1 over the classes."""
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


class WeightedScores(ScoreMap):
    """The weighted sum of several maps of one frame.

    Args:
        members: (weight, map); one at least, of equal classes and size; weights from 0. The sum is not divided by the
            weights' sum.

    Raises:
        ValueError: there is no member, a weight is below 0, or the maps do not fit each other.
    """

    def __init__(self, members: Sequence[tuple[float, ScoreMap]]):
        if not members:
            raise ValueError("no scores to add up: expected one map at least")
        first = members[0][1]
        for weight, one in members:
            if not weight >= 0:
                raise ValueError(f"scores with a weight of {weight}: expected 0 or more")
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

    def sure_labels(self) -> Tensor | None:
        return agreeing([one for weight, one in self.members if weight])

    def at(self, pixels: Tensor) -> Tensor:
        return reduce(torch.add, (one.at(pixels) * weight for weight, one in self.members if weight))


def agreeing(maps: Sequence[ScoreMap]) -> Tensor | None:
    """`sure_labels` where all maps have the same: it is the class of the highest sum with weights above 0, too."""
    agreed: Tensor | None = None
    for one in maps:
        sure = one.sure_labels()
        if sure is None:
            return None
        agreed = sure if agreed is None else torch.where(agreed == sure, agreed, -1)
    return agreed


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


def semantic_labels(model: Any, outputs: Any, size: tuple[int, int]) -> Tensor:
    """The most probable class of every pixel, without holding all scores at full size.

    Args:
        model: as for `semantic_scores`.
        outputs: as for `semantic_scores`.
        size: (height, width) wanted, in pixels.

    Returns:
        (batch, height, width), uint8 (int64 for more than 255 classes); equal to `semantic_scores(...).argmax(1)`.
    """
    of_masks = is_mask_classification(model, outputs)
    maps = outputs.masks_queries_logits if of_masks else outputs.logits
    if maps.device.type == "cpu" and len(maps):
        return torch.stack([scores.labels() for scores in score_maps(model, outputs, size)])
    if of_masks:  # of the whole batch, which is waited for once
        return upsampled_mask_argmax(outputs.class_queries_logits, outputs.masks_queries_logits, size)
    return upsampled_argmax(outputs.logits, size, align_corners=align_corners(model))


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
