"""Pseudo labels: the pixels that are kept, the data set that is made of them, kills and processes, training on it."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_pseudo_labels
import numpy as np
import pytest
import yaml
from colour_model import NAMES, files_of, probabilities, scene, segmenter, write_data
from PIL import Image
from tiny_models import save_model, write_video

from vss_hf.cli import main
from vss_hf.data import load_vspw, verify_dataset
from vss_hf.data.labels import VSPW, ClassList
from vss_hf.data.splits import open_split
from vss_hf.data.vspw import read_image, read_mask
from vss_hf.inference.segmenter import SegmentedFrame, VideoSegmenter
from vss_hf.inference.views import TTA
from vss_hf.pseudo_labels.files import find_videos, frame_names
from vss_hf.pseudo_labels.filters import (
    LOWEST,
    STEPS,
    Placed,
    PseudoLabelSettings,
    agreeing,
    class_thresholds,
    confidence_counts,
    with_neighbours,
)
from vss_hf.pseudo_labels.labelling import pseudo_label


CLOSE = 1e-5  # probabilities that are nearer to a threshold, or to each other, may fall on either side in float32


@pytest.fixture
def data(tmp_path):
    """Three videos without masks: odd sizes, one whose frames change their size, and one single frame."""
    videos = {
        "b_odd": scene(0, 7, 37, 53),
        "a changing": [*scene(1, 3, 40, 48), *scene(2, 3, 33, 47)],
        "single": scene(3, 1, 32, 40),
    }
    return write_data(tmp_path / "data set", videos)


def naive_labels(images: list[np.ndarray], settings: PseudoLabelSettings, thresholds: np.ndarray):
    """Stored mask of each wanted frame by the definition, in float64, and where float32 may differ from it."""
    maps = [probabilities(image) for image in images]
    found = {}
    for t in range(0, len(images), settings.every):
        best, second = -np.sort(-maps[t], axis=0)[:2]
        labels = maps[t].argmax(axis=0)
        kept = best >= thresholds[labels]
        unsure = (best - second < CLOSE) | (np.abs(best - thresholds[labels]) < CLOSE)
        for other in range(t - settings.temporal_window, t + settings.temporal_window + 1):
            if other == t or not 0 <= other < len(images) or images[other].shape != images[t].shape:
                continue
            theirs, r = maps[other].argmax(axis=0), settings.temporal_radius
            around = np.lib.stride_tricks.sliding_window_view(np.pad(theirs, r, constant_values=-1), (2 * r + 1,) * 2)
            kept &= (around == labels[..., None, None]).any(axis=(2, 3))
            ties = -np.sort(-maps[other], axis=0)
            if (ties[0] - ties[1] < CLOSE).any():
                unsure |= True  # of no use here; the test says how many frames may be so
        found[t] = np.where(kept, labels + 1, 0), unsure
    return found


@pytest.mark.parametrize(
    "settings, batch_size",
    [
        (PseudoLabelSettings(threshold=0.7, min_labelled=0.0), 3),
        (PseudoLabelSettings(threshold=0.6, temporal_window=1, min_labelled=0.0), 1),
        (PseudoLabelSettings(threshold=0.5, temporal_window=2, temporal_radius=1, every=3, min_labelled=0.0), 2),
    ],
    ids=["confidence", "agreement", "agreement nearby, every third frame"],
)
def test_kept_pixels_are_those_of_the_definition(data, tmp_path, settings, batch_size):
    report = pseudo_label(segmenter(), data, tmp_path / "out", split="test", settings=settings, batch_size=batch_size)
    thresholds = np.full(len(NAMES), settings.threshold)
    opened = open_split(tmp_path / "out", "train")
    assert [video.name for video in opened.videos] == ["b_odd", "a changing", "single"]  # the order of the list
    assert opened.classes.names == tuple(NAMES)
    sure = total = kept = 0
    for video in opened.videos:
        originals = sorted((data / "data" / video.name / "origin").iterdir())
        expected = naive_labels([read_image(path) for path in originals], settings, thresholds)
        assert [record.stem for record in video.frames] == [originals[t].stem for t in expected]
        for record, (t, (mask, unsure)) in zip(video.frames, expected.items(), strict=True):
            stored = read_mask(record.mask_path)
            assert np.array_equal(stored[~unsure], mask[~unsure])
            assert os.path.samefile(record.image_path, originals[t])
            sure, total, kept = sure + (~unsure).sum(), total + mask.size, kept + (stored > 0).sum()
    assert sure > 0.9 * total and 0.2 * total < kept < 0.95 * total
    assert report["kept_share"] == pytest.approx(kept / total)
    assert report["frames"] == report["frames_written"] == opened.num_frames


def test_the_data_set_is_sound_and_reads_as_what_was_predicted(data, tmp_path):
    """Labels as training reads them, names, verify, the report's numbers."""
    out = tmp_path / "out"
    settings = PseudoLabelSettings(threshold=0.7, min_labelled=0.0)
    report = pseudo_label(segmenter(), data, out, split="test", settings=settings)
    checked = verify_dataset(out)
    assert {finding.kind for finding in checked.errors} == {"frame_size_changes"}  # as in the source
    assert sorted(path.name for path in out.iterdir()) == [
        *("data", "label_num_dic_final.json", "pseudo_labels.json", "train.txt"),
    ]
    classes = ClassList.from_root(out)
    assert classes.names == tuple(NAMES) and classes.disk_ids == (1, 2, 3, 4, 5)
    stored = json.loads((out / "pseudo_labels.json").read_text())
    assert stored == {key: value for key, value in report.items() if key != "stop_signal"}
    before, after, confidence = np.zeros(5), np.zeros(5), []
    for sample in load_vspw(out, "train"):
        scores = probabilities(sample["frames"][-1].movedim(0, -1).numpy())
        best, labels = scores.argmax(axis=0), sample["labels"].numpy()
        before += np.bincount(best.ravel(), minlength=5)
        after += np.bincount(labels.ravel(), minlength=256)[:5]
        assert (labels[labels != 255] == best[labels != 255]).mean() > 0.999
        confidence.append(scores.max(axis=0).ravel())
    for number, name in enumerate(NAMES):
        shares = report["classes"][name]
        assert shares["predicted_share"] == pytest.approx(before[number] / before.sum(), abs=1e-3)
        assert shares["share"] == pytest.approx(after[number] / after.sum(), abs=1e-3)
        assert shares["kept_share"] == pytest.approx(after[number] / before[number], abs=1e-3)
    assert report["mean_confidence"] == pytest.approx(np.concatenate(confidence).mean(), abs=1e-6)
    assert len(report["model"]["weights_sha256"]) == 64 and report["versions"].keys() >= {"vss-hf", "torch"}


