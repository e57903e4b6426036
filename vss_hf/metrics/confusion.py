"""Confusion matrix of label maps, and the scores that papers and leaderboards read from it.

Everything is counted over the whole data set first and divided once at the end: state is O(num_labels^2) whatever the
number of frames, parts can be counted apart and merged, and the result does not depend on the order.

    matrix = ConfusionMatrix(num_labels=124)
    for prediction, reference in ...:
        matrix.update(prediction, reference)
    matrix.compute()["mean_iou"]

Two averages are in use and must not be mixed (on the same maps they can be 0.53 and 0.14):

- "vspw": mean over the classes that occur in the ground truth (`Evaluator` in VSPW_baseline/utils.py), as in VSPW
  papers.
- "evaluate": mean over the classes that occur in ground truth or prediction (`mean_iou` of the evaluate library,
  mmseg). One stray pixel of a class that the split does not have adds an IoU of 0 to the mean.
"""

from typing import Any

import numpy as np
import torch

from ._tensors import as_label_map, equals, sum_over_processes


PROTOCOLS = ("vspw", "evaluate")
BYTE = 256  # number of values of a uint8 label map


class ConfusionMatrix:
    """Streaming confusion matrix; rows are the ground truth, columns the prediction.

    Pixels whose reference is `ignore_index` are left out, whatever is predicted there. A prediction of `ignore_index`
    on a labelled pixel says "no class": it is a missed pixel of the true class and a false positive of none. (Where
    `ignore_index` is itself one of 0..num_labels-1, as when a background class is not scored, predicting it stays an
    ordinary mistake.)

    Args:
        num_labels: number of classes; labels are 0..num_labels-1.
        ignore_index: reference value of pixels that are not scored.
        device: where the counts are kept. Maps may live on any device; only a table of counts travels.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, device: str | torch.device = "cpu"):
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; a confusion matrix needs at least 1 class")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        # the last column counts labelled pixels that were predicted as ignore_index
        self._state = torch.zeros(num_labels, num_labels + 1, dtype=torch.int64, device=device)

    @property
    def counts(self) -> torch.Tensor:
        """Pixels per (true class, predicted class), int64 (num_labels, num_labels)."""
        return self._state[:, : self.num_labels]

    @property
    def missed(self) -> torch.Tensor:
        """Labelled pixels per true class that were predicted as `ignore_index`, int64 (num_labels,)."""
        return self._state[:, self.num_labels]

    @property
    def in_truth(self) -> torch.Tensor:
        """Labelled pixels per true class, int64 (num_labels,)."""
        return self._state.sum(1)

    def __repr__(self) -> str:
        pixels = int(self._state.sum())
        return f"ConfusionMatrix(num_labels={self.num_labels}, ignore_index={self.ignore_index}, {pixels} pixels)"

    # --- counting

    def update(self, predictions: Any, references: Any) -> None:
        """Counts one map or a batch of maps.

        Args:
            predictions: predicted labels, tensor or array of any integer dtype and any shape (..., H, W).
            references: true labels, same shape.

        Raises:
            ValueError: shapes differ, a dtype is not integer, or a value is neither a class nor `ignore_index`.
        """
        predictions, references = _as_pair(predictions, references)
        if references.numel() == 0:
            return
        if predictions.dtype is torch.uint8 and references.dtype is torch.uint8:
            self.add_value_table(_pair_table(references, predictions, BYTE))
        else:
            self._update_wide(predictions, references)

    def add_counts(self, counts: torch.Tensor) -> None:
        """Adds counts made elsewhere, for example by `vss_hf.modeling.dense.upsampled_confusion`.

        Args:
            counts: integer (num_labels, num_labels), rows ground truth, columns prediction.
        """
        counts = as_label_map(counts, "counts")
        expected = (self.num_labels, self.num_labels)
        if tuple(counts.shape) != expected:
            raise ValueError(f"counts have shape {tuple(counts.shape)}; this matrix adds {expected}")
        self.counts.add_(counts.to(self._state.device))

    def add_value_table(self, table: np.ndarray) -> None:
        """Adds counts of (reference value, predicted value) pairs, such as those of all 256 x 256 pairs of bytes.

        Args:
            table: (n, n) whole numbers; entry (r, p) is the number of pixels with reference value r and predicted
                value p. Both may be `ignore_index`.

        Raises:
            ValueError: a counted value is neither a class nor `ignore_index`.
        """
        classes, size = self.num_labels, len(table)
        void = self.ignore_index if 0 <= self.ignore_index < size else None
        fits = min(classes, size)
        added = np.zeros((classes, classes + 1), dtype=np.int64)
        added[:fits, :fits] = table[:fits, :fits]
        if void is not None and void >= classes:
            added[:fits, -1] = table[:fits, void]
        elif void is not None:
            added[void] = 0
        ignored = table[void].sum() if void is not None else 0
        if added.sum() + ignored != table.sum():  # some pixels are neither
            self._refuse_values(table, void)
        self._add(added)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Adds everything that `other` has counted, so that parts of a data set can be counted apart."""
        if other.num_labels != self.num_labels:
            raise ValueError(f"cannot merge counts of {other.num_labels} classes into a matrix of {self.num_labels}")
        self._state.add_(other._state.to(self._state.device))

    def reset(self) -> None:
        """Forgets all counts."""
        self._state.zero_()

    def reduce(self) -> None:
        """Replaces the counts by their sum over all processes, in every process. Call it once, at the end.

        Does nothing when torch.distributed is not initialised.
        """
        self._state.copy_(sum_over_processes(self._state))

    # --- scores

    def compute(self, protocol: str = "vspw") -> dict[str, Any]:
        """Reads the scores off the counts, in float64. The counts stay.

        Args:
            protocol: "vspw" averages the IoU over classes in the ground truth, "evaluate" over classes in the ground
                truth or the prediction (module docstring). Nothing else depends on it.

        Returns:
            Fractions in 0..1: `mean_iou`; `frequency_weighted_iou` (weights: ground-truth pixels); `pixel_accuracy`;
            `mean_accuracy` (over classes in the ground truth); `per_class_iou` and `per_class_accuracy`, lists with
            None for classes that are not scored; `num_classes_scored`, the number of values in the mean IoU;
            `protocol`. With no labelled pixel the means are NaN.

        Raises:
            ValueError: unknown protocol.
        """
        return class_scores(*self.class_pixels(), protocol)

    def class_pixels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per class, int64 (num_labels,): pixels that are right, that are it in truth, that are predicted as it.

        All scores follow from these three, of single videos too: `class_scores`.
        """
        counts = self._state.cpu().numpy()
        return np.diagonal(counts).copy(), counts.sum(axis=1), counts[:, : self.num_labels].sum(axis=0)

    # --- inside

    def _update_wide(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Counts maps with values outside 0..255, for example an ignore_index of -100 or more than 256 classes."""
        kept = ~equals(references, self.ignore_index)
        references, predictions = references[kept].long(), predictions[kept].long()  # (pixels,)
        void_is_class = 0 <= self.ignore_index < self.num_labels
        missed = torch.zeros_like(predictions, dtype=torch.bool) if void_is_class else predictions == self.ignore_index
        for name, values in (("references", references), ("predictions", predictions[~missed])):
            wrong = values[(values < 0) | (values >= self.num_labels)]
            if wrong.numel():
                self._refuse(name, int(wrong[0]), wrong.numel())
        predictions = torch.where(missed, self.num_labels, predictions)
        table = _pair_table(references, predictions, self.num_labels + 1)
        self._add(table[: self.num_labels].astype(np.int64))

    def _add(self, added: np.ndarray) -> None:
        if self._state.device.type == "cpu":  # torch would wake its threads for this little work
            self._state.numpy()[:] += added
        else:
            self._state += torch.from_numpy(added).to(self._state.device)

    def _refuse_values(self, table: np.ndarray, void: int | None) -> None:
        if void is not None:
            table = table.copy()
            table[void] = 0  # anything goes on pixels that are not scored
        rows, columns = table.sum(axis=1), table[: self.num_labels].sum(axis=0)
        for name, pixels in (("references", rows), ("predictions", columns)):
            for value in np.flatnonzero(pixels).tolist():
                if value >= self.num_labels and value != void:
                    self._refuse(name, value, int(pixels[value]))

    def _refuse(self, name: str, value: int, pixels: int) -> None:
        raise ValueError(
            f"{name} hold the value {value} ({pixels} pixels); labels are 0..{self.num_labels - 1} "
            f"or ignore_index={self.ignore_index}"
        )


