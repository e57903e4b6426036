"""Labels are counted right, once, and so that neither a kill nor a second process spoils what was counted."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_tree import CAMVID, HEIGHT, NAMES, WIDTH, make_tree, mask_values, write_mask
from PIL import Image

from vss_hf.data import scan, scan_cache
from vss_hf.data.labels import ClassList
from vss_hf.data.masks import LabelReader
from vss_hf.data.scan import filter_labelled, scan_labels, select_labelled
from vss_hf.data.splits import LabelledSplit, open_split
from vss_hf.data.vspw import FrameRecord, VSPWVideo, read_mask


VIDEOS = {"a": list(range(9)), "b": list(range(30)), "c": [3]}
NUM_FRAMES = 40
CLASSES = ClassList(("road", "sky"), ((1, 2, 3), (4, 5, 6)), (1, 2))


@pytest.fixture
def root(tmp_path) -> Path:
    return aged(make_tree(tmp_path / "set", {"train": VIDEOS}))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the masks that are decoded from here on."""
    names, values = [], LabelReader.values

    def noting(self, path):
        names.append(os.path.relpath(path, Path(path).parents[2]))
        return values(self, path)

    monkeypatch.setattr(LabelReader, "values", noting)
    return names


def aged(root: Path) -> Path:
    """The same with all masks written an hour ago."""
    for mask in root.rglob("*.png"):
        os.utime(mask, (time.time() - 3600,) * 2)
    return root


def counted(split) -> list[dict[int, int]]:
    """{value: pixels} of every frame."""
    return as_dicts(scan_labels(split))


def as_dicts(found) -> list[dict[int, int]]:
    frames = [{} for _ in range(found.split.num_frames)]
    for frame, value, count in zip(found.frame.tolist(), found.values.tolist(), found.counts.tolist(), strict=True):
        assert value not in frames[frame] and count > 0
        frames[frame][value] = count
    return frames


def expected(videos=VIDEOS) -> list[dict[int, int]]:
    arrays = (mask_values(video, number) for video, numbers in videos.items() for number in numbers)
    return [dict(zip(*(part.tolist() for part in np.unique(a, return_counts=True)), strict=True)) for a in arrays]


def cache_of(root: Path) -> Path:
    return root / ".vss_hf" / "mask_values_index.jsonl"


def made(tmp_path: Path, masks: list[list[np.ndarray]], reader: LabelReader, classes=CLASSES, root="set"):
    """A split of given masks, a list of frames per video."""
    videos = []
    for v, arrays in enumerate(masks):
        frames = []
        for f, array in enumerate(arrays):
            path = tmp_path / root / f"v{v}" / f"{f}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            frames.append(FrameRecord(str(f), path.with_suffix(".jpg"), path))
        videos.append(VSPWVideo(f"v{v}", tuple(frames)))
    return LabelledSplit(tmp_path / root, "train", classes, reader, tuple(videos))


# --- counts


@pytest.mark.parametrize("num_workers", [None, 1, 3])
def test_against_numpy(root, num_workers):
    found = scan_labels(open_split(root, "train"), num_workers=num_workers)
    assert as_dicts(found) == expected()
    assert found.pixels().tolist() == [HEIGHT * WIDTH] * NUM_FRAMES
    labelled = [sum(n for value, n in frame.items() if value in (1, 2, 5)) for frame in expected()]
    assert found.labelled_pixels().tolist() == labelled


def test_sixteen_bits(tmp_path):
    arrays = [np.random.default_rng(i).choice(np.array([0, 3, 125_00, 65_535], np.uint16), (5, 7)) for i in range(3)]
    lookup = np.full(65_536, 255, np.uint8)
    lookup[[3, 65_535]] = 0, 1
    split = made(tmp_path, [arrays], LabelReader(lookup, "panoptic"))
    for frame, array in zip(counted(split), arrays, strict=True):
        values, counts = np.unique(array, return_counts=True)
        assert frame == dict(zip(values.tolist(), counts.tolist(), strict=True))
    labelled = [int(np.isin(array, (3, 65_535)).sum()) for array in arrays]
    assert scan_labels(split).labelled_pixels().tolist() == labelled


def test_other_colours_are_other_values(tmp_path, decoded):
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[1:] = (10, 20, 30)
    place = 10 + 256 * 20 + 65_536 * 30
    lookup = np.full(256, 255, np.uint8)
    for value in (1, 2, 1):
        split = made(tmp_path, [[picture], [picture]], LabelReader(lookup, "colour", {"": {place: value}}))
        assert counted(split) == [{0: 6, value: 18}] * 2
    assert len(decoded) == 4  # of the third, the counts were known
    folders = {"v0": {place: 5}, "v1": {place: 6}}  # what a colour means depends on the video
    split = made(tmp_path, [[picture], [picture]], LabelReader(lookup, "colour", folders))
    assert counted(split) == [{0: 6, 5: 18}, {0: 6, 6: 18}]


