"""Which weights of an ensemble are tried: all on a grid, or one after the other."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .counts import SearchedPixels, WeightedCounts


METHODS = ("grid", "coordinate")
MOST_IN_GRID = 2000  # sets of weights; more are searched one coordinate after the other
Score = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class SearchSettings:
    """How weights are searched.

    Args:
        step: of weights that sum to 1.
        method: "grid": all sets of weights; "coordinate": one weight after the other, from equal ones, until none gets
            better; None: the grid, if it has at most 2000 sets.
        held_out: share of the videos that are not searched, drawn with `seed`.
        folds: instead of `held_out`: the videos fall into so many parts, and each part is held out from one search;
            the weights that are written come from all videos.
        seed: of the draw.
    """

    step: float = 0.05
    method: str | None = None
    held_out: float = 0.5
    folds: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.step <= 0.5 or abs(1 / self.step - round(1 / self.step)) > 1e-6:
            raise ValueError(f"--step {self.step}: expected a part of 1, e.g. 0.1, 0.05 or 0.01")
        if self.method not in (None, *METHODS):
            raise ValueError(f"--method {self.method}: expected {' or '.join(METHODS)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held-out {self.held_out}: expected a share between 0 and 1")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"--folds {self.folds}: expected at least 2")

    @property
    def parts(self) -> int:
        """How many steps make 1."""
        return round(1 / self.step)

    def splits(self, videos: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(searched, held out): positions of videos, ascending; one pair for each fold.

        Raises:
            ValueError: there are too few videos.
        """
        if videos < max(2, self.folds or 2):
            raise ValueError(f"{videos} videos: too few to search on some and to measure on others")
        order = np.random.default_rng(self.seed).permutation(videos)
        if self.folds is not None:
            held_out = np.array_split(order, self.folds)
        else:
            held_out = [order[: min(max(1, round(videos * self.held_out)), videos - 1)]]
        return [(np.setdiff1d(order, part), np.sort(part)) for part in held_out]


def grid(number: int, parts: int) -> Iterator[np.ndarray]:
    """All sets of `number` weights that sum to 1 in steps of 1/parts."""
    for bars in combinations(range(parts + number - 1), number - 1):  # stars and bars
        edges = np.array([-1, *bars, parts + number - 1])
        yield (np.diff(edges) - 1) / parts


def grid_size(number: int, parts: int) -> int:
    """How many sets `grid` gives."""
    return math.comb(parts + number - 1, number - 1)


def best_of(candidates: Iterator[np.ndarray] | list[np.ndarray], score: Score) -> tuple[np.ndarray, float]:
    """The weights of the highest score; of equal ones those nearest to equal weights, then the first."""
    best: tuple[float, float] = (-math.inf, 0.0)
    weights = np.zeros(0)
    for candidate in candidates:
        value = (score(candidate), -float(np.square(candidate - 1 / len(candidate)).sum()))
        if value > best:
            weights, best = candidate, value
    return weights, best[0]


def coordinate_search(number: int, parts: int, score: Score) -> tuple[np.ndarray, float]:
    """One weight after the other: its share of the sum is tried from 0 to 1, while the others keep their ratios. It
    ends when a round over all weights changes nothing."""
    weights = np.full(number, 1 / number)
    value = score(weights)
    while True:
        before = value
        for i in range(number):
            rest = np.where(np.arange(number) == i, 0.0, weights)
            rest = rest / rest.sum() if rest.sum() > 0 else np.where(np.arange(number) == i, 0.0, 1 / (number - 1))
            one = np.eye(number)[i]
            found, found_value = best_of([one * t + rest * (1 - t) for t in np.arange(parts + 1) / parts], score)
            if found_value > value:
                weights, value = found, found_value
        if value <= before:
            return weights, value


def search(counts: WeightedCounts, flat: np.ndarray, videos: np.ndarray, settings: SearchSettings) -> np.ndarray:
    """The best weights for some videos.

    Args:
        counts: of the members.
        flat: (searched weights, members): what each searched weight gives the members.
        videos: positions.
        settings: how to search.
    """
    number = len(flat)
    if number == 1:
        return np.ones(1)
    pixels = SearchedPixels(counts, videos)
    score = lambda weights: pixels.mean_iou(weights @ flat)  # noqa: E731
    if method_of(number, settings) == "grid":
        return best_of(grid(number, settings.parts), score)[0]
    return coordinate_search(number, settings.parts, score)[0]


def method_of(number: int, settings: SearchSettings) -> str:
    """Grid or coordinate."""
    return settings.method or ("grid" if grid_size(number, settings.parts) <= MOST_IN_GRID else "coordinate")
