"""Regions of a label map, against loops over pixels; labels put together from what regions claim."""

import numpy as np
import pytest

from vss_hf.refinement.components import Claims, Region, split_regions


def blobs(size, classes, seed, grain=9):
    """A label map of coarse patches with some noise, so that components touch, nearly touch and lie at the borders."""
    rng = np.random.default_rng(seed)
    height, width = size
    patches = rng.integers(0, classes, (height // grain + 2, width // grain + 2))
    labels = np.kron(patches, np.ones((grain, grain), int))[3 : height + 3, 5 : width + 5]
    noise = rng.random(size) < 0.03
    return np.where(noise, rng.integers(0, classes, size), labels).astype(np.uint8)


DISC = [(y, x) for y in range(-5, 5) for x in range(-5, 5) if y * y + x * x <= 25]  # 10 pixels wide, as published


def naive_regions(labels, min_area):
    """Label and set of pixels of each region, found pixel by pixel."""
    height, width = labels.shape

    def around(pixel):
        return [(pixel[0] + y, pixel[1] + x) for y, x in DISC]

    found = []
    everywhere = {(y, x) for y in range(height) for x in range(width)}
    for label in sorted(set(labels.ravel().tolist())):
        of_class = {pixel for pixel in everywhere if labels[pixel] == label}
        if len(of_class) <= min_area:
            continue
        left = {pixel for pixel in everywhere if any(other in of_class for other in around(pixel))}
        while left:
            first = min(left)
            component, edge = {first}, [first]
            left.discard(first)
            while edge:
                y, x = edge.pop()
                near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                component |= near
                left -= near
                edge += near
            kept = {p for p in component if all(other in component or other not in everywhere for other in around(p))}
            pixels = kept & of_class
            if (
                len(kept) > min_area
                and pixels
                and all(part.start < part.stop for part in naive_box(pixels, labels.shape))
            ):
                found.append((label, pixels))
    return found


def naive_box(pixels, size):
    """First and last row and column with an eighth of the extent on each side; the last ones are left out."""
    sides = []
    for axis, length in enumerate(size):
        first, last = min(p[axis] for p in pixels), max(p[axis] for p in pixels)
        margin = 0.25 * (last - first) / 2
        sides.append(slice(int(max(0, first - margin)), int(min(length - 1, last + margin))))
    return tuple(sides)


@pytest.mark.parametrize(
    "size,classes,seed,min_area",
    [((41, 57), 4, 0, 60), ((57, 40), 3, 1, 100), ((33, 64), 6, 2, 30), ((30, 31), 1, 3, 20), ((24, 24), 30, 4, 3)],
)
def test_regions_are_those_found_pixel_by_pixel(size, classes, seed, min_area):
    labels = blobs(size, classes, seed)
    wanted = naive_regions(labels, min_area)
    regions = split_regions(labels, min_area)
    assert len(wanted) >= min(classes, 2) and [region.label for region in regions] == [label for label, _ in wanted]
    borders = set()
    for region, (_, pixels) in zip(regions, wanted, strict=True):
        assert region.box == naive_box(pixels, size)
        mask = np.zeros(size, bool)
        mask[region.box] = region.mask
        rows, columns = region.box
        inside = {(y, x) for y, x in pixels if y < rows.stop and x < columns.stop}
        assert {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)} == inside
        parts = zip(("top", "left"), ("bottom", "right"), region.box, size, strict=True)
        for first, last, part, length in parts:
            borders |= {name for name, there in ((first, part.start == 0), (last, part.stop == length - 1)) if there}
    assert borders == {"top", "left", "bottom", "right"}  # the cases hold regions at all of them


def test_what_is_too_small_is_no_region():
    labels = np.zeros((50, 60), np.uint8)
    labels[10:42, 10:42] = 3  # 1024 pixels
    assert [region.label for region in split_regions(labels)] == [0]
    labels[42, 10] = 3  # one more of the class, which erosion takes away from the region again
    assert [region.label for region in split_regions(labels)] == [0]
    labels[42, 10:42] = 3
    assert [region.label for region in split_regions(labels, min_area=1000)] == [0, 3]
    assert split_regions(labels, min_area=3000) == []
    assert split_regions(np.zeros((1, 2000), np.uint8)) == []  # a line has no box
    assert split_regions(np.zeros((1, 1), np.uint8), min_area=0) == []


def test_parts_that_nearly_touch_are_one_region():
    labels = np.zeros((40, 90), np.uint8)
    labels[5:35, 5:35] = labels[5:35, 44:74] = 1
    assert [region.label for region in split_regions(labels, 400)] == [0, 1]
    labels[:, 40:50] = 0
    assert [region.label for region in split_regions(labels, 400)] == [0, 1, 1]


def test_many_classes():
    labels = np.full((50, 50), 300, np.int64)
    labels[:, 20:] = 7
    assert [region.label for region in split_regions(labels, 500)] == [7, 300]
    assert Claims(labels).labels.dtype == np.int64


def test_the_most_probable_region_gets_a_pixel():
    """Against a loop over pixels; equal claims go to the first region, in whatever order they come."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (20, 30)).astype(np.uint8)
    regions, claims = [], []
    for _ in range(12):
        top, left = rng.integers(0, 10, 2)
        box = slice(int(top), int(top + 10)), slice(int(left), int(left + 15))
        regions.append(Region(int(rng.integers(0, 5)), box, np.zeros((10, 15), bool)))
        claims.append((rng.integers(0, 5, (10, 15)) / 4).astype(np.float32))  # many are equal, some are 0.5
    wanted = labels.copy()
    for y in range(20):
        for x in range(30):
            best = 0.5
            for region, claim in zip(regions, claims, strict=True):
                rows, columns = region.box
                if rows.start <= y < rows.stop and columns.start <= x < columns.stop:
                    if claim[y - rows.start, x - columns.start] > best:
                        best, wanted[y, x] = claim[y - rows.start, x - columns.start], region.label
    before = labels.copy()
    for order in (range(12), range(11, -1, -1), rng.permutation(12)):
        result = Claims(labels)
        for number in order:
            result.add(int(number), regions[number], claims[number])
        assert np.array_equal(result.labels, wanted) and result.labels.dtype == np.uint8
    assert np.array_equal(labels, before) and not np.array_equal(labels, wanted)
