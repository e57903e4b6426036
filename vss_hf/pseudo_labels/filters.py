"""Which predicted pixels become pseudo labels: confident ones, of every class its share, and those that stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vss_hf.inference.segmenter import SegmentedFrame


DEFAULT_THRESHOLD = 0.9  # on CamVid: 80 % of the pixels, and less than a third of the errors (docs/training.md)
# Confidences are counted by their log odds, ln(p / (1 - p)): most are near 1, and shares have to tell those apart.
# float32 cannot hold a probability between 1 - 2^-24 (log odds 16.6) and 1.
LOWEST, HIGHEST, STEPS = -6, 18, 64  # log odds, and bins per unit of them
BINS = (HIGHEST - LOWEST) * STEPS


@dataclass(frozen=True)
class PseudoLabelSettings:
    """Which frames are labelled, and which of their pixels keep the prediction. A pixel has to pass all filters.

    Args:
        threshold: least probability of the predicted class, 0..1. None: 0.9, or 0 with `class_balanced`.
        class_balanced: keep about this share (0..1) of the pixels that are predicted as a class, the most confident
            ones, for every class by itself (Zou et al., "Unsupervised domain adaptation for semantic segmentation via
            class-balanced self-training", ECCV 2018, section 4.2). None: no such filter. The model then sees frames
            twice: first every `balance_every`-th one to count confidences, then all of them.
        balance_every: of the frames that are labelled, every which one of a video is counted; 1: all.
        temporal_window: a pixel keeps its label only if the prediction for so many frames before and after says the
            same; 0: not asked. These are the neighbours in the source, whatever `every` is.
        temporal_radius: a neighbour agrees if it has the label within so many pixels of the place, in both directions.
        min_labelled: frames that keep a smaller share (0..1) of their pixels are left out.
        every: label the frames 0, every, 2 * every, ... of each video.

    Raises:
        ValueError: a number out of its range, or one that has no effect.
    """

    threshold: float | None = None
    class_balanced: float | None = None
    balance_every: int = 5
    temporal_window: int = 0
    temporal_radius: int = 0
    min_labelled: float = 0.05
    every: int = 1

    def __post_init__(self):
        for name in ("threshold", "class_balanced", "min_labelled"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected 0..1")
        if self.class_balanced == 0:
            raise ValueError("class_balanced=0 keeps nothing; expected a share of the pixels above 0")
        for name, least in {"balance_every": 1, "temporal_window": 0, "temporal_radius": 0, "every": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.temporal_radius and not self.temporal_window:
            raise ValueError(f"temporal_radius={self.temporal_radius} needs temporal_window: 1 or more frames")

    @property
    def least_confidence(self) -> float:
        """The threshold that is the same for all classes."""
        if self.threshold is not None:
            return self.threshold
        return DEFAULT_THRESHOLD if self.class_balanced is None else 0.0

    def is_wanted(self, position: int) -> bool:
        """Whether a frame is labelled, by its position in the video."""
        return position % self.every == 0

    def is_neighbour(self, position: int) -> bool:
        """Whether a frame is labelled or asked whether it agrees."""
        distance = position % self.every
        return min(distance, self.every - distance) <= self.temporal_window


# --- agreement in time


class Placed(NamedTuple):
    """A labelled frame and its position in the source."""

    position: int
    frame: SegmentedFrame


def with_neighbours(frames: Iterable[Placed], window: int) -> Iterator[tuple[Placed, list[Placed]]]:
    """Each frame with those that lie at most `window` positions before or after it; 2 * window + 1 are in memory.

    Args:
        frames: by ascending position; gaps are allowed.
        window: from 0.
    """
    held: deque[Placed] = deque()
    centre = 0  # of those held, the next one to give out

    def around() -> tuple[Placed, list[Placed]]:
        here = held[centre]
        others = [other for other in held if other is not here and abs(other.position - here.position) <= window]
        return here, others

    for placed in frames:
        held.append(placed)
        while centre < len(held) and held[centre].position + window <= placed.position:
            yield around()
            centre += 1
        first = held[centre].position if centre < len(held) else placed.position + 1
        while held and held[0].position < first - window:
            held.popleft()
            centre -= 1
    while centre < len(held):
        yield around()
        centre += 1


def agreeing(labels: np.ndarray, other: np.ndarray, radius: int) -> np.ndarray:
    """Where a neighbour has a pixel's label at the same place or near it.

    Args:
        labels: uint8 (H, W).
        other: uint8 of the same shape, the neighbour's labels.
        radius: how far off the label may be, in pixels, along each axis.

    Returns:
        bool (H, W).
    """
    height, width = labels.shape
    agree = np.zeros(labels.shape, dtype=bool)
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        rows, other_rows = _overlap(height, down)
        for right in range(-min(radius, width - 1), min(radius, width - 1) + 1):
            columns, other_columns = _overlap(width, right)
            agree[rows, columns] |= labels[rows, columns] == other[other_rows, other_columns]
    return agree


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Which part of an axis has a partner `shift` further on, and the partners."""
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size + min(0, shift))


def kept_pixels(
    here: SegmentedFrame, neighbours: Iterable[SegmentedFrame], thresholds: np.ndarray, radius: int
) -> np.ndarray:
    """Which pixels of a frame keep their label.

    Args:
        here: the frame, with confidence.
        neighbours: the frames that have to agree; one of another size is not asked.
        thresholds: float32 (num_labels,), the least confidence of each class.
        radius: as for `agreeing`.

    Returns:
        bool (H, W).
    """
    assert here.confidence is not None
    kept = here.confidence >= thresholds[here.labels]
    for neighbour in neighbours:
        if neighbour.labels.shape == here.labels.shape:
            kept &= agreeing(here.labels, neighbour.labels, radius)
    return kept


# --- thresholds of each class


def confidence_counts(labels: np.ndarray, confidence: np.ndarray, num_labels: int) -> np.ndarray:
    """How many pixels of each predicted class have which confidence.

    Args:
        labels: uint8 (H, W).
        confidence: float32 (H, W), probabilities.
        num_labels: number of classes.

    Returns:
        int64 (num_labels, BINS), bins of equal width in log odds.
    """
    with np.errstate(divide="ignore"):  # 1 is beyond all odds
        odds = np.log(confidence) - np.log1p(-confidence)
    level = np.floor((odds - LOWEST) * STEPS).clip(0, BINS - 1).astype(np.int64)
    counts = np.bincount((labels.astype(np.int64) * BINS + level).ravel(), minlength=num_labels * BINS)
    return counts.reshape(num_labels, BINS)


def class_thresholds(counts: np.ndarray, share: float) -> np.ndarray:
    """The least confidence of each class with which its most confident pixels pass, at least `share` of them.

    Args:
        counts: int64 (num_labels, BINS), see `confidence_counts`.
        share: above 0, up to 1.

    Returns:
        float32 (num_labels,), the lower edge of a bin; infinite for a class that was not counted once.
    """
    from_top = counts[:, ::-1].cumsum(axis=1)
    total = from_top[:, -1]
    last = (from_top >= np.ceil(share * total)[:, None]).argmax(axis=1)  # the first bin from the top that suffices
    lowest = BINS - 1 - last
    edge = 1 / (1 + np.exp(-(lowest / STEPS + LOWEST)))
    edge[lowest == 0] = 0.0  # the lowest bin has no lower edge
    edge[total == 0] = np.inf
    return edge.astype(np.float32)
