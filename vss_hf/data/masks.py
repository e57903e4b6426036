"""How the mask files of a data set become labels: files are read as whole numbers, one table does the rest.

VSPW and most others store an index per pixel, VIPSeg panoptic numbers of 16 bits, CamVid colours, COCO-Stuff 10k
MATLAB matrices. Whatever the file, `LabelReader.values` gives the numbers in it and `LabelReader.lookup` says which
label each of them is; remapping to other classes changes that table and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .labels import IGNORE_INDEX, ClassList
from .vspw import read_mask


Encoding = Literal["index"]


@dataclass(frozen=True, eq=False)
class LabelReader:
    """Reads the mask files of one data set.

    Args:
        lookup: uint8 (256,) or (65536,), the label of every value that a mask can hold; 255 = ignore.
        encoding: what the files hold: "index" (PNG of mode L or P, the values as they are).
    """

    lookup: np.ndarray
    encoding: Encoding = "index"

    @classmethod
    def of_classes(cls, classes: ClassList) -> LabelReader:
        """The reader of index masks whose values are the class list's disk ids: VSPW's layout."""
        return cls(classes.lookup)

    def values(self, path: str | Path) -> np.ndarray:
        """The numbers in a mask file, uint8 or uint16 (H, W). Errors as `read_mask`."""
        return read_mask(path)

    def labels(self, path: str | Path) -> np.ndarray:
        """The labels in a mask file, uint8 (H, W), 255 = ignore. Errors as `read_mask`."""
        return self.lookup[self.values(path)]

    def remapped(self, new_labels: np.ndarray) -> LabelReader:
        """The reader that gives `new_labels[label]` for every label.

        Args:
            new_labels: uint8 (num_labels,), 255 = ignore.
        """
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        table[: len(new_labels)] = new_labels
        return replace(self, lookup=table[self.lookup])