def class_scores(
    hits: np.ndarray, in_truth: np.ndarray, in_prediction: np.ndarray, protocol: str = "vspw"
) -> dict[str, Any]:
    """Scores in float64 from the pixels of each class; see `ConfusionMatrix.compute`.

    Args:
        hits, in_truth, in_prediction: whole numbers (num_labels,), as `ConfusionMatrix.class_pixels` gives them.
        protocol: "vspw" or "evaluate".

    Raises:
        ValueError: unknown protocol.
    """
    check_protocol(protocol)
    hits, in_truth, in_prediction = (np.asarray(pixels, np.float64) for pixels in (hits, in_truth, in_prediction))
    union = in_truth + in_prediction - hits
    iou = hits / np.maximum(union, 1)  # a union of 0 is never read below
    accuracy = hits / np.maximum(in_truth, 1)
    present = in_truth > 0
    scored = present if protocol == "vspw" else union > 0
    return {
        "mean_iou": _mean(iou[scored]),
        "frequency_weighted_iou": _ratio((in_truth * iou).sum(), in_truth.sum()),
        "pixel_accuracy": _ratio(hits.sum(), in_truth.sum()),
        "mean_accuracy": _mean(accuracy[present]),
        "per_class_iou": _with_gaps(iou, scored),
        "per_class_accuracy": _with_gaps(accuracy, present),
        "num_classes_scored": int(scored.sum()),
        "protocol": protocol,
    }