def test_names_of_vspw_give_its_own_list(tmp_path):
    model = segmenter()
    weight = model.model.weight
    weight.data = weight.data[[0] * 124].clone()
    model.model.config.num_labels, model.model.config.id2label = 124, VSPW.id2label
    root = write_data(tmp_path / "in", {"v": scene(0, 2, 32, 40)})
    pseudo_label(model, root, tmp_path / "out", split="test", settings=PseudoLabelSettings(threshold=0.0))
    assert ClassList.from_root(tmp_path / "out") is VSPW
    assert np.array_equal(np.unique(read_mask(tmp_path / "out/data/v/mask/00000010.png")), [1])  # the first of a tie


# --- filters


def test_neighbours_are_those_within_the_window():
    """500 random sequences with gaps against the definition; no more frames are held than fit into the window."""
    rng = np.random.default_rng(0)
    alive = 0

    class Counted(SegmentedFrame):
        def __init__(self):
            nonlocal alive
            alive += 1

        def __del__(self):
            nonlocal alive
            alive -= 1

    for _ in range(500):
        positions = np.flatnonzero(rng.random(rng.integers(0, 25)) < rng.uniform(0.2, 1)).tolist()
        window = int(rng.integers(0, 4))
        expected = [(p, [q for q in positions if q != p and abs(q - p) <= window]) for p in positions]
        found = []
        for here, others in with_neighbours((Placed(p, Counted()) for p in positions), window):
            found.append((here.position, [other.position for other in others]))
            assert alive <= 2 * window + 1
        assert found == expected


