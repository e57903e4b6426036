"""How the mask files of a data set become labels: files are read as whole numbers, one table does the rest.

VSPW and most others store an index per pixel, VIPSeg panoptic numbers of 16 bits, CamVid colours, COCO-Stuff 10k
MATLAB matrices. Whatever the file, `LabelReader.values` gives the numbers in it and `LabelReader.lookup` says which
label each of them is; remapping to other classes changes that table and nothing else.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .labels import IGNORE_INDEX, ClassList
from .packed import is_packed, read_packed
from .vspw import NotIndicesError, check_file, naming_damage, open_image, read_mask


Encoding = Literal["index", "panoptic", "colour", "matlab"]


@dataclass(frozen=True, eq=False)
class LabelReader:
    """Reads the mask files of one data set.

    Args:
        lookup: uint8 (256,) or (65536,), the label of every value that a mask can hold; 255 = ignore.
        encoding: what the files hold. "index": PNG of mode L or P, the values as they are. "panoptic": the same with
            numbers of up to 16 bits. "colour": RGB pictures, whose exact colours `colours` turns into values.
            "matlab": the matrix S of a .mat file.
        colours: for "colour", {folder name: {R + 256 * G + 65536 * B: value}}; the folder name "" stands for every
            folder that is not listed. Colours that are not listed have the value 0.
    """

    lookup: np.ndarray
    encoding: Encoding = "index"
    colours: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    @classmethod
    def of_classes(cls, classes: ClassList) -> LabelReader:
        """The reader of index masks whose values are the class list's disk ids: VSPW's layout."""
        return cls(classes.lookup)

    def values(self, path: str | Path) -> np.ndarray:
        """The numbers in a mask file, uint8 or uint16 (H, W). Errors as `read_mask`."""
        if self.encoding == "index":
            return read_mask(path)
        if self.encoding == "panoptic":
            return read_panoptic(path)
        if self.encoding == "colour":
            return self._colour_values(path)
        return read_matlab(path)

    def labels(self, path: str | Path) -> np.ndarray:
        """The labels in a mask file, uint8 (H, W), 255 = ignore. Errors as `read_mask`."""
        return self.lookup.take(self.values(path))  # twice as fast as self.lookup[...]

    def remapped(self, new_labels: np.ndarray) -> LabelReader:
        """The reader that gives `new_labels[label]` for every label.

        Args:
            new_labels: uint8 (num_labels,), 255 = ignore.
        """
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        table[: len(new_labels)] = new_labels
        return replace(self, lookup=table[self.lookup])

    def _colour_values(self, path: str | Path) -> np.ndarray:
        folder = os.path.basename(os.path.dirname(path))
        values_of = self.colours.get(folder, self.colours.get(""))
        if values_of is None:
            raise ValueError(f"{path}: nothing says what the colours in folder {folder!r} mean")
        values_of = {0: 0} | dict(values_of)  # never empty; black stays 0 unless it is listed
        colours = np.array(sorted(values_of), np.uint32)
        values = np.array([values_of[colour] for colour in colours.tolist()], np.uint8)
        pixels = read_colours(path)
        place = np.searchsorted(colours, pixels).clip(max=len(colours) - 1)
        return np.where(colours[place] == pixels, values[place], np.uint8(0))


def lookup_table(values: Mapping[int, int], size: int = 256) -> np.ndarray:
    """A lookup, uint8 (size,), from {value in the mask: label}; every other value is ignored."""
    table = np.full(size, IGNORE_INDEX, dtype=np.uint8)
    table[list(values)] = list(values.values())
    return table


# --- one file to one array


def read_panoptic(path: str | Path) -> np.ndarray:
    """Reads a mask of 8 or 16 bits as uint16 (H, W), the numbers stored in the file. Errors as `read_mask`."""
    with open_image(path) as image:
        if not image.mode.startswith("I"):  # a mask without large numbers is often stored with 8 bits
            return read_mask(path).astype(np.uint16)
        if image.format != "PNG":
            raise NotIndicesError(f"{path}: {image.format} image of mode {image.mode}; a panoptic mask must be a PNG")
        with naming_damage(path):
            return np.array(image).astype(np.uint16)  # a PNG has no more than 16 bits


def read_colours(path: str | Path) -> np.ndarray:
    """Reads a colour mask as uint32 (H, W): R + 256 * G + 65536 * B. Errors as `read_mask`."""
    with open_image(path) as image:
        if image.mode not in ("RGB", "RGBA", "P") or image.format != "PNG":
            raise NotIndicesError(
                f"{path}: {image.format} image of mode {image.mode}; this data set's masks are PNGs of exact colours"
            )
        with naming_damage(path):
            pixels = np.array(image.convert("RGB"), np.uint32)  # (H, W, 3)
    return pixels @ np.array([1, 256, 65536], np.uint32)


def read_matlab(path: str | Path) -> np.ndarray:
    """Reads a COCO-Stuff 10k annotation (version 1.1), the matrix S of a MATLAB file, as uint8 (H, W).

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, damaged or no MATLAB file; no such matrix, other numbers than 0..182, or version 1.0.
    """
    from scipy.io import loadmat

    if is_packed(path):
        data = read_packed(path)
    else:
        check_file(path, "a MATLAB file")
        data = Path(path).read_bytes()
    try:
        content = loadmat(io.BytesIO(data), variable_names=["S", "names"])
    except Exception as error:  # the reader says of no set of errors that damage raises no other
        raise ValueError(f"{path}: cannot be read as a MATLAB file: {error}") from error
    matrix = content.get("S")
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "uif" or not matrix.size:
        raise ValueError(f"{path}: holds no matrix of numbers named S; expected a COCO-Stuff 10k annotation")
    if np.size(content.get("names", ())) == 172:
        raise ValueError(
            f"{path}: an annotation of COCO-Stuff 10k version 1.0, whose numbers mean other classes; "
            "get version 1.1 (cocostuff-10k-v1.1.zip)"
        )
    with np.errstate(invalid="ignore"):  # not-a-number is found in the next line
        values = matrix.astype(np.uint8)
    if not np.array_equal(values, matrix) or values.max() > 182:
        raise ValueError(f"{path}: S holds {matrix.min()}..{matrix.max()}; expected whole numbers 0..182")
    return values