def check_protocol(protocol: str) -> None:
    """Raise a ValueError unless there is such an average."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; known are {', '.join(map(repr, PROTOCOLS))}")


def value_table(predictions: Any, references: Any) -> np.ndarray:
    """Counts pairs of values before it is known which of them are classes; see `ConfusionMatrix.add_value_table`.

    Args:
        predictions: predicted values 0..255, tensor or array of any integer dtype and any shape (..., H, W).
        references: true values 0..255, same shape.

    Returns:
        (256, 256) whole numbers; entry (r, p) is the number of pixels with reference value r and predicted value p.

    Raises:
        ValueError: shapes differ, a dtype is not integer, or a value is outside 0..255.
    """
    predictions, references = _as_pair(predictions, references)
    for name, labels in (("predictions", predictions), ("references", references)):
        if labels.dtype is not torch.uint8:
            low, high = torch.aminmax(labels)
            raise ValueError(
                f"{name} hold values from {int(low)} to {int(high)}; only 0..255 can be counted before num_labels is "
                "known (ConfusionMatrix takes any)"
            )
    return _pair_table(references, predictions, BYTE)


def _as_pair(predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both as integer tensors on one device, as uint8 where the values fit: bytes are counted fastest."""
    predictions = as_label_map(predictions, "predictions")
    references = as_label_map(references, "references")
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)}; "
            "they must be equal (resize the prediction to the size of the reference)"
        )
    return _narrow(predictions), _narrow(references.to(predictions.device))


def _narrow(labels: torch.Tensor) -> torch.Tensor:
    if labels.dtype is torch.uint8 or labels.numel() == 0:
        return labels.to(torch.uint8)
    low, high = map(int, torch.aminmax(labels))  # as Python numbers: an int8 tensor compares 256 as 0
    return labels.to(torch.uint8) if low >= 0 and high < BYTE else labels


def _pair_table(references: torch.Tensor, predictions: torch.Tensor, size: int) -> np.ndarray:
    """Counts (reference, prediction) pairs; both hold 0..size-1. Returns whole numbers (size, size).

    Neighbours in a label map are mostly equal, and then a histogram adds to one bin again and again, each addition
    waiting for the one before. On the CPU, runs of equal pairs are counted instead, which is three times as fast;
    noisy maps have no long runs and are counted pixel by pixel.
    """
    if references.device.type != "cpu":
        pairs = references.flatten().long() * size + predictions.flatten()
        return torch.bincount(pairs, minlength=size * size).view(size, size).cpu().numpy()
    truth, guess, lengths = references.numpy().ravel(), predictions.numpy().ravel(), None  # (pixels,)
    ends_run = np.ones(truth.size, dtype=bool)
    np.not_equal(truth[1:], truth[:-1], out=ends_run[:-1])
    ends_run[:-1] |= guess[1:] != guess[:-1]
    if np.count_nonzero(ends_run) < truth.size // 4:
        last = np.flatnonzero(ends_run)
        truth, guess, lengths = truth[last], guess[last], np.diff(last, prepend=-1)
    dtype = np.uint16 if size <= BYTE else np.int64  # 256 * 256 pairs just fit
    pairs = truth.astype(dtype)
    pairs *= dtype(size)
    pairs += guess.astype(dtype, copy=False)
    return np.bincount(pairs, lengths, size * size).reshape(size, size)  # with lengths float64, exact to 2^53


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _ratio(part: np.float64, whole: np.float64) -> float:
    return float(part / whole) if whole else float("nan")


def _with_gaps(values: np.ndarray, known: np.ndarray) -> list[float | None]:
    return [float(value) if there else None for value, there in zip(values, known, strict=True)]
