"""The sample data set: VSPW's layout, determinism, learnable but not trivial, never half written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vss_hf.data.labels import VSPW, ClassList
from vss_hf.data.sample import make_sample_dataset
from vss_hf.data.sample_pictures import CLASSES


SMALL = {
    "height": 64, "width": 96, "train_videos": 2, "val_videos": 1, "frames_per_video": 3, "val_frames_per_video": 4,
}  # fmt: skip


def fingerprint(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*")) if path.is_file()
    }


def videos(root, split):
    return (root / f"{split}.txt").read_text().splitlines()


def masks(root, split):
    """(video, stem, ids) of a split."""
    for video in videos(root, split):
        for path in sorted((root / "data" / video / "mask").iterdir()):
            yield video, path.stem, np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def default_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample") / "set"
    return root, make_sample_dataset(root, progress=False)


def test_layout_is_that_of_vspw(default_set):
    root, summary = default_set
    assert sorted(path.name for path in root.iterdir()) == [
        "data", "label_num_dic_final.json", "sample.json", "test.txt", "train.txt", "val.txt"
    ]
    listed = [video for split in ("train", "val", "test") for video in videos(root, split)]
    assert sorted(listed) == sorted(path.name for path in (root / "data").iterdir())
    assert (root / "val.txt").read_bytes().endswith(b"\n")  # official scripts cut the last character of each line
    for split in ("train", "val", "test"):
        frames = 0
        for video in videos(root, split):
            stems = sorted(path.stem for path in (root / "data" / video / "origin").glob("*.jpg"))
            frames += len(stems)
            numbers = [int(stem) for stem in stems]
            assert all(len(stem) == 8 for stem in stems) and numbers[0] > 0
            assert set(np.diff(numbers)) == {3 if split == "train" else 1}
            mask_folder = root / "data" / video / "mask"
            if split == "test":
                assert not mask_folder.exists()
            else:
                assert sorted(path.stem for path in mask_folder.glob("*.png")) == stems
        assert summary["videos"][split] == len(videos(root, split)) and summary["frames"][split] == frames
    with Image.open(next((root / "data" / videos(root, "val")[0] / "mask").iterdir())) as mask:
        assert mask.mode == "L" and mask.size == (214, 120)
    with Image.open(next((root / "data" / videos(root, "val")[0] / "origin").iterdir())) as frame:
        assert frame.format == "JPEG" and frame.mode == "RGB" and frame.size == (214, 120)


def test_class_file_holds_the_124_names(default_set):
    root, _ = default_set
    names = json.loads((root / "label_num_dic_final.json").read_text())
    assert names.pop("others") == 0
    assert names == dict(zip(VSPW.names, range(1, 125), strict=True))
    assert ClassList.from_root(root).names == VSPW.names


def test_masks_hold_sixteen_classes_and_both_voids(default_set):
    root, summary = default_set
    ids = {VSPW.names.index(name) + 1 for name in CLASSES}
    assert len(ids) == 16 and summary["classes"] == list(CLASSES)
    for split in ("train", "val"):
        seen = set(np.concatenate([np.unique(mask) for _, _, mask in masks(root, split)]).tolist())
        assert seen == ids | {0, 255}


def test_validation_is_dense_and_moves(default_set):
    """Long enough for VC16, and neighbouring frames differ a little, never wholly."""
    root, _ = default_set
    for video in videos(root, "val"):
        ids = [mask for name, _, mask in masks(root, "val") if name == video]
        assert len(ids) >= 32
        changed = [float((one != two).mean()) for one, two in zip(ids, ids[1:], strict=False)]
        assert 0 < max(changed) and np.mean(changed) < 0.12
        assert (ids[0] != ids[-1]).mean() > 0.02


def test_no_constant_map_scores_five_percent(default_set):
    """VSPW protocol by hand: mean over classes in the ground truth of intersection / union, void pixels left out."""
    root, _ = default_set
    counts = np.zeros(256, np.int64)
    for _, _, mask in masks(root, "val"):
        counts += np.bincount(mask.ravel(), minlength=256)
    counts[[0, 255]] = 0
    labelled, present = counts.sum(), np.flatnonzero(counts)
    scores = []
    for constant in range(1, 125):
        iou = [counts[disk_id] / labelled if disk_id == constant else 0.0 for disk_id in present]
        scores.append(np.mean(iou))
    assert 0 < max(scores) < 0.05


def test_colour_alone_does_not_give_the_class(default_set):
    """Nearest mean colour, fitted on the training frames, is far from solving validation but better than chance."""
    root, _ = default_set

    def pixels(split):
        colours, ids = [], []
        for video, stem, mask in masks(root, split):
            frame = np.asarray(Image.open(root / "data" / video / "origin" / f"{stem}.jpg"))
            colours.append(frame[::7, ::7].reshape(-1, 3))
            ids.append(mask[::7, ::7].ravel())
        colours, ids = np.concatenate(colours).astype(np.float32), np.concatenate(ids)
        known = (ids > 0) & (ids < 255)
        return colours[known], ids[known]

    colours, ids = pixels("train")
    classes = np.unique(ids)
    means = np.stack([colours[ids == disk_id].mean(0) for disk_id in classes])
    colours, ids = pixels("val")
    guessed = classes[((colours[:, None] - means) ** 2).sum(-1).argmin(1)]
    ious = [
        ((guessed == disk_id) & (ids == disk_id)).sum() / ((guessed == disk_id) | (ids == disk_id)).sum()
        for disk_id in np.unique(ids)
    ]
    assert 0.02 < np.mean(ious) < 0.35


def test_same_arguments_same_bytes_and_other_seed_other_pictures(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        np.random.seed(seed * 7)  # the global state must not matter
        make_sample_dataset(tmp_path / name, seed=seed, progress=False, **SMALL)
    first, second, third = (fingerprint(tmp_path / name) for name in "abc")
    assert first == second
    assert not set(first.values()) & {value for name, value in third.items() if name.endswith((".jpg", ".png"))}


def test_split_does_not_change_with_the_number_of_other_videos(tmp_path):
    make_sample_dataset(tmp_path / "a", progress=False, **SMALL)
    make_sample_dataset(tmp_path / "b", progress=False, **{**SMALL, "val_videos": 2, "test_videos": 0})
    video = videos(tmp_path / "a", "val")[0]
    assert fingerprint(tmp_path / "a" / "data" / video) == fingerprint(tmp_path / "b" / "data" / video)


def test_existing_set_is_reused_or_refused(tmp_path):
    root = tmp_path / "deeper" / "set"
    made = make_sample_dataset(root, progress=False, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    reused = make_sample_dataset(root, progress=False, **SMALL)
    assert (made["reused"], reused["reused"]) == (False, True)
    assert {**made, "reused": None} == {**reused, "reused": None}
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"other arguments: seed 0 \(asked: 1\)"):
        make_sample_dataset(root, seed=1, progress=False, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="no sample data set"):
        make_sample_dataset(tmp_path / "mine", progress=False, **SMALL)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "mine"]


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    saved = Image.Image.save

    def fails_on_the_fifth_mask(self, path, *args, **kwargs):
        if Path(path).suffix == ".png" and len(list(Path(path).parents[2].rglob("*.png"))) == 4:
            raise OSError("no space left on device")
        return saved(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", fails_on_the_fifth_mask)
    with pytest.raises(OSError, match="no space left"):
        make_sample_dataset(tmp_path / "set", progress=False, **SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert make_sample_dataset(tmp_path / "set", progress=False, **SMALL)["reused"] is False


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("seed", -1, "0 to"), ("height", 20, "48 to 1080"), ("width", 20, "32 to 192"), ("train_videos", 0, "1 to")],
)
def test_bad_argument_is_named(tmp_path, name, value, allowed):
    with pytest.raises(ValueError, match=f"{name} is {value}; allowed: {allowed}"):
        make_sample_dataset(tmp_path / "set", progress=False, **{**SMALL, name: value})
    assert not (tmp_path / "set").exists()
