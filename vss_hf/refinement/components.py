"""A label map taken apart into its regions, and put together again from a probability map of each.

CascadePSP refines one region at a time (Cheng et al., CVPR 2020, "Scene parsing"; the numbers are those of
its published scripts for ADE20K). A region is what is left of a connected component of one class, where components
that nearly touch count as one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage


REACH = 5
# A disc of 10 pixels. Its centre is a pixel, so it is one pixel short below and at the right, as in the scripts.
DISC = [(y, x) for y in range(-REACH, REACH) for x in range(-REACH, REACH) if y * y + x * x <= REACH * REACH]
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
MARGIN = 0.125  # of a box's height and width on each side: boxes become larger by a quarter


@dataclass(frozen=True)
class Region:
    """A region of one class, within the box in which it is looked at.

    Args:
        label: its class.
        box: rows and columns of the label map.
        mask: bool (height, width) of the box.
    """

    label: int
    box: tuple[slice, slice]
    mask: np.ndarray


def split_regions(labels: np.ndarray, min_area: int = 1024) -> list[Region]:
    """The regions of a label map that are large enough to be refined, by class, in the order of their first pixels.

    Classes are dilated by a disc, their 8-connected components eroded by it again, and of these those pixels count
    that belong to the class. The disc is not symmetric, so this may lose a pixel at the upper and left borders.

    Args:
        labels: whole numbers from 0 (height, width).
        min_area: pixels that a class, and a component after erosion, must exceed.
    """
    regions = []
    for label, window in present(labels):
        window = grown(window, 2 * REACH, labels.shape)  # further than dilation and erosion see
        of_class = labels[window] == label
        if of_class.sum() <= min_area:
            continue
        for eroded, inner in closed_components(of_class, min_area):
            window_box = tuple(slice(w.start + i.start, w.start + i.stop) for w, i in zip(window, inner, strict=True))
            mask = np.zeros(labels.shape, dtype=bool)
            mask[window_box] = eroded & of_class[inner]
            box = scaled_box(mask)
            if box is not None:
                regions.append(Region(label, box, mask[box].copy()))
    return regions


def present(labels: np.ndarray) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Every class of a label map, with the rows and columns in which it lies."""
    for label, window in enumerate(ndimage.find_objects(labels.astype(np.int32) + 1)):
        if window is not None:
            yield label, window


def closed_components(mask: np.ndarray, min_area: int) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """The components of a dilated mask, eroded again, of more than `min_area` pixels: bool, and their rows and columns
    of the mask. Erosion takes nothing away at the mask's own borders."""
    numbers = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(over_disc(mask, np.logical_or), EIGHT_NEIGHBOURS, output=numbers)
    areas = np.bincount(numbers.ravel())
    for number, window in enumerate(ndimage.find_objects(numbers), start=1):
        if areas[number] <= min_area:  # erosion makes none larger
            continue
        window = grown(window, REACH, mask.shape)
        eroded = over_disc(numbers[window] == number, np.logical_and)
        if eroded.sum() > min_area:
            yield eroded, window


def over_disc(mask: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """Dilation (`np.logical_or`) or erosion (`np.logical_and`) of a bool mask by the disc; beyond its borders there is
    nothing that counts. Much faster than SciPy's, which takes any structure."""
    height, width = mask.shape
    padded = np.pad(mask, REACH, constant_values=bool(combine.identity))
    result = mask.copy()
    for y, x in DISC:
        part = padded[REACH + y : REACH + y + height, REACH + x : REACH + x + width]
        combine(result, part, out=result)
    return result


def grown(window: tuple[slice, ...], margin: int, size: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns with `margin` more on each side, as far as the map goes."""
    rows, columns = (
        slice(max(part.start - margin, 0), min(part.stop + margin, length))
        for part, length in zip(window, size, strict=True)
    )
    return rows, columns


def scaled_box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns around a mask with a margin on each side; None if there are none.

    As published the box ends before the row and column of its last pixel with the margin, so that the map's last row
    and column are in no box.

    Args:
        mask: bool (height, width).
    """
    parts = []
    for axis, length in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        if not len(inside):
            return None
        first, last = inside[0], inside[-1]
        margin = MARGIN * (last - first)
        part = slice(int(max(0, first - margin)), int(min(length - 1, last + margin)))
        if part.stop <= part.start:
            return None
        parts.append(part)
    return parts[0], parts[1]


class Claims:
    """Labels that regions claim for themselves: the most probable one gets a pixel, if it is more probable than not.

    A pixel that none claims keeps its label; so a region becomes smaller only where another one becomes larger. What
    comes out does not depend on the order in which regions come.

    Args:
        labels: whole numbers (height, width), before.
    """

    def __init__(self, labels: np.ndarray):
        self.labels = labels.copy()
        self.confidence = np.full(labels.shape, 0.5, dtype=np.float32)
        self.owner = np.full(labels.shape, -1, dtype=np.int32)  # who claimed a pixel: of equal claims the first counts

    def add(self, number: int, region: Region, probabilities: np.ndarray) -> None:
        """A region's claim.

        Args:
            number: the region's place among all regions, from 0.
            region: its class and its box.
            probabilities: float32 (height, width) of the box.
        """
        labels, confidence, owner = (each[region.box] for each in (self.labels, self.confidence, self.owner))
        stronger = (probabilities > confidence) | ((probabilities == confidence) & (number < owner))
        labels[stronger] = region.label
        confidence[stronger] = probabilities[stronger]
        owner[stronger] = number