def test_without_masks(tmp_path):
    root = make_tree(tmp_path / "set", {"test": {"a": [0, 1]}})
    with pytest.raises(ValueError, match="split 'test' of .* has 0 masks for 2 frames"):
        scan_labels(open_split(root, "test"))


def test_camvid(tmp_path):
    if not CAMVID.is_dir():
        pytest.skip("CamVid is not here")
    (tmp_path / "data").symlink_to(CAMVID / "data")  # nothing is written into the real one
    for name in ("train.txt", "label_num_dic_final.json"):
        shutil.copy(CAMVID / name, tmp_path / name)
    split = open_split(tmp_path, "train")
    total = np.zeros(256, np.int64)
    for video in split.videos:
        for frame in video.frames:
            assert frame.mask_path is not None
            total += np.bincount(np.array(Image.open(frame.mask_path)).ravel(), minlength=256)
    found = scan_labels(split)
    assert np.bincount(found.values, found.counts, 256).astype(np.int64).tolist() == total.tolist()
    assert (split.num_frames, total.sum()) == (367, 367 * 360 * 480)


# --- what is kept


def test_the_second_scan_opens_nothing(root, monkeypatch):
    first = scan_labels(open_split(root, "train"))

    def fail(*arguments):
        raise AssertionError("opened")

    monkeypatch.setattr(LabelReader, "values", fail)
    monkeypatch.setattr(scan, "_content", fail)
    second = scan_labels(open_split(root, "train"))
    assert as_dicts(second) == as_dicts(first)
    lines = [json.loads(line) for line in cache_of(root).read_text().split()]
    assert len(lines) == NUM_FRAMES
    assert lines[0].items() >= {"name": "data/a/mask/00000000.png", "height": HEIGHT, "width": WIDTH}.items()


def test_content_decides(root, decoded):
    counted(open_split(root, "train"))
    decoded.clear()
    touched, changed = root / "data/a/mask/00000004.png", root / "data/b/mask/00000007.png"
    touched.touch()
    write_mask(changed, np.full((HEIGHT, WIDTH), 2, np.uint8), "P")
    os.utime(changed, (time.time() - 60,) * 2)
    after = expected()
    after[len(VIDEOS["a"]) + 7] = {2: HEIGHT * WIDTH}
    for _ in range(2):
        assert counted(open_split(root, "train")) == after
        assert decoded == ["b/mask/00000007.png"]


