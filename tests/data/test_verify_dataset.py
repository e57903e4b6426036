"""Verification: every planted fault is found, by file, and nothing else is; damage never stops the check."""

import io
import json
import os
import random
import shutil

import numpy as np
import pytest
from make_tree import CAMVID, NAMES, frame_pixels, make_tree, mask_values, write_mask, write_video
from PIL import Image
from rich.console import Console

from vss_hf.data import VSPW, load_vspw, verify_dataset
from vss_hf.data.verify import OFFICIAL_COUNTS


VALUES = (0, 1, 2, 5, 255)


@pytest.fixture
def root(tmp_path):
    """A sound data set: train 2 videos, val 1, test 1."""
    splits = {"train": {"1_a": [1, 2, 3], "2_b-_": [4, 5]}, "val": {"3_v": [6, 7]}, "test": {"4_t": [8]}}
    make_tree(tmp_path, splits)
    for split in ("train", "val"):
        for video, numbers in splits[split].items():
            for number in numbers:
                write_mask(tmp_path / f"data/{video}/mask/{number:08d}.png", mask_values(video, number, VALUES))
    return tmp_path


def check(root, **options):
    report = verify_dataset(root, progress=False, **options)
    json.dumps(report.to_dict())
    printed(report)
    return report


def printed(report):
    console = Console(file=io.StringIO(), width=200)
    report.print(console)
    return console.file.getvalue()


def found(findings):
    return {(finding.kind, os.path.basename(finding.path)) for finding in findings}


def test_a_sound_data_set(root):
    report = check(root)
    assert report.ok and report.errors == [] and report.warnings == []
    assert report.class_list == "3 classes"
    counts = {split: (c.videos, c.frames, c.masks) for split, c in report.splits.items()}
    assert counts == {"train": (2, 5, 5), "val": (1, 2, 2), "test": (1, 1, 0)}
    assert "no errors" in printed(report)


def test_histogram_is_the_sum_over_masks(root):
    train = check(root).splits["train"]
    for name, value in [(name, value) for name, value in NAMES.items() if value]:
        per_video = {"1_a": 0, "2_b-_": 0}
        for video, number in [("1_a", 1), ("1_a", 2), ("1_a", 3), ("2_b-_", 4), ("2_b-_", 5)]:
            per_video[video] += int((mask_values(video, number, VALUES) == value).sum())
        assert train.class_pixels[name] == sum(per_video.values())
        assert train.class_videos[name] == sum(count > 0 for count in per_video.values())
    assert sum(train.class_pixels.values()) + train.void_pixels == 5 * 18 * 23


def test_class_videos_counts_videos_not_frames(root):
    write_mask(root / "data/1_a/mask/00000001.png", np.full((18, 23), 5, np.uint8))
    for path in [
        "1_a/mask/00000002.png",
        "1_a/mask/00000003.png",
        "2_b-_/mask/00000004.png",
        "2_b-_/mask/00000005.png",
    ]:
        write_mask(root / "data" / path, np.full((18, 23), 1, np.uint8), "P")
    assert check(root).splits["train"].class_videos == {"road": 2, "sky": 0, "tree": 1}


# --- planted faults: each one breaks loading or is only worth knowing


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def as_jpeg(path, keep):
    Image.open(path).resize((200, 100)).save(path.with_suffix(".jpg"))
    path.unlink()
    if not keep:
        truncate(path.with_suffix(".jpg"))