def test_agreement_within_a_radius_is_that_of_the_definition():
    rng = np.random.default_rng(1)
    for height, width, radius in [(9, 13, 0), (9, 13, 1), (8, 5, 3), (3, 4, 9), (1, 1, 2), (1, 7, 1)]:
        labels, other = rng.integers(0, 6, (2, height, width), dtype=np.uint8)
        expected = [
            [
                labels[y, x] in other[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
                for x in range(width)
            ]
            for y in range(height)
        ]
        assert np.array_equal(agreeing(labels, other, radius), expected)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9, 1.0])
def test_class_thresholds_are_quantiles(share):
    """To a bin of log odds, from confidences of a hundredth to those that float32 rounds to 1."""
    rng = np.random.default_rng(2)
    odds = rng.normal([0.0, 4.0, 12.0, -3.0], [1.0, 3.0, 4.0, 1.0], (4000, 4)).astype(np.float32)
    confidence = (1 / (1 + np.exp(-odds))).astype(np.float32)  # (pixels, classes)
    labels = np.broadcast_to(np.array([0, 1, 2, 4], np.uint8), confidence.shape)
    counts = confidence_counts(labels, confidence, 5)
    assert counts.sum() == labels.size and counts[3].sum() == 0
    thresholds = class_thresholds(counts, share)
    assert thresholds[3] == math.inf
    for column, label in enumerate([0, 1, 2, 4]):
        own, threshold = confidence[:, column], float(thresholds[label])
        assert (own >= threshold).mean() >= share - 0.001
        if threshold < 1:  # what float32 rounds to 1 cannot be told apart
            odds = math.log(threshold / (1 - threshold)) if threshold else LOWEST
            next_bin = 1 / (1 + math.exp(-(odds + 1 / STEPS + 0.01)))  # near 1, float32 has steps of 0.01
            assert (own >= next_bin).mean() < share
            exact = float(np.quantile(own, 1 - share))
            assert threshold <= exact + 1e-6


def test_every_class_keeps_its_share(data, tmp_path):
    """Against numpy's quantiles of the float64 probabilities of all frames."""
    settings = PseudoLabelSettings(class_balanced=0.3, balance_every=1, min_labelled=0.0)
    report = pseudo_label(segmenter(), data, tmp_path / "out", split="test", settings=settings)
    confidences: list[list[np.ndarray]] = [[] for _ in NAMES]
    for path in sorted(data.glob("data/*/origin/*")):
        scores = probabilities(read_image(path))
        for label in range(len(NAMES)):
            confidences[label].append(scores.max(axis=0)[scores.argmax(axis=0) == label])
    for name, of_class in zip(NAMES, confidences, strict=True):
        own, found = np.concatenate(of_class), report["classes"][name]
        quantile = np.quantile(own, 0.7)
        odds = [math.log(p / (1 - p)) for p in (quantile, found["threshold"])]
        assert abs(odds[0] - odds[1]) < 0.03
        assert found["kept_share"] == pytest.approx((own >= found["threshold"]).mean(), abs=0.002)
        assert 0.299 <= found["kept_share"] < 0.33
    assert report["settings"]["threshold"] == 0
    with_both = PseudoLabelSettings(class_balanced=0.9, threshold=0.8, min_labelled=0.0)
    both = pseudo_label(segmenter(), data, tmp_path / "both", split="test", settings=with_both)
    assert min(of["threshold"] for of in both["classes"].values()) == pytest.approx(0.8)


