"""The ambiguous sample set: what single frames leave open, a few of them together tell; the ground truth is exact."""

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vss_hf.cli import app
from vss_hf.data import ClassList, load_vspw, verify_dataset
from vss_hf.data.sample import make_sample_dataset
from vss_hf.data.sample_ambiguous import (
    CLASSES,
    COLOURS,
    DISK_ID,
    GLINT,
    MOVING,
    SCREEN,
    WATER,
    make_ambiguous_dataset,
)


SMALL = {
    "height": 48,
    "width": 80,
    "train_videos": 2,
    "val_videos": 1,
    "frames_per_video": 5,
    "val_frames_per_video": 6,
}
CLEAN = {"noise": 0, "flicker": 0, "occlusion": 0, "drift": 0}


def fingerprint(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def videos(root, split):
    """(frames (T, H, W, 3) float32, ids (T, H, W)) of each video of a split."""
    for name in (root / f"{split}.txt").read_text().splitlines():
        folders = [sorted((root / "data" / name / kind).iterdir()) for kind in ("origin", "mask")]
        frames, ids = (np.stack([np.asarray(Image.open(path)) for path in paths]) for paths in folders)
        yield frames.astype(np.float32), ids


@pytest.fixture(scope="module")
def default_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("ambiguous") / "set"
    return root, make_ambiguous_dataset(root, progress=False)


def test_layout_and_classes(default_set):
    root, summary = default_set
    assert not verify_dataset(root).errors
    assert summary["frames"] == {"train": 400, "val": 224, "test": 10} and summary["classes"] == list(CLASSES)
    for split in ("train", "val"):
        seen = np.unique(np.concatenate([np.unique(ids) for _, ids in videos(root, split)]))
        assert set(seen.tolist()) == set(DISK_ID.values())
    assert all(len(ids) >= 24 and ids.shape[1:] == (96, 160) for _, ids in videos(root, "val"))
    for name in (root / "train.txt").read_text().splitlines():  # as dense as validation: offsets mean the same there
        numbers = sorted(int(path.stem) for path in (root / "data" / name / "origin").iterdir())
        assert set(np.diff(numbers)) == {1}


def test_it_trains_through_the_same_door_as_vspw(default_set):
    root, _ = default_set
    samples: Any = load_vspw(root, "train", frame_offsets=(-3, -2, -1))
    sample = samples[5]
    assert sample["frames"].shape == (4, 3, 96, 160)
    names = ClassList.from_root(root).names
    assert {names[label] for label in sample["labels"].unique().tolist()} <= set(CLASSES)


def nearest_colour_scores(root, num_frames):
    """Mean IoU and the screens' IoU of the nearest mean colour, of means of `num_frames` frames, on what is still."""
    still = [DISK_ID[name] for name in CLASSES if name not in MOVING]

    def pixels(split):
        for frames, ids in videos(root, split):
            for last in range(num_frames - 1, len(frames)):
                clip = slice(last - num_frames + 1, last + 1)
                kept = (ids[clip] == ids[last]).all(0) & np.isin(ids[last], still)
                yield frames[clip].mean(0)[kept][::9], ids[last][kept][::9]

    colours, ids = (np.concatenate(parts) for parts in zip(*pixels("train"), strict=True))
    means = np.stack([colours[ids == disk_id].mean(0) for disk_id in still])
    colours, ids = (np.concatenate(parts) for parts in zip(*pixels("val"), strict=True))
    guessed = np.array(still)[((colours[:, None] - means) ** 2).sum(-1).argmin(1)]
    ious = {i: ((guessed == i) & (ids == i)).sum() / ((guessed == i) | (ids == i)).sum() for i in still}
    return np.mean(list(ious.values())), ious[DISK_ID[SCREEN]]


def test_four_frames_tell_far_more_than_one(default_set):
    root, _ = default_set
    (one, screen_in_one), (four, screen_in_four) = (nearest_colour_scores(root, count) for count in (1, 4))
    assert one < 0.15 and four > 2 * one and four > 0.25  # measured: 0.12 and 0.31
    assert screen_in_one < 0.06 and screen_in_four > 0.25  # measured: 0.03 and 0.33


@pytest.mark.parametrize("one_left", ["noise", "flicker", "occlusion"])
def test_each_disturbance_alone_makes_frames_harder_than_clips(tmp_path, one_left):
    """Against the set without any: there only the twins are open, and a whole cycle of four frames settles them."""
    sizes = {"height": 48, "width": 80, "train_videos": 6, "val_videos": 3, "frames_per_video": 6}
    clean = {**sizes, "val_frames_per_video": 6, **CLEAN}
    make_ambiguous_dataset(tmp_path / "clean", progress=False, **clean)
    amount = {"noise": 24.0, "flicker": 0.3, "occlusion": 0.3}[one_left]
    make_ambiguous_dataset(tmp_path / "set", progress=False, **{**clean, one_left: amount})
    one, four = (nearest_colour_scores(tmp_path / "set", count)[0] for count in (1, 4))
    clean_one, clean_four = (nearest_colour_scores(tmp_path / "clean", count)[0] for count in (1, 4))
    assert clean_four > 0.85 and clean_four > clean_one + 0.1
    assert one < clean_one - 0.1 and four > one + 0.1


def test_ground_truth_is_that_of_the_scene_behind(tmp_path):
    """The masks do not depend on noise, flicker and losses: pixel by pixel those of the clean pictures."""
    make_ambiguous_dataset(tmp_path / "bad", progress=False, **SMALL)
    make_ambiguous_dataset(tmp_path / "clean", progress=False, **{**SMALL, **CLEAN, "drift": 1.5})
    for split in ("train", "val"):
        pairs = zip(videos(tmp_path / "bad", split), videos(tmp_path / "clean", split), strict=True)
        for (bad, bad_ids), (clean, clean_ids) in pairs:
            assert (bad_ids == clean_ids).all() and abs(bad - clean).mean() > 10


def test_clean_pictures_show_what_the_masks_say(tmp_path):
    """Every still class has its colour there, twins in turns; only edges, grain and JPEG make a difference."""
    make_ambiguous_dataset(tmp_path / "set", progress=False, **{**SMALL, **CLEAN, "val_videos": 6})
    frames, ids = (np.concatenate(parts) for parts in zip(*videos(tmp_path / "set", "val"), strict=True))
    for name, colour in COLOURS.items():
        assert abs(np.median(frames[ids == DISK_ID[name]], axis=0) - colour).max() < 12, name
    billboard, poster = COLOURS["billboard_or_Bulletin_Board"], COLOURS["painting_or_poster"]
    for name, looks in ((SCREEN, (billboard, poster)), (WATER, (COLOURS["floor"], GLINT))):
        shown = frames[ids == DISK_ID[name]]
        distances = np.stack([abs(shown - np.array(look)).max(1) for look in looks])
        assert np.median(distances.min(0)) < 12 and {0, 1} == set(distances.argmin(0))


def test_twins_keep_their_cycle(tmp_path):
    """In any four frames on end a screen shows either look twice, and water glints once."""
    sizes = {**SMALL, "val_videos": 6, "val_frames_per_video": 9}
    make_ambiguous_dataset(tmp_path / "set", progress=False, **{**sizes, **CLEAN})
    frames, ids = (np.stack(parts, axis=1) for parts in zip(*videos(tmp_path / "set", "val"), strict=True))
    still = (ids == ids[0]).all(0)
    for first in range(6):
        clip = frames[first : first + 4]
        screen, water = (clip[:, still & (ids[0] == DISK_ID[name])] for name in (SCREEN, WATER))
        greener = screen[..., 1] > screen[..., 0]  # as a poster; a billboard is more red than green
        assert (greener.sum(0) == 2).mean() > 0.9
        assert ((water.mean(-1) > 160).sum(0) == 1).mean() > 0.9


def test_same_arguments_same_bytes_and_other_seed_other_pictures(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        np.random.seed(seed * 7)  # the global state must not matter
        make_ambiguous_dataset(tmp_path / name, seed=seed, progress=False, **SMALL)
    first, second, third = (fingerprint(tmp_path / name) for name in "abc")
    assert first == second
    assert not set(first.values()) & {value for name, value in third.items() if name.endswith((".jpg", ".png"))}
    assert make_ambiguous_dataset(tmp_path / "a", seed=3, progress=False, **SMALL)["reused"]


def test_the_two_kinds_do_not_take_each_other_for_their_own(tmp_path):
    shared = {**SMALL, "test_videos": 0, "progress": False}
    make_ambiguous_dataset(tmp_path / "ambiguous", **shared)
    make_sample_dataset(tmp_path / "scenes", **shared)
    with pytest.raises(FileExistsError, match=r"kind ambiguous \(asked: None\)"):
        make_sample_dataset(tmp_path / "ambiguous", **shared)
    with pytest.raises(FileExistsError, match=r"kind None \(asked: ambiguous\)"):
        make_ambiguous_dataset(tmp_path / "scenes", **shared)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("noise", 200.0, "0 to 128"), ("flicker", -0.1, "0 to 0.9"), ("occlusion", 1, "0 to 0.9"), ("cycle", 1, "2 to")],
)
def test_bad_argument_is_named(tmp_path, name, value, allowed):
    with pytest.raises(ValueError, match=f"{name} is {value}; allowed: {allowed}"):
        make_ambiguous_dataset(tmp_path / "set", progress=False, **{**SMALL, name: value})
    assert not (tmp_path / "set").exists()


def test_command_makes_either_kind(tmp_path, monkeypatch):
    """The kind chooses the function; what that makes is tested above."""
    made, summary = [], {"reused": False, "videos": {"train": 1}, "frames": {"train": 2}}
    for name in ("make_ambiguous_dataset", "make_sample_dataset"):
        monkeypatch.setattr(f"vss_hf.data.{name}", lambda root, seed, name=name: made.append((name, seed)) or summary)
    for words in ([], ["--kind", "scenes"], ["--kind", "ambiguous", "--seed", "3"]):
        result = CliRunner().invoke(app, ["data", "sample", str(tmp_path / "set"), *words])
        assert result.exit_code == 0 and "train 1 videos/2 frames" in result.stdout
    assert made == [("make_sample_dataset", 0), ("make_sample_dataset", 0), ("make_ambiguous_dataset", 3)]
    assert CliRunner().invoke(app, ["data", "sample", str(tmp_path / "set"), "--kind", "other"]).exit_code == 2