ERRORS = {
    "missing video": (lambda d: shutil.rmtree(d / "data/3_v"), ("missing_video", "3_v")),
    "no frames": (lambda d: shutil.rmtree(d / "data/3_v/origin"), ("empty_video", "origin")),
    "no masks": (lambda d: shutil.rmtree(d / "data/2_b-_/mask"), ("video_without_masks", "mask")),
    "a missing mask": (lambda d: (d / "data/3_v/mask/00000007.png").unlink(), ("frame_without_mask", "00000007.png")),
    "empty frame": (lambda d: (d / "data/3_v/origin/00000007.png").write_bytes(b""), ("empty_file", "00000007.png")),
    "empty mask": (lambda d: (d / "data/3_v/mask/00000006.png").write_bytes(b""), ("empty_file", "00000006.png")),
    "cut frame": (lambda d: truncate(d / "data/3_v/origin/00000007.png"), ("truncated_file", "00000007.png")),
    "cut mask": (lambda d: truncate(d / "data/3_v/mask/00000007.png"), ("truncated_file", "00000007.png")),
    "text": (lambda d: (d / "data/3_v/origin/00000007.png").write_text("hi"), ("unreadable_file", "00000007.png")),
    "a folder for a file": (
        lambda d: ((d / "data/3_v/origin/00000007.png").unlink(), (d / "data/3_v/origin/00000007.png").mkdir()),
        ("unreadable_file", "00000007.png"),
    ),
    "a file for a folder": (
        lambda d: (shutil.rmtree(d / "data/3_v"), (d / "data/3_v").touch()),
        ("missing_video", "3_v"),
    ),
    "colour mask": (
        lambda d: Image.new("RGB", (23, 18)).save(d / "data/3_v/mask/00000007.png"),
        ("not_an_index_mask", "00000007.png"),
    ),
    "size": (
        lambda d: write_mask(d / "data/3_v/mask/00000007.png", np.ones((18, 22), np.uint8)),
        ("size_mismatch", "00000007.png"),
    ),
    "a frame twice": (
        lambda d: Image.fromarray(frame_pixels("x", 1)).save(d / "data/3_v/origin/00000007.jpg"),
        ("unreadable_folder", "3_v"),
    ),
    "listed twice": (lambda d: (d / "val.txt").write_text("3_v\n3_v"), ("doubled_video", "val.txt")),
    "no class list": (lambda d: (d / "label_num_dic_final.json").unlink(), ("class_list", "label_num_dic_final.json")),
    "empty list": (lambda d: (d / "val.txt").write_text("\n"), ("split_file", "val.txt")),
    "list of bytes": (lambda d: (d / "val.txt").write_bytes(b"\xff\xfe3"), ("split_file", "val.txt")),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_errors_are_found_and_break_loading(root, fault):
    break_it, expected = ERRORS[fault]
    break_it(root)
    report = check(root)
    assert found(report.errors) == {expected} and not report.ok
    assert expected[1] in printed(report)
    with pytest.raises((ValueError, FileNotFoundError)):
        for split in ("train", "val"):
            list(load_vspw(root, split))


@pytest.mark.parametrize("keep", [True, False])
def test_cut_jpegs_are_found(root, keep):
    # at reduced resolution all data of a JPEG is still read, so that a missing end shows
    as_jpeg(root / "data/4_t/origin/00000008.png", keep)
    assert found(check(root).errors) == (set() if keep else {("truncated_file", "00000008.jpg")})


def test_a_video_in_two_splits(root):
    (root / "val.txt").write_text("3_v\n1_a\n")
    assert found(check(root).errors) == {("video_in_several_splits", "1_a")}
    assert found(check(root, splits=["val"]).errors) == {("video_in_several_splits", "1_a")}
    assert check(root, splits=["test"]).ok


WARNINGS = {
    "unlisted": (lambda d: write_video(d, "5_u", [1]), ("unlisted_video", "5_u")),
    "a mask too many": (
        lambda d: write_mask(d / "data/3_v/mask/00000099.png", np.full((18, 23), 77, np.uint8)),
        ("mask_without_frame", "00000099.png"),
    ),
    "strange values": (
        lambda d: write_mask(d / "data/3_v/mask/00000007.png", np.full((18, 23), 77, np.uint8)),
        ("values_outside_class_list", "00000007.png"),
    ),
    "an unlabelled frame of another size": (  # in a labelled video it is an error: tests/fuzz/test_trees.py
        lambda d: (
            Image.new("RGB", (23, 18)).save(d / "data/4_t/origin/00000009.png"),
            Image.new("RGB", (9, 8)).save(d / "data/4_t/origin/00000010.png"),
        ),
        ("frame_size_changes", "00000010.png"),
    ),
    "nothing labelled": (lambda d: shutil.rmtree(d / "data/3_v/mask"), ("split_without_masks", "val")),
}


@pytest.mark.parametrize("oddity", WARNINGS)
def test_oddities_are_warnings_and_load(root, oddity):
    make_it, expected = WARNINGS[oddity]
    make_it(root)
    report = check(root)
    assert found(report.warnings) == {expected} and report.ok
    for split in ("train", "val", "test"):
        list(load_vspw(root, split))


def test_strange_values_are_counted(root):
    values = np.zeros((18, 23), np.uint8)
    values[0, :4], values[1, :2] = 77, 253
    write_mask(root / "data/3_v/mask/00000007.png", values)
    (warning,) = check(root).warnings
    assert "77 (4 pixels), 253 (2 pixels)" in warning.detail


def test_dotfiles_are_no_fault(root):
    for folder in (root, root / "data", root / "data/3_v", root / "data/3_v/origin", root / "data/3_v/mask"):
        (folder / ".DS_Store").touch()
        (folder / "._00000006.png").write_bytes(b"x")
    report = check(root)
    assert report.errors == report.warnings == []


def test_vspw_void_values_and_official_counts(root):
    ids = dict(zip(VSPW.names, VSPW.disk_ids, strict=True))
    (root / "label_num_dic_final.json").write_text(json.dumps({"others": 0, **ids}))
    write_mask(root / "data/3_v/mask/00000007.png", np.resize(np.arange(252, 256), (18, 23)).astype(np.uint8))
    write_mask(root / "data/3_v/mask/00000006.png", np.full((18, 23), 125, np.uint8))
    report = check(root)
    assert report.class_list == "VSPW" and report.ok
    assert found(report.warnings) == {
        ("values_outside_class_list", "00000006.png"),
        *(("official_counts", split) for split in ("train", "val", "test")),
    }
    assert "2,806" in printed(report)


def test_official_counts_add_up():
    assert sum(frames for _, frames in OFFICIAL_COUNTS.values()) == 251_633
    assert sum(videos for videos, _ in OFFICIAL_COUNTS.values()) == 3536


@pytest.mark.parametrize("splits", [None, ["train"], ["nope"]])
def test_no_data_set_at_all(tmp_path, splits):
    for place in (tmp_path / "nowhere", tmp_path):
        kinds = {finding.kind for finding in check(place, splits=splits).errors}
        assert {"class_list", "split_file"} <= kinds


def test_names_that_upset_terminals(root):
    name = "[red]5\x1b[31m\udcff_x\n"
    try:
        (root / "data" / name).mkdir()
    except OSError:
        pytest.skip("the file system refuses such names")
    text = printed(check(root))
    assert "unlisted_video" in text and "\\x1b" in text and "\\udcff" in text and "[red]5" in text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang_the_check(root):
    (root / "data/3_v/origin/00000007.png").unlink()
    os.mkfifo(root / "data/3_v/origin/00000007.png")
    assert found(check(root).errors) == {("unreadable_file", "00000007.png")}


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_survived_and_agrees_with_the_reader(root, seed):
    rng = random.Random(seed)
    victims = sorted(path for path in root.glob("data/*/*/*.png"))
    for path in rng.sample(victims, 3):
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 5, 50])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.3 else data)
    report = check(root)
    readable = True
    for split in ("train", "val", "test"):
        try:
            list(load_vspw(root, split))
        except ValueError:
            readable = False
    assert report.ok == readable, report.errors


@pytest.mark.skipif(not CAMVID.is_dir(), reason="set VSS_HF_CAMVID to CamVid in VSPW's layout")
def test_camvid():
    report = check(CAMVID)
    assert report.ok and report.warnings == []
    assert {split: (c.videos, c.frames, c.masks) for split, c in report.splits.items()} == {
        "train": (3, 367, 367),
        "val": (1, 101, 101),
    }
    mask_paths = sorted((CAMVID / "data/0016E5_val/mask").glob("*.png"))
    totals = sum(np.bincount(np.array(Image.open(path)).ravel(), minlength=256) for path in mask_paths)
    assert list(report.splits["val"].class_pixels.values()) == totals[1:12].tolist()
    assert report.splits["val"].void_pixels == totals[0]
