"""What an overlay video shows: the right pixels at the right place, a legend that does not move, any size of video."""

import math
import warnings

import numpy as np
import pytest
from PIL import Image

from vss_hf.data.labels import VSPW
from vss_hf.overlay_video import DARK, GAP, FramePainter, Legend, OverlayWriter
from vss_hf.video_io import read_frames
from vss_hf.visualize import overlay


NAMES = ("wall", "storage_rack", "goal")
PALETTE = ((120, 120, 120), (255, 0, 6), (4, 200, 3))


def scene(height: int, width: int, labels, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A frame of noise, and a label map with the labels in stripes of falling width."""
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shares = np.arange(len(labels), 0, -1) / (len(labels) * (len(labels) + 1) / 2)
    ends = np.round(np.cumsum(shares) * width).astype(int)
    return frame, np.broadcast_to(
        np.array(labels, np.uint8)[np.searchsorted(ends, np.arange(width), "right")], (height, width)
    )


def colours_in(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_frame_painted_frame_and_legend():
    frame, labels = scene(360, 480, [2, 0])
    picture = FramePainter(NAMES, PALETTE, alpha=0.5).paint(frame, labels)
    assert picture.shape[1] == 2 * 480 + GAP and picture.shape[0] > 360
    np.testing.assert_array_equal(picture[:360, :480], frame)
    np.testing.assert_array_equal(picture[:360, 480 + GAP :], overlay(frame, labels, PALETTE, 0.5))
    bar = colours_in(picture[360:])
    assert {PALETTE[2], PALETTE[0], DARK} <= bar and PALETTE[1] not in bar  # only the classes that occur


def test_painted_alone_keeps_the_size():
    frame, labels = scene(37, 53, [1, 255, 0])
    picture = FramePainter(NAMES, PALETTE, "painted", 0.3).paint(frame, labels)
    np.testing.assert_array_equal(picture, overlay(frame, labels, PALETTE, 0.3))


SIZES = [
    (1, 1),
    (32, 32),
    (64, 96),
    (361, 479),
    (480, 853),
    (853, 480),
    (1920, 1080),
    (33, 1500),
    (900, 33),
    (1440, 2560),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("names", [NAMES, VSPW.names], ids=["few", "vspw"])
def test_any_size(size, names):
    """Small videos are enlarged by whole numbers, large ones fit what players show; one size for all frames."""
    palette = PALETTE if names is NAMES else VSPW.palette
    painter = FramePainter(names, palette)
    frame, labels = scene(*size, [0, 1, 2] if names is NAMES else list(range(124)))
    picture = painter.paint(frame, labels)
    assert painter.paint(frame[::-1], labels).shape == picture.shape
    height, width = painter.panel
    assert picture.shape[1] <= 4096 and width >= 1 and picture.shape[0] <= 1.6 * 2160
    assert width / height == pytest.approx(size[1] / size[0], rel=0.02)
    factor = height // size[0]
    if factor > 1:  # every pixel is a square
        np.testing.assert_array_equal(picture[:height, :width], np.kron(frame, np.ones((factor, factor, 1), np.uint8)))
    assert max(height, width) >= 320


# --- the legend


def test_classes_come_largest_first_and_stay_where_they_are():
    legend = Legend(VSPW.names, VSPW.palette, 1700, 16)
    legend.add(scene(480, 853, [62, 28, 18])[1])
    before = legend.picture.copy()
    starts = [np.argwhere((before == VSPW.palette[label]).all(-1))[:, 1].min() for label in (62, 28, 18)]
    assert starts == sorted(starts)
    legend.add(scene(480, 853, [12, 18, 3, 62])[1])
    drawn = (before != DARK).any(-1)
    np.testing.assert_array_equal(legend.picture[drawn], before[drawn])  # nothing moved, nothing was drawn over
    assert legend.listed == {62, 28, 18, 12, 3}
    after = legend.picture.copy()
    legend.add(scene(480, 853, [3, 28])[1])  # nothing new
    np.testing.assert_array_equal(legend.picture, after)


def test_every_class_of_a_small_model_has_its_place_in_whatever_order_they_come():
    names = [f"{'long_' * (i % 4)}class_{i}" for i in range(12)]
    palette = [(20 * i + 15, 255 - 20 * i, 128) for i in range(12)]
    rng = np.random.default_rng(0)
    for width in (300, 640, 1710):
        for _ in range(4):
            legend = Legend(names, palette, width, 11)
            for label in rng.permutation(12):
                legend.add(np.full((4, 4), label, np.uint8))
            assert legend.listed == set(range(12)) and not legend.left_out, width
            assert colours_in(legend.picture) >= set(palette)


def test_what_has_no_place_is_counted():
    legend = Legend(VSPW.names, VSPW.palette, 1710, 16)
    pictures = []
    for label in range(124):
        legend.add(np.full((4, 4), label, np.uint8))
        pictures.append(legend.picture.copy())
    assert legend.listed | legend.left_out == set(range(124)) and 20 < len(legend.listed) < 60
    assert 99 >= len(legend.left_out) > 0
    first = min(legend.left_out)
    assert (pictures[first] != pictures[first - 1]).any() and (pictures[-1] != pictures[-2]).any()  # "+1 more", ...
    reserved = math.floor(legend.ends[-1])
    listed = pictures[first - 1]
    late = [n for n in range(first, 124) if n not in legend.listed]
    np.testing.assert_array_equal(pictures[late[0]][:, :reserved], listed[:, :reserved])
    assert all((picture[:, -4:] == DARK).all() for picture in pictures)  # nothing runs over the edge


def test_single_pixels_and_void_are_not_named():
    labels = np.zeros((100, 100), np.uint8)
    labels[0, :9] = 1  # under a thousandth
    labels[1:20] = 255
    legend = Legend(NAMES, PALETTE, 700, 12)
    legend.add(labels)
    assert legend.listed == {0}
    labels[0, 9] = 1
    legend.add(labels)
    assert legend.listed == {0, 1}


# --- videos that change, and wrong settings


def test_another_resolution_is_scaled_into_the_first_with_one_warning():
    painter = FramePainter(NAMES, PALETTE, alpha=1.0)
    first = painter.paint(*scene(400, 600, [0]))
    frame = np.full((300, 300, 3), 200, np.uint8)
    with pytest.warns(RuntimeWarning, match=r"frame 00000007 is 300x300 \(width x height\), .* began with 600x400"):
        second = painter.paint(frame, np.full((300, 300), 1, np.uint8), "00000007")
    assert second.shape == first.shape
    assert (second[:400, 100:500] == 200).all() and (second[:400, :99] == DARK).all()  # its shape is kept
    assert (second[:400, 604 + 101 : 604 + 499] == PALETTE[1]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        painter.paint(frame, np.full((300, 300), 1, np.uint8), "00000008")


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="overlay style is 'stacked': expected one of side-by-side, painted"):
        FramePainter(NAMES, PALETTE, "stacked")
    with pytest.raises(ValueError, match="alpha is 1.5: expected 0"):
        FramePainter(NAMES, PALETTE, alpha=1.5)


# --- files


def write_overlay(base, pairs, fail_after=None):
    with OverlayWriter(base, FramePainter(NAMES, PALETTE), 15.0) as writer:
        for number, (frame, labels) in enumerate(pairs):
            if number == fail_after:
                raise ValueError("the video breaks off")
            writer.add(frame, labels)
    return writer.path


def test_one_frame_is_a_picture_and_more_are_a_video(tmp_path):
    pairs = [scene(48, 64, [0, 1], seed) for seed in range(4)]
    with Image.open(write_overlay(tmp_path / "one", pairs[:1])) as picture:
        assert picture.format == "JPEG" and picture.width == 2 * 320 + GAP
    path = write_overlay(tmp_path / "four", pairs)
    assert path.name == "four.mp4" and len(list(read_frames(path))) == 4
    assert write_overlay(tmp_path / "none", []) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["four.mp4", "one.jpg"]


@pytest.mark.parametrize("count", [1, 3])
def test_what_was_painted_before_a_break_stays(tmp_path, count):
    pairs = [scene(48, 64, [0, 1], seed) for seed in range(5)]
    with pytest.raises(ValueError, match="breaks off"):
        write_overlay(tmp_path / "v", pairs, fail_after=count)
    [path] = tmp_path.iterdir()
    assert path.name == ("v.jpg" if count == 1 else "v.mp4")
    assert len(list(read_frames(path))) == count
