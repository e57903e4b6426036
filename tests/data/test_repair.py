"""Repair: the result is clean and exact, the originals stay as they are, and a second run changes nothing."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from make_tree import CAMVID, NAMES, make_tree, mask_values, write_mask
from PIL import Image

from vss_hf import cli
from vss_hf.data import load_vspw, repair_dataset, verify_dataset
from vss_hf.data.repair_video import scaled_size
from vss_hf.data.verify import in_threads


SPLITS = {"train": {"1_a": [1, 2, 9], "2_b-_": [4, 5]}, "val": {"3_v": [6, 7, 8]}, "test": {"4_t": [8, 10]}}
HEIGHT, WIDTH = 12, 15  # of the repaired frames: 12 * 23 / 18 = 15.3
VALUES = (0, 1, 2, 5, 252, 253, 254, 255)


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Sound originals of 23x18 pixels (JPEG), and the data set that was made of them."""
    folder = tmp_path_factory.mktemp("sound")
    root = make_tree(folder / "full", SPLITS)
    for path in sorted(root.glob("data/*/origin/*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    for split in ("train", "val"):
        for video, numbers in SPLITS[split].items():
            for number in numbers:
                mode = "LP"[number % 2]
                write_mask(root / f"data/{video}/mask/{number:08d}.png", mask_values(video, number, VALUES), mode)
    repair(root, folder / "small")
    return folder


@pytest.fixture
def full(sound, tmp_path):
    return shutil.copytree(sound / "full", tmp_path / "full")


@pytest.fixture
def small(sound, tmp_path):
    return shutil.copytree(sound / "small", tmp_path / "small")


def repair(root, out, height=HEIGHT, **options):
    """Repairs, and checks what always holds."""
    before = state(root)
    report = repair_dataset(root, out, height=height, max_workers=2, progress=False, **options)
    assert state(root) == before, "the originals were changed"
    json.dumps(report.to_dict())
    if report.ok:
        for split in SPLITS:
            if (out / f"{split}.txt").exists():
                list(load_vspw(out, split))
    after = state(out)
    again = repair_dataset(root, out, height=height, max_workers=2, progress=False)
    assert state(out) == after, "a second run changed something"
    assert again.moved == [] and again.frames["copied"] == again.frames["derived"] == 0
    assert not list(out.rglob("*.part"))
    return report


def state(folder):
    """Everything there is, with its bytes and its times."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def contents(folder):
    """The bytes of the files, without those that were moved away."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.relative_to(folder).parts[0] != "removed"
    }


def moved(out):
    return {str(path.relative_to(out / "removed")) for path in (out / "removed").rglob("*") if path.is_file()}


def dropped(report):
    return {(finding.kind, os.path.basename(finding.path)) for finding in report.dropped}


# --- sizes and pixels


def test_the_floor_rule():
    assert scaled_size((1920, 1080), 480) == (853, 480)  # 853.3
    assert scaled_size((1919, 1080), 480) == (852, 480)  # 852.9: rounding would give 853
    assert scaled_size((1080, 1920), 480) == (270, 480)
    for width, height in np.random.default_rng(0).integers(481, 4000, (2000, 2)).tolist():
        assert scaled_size((width, height), 480) == (int(480 * width / height), 480)


def test_nothing_is_enlarged():
    for size in ((853, 480), (640, 360), (1, 1), (5000, 480)):
        assert scaled_size(size, 480) == size
    assert scaled_size((1, 5000), 480) == (1, 480)


@pytest.mark.parametrize("size", [(1920, 1080), (1279, 721), (722, 1280)])
def test_480p_as_it_is_published(tmp_path, size):
    """Frames and masks are the very bytes and values that PIL gives by the published rule."""
    rng = np.random.default_rng(0)
    root = make_tree(tmp_path / "full", {"val": {"3_v": [6, 7]}})
    frames, masks = [tmp_path / f"full/data/3_v/{kind}" for kind in ("origin", "mask")]
    for number, mode in ((6, "L"), (7, "P")):
        (frames / f"{number:08d}.png").unlink()
        noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        noise.resize(size, Image.Resampling.NEAREST).save(frames / f"{number:08d}.jpg", quality=95)
        values = Image.fromarray(rng.choice(np.array(VALUES, np.uint8), (50, 70)))
        write_mask(masks / f"{number:08d}.png", np.array(values.resize(size, Image.Resampling.NEAREST)), mode)
    report = repair(root, tmp_path / "480p", height=480)
    assert report.ok and report.frames["derived"] == report.masks["derived"] == 2 and report.dropped == []
    wanted = (int(480 * size[0] / size[1]), 480)
    for number in (6, 7):
        expected = io.BytesIO()
        frame = Image.open(frames / f"{number:08d}.jpg").resize(wanted, Image.Resampling.BILINEAR)
        frame.save(expected, "JPEG")
        assert (tmp_path / f"480p/data/3_v/origin/{number:08d}.jpg").read_bytes() == expected.getvalue()
        mask = Image.open(masks / f"{number:08d}.png").resize(wanted, Image.Resampling.NEAREST)
        made = Image.open(tmp_path / f"480p/data/3_v/mask/{number:08d}.png")
        assert made.mode == mask.mode == "LP"[number % 2] and made.getpalette() == mask.getpalette()
        assert (np.array(made) == np.array(mask)).all() and set(np.unique(made)) <= set(VALUES)


def test_a_palette_shorter_than_the_indices(full, tmp_path):
    """PIL alone would write such a mask with 2 bits per pixel."""
    path = full / "data/3_v/mask/00000007.png"
    values = mask_values("3_v", 7, VALUES)
    image = Image.fromarray(values)
    image.putpalette([1, 2, 3] * 256)
    image.save(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"PLTE") - 4
    end = start + 12 + 3 * 256
    short = Image.new("P", (1, 1))
    short.putpalette([9, 8, 7] * 3)
    file = io.BytesIO()
    short.save(file, "PNG")
    other = file.getvalue()
    begin = other.index(b"PLTE") - 4
    path.write_bytes(bytes(data[:start]) + other[begin : begin + 12 + 9] + bytes(data[end:]))
    assert len(Image.open(path).getpalette()) == 9 and (np.array(Image.open(path)) == values).all()
    assert repair(full, tmp_path / "out").ok
    made = Image.open(tmp_path / "out/data/3_v/mask/00000007.png")
    expected = Image.fromarray(values).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    assert made.mode == "P" and (np.array(made) == np.array(expected)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_frames_of_other_modes(full, tmp_path, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 23, 3), dtype=np.uint8)).convert(mode)
    for suffix in ("png", "jpg"):  # also under a name that says another format
        (full / "data/4_t/origin/00000008.jpg").unlink(missing_ok=True)
        picture.save(full / f"data/4_t/origin/00000008.{suffix}", "TIFF" if mode == "CMYK" else "PNG")
        out = tmp_path / suffix
        assert repair(full, out).ok
        made = np.array(Image.open(out / f"data/4_t/origin/00000008.{suffix}").convert("RGB")).astype(int)
        expected = np.array(picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(made - expected).max() <= 1 if suffix == "png" else np.abs(made - expected).mean() < 40
        (full / f"data/4_t/origin/00000008.{suffix}").unlink()


def test_small_frames_are_copied(full, tmp_path):
    report = repair(full, tmp_path / "out", height=18)
    assert report.ok and report.notes == [] and report.frames == dict.fromkeys(report.frames, 0) | {"copied": 10}
    assert contents(tmp_path / "out") == contents(full)
    report = repair(full, tmp_path / "large", height=480)
    assert contents(tmp_path / "large") == contents(full)
    assert {note.kind for note in report.notes} == {"small_frames"} and len(report.notes) == 4


# --- a damaged target is made whole


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def two_of_a_frame(out):
    path = out / "data/3_v/origin/00000007.jpg"
    Image.open(path).save(path.with_suffix(".png"))
    path.write_bytes(b"")


DAMAGE = {
    "empty frame": lambda d: (d / "data/3_v/origin/00000007.jpg").write_bytes(b""),
    "empty mask": lambda d: (d / "data/1_a/mask/00000001.png").write_bytes(b""),
    "cut frame": lambda d: truncate(d / "data/4_t/origin/00000008.jpg"),
    "cut mask": lambda d: truncate(d / "data/1_a/mask/00000002.png"),
    "mask one pixel wider": lambda d: write_mask(d / "data/3_v/mask/00000007.png", np.ones((12, 16), np.uint8)),
    "colour mask": lambda d: Image.new("RGB", (15, 12)).save(d / "data/3_v/mask/00000007.png"),
    "frame one pixel wider": lambda d: Image.new("RGB", (16, 12)).save(d / "data/3_v/origin/00000007.jpg"),
    "missing frame": lambda d: (d / "data/3_v/origin/00000007.jpg").unlink(),
    "missing mask": lambda d: (d / "data/3_v/mask/00000007.png").unlink(),
    "missing frames": lambda d: shutil.rmtree(d / "data/3_v/origin"),
    "missing masks": lambda d: shutil.rmtree(d / "data/3_v/mask"),
    "missing video": lambda d: shutil.rmtree(d / "data/3_v"),
    "missing videos": lambda d: shutil.rmtree(d / "data"),
    "no list": lambda d: (d / "val.txt").unlink(),
    "half a list": lambda d: (d / "train.txt").write_text("1_a"),
    "broken list": lambda d: (d / "train.txt").write_bytes(b"\xff"),
    "no class list": lambda d: (d / "label_num_dic_final.json").unlink(),
    "broken class list": lambda d: (d / "label_num_dic_final.json").write_text("{"),
    "a folder for a frame": lambda d: (
        (d / "data/3_v/origin/00000007.jpg").unlink(),
        (d / "data/3_v/origin/00000007.jpg").mkdir(),
    ),
    "a file for a folder": lambda d: (shutil.rmtree(d / "data/3_v/mask"), (d / "data/3_v/mask").write_text("x")),
    "a file for a video": lambda d: (shutil.rmtree(d / "data/3_v"), (d / "data/3_v").write_text("x")),
    "a broken link": lambda d: (
        (d / "data/3_v/origin/00000007.jpg").unlink(),
        (d / "data/3_v/origin/00000007.jpg").symlink_to("nowhere"),
    ),
    "a mask of no frame": lambda d: write_mask(d / "data/3_v/mask/00000099.png", np.ones((12, 15), np.uint8)),
    "masks in test": lambda d: write_mask(d / "data/4_t/mask/00000008.png", np.ones((12, 15), np.uint8)),
    "rest of a killed run": lambda d: (d / "data/3_v/origin/00000007.jpg").rename(
        d / "data/3_v/origin/00000007.jpg.part"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_target_is_made_whole(sound, small, damage):
    before = contents(small)
    DAMAGE[damage](small)
    lost = {data for name, data in contents(small).items() if before.get(name) != data and not name.endswith(".part")}
    report = repair(sound / "full", small)
    assert report.ok and report.dropped == [] and contents(small) == before
    assert {(small / "removed" / name).read_bytes() for name in moved(small)} == lost
    kept = sum(report.frames[action] for action in ("kept", "derived"))
    assert kept == 10 and report.frames["kept"] < 10 or report.frames["kept"] == 10


def test_a_frame_that_is_there_twice(sound, small):
    two_of_a_frame(small)
    assert repair(sound / "full", small).ok
    assert moved(small) == {"data/3_v/origin/00000007.jpg"}


def test_what_was_removed_before_is_not_replaced(sound, small):
    for text in (b"first", b"second"):
        (small / "data/3_v/origin/00000007.jpg").write_bytes(text)
        repair(sound / "full", small)
    folder = small / "removed/data/3_v/origin"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "00000007.jpg": b"first",
        "00000007.2.jpg": b"second",
    }


# --- damaged originals


BROKEN = {
    "empty frame": (DAMAGE["empty frame"], ("broken_frame", "00000007.jpg")),
    "cut frame": (lambda d: truncate(d / "data/3_v/origin/00000007.jpg"), ("broken_frame", "00000007.jpg")),
    "empty mask": (lambda d: (d / "data/3_v/mask/00000007.png").write_bytes(b""), ("broken_mask", "00000007.jpg")),
    "cut mask": (lambda d: truncate(d / "data/3_v/mask/00000007.png"), ("broken_mask", "00000007.jpg")),
    "colour mask": (DAMAGE["colour mask"], ("broken_mask", "00000007.jpg")),
    "missing mask": (DAMAGE["missing mask"], ("frame_without_mask", "00000007.jpg")),
    "mask of another shape": (
        lambda d: write_mask(d / "data/3_v/mask/00000007.png", np.ones((18, 30), np.uint8)),
        ("broken_mask", "00000007.jpg"),
    ),
    "deep frame": (
        lambda d: Image.new("I;16", (23, 18)).save(d / "data/3_v/origin/00000007.jpg", "PNG"),
        ("broken_frame", "00000007.jpg"),
    ),
    "another size": (
        lambda d: (
            Image.new("RGB", (18, 23)).save(d / "data/3_v/origin/00000007.jpg"),
            Image.new("L", (18, 23)).save(d / "data/3_v/mask/00000007.png"),
        ),
        ("frame_size_changes", "00000007.jpg"),
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_frames_are_dropped(full, tmp_path, damage):
    break_it, expected = BROKEN[damage]
    break_it(full)
    report = repair(full, tmp_path / "out")
    assert report.ok and dropped(report) == {expected} and report.frames["dropped"] == 1
    assert [sample["frame"] for sample in load_vspw(tmp_path / "out", "val")] == ["00000006", "00000008"]
    stems = [path.stem for path in sorted((tmp_path / "out/data/3_v").glob("*/*"))]
    assert stems == ["00000006", "00000008"] * 2


@pytest.mark.parametrize("damage", sorted(set(BROKEN) - {"another size"}))
def test_broken_frames_that_the_target_has_stay(full, small, damage):
    before = state(small)
    BROKEN[damage][0](full)
    report = repair(full, small)
    assert report.ok and report.dropped == [] and state(small) == before


def test_restored_is_what_the_originals_lack(full, small):
    before = state(small)
    (full / "data/3_v/origin/00000006.jpg").write_bytes(b"")
    (full / "data/3_v/mask/00000007.png").unlink()
    shutil.rmtree(full / "data/2_b-_")
    report = repair(full, small)
    assert state(small) == before and report.ok
    assert report.frames == {"kept": 7, "restored": 3, "copied": 0, "derived": 0, "dropped": 0}
    assert report.masks == {"kept": 5, "restored": 3, "copied": 0, "derived": 0, "dropped": 0}


def test_the_originals_say_which_size_is_right(full, small):
    """A foreign picture in the target, where the original is broken, does not count against the others."""
    (full / "data/2_b-_/origin/00000004.jpg").write_bytes(b"")
    Image.new("RGB", (40, 12)).save(small / "data/2_b-_/origin/00000004.jpg")
    Image.new("L", (40, 12)).save(small / "data/2_b-_/mask/00000004.png")
    report = repair(full, small)
    assert report.ok and dropped(report) == {("frame_size_changes", "00000004.jpg")}
    assert report.frames["kept"] == 9


def test_broken_on_both_sides(full, small):
    for root in (full, small):
        (root / "data/3_v/origin/00000007.jpg").write_bytes(b"")
    report = repair(full, small)
    assert report.ok and dropped(report) == {("broken_frame", "00000007.jpg")}
    assert moved(small) == {"data/3_v/origin/00000007.jpg", "data/3_v/mask/00000007.png"}


def test_a_video_without_a_frame_left(full, tmp_path):
    for path in (full / "data/2_b-_/origin").iterdir():
        path.write_bytes(b"")
    (full / "train.txt").write_text("1_a\n2_b-_\n9_gone\n")
    (full / "data.txt").write_text("1_a\n2_b-_\n3_v\n4_t")
    report = repair(full, tmp_path / "out")
    assert report.ok
    assert {name for kind, name in dropped(report) if kind == "video_dropped"} == {"2_b-_", "9_gone"}
    assert (tmp_path / "out/train.txt").read_text() == "1_a\n"
    assert (tmp_path / "out/data.txt").read_text() == "1_a\n3_v\n4_t\n"
    assert not (tmp_path / "out/data/2_b-_").exists()


def test_a_split_without_a_video_left(full, small):
    for root in (full, small):
        shutil.rmtree(root / "data/3_v")
    report = repair(full, small)
    assert report.ok and not (small / "val.txt").exists() and moved(small) == {"val.txt"}


def test_a_clean_copy_of_a_damaged_480p_tree(sound, small, tmp_path):
    """When only that tree exists: its sound frames are copied, a mask one pixel wider gets its frame's size."""
    before = contents(small)
    mask = small / "data/3_v/mask/00000006.png"
    values = np.array(Image.open(mask))
    write_mask(mask, np.concatenate([values, values[:, -1:]], axis=1))
    (small / "data/3_v/origin/00000007.jpg").write_bytes(b"")
    truncate(small / "data/4_t/origin/00000008.jpg")
    write_mask(small / "data/3_v/mask/00000099.png", np.ones((12, 15), np.uint8))
    (small / "data/3_v/mask/._00000006.png").write_bytes(b"x")
    report = repair(small, tmp_path / "out")
    assert report.ok and dropped(report) == {("broken_frame", "00000007.jpg"), ("broken_frame", "00000008.jpg")}
    assert report.masks["derived"] == 1 and {note.kind for note in report.notes} == {"unused_masks"}
    gone = {"data/3_v/origin/00000007.jpg", "data/3_v/mask/00000007.png", "data/4_t/origin/00000008.jpg"}
    after = contents(tmp_path / "out")
    assert set(after) == set(before) - gone
    assert {name for name in after if after[name] != before[name]} == {"data/3_v/mask/00000006.png"}
    made = np.array(Image.open(tmp_path / "out/data/3_v/mask/00000006.png"))
    assert made.shape == (12, 15) and (made[:, :7] == values[:, :7]).all()


def test_values_outside_the_class_list_stay_and_are_reported(full, tmp_path):
    write_mask(full / "data/3_v/mask/00000007.png", np.full((18, 23), 77, np.uint8))
    report = repair(full, tmp_path / "out")
    assert "values_outside_class_list" in {warning.kind for warning in report.result.warnings}
    assert set(np.unique(Image.open(tmp_path / "out/data/3_v/mask/00000007.png"))) == {77}


def test_a_frame_twice_among_the_originals(full, tmp_path):
    Image.new("RGB", (23, 18)).save(full / "data/3_v/origin/00000007.png")
    (full / "data/3_v/origin/00000007.jpg").write_bytes(b"")
    report = repair(full, tmp_path / "out")
    assert report.ok and report.dropped == [] and {note.kind for note in report.notes} == {"doubled_file"}
    assert np.array(Image.open(tmp_path / "out/data/3_v/origin/00000007.png")).max() == 0


# --- lists and class lists


def test_lists_are_mended(full, tmp_path):
    (full / "train.txt").write_bytes("\ufeff1_a\r\n\r\n 2_b-_ \r\n1_a".encode())
    (full / "val.txt").write_text("3_v\n1_a\n4_t")
    (full / "README.txt").write_text("some words\n")
    (full / "label_num_dic_final.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(NAMES).encode())
    report = repair(full, tmp_path / "out")
    assert report.ok
    lists = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.txt")}
    # 4_t has no masks, so it cannot stay in val, and in the test split it is not any more
    assert lists == {"train.txt": b"2_b-_\n", "val.txt": b"3_v\n1_a\n"}
    kinds = {note.kind for note in report.notes}
    assert kinds == {"doubled_video", "video_in_several_splits", "video_without_masks", "other_file"}
    assert json.loads((tmp_path / "out/label_num_dic_final.json").read_bytes()) == NAMES


def test_videos_that_only_the_target_has_stay(full, small):
    """A small part of the originals mends a whole 480p version."""
    before = contents(small)
    (small / "data/3_v/origin/00000007.jpg").write_bytes(b"")
    for video in ("1_a", "2_b-_", "4_t"):
        shutil.rmtree(full / "data" / video)
    for name in ("train.txt", "test.txt", "label_num_dic_final.json"):
        (full / name).unlink()
    report = repair(full, small)
    assert report.ok and contents(small) == before and report.frames["restored"] == 7


def test_a_test_split_with_stray_masks(full, tmp_path):
    shutil.copytree(full / "data/4_t", full / "data/5_t")
    (full / "test.txt").write_text("4_t\n5_t")
    write_mask(full / "data/5_t/mask/00000008.png", np.ones((18, 23), np.uint8))
    report = repair(full, tmp_path / "out")
    assert report.ok and report.dropped == [] and not (tmp_path / "out/data/5_t/mask").exists()
    assert {note.kind for note in report.notes} == {"unused_masks"}


def test_without_any_class_list_the_result_is_not_clean(full, tmp_path):
    (full / "label_num_dic_final.json").unlink()
    report = repair(full, tmp_path / "out")
    assert not report.ok and {error.kind for error in report.result.errors} == {"class_list"}
    assert report.frames["derived"] == 10


# --- what is refused, before anything is written


def refused(root, out, words, **options):
    before = [state(folder) for folder in (root, out) if folder.exists()]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        repair_dataset(root, out, progress=False, **{"height": HEIGHT, **options})
    assert [state(folder) for folder in (root, out) if folder.exists()] == before


def test_places_that_are_refused(full, small, tmp_path):
    for out in (full, full / "new", full / "data", full / "../full", tmp_path):
        refused(full, out, "within each other")
    refused(tmp_path / "nowhere", small, "no such folder")
    refused(tmp_path, tmp_path.parent / "new", "has no usable train.txt")
    (tmp_path / "link").symlink_to(full)
    refused(full, tmp_path / "link", "within each other")
    refused(full, tmp_path / "link/new", "within each other")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/vspw.pdf").touch()
    refused(full, tmp_path / "papers", "holds files, but no data set")
    refused(full, small, "at least 1 pixel", height=0)


@pytest.mark.parametrize("place", ["data", "data/3_v", "data/3_v/origin"])
def test_links_between_the_trees_are_refused(full, small, place):
    shutil.rmtree(small / place)
    (small / place).symlink_to(full / place)
    refused(full, small, "a link|within each other")


@pytest.mark.parametrize("place", ["data", "data/3_v", "data/3_v/origin"])
def test_originals_that_lie_in_the_target_are_refused(full, small, place):
    shutil.rmtree(full / place)
    (full / place).symlink_to(small / place)
    refused(full, small, "within each other")


def test_a_target_of_another_height_or_data_set_is_refused(full, small, tmp_path):
    refused(small, full, "18 pixels high.*--height 18")  # the arguments swapped
    refused(full, small, "--height 12", height=16)
    (small / "label_num_dic_final.json").write_text('{"road": 1, "sky": 3}')
    refused(full, small, "other classes")


def test_a_full_disk_is_told_before(full, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(200))
    with pytest.raises(OSError, match="bytes are needed, 200 are free"):
        repair_dataset(full, tmp_path / "out", height=HEIGHT, progress=False)
    assert not (tmp_path / "out").exists()


# --- killed, interrupted, read-only


def test_killed_and_started_again(sound, full, tmp_path):
    """SIGKILL while frames are written: the next run goes on, and the result is the same."""
    names = [f"{number}_k" for number in range(120)]
    for name in names:
        shutil.copytree(full / "data/1_a", full / "data" / name)
    (full / "train.txt").write_text("\n".join(names))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vss_hf", "data", "verify", full, "--repair", out, "--height", str(HEIGHT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("data/*/mask/*.png"))) < 40:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("data/*/*/*") if path.suffix != ".part"}
    assert 80 <= len(done) < 720 and not (out / "train.txt").exists()
    for path in done:  # whole files only
        Image.open(path).load()
    report = repair(full, out)
    assert report.ok and report.frames["kept"] >= 40 and report.dropped == report.moved == []
    assert {path: path.stat().st_mtime_ns for path in done} == done
    expected = contents(sound / "small")
    for name in names:
        for file in ("origin/00000001.jpg", "mask/00000009.png"):
            assert (out / "data" / name / file).read_bytes() == expected[f"data/1_a/{file}"]


def test_an_error_gives_up_what_has_not_begun():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise KeyboardInterrupt
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(1000), 2, "working", progress=False)
    assert len(begun) < 20


def test_read_only_originals(full, tmp_path):
    places = [full, *full.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert repair(full, tmp_path / "out").ok
    finally:
        for path in places:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert all(os.access(path, os.W_OK) and path.stat().st_mode & 0o200 for path in (tmp_path / "out").rglob("*"))


# --- the command


def run(capsys, *arguments):
    try:
        cli.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    return code, *capsys.readouterr()


def test_the_command(full, tmp_path, capsys):
    (full / "data/3_v/origin/00000007.jpg").write_bytes(b"")
    repaired = [
        "data",
        "verify",
        full,
        "--repair",
        tmp_path / "out",
        "--height",
        HEIGHT,
        "--json",
        tmp_path / "r.json",
    ]
    code, out, _ = run(capsys, *repaired)
    assert code == 0 and "dropped" in out and "00000007.jpg" in out and "no errors" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["ok"] and written["frames"]["derived"] == 9 and written["dropped"][0]["kind"] == "broken_frame"
    assert written["result"]["splits"]["val"]["frames"] == 2
    (full / "label_num_dic_final.json").unlink()
    (tmp_path / "out/label_num_dic_final.json").unlink()
    assert run(capsys, *repaired)[0] == 1
    code, _, err = run(capsys, "data", "verify", full, "--height", 7)
    assert code == 2 and "--repair" in err
    code, _, err = run(capsys, "data", "verify", full, "--repair", full / "x")
    assert code == 2 and "within each other" in err


@pytest.mark.skipif(not CAMVID.is_dir(), reason="set VSS_HF_CAMVID to CamVid in VSPW's layout")
def test_camvid_is_copied(tmp_path):
    (tmp_path / "some/data").mkdir(parents=True)  # one video, as a link: originals may lie anywhere
    (tmp_path / "some/data/0016E5_val").symlink_to((CAMVID / "data/0016E5_val").resolve())
    shutil.copy(CAMVID / "label_num_dic_final.json", tmp_path / "some")
    shutil.copy(CAMVID / "val.txt", tmp_path / "some")
    report = repair_dataset(tmp_path / "some", tmp_path / "out", progress=False)
    assert report.ok and report.frames["copied"] == report.masks["copied"] == 101
    video = tmp_path / "some/data/0016E5_val"
    for path in sorted(video.glob("*/*.*"))[::20]:
        assert (tmp_path / "out/data/0016E5_val" / path.relative_to(video)).read_bytes() == path.read_bytes()
    assert verify_dataset(tmp_path / "out", progress=False).splits["val"].frames == 101
