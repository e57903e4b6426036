"""Label statistics against recounts in plain Python; what is derived from them; `vss-hf data stats`."""

import json
import math
import re
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from make_tree import HEIGHT, WIDTH, make_tree, mask_values, write_mask
from PIL import Image

from vss_hf.cli import main
from vss_hf.data.labels import VSPW
from vss_hf.data.scan import scan_labels
from vss_hf.data.splits import open_split
from vss_hf.data.statistics import LabelStatistics, frame_weights, label_statistics, weights_of_classes
from vss_hf.visualize import plot_label_statistics


NAMES = {"others": 0, "road": 1, "sky": 2, "ghost": 4, "tree": 5, "goat": 9}
LABELS = {1: 0, 2: 1, 4: 2, 5: 3, 9: 4}  # disk value to label
VIDEOS = {"a": [0, 1, 2, 3], "b": [0, 1], "c": [7]}


def values_of(video: str, number: int) -> np.ndarray:
    """Masks in which the classes are unequally frequent."""
    values = mask_values(video, number)
    values[values == 2] = 2 if number == 1 else 253  # sky in frame 1 of each video
    if (video, number) == ("c", 7):
        values[0, :2] = 9
    return values


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = make_tree(tmp_path_factory.mktemp("data") / "set", {"train": VIDEOS, "test": {"d": [0]}}, NAMES)
    for video, numbers in VIDEOS.items():
        for number in numbers:
            write_mask(root / f"data/{video}/mask/{number:08d}.png", values_of(video, number), "LP"[number % 2])
    return root


@pytest.fixture(scope="module")
def statistics(root) -> LabelStatistics:
    return label_statistics(open_split(root, "train"))


def labels_of(video: str, number: int) -> list[int]:
    return [LABELS.get(value, 255) for value in values_of(video, number).ravel().tolist()]


def test_against_plain_python(statistics):
    pixels, frames, videos, together = Counter(), Counter(), Counter(), Counter()
    for video, numbers in VIDEOS.items():
        in_video = set()
        for number in numbers:
            labels = labels_of(video, number)
            pixels.update(labels)
            present = sorted(set(labels) - {255})
            frames.update(present)
            in_video |= set(present)
            for pair in combinations_with_replacement(present, 2):
                together.update({pair, pair[::-1]})
        videos.update(in_video)
    assert statistics.pixels.tolist() == [pixels[i] for i in range(5)]
    assert statistics.frames.tolist() == [frames[i] for i in range(5)]
    assert statistics.videos.tolist() == [videos[i] for i in range(5)]
    assert statistics.together.tolist() == [[together[i, j] for j in range(5)] for i in range(5)]
    assert statistics.void_pixels == pixels[255]
    assert (statistics.num_videos, statistics.num_frames) == (3, 7)
    assert statistics.frames[1] == 2 and statistics.videos[1] == 2 and statistics.frames[2] == 0  # sky, ghost
    assert (statistics.names, statistics.dataset, statistics.split) == (tuple(NAMES)[1:], "set", "train")
    assert statistics.shares.sum() == pytest.approx(1)
    assert statistics.ignored_share == pytest.approx(pixels[255] / (7 * HEIGHT * WIDTH))
    assert [statistics.names[i] for i in statistics.occurring()[-2:]] == ["sky", "goat"]


def test_json_and_back(statistics):
    again = LabelStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())), statistics.names)
    for field, value in vars(statistics).items():
        assert np.array_equal(getattr(again, field), value), field
    assert again.together.dtype == again.pixels.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_statistics": 2}, "format 2; expected 1"),
        ({"label_statistics": None}, "format None; expected 1"),
        ({"names": ["road", "sky", "ghost", "bush", "goat"]}, "class 3 is 'tree', expected 'bush'"),
        ({"names": ["road"]}, "5 classes, expected 1"),
    ],
)
def test_a_file_of_something_else(statistics, change, message):
    names = change.pop("names", None)
    with pytest.raises(ValueError, match=message):
        LabelStatistics.from_dict({**statistics.to_dict(), **change}, names)


def test_unreadable_frames_do_not_count(root, tmp_path):
    other = make_tree(tmp_path / "set", {"train": VIDEOS}, NAMES)
    (other / "data/c/mask/00000007.png").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="1 of 7 masks"):
        statistics = label_statistics(open_split(other, "train"), on_bad_sample="skip")
    assert (statistics.num_videos, statistics.num_frames) == (2, 6)


# --- weights


def test_class_weights(statistics):
    pixels = statistics.pixels.tolist()
    mean = sum(pixels) / 4  # the ghost does not occur
    expected = [(mean / (n or min(filter(None, pixels)))) ** 0.5 for n in pixels]
    assert statistics.class_weights("inverse_sqrt").tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="class weights 'square': unknown; expected inverse_sqrt, literal_sqrt, inv"):
        statistics.class_weights("square")