def test_frames_with_few_labels_are_left_out(data, tmp_path):
    every = PseudoLabelSettings(threshold=0.8, min_labelled=0.0)
    pseudo_label(segmenter(), data, tmp_path / "all", split="test", settings=every)
    shares = {
        f"{path.parts[-3]}/{path.stem}": (read_mask(path) > 0).mean()
        for path in (tmp_path / "all").glob("data/*/mask/*.png")
    }
    least = float(np.median(list(shares.values())))
    some = PseudoLabelSettings(threshold=0.8, min_labelled=least)
    report = pseudo_label(segmenter(), data, tmp_path / "some", split="test", settings=some)
    left = {f"{path.parts[-3]}/{path.stem}" for path in (tmp_path / "some").glob("data/*/mask/*.png")}
    assert left == {name for name, share in shares.items() if share >= least} and len(left) < len(shares)
    assert report["frames"] == len(shares) and report["frames_written"] == len(left)
    with pytest.raises(ValueError, match=r"leave none of 14 frames.*--threshold"):
        settings = PseudoLabelSettings(threshold=1.0, min_labelled=1.0)
        pseudo_label(segmenter(), data, tmp_path / "none", split="test", settings=settings)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"threshold": 1.5}, "threshold=1.5: expected 0..1"),
        ({"class_balanced": 0.0}, "keeps nothing"),
        ({"every": 0}, "every=0: expected at least 1"),
        ({"temporal_radius": 2}, "needs temporal_window"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabelSettings(**fields)


# --- what is labelled


def test_folders_of_videos_and_of_frames(tmp_path):
    """A video file becomes JPEGs close to its frames; pictures become links; names that sort otherwise, numbers."""
    root = tmp_path / "in"
    (root / "walk").mkdir(parents=True)
    for number, frame in zip((2, 10, 1), scene(4, 3, 33, 40), strict=True):
        Image.fromarray(frame).save(root / "walk" / f"f{number}.png")
    turned = Image.fromarray(scene(5, 1, 24, 40)[0])
    exif = turned.getexif()
    exif[0x0112] = 6  # a phone that was held upright
    turned.save(root / "walk" / "f11.jpg", exif=exif, quality=95)
    write_video(root / "drive.mp4", scene(6, 5, 48, 64))
    (root / "notes.txt").write_text("nothing to see")
    settings = PseudoLabelSettings(threshold=0.5, min_labelled=0.0, every=2)
    with pytest.warns(UserWarning, match=r"not taken for videos: notes\.txt"):
        report = pseudo_label(segmenter(), root, tmp_path / "out", settings=settings)
    assert list(report["videos"]) == ["drive", "walk"] and report["data"]["frames"] == 9
    drive, walk = open_split(tmp_path / "out", "train").videos
    assert [record.image_path.name for record in drive.frames] == ["00000000.jpg", "00000002.jpg", "00000004.jpg"]
    decoded = [frame.image for frame in find_videos(root / "drive.mp4", "train")[0].source]
    assert np.abs(read_image(drive.frames[2].image_path).astype(int) - decoded[4]).mean() < 6
    assert [record.image_path.name for record in walk.frames] == ["00000000.png", "00000002.png"]
    assert os.path.samefile(walk.frames[0].image_path, root / "walk" / "f1.png")
    assert [path.name for path in sorted((root / "walk").iterdir())][-1] == "f2.png"  # f1, f2, f10, f11 in time
    assert read_mask(drive.frames[0].mask_path).shape == (48, 64)

    [only] = find_videos(root / "walk", "train")
    assert only.name == "walk" and list(only.files) == ["f1", "f2", "f10", "f11"]
    alone = pseudo_label(segmenter(), root / "walk", tmp_path / "alone", settings=PseudoLabelSettings(threshold=0.0))
    last = tmp_path / "alone" / "data" / "walk" / "origin" / "00000003.jpg"
    assert alone["frames"] == 4 and read_image(last).shape == (40, 24, 3)  # upright, as it was labelled
    assert 0x0112 not in Image.open(last).getexif()


def test_frames_keep_their_order():
    assert frame_names(["00000010", "00000170"]) == {"00000010": "00000010", "00000170": "00000170"}
    assert list(frame_names(["9", "10"]).values()) == ["9", "10"]  # numbers are sorted as numbers
    assert list(frame_names(["f9", "f10"]).values()) == ["00000000", "00000001"]


def test_names_that_no_list_can_hold(tmp_path):
    for name in ("walk.mp4", "walk"):
        (tmp_path / "twice" / name).mkdir(parents=True)
        Image.fromarray(scene(0, 1, 32, 32)[0]).save(tmp_path / "twice" / name / "0.png")
    (tmp_path / "blank" / "walk ").mkdir(parents=True)
    Image.fromarray(scene(0, 1, 32, 32)[0]).save(tmp_path / "blank" / "walk " / "0.png")
    assert [video.name for video in find_videos(tmp_path / "twice", "train")] == ["walk", "walk.mp4"]
    with pytest.raises(ValueError, match="'walk ' cannot be the name"):
        find_videos(tmp_path / "blank", "train")
    write_video(tmp_path / "twice" / "walk.avi", scene(0, 2, 32, 32))
    with pytest.raises(ValueError, match="two videos are called 'walk'"):
        find_videos(tmp_path / "twice", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing to label; expected data/"):
        find_videos(tmp_path / "empty", "train")


def test_a_video_model_sees_all_frames(tmp_path):
    """With every third frame labelled, its labels are those of the whole video."""
    from vss_hf.inference.segmenter import VideoSegmenter

    model = VideoSegmenter.from_pretrained(save_model(tmp_path / "model", video=True), "cpu")
    root = write_data(tmp_path / "in", {"v": scene(0, 7, 48, 64)})
    settings = PseudoLabelSettings(threshold=0.0, every=3)
    pseudo_label(model, root, tmp_path / "out", split="test", settings=settings, batch_size=4)
    straight = list(model.label_video(root / "data" / "v"))
    for number in (0, 3, 6):
        mask = read_mask(tmp_path / "out" / "data" / "v" / "mask" / f"{number + 10:08d}.png")
        assert np.array_equal(mask, straight[number] + 1)


# --- going on


@pytest.mark.slow  # test_finished_videos.py kills what it is built on
def test_killed_anywhere_and_shared_it_comes_to_the_same_files(data, tmp_path):
    check_kills(data, tmp_path, stride=17)


@pytest.mark.slow
def test_killed_at_every_file_operation(data, tmp_path):
    check_kills(data, tmp_path, stride=1)


def check_kills(data: Path, folder: Path, stride: int) -> None:
    command = [sys.executable, killed_pseudo_labels.__file__, str(data), str(folder / "runs"), str(stride)]
    (folder / "runs").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["different"] == [] and set(found["codes"]) == {0}, done.stderr[-3000:]
    assert found["kills"] >= 5
    first, other = found["killed_together"]
    assert first == -signal.SIGKILL and other != 0  # nobody waits for ever


def test_stopped_by_a_signal_it_keeps_the_videos_that_are_done(data, tmp_path):
    settings = PseudoLabelSettings(threshold=0.6, min_labelled=0.0, temporal_window=1)
    pseudo_label(segmenter(), data, tmp_path / "straight", split="test", settings=settings)

    def progress(items, total, name):
        assert total == {"b_odd": 7, "a changing": 6, "single": 1}[name]
        for number, item in enumerate(items):
            if name == "a changing" and number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    out = tmp_path / "out"
    report = pseudo_label(segmenter(), data, out, split="test", settings=settings, progress=progress)
    assert report["stop_signal"] == signal.SIGTERM and not report["complete"]
    assert [video.name for video in open_split(out, "train").videos] == ["b_odd"]
    assert os.listdir(out / "data") == ["b_odd"]
    assert not json.loads((out / "pseudo_labels.json").read_text())["complete"]
    report = pseudo_label(segmenter(), data, out, split="test", settings=settings)
    assert report["complete"] and report["stop_signal"] is None
    assert files_of(out) == files_of(tmp_path / "straight")


def test_a_second_run_does_nothing_or_says_what_differs(data, tmp_path):
    out = tmp_path / "out"
    settings = PseudoLabelSettings(threshold=0.6)
    first = pseudo_label(segmenter(), data, out, split="test", settings=settings)
    before = files_of(out)
    idle = segmenter()
    idle.segment = None  # nothing is labelled
    assert pseudo_label(idle, data, out, split="test", settings=settings, batch_size=2) == first
    data.rename(tmp_path / "moved")
    data = tmp_path / "moved"
    assert pseudo_label(idle, data, out, split="test", settings=settings) == first
    with pytest.raises(ValueError, match=r"begun with settings\.threshold 0\.6, now it is 0\.7; .* another --out"):
        pseudo_label(segmenter(), data, out, split="test", settings=PseudoLabelSettings(threshold=0.7))
    other = segmenter()
    other.model.weight.data[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"begun with model\.weights_sha256"):
        pseudo_label(other, data, out, split="test", settings=settings)
    resized = segmenter()
    resized.processor.do_resize = True
    with pytest.raises(ValueError, match=r"begun with model\.processor\.do_resize False, now it is True"):
        pseudo_label(resized, data, out, split="test", settings=settings)
    mirrored = VideoSegmenter(segmenter().model, segmenter().processor, tta=TTA(flip=True))
    with pytest.raises(ValueError, match=r"begun with segmenter\.tta\.\w+ None, now it is"):
        pseudo_label(mirrored, data, out, split="test", settings=settings)
    (data / "test.txt").write_text("single\n")
    with pytest.raises(ValueError, match=r"begun with data\.videos 3, now it is 1"):
        pseudo_label(segmenter(), data, out, split="test", settings=settings)
    assert files_of(out) == before
    with pytest.raises(FileExistsError, match="already there and not empty"):
        pseudo_label(segmenter(), data, data, split="test", settings=settings)


# --- the command, and training


def exit_code(*words: str) -> int | str | None:
    """Run a command of `vss-hf`."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def test_the_command_makes_what_trains_alone_and_beside_real_labels(tmp_path, capsys):
    model = save_model(tmp_path / "model")
    root = write_data(tmp_path / "in", {"v": scene(0, 4, 48, 64), "w": scene(1, 3, 48, 64)}, ".png")
    out = tmp_path / "pseudo"
    arguments = ["pseudo-label", str(model), "--data", str(root), "--split", "test", "--out", str(out)]
    assert exit_code(*arguments, "--threshold", "0.3", "--temporal_window", "1", "--device", "cpu") == 0
    assert "2 videos, 7 of 7 frames" in capsys.readouterr().out
    assert exit_code(*arguments, "--threshold", "0.4", "--device", "cpu") == 2
    assert "begun with settings.threshold 0.3" in capsys.readouterr().err
    assert exit_code("data", "verify", str(out)) == 0 and exit_code("data", "stats", str(out)) == 0

    from vss_hf.training.run import main as train

    backbone = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16]}
    backbone |= {"depths": [1, 1], "out_features": ["stage1", "stage2"]}
    heads = {"in_indices": [0, 1], "channels": 16, "ocr_channels": 8, "coarse_channels": 16}
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_steps": 2, "save_steps": 2}
    training |= {"dataloader_num_workers": 0, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    recipe = {
        "model": {"config": {"backbone_config": backbone, **heads}},
        "augmentation": {"crop_size": [32, 48]},
        "training": training,
    }
    alone = {"root": str(out), "eval_split": "train"}
    mixed = {**alone, "sources": [{"root": str(out)}, {"root": str(out), "weight": 0.5, "min_labelled": 0.1}]}
    for name, section in {"alone": alone, "mixed": mixed}.items():
        path = tmp_path / f"{name}.yaml"
        recipe["training"]["output_dir"] = str(tmp_path / name)
        path.write_text(yaml.safe_dump({**recipe, "data": section}))
        trained = train([str(path)])
        config = json.loads((trained / "config.json").read_text())
        assert list(config["id2label"].values()) == NAMES
