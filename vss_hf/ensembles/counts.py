"""Pixels of each class that an ensemble would count with any weights, from its members' stored scores.

For most pixels the weights do not matter: all members have the same best class. Of the others most classes can be left
out, because another one is at least as good for every member. What remains is small, and a set of weights costs
milliseconds.
"""

from dataclasses import dataclass

import numpy as np

from vss_hf.metrics.confusion import class_scores


PARTS = 10_000
DENSE_BYTES = 2**24
PIXELS_AT_ONCE = 2**17


@dataclass
class OpenPixels:
    """Pixels whose class depends on the weights, with so many classes to choose from.

    Args:
        places: int64 (n,): video * num_labels + label.
        classes: uint8 (n, u), ascending; behind the last one, others with scores of 0.
        scores: uint16 (u, n, members), in 1/65535.
    """

    places: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


class WeightedCounts:
    """Counts per video and class, as `ConfusionMatrix.class_pixels`, for any weights of the members.

    Args:
        num_labels: classes.
        videos: how many.
        members: how many.
    """

    def __init__(self, num_labels: int, videos: int, members: int):
        self.num_labels, self.videos, self.members = num_labels, videos, members
        self.in_truth = np.zeros((videos, num_labels), np.int64)
        self.hits = np.zeros((videos, num_labels), np.int64)  # of the pixels that are settled
        self.predicted = np.zeros((videos, num_labels), np.int64)
        self.open: dict[int, list[OpenPixels]] = {}  # by the number of classes, a power of 2

    @property
    def open_pixels(self) -> int:
        """How many pixels depend on the weights."""
        return sum(len(part.places) for parts in self.open.values() for part in parts)

    def add(self, video: int, labels: np.ndarray, classes: list[np.ndarray], scores: list[np.ndarray]) -> None:
        """Take the pixels of a video.

        Args:
            video: its position.
            labels: uint8 (n,), 0..num_labels-1.
            classes: of each member uint8 (n, k), by descending scores; k may differ.
            scores: of each member uint16 (n, k).
        """
        self.in_truth[video] += np.bincount(labels, minlength=self.num_labels)
        first = classes[0][:, 0]
        settled = np.ones(len(labels), bool)
        for its, values in zip(classes, scores, strict=True):
            settled &= its[:, 0] == first
            if its.shape[1] > 1:
                settled &= values[:, 0] > values[:, 1]  # otherwise the lower class of the two is the best one
        self._settle(video, labels[settled], first[settled])
        rest = np.flatnonzero(~settled)
        at_once = max(1, DENSE_BYTES // (self.members * self.num_labels))
        for start in range(0, len(rest), at_once):
            some = rest[start : start + at_once]
            self._open(video, labels[some], [one[some] for one in classes], [one[some] for one in scores])

    def _settle(self, video: int, labels: np.ndarray, predicted: np.ndarray) -> None:
        self.predicted[video] += np.bincount(predicted, minlength=self.num_labels)
        self.hits[video] += np.bincount(labels[labels == predicted], minlength=self.num_labels)

    def _open(self, video: int, labels: np.ndarray, classes: list[np.ndarray], scores: list[np.ndarray]) -> None:
        dense = np.zeros((self.members, len(labels), self.num_labels), np.uint16)
        for of_member, its, values in zip(dense, classes, scores, strict=True):
            np.put_along_axis(of_member, its.astype(np.int64), values, axis=1)
        kept = worth_keeping(dense)
        left = kept.sum(axis=1)
        alone = left <= 1  # none: no member has a score there, and the first class wins
        self._settle(video, labels[alone], kept[alone].argmax(axis=1))
        size = 2
        while size // 2 < left.max(initial=0):
            these = (left > size // 2) & (left <= size)
            if these.any():
                self._keep(video, labels[these], dense[:, these], kept[these], size)
            size *= 2

    def _keep(self, video: int, labels: np.ndarray, dense: np.ndarray, kept: np.ndarray, size: int) -> None:
        order = np.argsort(~kept, axis=1, kind="stable")[:, :size]  # classes that are kept, ascending, then others
        scores = np.take_along_axis(dense, order[None], axis=2)
        scores *= np.take_along_axis(kept, order, axis=1)
        places = video * self.num_labels + labels.astype(np.int64)
        pixels = OpenPixels(places, order.astype(np.uint8), np.ascontiguousarray(scores.transpose(2, 1, 0)))
        self.open.setdefault(size, []).append(pixels)

    def join(self) -> None:
        """Put the pixels of all videos together: one part for each number of classes."""
        for size, parts in self.open.items():
            if len(parts) == 1:
                continue
            self.open[size] = [
                OpenPixels(
                    np.concatenate([part.places for part in parts]),
                    np.concatenate([part.classes for part in parts]),
                    np.concatenate([part.scores for part in parts], axis=1),
                )
            ]

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels that are right and pixels that are predicted, by class: int64 (videos, num_labels) each.

        The class of a pixel is the one of the highest sum of weight * score; the lowest class wins a tie.

        Args:
            weights: (members,), at least 0, not all 0; they count to 1/10000 of their sum.
        """
        whole = whole_weights(weights)
        bins = self.videos * self.num_labels
        hits, predicted = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        for part in (part for parts in self.open.values() for part in parts):
            for start in range(0, len(part.places), PIXELS_AT_ONCE):
                some = slice(start, start + PIXELS_AT_ONCE)
                places = part.places[some]
                labels = places % self.num_labels
                chosen = best_class(part.classes[some], part.scores[:, some], whole)
                hits += np.bincount(places[chosen == labels], minlength=bins)
                predicted += np.bincount(places - labels + chosen, minlength=bins)
        shape = (self.videos, self.num_labels)
        return self.hits + hits.reshape(shape), self.predicted + predicted.reshape(shape)


class SearchedPixels:
    """The mean IoU (protocol vspw) of some videos together, for many sets of weights.

    As `WeightedCounts.counts`, but faster: of pixels with two classes, those with the same pair and the same label
    lie together, and how many of them take the second class is all that is counted.

    Args:
        counts: of all videos.
        videos: positions.
    """

    def __init__(self, counts: WeightedCounts, videos: np.ndarray):
        counts.join()
        self.num_labels = counts.num_labels
        self.in_truth = counts.in_truth[videos].sum(axis=0)
        self.hits, self.predicted = counts.hits[videos].sum(axis=0), counts.predicted[videos].sum(axis=0)
        self.several: list[OpenPixels] = []
        pairs = OpenPixels(
            np.zeros(0, np.int64), np.zeros((0, 2), np.uint8), np.zeros((2, 0, counts.members), np.uint16)
        )
        for size, (part,) in counts.open.items():
            these = np.isin(part.places // self.num_labels, videos)
            labels = part.places[these] % self.num_labels
            chosen = OpenPixels(labels, part.classes[these], part.scores[:, these])
            if size == 2:
                pairs = chosen
            else:
                self.several.append(chosen)
        self._arrange(pairs)

    def _arrange(self, pairs: OpenPixels) -> None:
        first, second = pairs.classes.T.astype(np.int64)
        right = np.where(pairs.places == first, 0, np.where(pairs.places == second, 1, 2))  # which of the two is
        key = (first * self.num_labels + second) * 3 + right
        order = np.argsort(key, kind="stable")
        key, self.start, self.size = np.unique(key[order], return_index=True, return_counts=True)
        self.first, self.second, self.right = key // 3 // self.num_labels, key // 3 % self.num_labels, key % 3
        self.ahead = (pairs.scores[1].astype(np.float64) - pairs.scores[0])[order]  # the second class, by members

    def mean_iou(self, weights: np.ndarray) -> float:
        """For `weights` as in `WeightedCounts.counts`."""
        whole = whole_weights(weights)
        predicted, hits = self.predicted.copy(), self.hits.copy()
        if len(self.start):
            taken = np.add.reduceat(self.ahead @ whole > 0, self.start, dtype=np.int64)  # a tie is the first one's
            left = self.size - taken
            np.add.at(predicted, self.first, left)
            np.add.at(predicted, self.second, taken)
            np.add.at(hits, self.first, np.where(self.right == 0, left, 0))
            np.add.at(hits, self.second, np.where(self.right == 1, taken, 0))
        for part in self.several:
            chosen = best_class(part.classes, part.scores, whole)
            predicted += np.bincount(chosen, minlength=self.num_labels)
            hits += np.bincount(chosen[chosen == part.places], minlength=self.num_labels)
        return class_scores(hits, self.in_truth, predicted)["mean_iou"]


def whole_weights(weights: np.ndarray) -> np.ndarray:
    """Weights as whole numbers in float64, whose sum is about 10000: sums of scores are exact, and so are ties."""
    return np.rint(weights / np.sum(weights) * PARTS)


def worth_keeping(dense: np.ndarray) -> np.ndarray:
    """Which classes can be the best one of a pixel for some weights: bool (n, K), perhaps too many.

    Args:
        dense: uint16 (members, n, K), scores.
    """
    kept = np.amax(dense, axis=0) > 0
    number = np.arange(dense.shape[2])
    # More rivals would leave out a few more; with many members it is the sum's best class that beats most.
    for rival in (dense.sum(axis=0, dtype=np.uint32).argmax(axis=1), *dense[:3].argmax(axis=2)):
        of_rival = np.take_along_axis(dense, rival[None, :, None], axis=2)  # (members, n, 1)
        below = (dense <= of_rival).all(axis=0)
        # Weights of 0 can leave members alone in which both are equal; then the lower class wins.
        equal = ((dense == of_rival) & (dense > 0)).any(axis=0)
        kept &= ~below | (equal & (number <= rival[:, None]))
    return kept


def best_class(classes: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The class of the highest weighted score, int64 (n,); of equal ones the first.

    Args:
        classes: uint8 (n, u).
        scores: uint16 (u, n, members).
        weights: float64 (members,), whole numbers.
    """
    best = scores[0].astype(np.float64) @ weights
    chosen = classes[:, 0].astype(np.int64)
    for others, of_others in zip(classes.T[1:], scores[1:], strict=True):
        sums = of_others.astype(np.float64) @ weights
        better = sums > best
        best[better] = sums[better]
        chosen[better] = others[better]
    return chosen