def test_a_change_within_the_tick_of_the_clock(tmp_path):
    path = tmp_path / "set" / "v0" / "0.png"

    def write(value):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, compress_level=0)  # files of one size

    split = made(tmp_path, [[np.ones((8, 8), np.uint8)]], LabelReader.of_classes(CLASSES))
    write(1)
    before = os.stat(path)
    assert counted(split) == [{1: 64}]
    write(2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert counted(split) == [{2: 64}]


def test_a_moved_data_set_and_equal_files_are_known(root, tmp_path, decoded):
    (root / "train.txt").write_text("a\n")
    counted(open_split(root, "train"))
    shutil.move(root, tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere/data/a", tmp_path / "elsewhere/data/d")
    (tmp_path / "elsewhere/train.txt").write_text("a\nd\n")
    decoded.clear()
    assert counted(open_split(tmp_path / "elsewhere", "train")) == 2 * expected({"a": VIDEOS["a"]})
    assert decoded == []


def test_splits_share_what_is_known(root, decoded):
    (root / "half.txt").write_text("b\n")
    counted(open_split(root, "train"))
    decoded.clear()
    assert counted(open_split(root, "half")) == expected({"b": VIDEOS["b"]})
    assert decoded == []


@pytest.mark.parametrize("rest", [1, 40, 90])
def test_a_torn_line_is_left_out(root, decoded, rest):
    counted(open_split(root, "train"))
    whole = cache_of(root).read_bytes()
    last = json.loads(whole.split(b"\n")[-1])["name"]
    cache_of(root).write_bytes(whole[: whole.rindex(b"\n") + 1 + rest])
    decoded.clear()
    assert counted(open_split(root, "train")) == expected()
    assert [f"data/{name}" for name in decoded] == [last]
    decoded.clear()
    assert counted(open_split(root, "train")) == expected() and decoded == []


def test_foreign_lines_are_left_out(root, decoded):
    counted(open_split(root, "train"))
    with open(cache_of(root), "ab") as file:
        file.write(b'\n[1, 2]\n{"name": "data/a/mask/00000000.png", "of": "a later version"}\n\xff\xfe\nnull\n7')
    decoded.clear()
    assert counted(open_split(root, "train")) == expected() and decoded == []


# --- processes


def slow_scan(root: Path, seconds: float) -> None:
    """In a process of its own: a scan that takes its time over every mask, in small steps."""
    values = LabelReader.values

    def slow(self, path):
        time.sleep(seconds)
        return values(self, path)

    scan.MASKS_PER_TASK = 2
    LabelReader.values = slow
    scan_labels(open_split(root, "train"), num_workers=2)


def process(*arguments) -> multiprocessing.Process:
    started = multiprocessing.get_context("fork").Process(target=slow_scan, args=arguments)
    started.start()
    return started


def test_a_killed_scan_goes_on(root, decoded):
    killed = process(root, 0.02)
    deadline = time.monotonic() + 30
    while not cache_of(root).is_file() or cache_of(root).read_bytes().count(b"\n") < 10:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    known = len(scan_cache._read_lines(cache_of(root)))
    assert 9 <= known < NUM_FRAMES
    assert counted(open_split(root, "train")) == expected()
    assert len(decoded) == NUM_FRAMES - known


def test_two_processes_at_once(root, decoded):
    both = [process(root, 0.002) for _ in range(2)]
    for one in both:
        one.join(30)
        assert one.exitcode == 0
    lines = [line for line in cache_of(root).read_text().split("\n") if line]
    assert {json.loads(line)["name"] for line in lines} == {
        f"data/{video}/mask/{number:08d}.png" for video, numbers in VIDEOS.items() for number in numbers
    }
    assert counted(open_split(root, "train")) == expected() and decoded == []


# --- folders that cannot be written


@pytest.fixture
def public_folder():
    """A folder that is open to all users, and this process without the rights of root."""
    with tempfile.TemporaryDirectory() as name:
        folder, is_root = Path(name), os.geteuid() == 0
        folder.chmod(0o777)
        if is_root:
            os.seteuid(65_534)
        yield folder
        if is_root:
            os.seteuid(0)
        for path in folder.glob("*/"):
            path.chmod(0o777)


def test_a_read_only_folder(public_folder, monkeypatch, decoded):
    monkeypatch.setattr(scan_cache, "HF_HOME", str(public_folder / "home"))
    root = aged(make_tree(public_folder / "set", {"train": VIDEOS}))
    root.chmod(0o555)
    with pytest.warns(RuntimeWarning) as told:
        assert counted(open_split(root, "train")) == expected()
    assert len(told) == 1
    assert "set/.vss_hf: Permission denied; counts of labels are kept in" in str(told[0].message).replace(
        "/mask_values_index.jsonl: ", ": "
    )
    assert not (root / ".vss_hf").exists()
    decoded.clear()
    assert counted(open_split(root, "train")) == expected() and decoded == []  # without a warning: nothing is written
    (kept,) = (public_folder / "home" / "vss_hf").iterdir()
    assert kept.name.startswith("set-")


def test_nowhere_to_write(public_folder, monkeypatch):
    monkeypatch.setattr(scan_cache, "HF_HOME", str(public_folder / "set" / "home"))
    root = aged(make_tree(public_folder / "set", {"train": VIDEOS}))
    root.chmod(0o555)
    told = pytest.warns(RuntimeWarning, match="are kept in"), pytest.warns(RuntimeWarning, match="are not kept")
    with told[0], told[1]:
        assert counted(open_split(root, "train")) == expected()


def test_packed_data(root, tmp_path, monkeypatch, decoded):
    from vss_hf.data import write_parquet

    monkeypatch.setattr(scan_cache, "HF_HOME", str(tmp_path / "home"))
    write_parquet(root, tmp_path / "packed")
    before = sorted(path.name for path in (tmp_path / "packed").rglob("*"))
    split = open_split(tmp_path / "packed", "train")
    assert counted(split) == expected()
    assert sorted(path.name for path in (tmp_path / "packed").rglob("*")) == before  # it is uploaded as it is
    decoded.clear()
    for shard in (tmp_path / "packed").rglob("*.parquet"):
        shard.touch()
    assert counted(split) == expected() and decoded == []


# --- damage


def test_a_damaged_mask_is_named(root, decoded):
    bad = root / "data/b/mask/00000029.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{bad}: cannot be read"):
        scan_labels(open_split(root, "train"))
    assert len(scan_cache._read_lines(cache_of(root))) >= 32  # what came before was not in vain
    bad.unlink()
    with pytest.raises(FileNotFoundError, match="b/mask/00000029.png"):
        split = open_split(make_tree(root.parent / "other", {"train": VIDEOS}), "train")
        (root.parent / "other/data/b/mask/00000029.png").unlink()
        scan_labels(split)


def test_damaged_masks_are_skipped(root):
    for number in (3, 8):
        (root / f"data/a/mask/{number:08d}.png").write_bytes(b"")
    split = open_split(root, "train")
    with pytest.warns(
        RuntimeWarning, match="2 of 40 masks cannot be read and are not counted; the first: .*00003.png"
    ):
        found = scan_labels(split, on_bad_sample="skip")
    assert found.unreadable == (3, 8)
    assert as_dicts(found) == [{} if i in (3, 8) else frame for i, frame in enumerate(expected())]
    with pytest.warns(RuntimeWarning, match="2 of 40"):  # nothing was kept of them
        kept, report = select_labelled(scan_labels(split, on_bad_sample="skip"), 0.001)
    assert (kept.split.num_frames, report.dropped, report.unreadable) == (38, 2, 2)
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'; expected raise or skip"):
        scan_labels(split, on_bad_sample="ignore")


# --- the filter


def mask_of(road: int, sky: int = 0, size: int = 100) -> np.ndarray:
    """A mask (1, size) with so many pixels of each class, the rest void."""
    return np.repeat(np.array([1, 2, 0], np.uint8), [road, sky, size - road - sky])[None]


def test_the_filter(tmp_path, capsys):
    masks = [
        [mask_of(80), mask_of(79), mask_of(40, 40), mask_of(100)],
        [mask_of(0, 10), mask_of(79)],
        [mask_of(0, 100)],
    ]
    split = made(tmp_path, masks, LabelReader.of_classes(CLASSES))
    kept = filter_labelled(split, 0.8)
    assert [(video.name, [frame.stem for frame in video.frames]) for video in kept.videos] == [
        ("v0", ["0", "2", "3"]),
        ("v2", ["0"]),
    ]
    assert (kept.root, kept.classes, kept.reader) == (split.root, split.classes, split.reader)
    line = "kept 4 of 7 frames in 2 of 3 videos (at least 80% labelled); ignored pixels 24.6% before, 10.0% after"
    assert f"split 'train' of {split.root}: {line}" in capsys.readouterr().err
    filter_labelled(split, 0.8, progress=False)
    assert capsys.readouterr().err == ""

    chosen, report = select_labelled(scan_labels(split), 0.8)
    assert json.loads(json.dumps(report.to_dict())) == {
        "min_labelled": 0.8,
        "kept": 4,
        "dropped": 3,
        "videos_kept": 2,
        "videos_dropped": 1,
        "unreadable": 0,
        "ignored_before": pytest.approx(172 / 700),
        "ignored_after": pytest.approx(40 / 400),
        "lost_classes": [],
        "still_images": False,
    }
    assert as_dicts(chosen) == counted(kept)
    assert filter_labelled(split, 0) is split


def test_still_images_are_called_images(tmp_path):
    split = made(tmp_path, [[mask_of(90)], [mask_of(20)]], LabelReader.of_classes(CLASSES))
    _, report = select_labelled(scan_labels(split), 0.5)
    assert str(report).startswith("kept 1 of 2 images (at least 50% labelled)")
    assert "(at least 99.5% labelled)" in str(replace(report, min_labelled=0.995))


def test_labels_count_not_values(tmp_path):
    """What a remap table ignores is not labelled, and the counts are the same ones."""
    split = made(tmp_path, [[mask_of(90, 10)], [mask_of(10, 90)]], LabelReader.of_classes(CLASSES))
    remapped = LabelledSplit(
        split.root, "train", CLASSES, split.reader.remapped(np.array([1, 255], np.uint8)), split.videos
    )
    kept = filter_labelled(remapped, 0.8)
    assert [video.name for video in kept.videos] == ["v0"]


def test_a_class_without_frames_is_told(tmp_path):
    split = made(tmp_path, [[mask_of(90), mask_of(0, 30)]], LabelReader.of_classes(CLASSES))
    with pytest.warns(RuntimeWarning, match="min_labelled=0.5 leaves no frame of split 'train' of .* with sky"):
        _, report = select_labelled(scan_labels(split), 0.5)
    assert report.lost_classes == ("sky",)


def test_nothing_left(tmp_path):
    split = made(tmp_path, [[mask_of(30), mask_of(0, 62)]], LabelReader.of_classes(CLASSES))
    with pytest.raises(
        ValueError, match="min_labelled=0.8 leaves nothing of split 'train'.* at most 62.0% of a frame"
    ):
        filter_labelled(split, 0.8)


@pytest.mark.parametrize("share", [-0.1, 80, float("nan")])
def test_a_share_is_a_share(root, share):
    with pytest.raises(ValueError, match="expected a share of the pixels, 0..1"):
        filter_labelled(open_split(root, "train"), share)


def test_open_split_filters(root):
    kept = open_split(root, "train", min_labelled=0.35)
    shares = [
        np.isin(read_mask(frame.mask_path), [i for i in NAMES.values() if i]).mean()
        for video in open_split(root, "train").videos
        for frame in video.frames
        if frame.mask_path
    ]
    assert kept.num_frames == sum(share >= 0.35 for share in shares)
    assert 0 < kept.num_frames < NUM_FRAMES
