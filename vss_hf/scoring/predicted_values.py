"""What the values in prediction files mean: labels 0..num_labels-1, or the values that the data set has on disk."""

import numpy as np
import torch
from PIL import Image

from vss_hf.data.labels import IGNORE_INDEX, VSPW
from vss_hf.fields import known_or_raise

from .ground_truth import GroundTruth


VALUES = ("labels", "disk")


class PredictedValues:
    """Turns what prediction files store into label maps of the truth's size.

    Args:
        truth: what the predictions are compared with.
        values: "labels" (0..num_labels-1, and 255 for none) or "disk" (as in the masks: VSPW's classes are 1..124, 0
            and 255 are none).
        resize: whether maps of another size are resized (nearest neighbour) instead of refused.

    Raises:
        ValueError: `values` is neither.
    """

    def __init__(self, truth: GroundTruth, values: str = "labels", resize: bool = False):
        known_or_raise(values, VALUES, "values")
        self.values, self.resize = values, resize
        self.resized = torch.zeros((), dtype=torch.int64)  # frames
        self.classes = truth.classes if truth.counts_as is None else VSPW
        # with groups of classes ("reverse") the confusion matrix does not tell the predicted ones apart
        self.telling = truth.counts_as is None
        self.is_value = self.classes.lookup != IGNORE_INDEX
        self.is_value[[0, IGNORE_INDEX]] = True

    def labels(self, stored: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
        """The label map of one file.

        Args:
            stored: uint8 (H, W).
            shape: height and width of the truth.
            name: how errors call the file.

        Raises:
            ValueError: another size, or a value that is none on disk. (Labels are checked where they are counted.)
        """
        if stored.shape != shape:
            if not self.resize:
                raise ValueError(
                    f"{name}: found {stored.shape}, expected {shape} as the mask (height, width); --resize makes it so"
                )
            self.resized += 1
            height, width = shape
            stored = np.asarray(Image.fromarray(stored).resize((width, height), Image.Resampling.NEAREST))
        if self.values == "labels":
            return stored
        wrong = stored[~self.is_value[stored]]
        if wrong.size:
            raise ValueError(
                f"{name}: holds the value {wrong[0]}; on disk classes are "
                f"{min(self.classes.disk_ids)}..{max(self.classes.disk_ids)}, and 0 or 255 is none"
            )
        return self.classes.lookup[stored]

    def hint(self, stored: np.ndarray) -> str:
        """What may be the matter with a file that holds a value which is no label."""
        if self.values == "labels" and self.is_value[np.unique(stored)].all():
            return "; these are values as in the masks? --values disk reads them so"
        return ""

    def other_meaning(self, counts: np.ndarray) -> list[str]:
        """A warning, if the predictions are right more often when their values are read the other way.

        Args:
            counts: the confusion matrix, (num_labels, num_labels), rows ground truth.
        """
        if not self.telling:
            return []
        truth = np.arange(self.classes.num_labels)
        if self.values == "labels":  # were they values on disk, class i would have come as label disk_ids[i]
            read_as, other = np.array(self.classes.disk_ids), "disk"
        else:  # were they labels, label i would have come as what value i is on disk
            read_as, other = self.classes.lookup[truth].astype(int), "labels"
        kept = read_as < self.classes.num_labels
        as_other, right = int(counts[truth[kept], read_as[kept]].sum()), int(np.trace(counts))
        if as_other <= right:
            return []
        return [
            f"{as_other / counts.sum():.1%} of the pixels would be right with --values {other} and only "
            f"{right / counts.sum():.1%} are with --values {self.values}: are the files read as what they hold?"
        ]