def test_kinds_of_class_weights():
    """Of 1 and 4 pixels, 2.5 on average; an absent class weighs as the rarest one."""
    for kind, (rare, frequent) in {
        "inverse_sqrt": (2.5**0.5, 0.625**0.5),
        "literal_sqrt": (0.4**0.5, 1.6**0.5),
        "inverse": (2.5, 0.625),
        "effective_number": (0.6321205588 / (1 - math.exp(-0.4)), 0.6321205588 / (1 - math.exp(-1.6))),
    }.items():
        assert weights_of_classes(np.array([1, 4, 0]), kind).tolist() == pytest.approx([rare, frequent, rare])
        assert weights_of_classes(np.array([7, 7]), kind).tolist() == pytest.approx([1, 1])


def test_nothing_labelled(tmp_path):
    root = make_tree(tmp_path / "set", {"train": {"a": [0]}}, {"ghost": 9})
    statistics = label_statistics(open_split(root, "train"))
    with pytest.raises(ValueError, match="split 'train' of set: no labelled pixel"):
        statistics.class_weights()
    with pytest.raises(ValueError, match="split 'train' has no labelled pixel"):
        plot_label_statistics(statistics, ((1, 2, 3),), tmp_path / "plot.png")
    assert frame_weights(scan_labels(open_split(root, "train"))).tolist() == [1]
    assert statistics.groups() == ["absent"]


@pytest.mark.parametrize("by", ["pixels", "videos"])
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_frame_weights(root, statistics, by, threshold):
    weights = frame_weights(scan_labels(open_split(root, "train")), by, threshold)
    frequency = statistics.pixels / statistics.pixels.sum() if by == "pixels" else statistics.videos / 3
    threshold = threshold or float(np.median([f for f in frequency if f]))
    expected = []
    for video, numbers in VIDEOS.items():
        for number in numbers:
            present = set(labels_of(video, number)) - {255}
            expected.append(max(1, *((threshold / frequency[i]) ** 0.5 for i in present)))
    assert weights.tolist() == pytest.approx(expected)
    assert weights.max() > 1 and weights.dtype == np.float64


def test_frame_weights_of_what(root):
    found = scan_labels(open_split(root, "train"))
    with pytest.raises(ValueError, match="by is 'frames'; expected pixels or videos"):
        frame_weights(found, "frames")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold is 0; expected a share above 0"):
        frame_weights(found, "pixels", 0)


def test_groups(statistics):
    assert statistics.groups() == ["head", "head", "absent", "head", "head"]
    assert statistics.groups(frequent=0.9, rare=0.5) == ["head", "medium", "absent", "head", "tail"]


# --- the command and the picture


def test_the_command(root, tmp_path, capsys):
    report, plot = tmp_path / "stats.json", tmp_path / "stats.png"
    with pytest.raises(SystemExit) as end:
        main(["data", "stats", str(root), "--json", str(report), "--plot", str(plot)])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "set train: 3 videos, 7 frames, 2,898 pixels" in " ".join(shown.split())
    assert "ghost" not in shown and "4 head, 0 medium, 0 tail, 1 absent" in shown
    statistics = LabelStatistics.from_dict(json.loads(report.read_text()))
    assert statistics.num_frames == 7
    with Image.open(plot) as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(10**6) or ()) > 50


def test_the_command_filters(root, tmp_path, capsys):
    shares = [np.mean(np.array(labels_of(v, n)) != 255) for v, numbers in VIDEOS.items() for n in numbers]
    limit = float(np.median(shares))
    report = tmp_path / "stats.json"
    with pytest.raises(SystemExit) as end:
        main(["data", "stats", str(root), "--min-labelled", str(limit), "--json", str(report)])
    assert not end.value.code
    written = json.loads(report.read_text())
    assert written["num_frames"] == written["filter"]["kept"] == sum(share >= limit for share in shares) < 7
    assert f"kept {written['num_frames']} of 7 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "split 'test' of .* has 0 masks for 1 frames"),
        (["--split", "tarin"], "unknown split 'tarin'"),
        (["--plot", "picture.jpg"], "picture.jpg: a drawing is a .png, .svg or .pdf file"),
        (["--json", "nowhere/x.json"], "folder nowhere does not exist"),
    ],
)
def test_bad_input(root, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", "stats", str(root), *words])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_picture_of_all_classes(tmp_path):
    """VSPW's 124 classes, some of them absent."""
    pixels = (10 ** np.linspace(2, 10, 124)).astype(np.int64)
    pixels[::20] = 0
    seen = (pixels > 0).astype(np.int64)
    statistics = LabelStatistics(
        VSPW.names, pixels, 50 * seen, 9 * seen, 50 * np.outer(seen, seen), 10**9, 198_244, 2806, "VSPW", "train"
    )
    assert plot_label_statistics(statistics, VSPW.palette, tmp_path / "plot.png").is_file()
    with Image.open(tmp_path / "plot.png") as picture:
        assert 1500 < picture.width < 3000 and picture.height < 1500
