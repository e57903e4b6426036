"""Search of weights: what is stored against full scores, counts and search against brute force, and the report."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_ensemble import save_members, write_labelled
from tiny_models import NAMES, moving_frames

from vss_hf import EnsembleConfig, VideoSegmenter
from vss_hf.cli import main as command_line
from vss_hf.ensembles import counts as ensemble_counts
from vss_hf.ensembles.counts import SearchedPixels, WeightedCounts
from vss_hf.ensembles.ensemble import create_ensemble
from vss_hf.ensembles.report import flat_weights, report_of, warnings_of
from vss_hf.ensembles.scores import Sampling, sampled_scores
from vss_hf.ensembles.search import search_ensemble, with_weights
from vss_hf.ensembles.weights import SearchSettings, coordinate_search, grid, search
from vss_hf.inference.score_maps import DenseScores
from vss_hf.metrics import ConfusionMatrix


HERE = Path(__file__).parent


# --- counts against brute force


def random_members(rng, labels, members, num_labels, k):
    """Classes and scores of each member for pixels; from few values, so that there are many ties."""
    classes, scores = [], []
    for _ in range(members):
        dense = rng.choice([0, 0, 1, 20, 300, 30_000], (len(labels), num_labels)).astype(np.uint16)
        right = rng.random(len(labels)) < 0.6
        dense[right, labels[right]] = rng.choice([10_000, 30_000, 50_000], right.sum())
        dense[:, 0] += dense.max(axis=1) == 0
        order = np.argsort(-dense.astype(int), axis=1, kind="stable")[:, :k]
        if rng.random() < 0.5:
            order = np.argsort(-dense[:, ::-1].astype(int), axis=1, kind="stable")[:, :k]
            order = num_labels - 1 - order  # of equal scores the other one first, as topk may
        classes.append(order.astype(np.uint8))
        scores.append(np.take_along_axis(dense, order, axis=1))
    return classes, scores


def brute_force(labels, classes, scores, weights, num_labels):
    """The confusion matrix by whole numbers."""
    sums = np.zeros((len(labels), num_labels), np.int64)
    for of_member, values, weight in zip(classes, scores, weights, strict=True):
        dense = np.zeros_like(sums)
        np.put_along_axis(dense, of_member.astype(np.int64), values.astype(np.int64), axis=1)
        sums += dense * round(weight / sum(weights) * ensemble_counts.PARTS)
    matrix = ConfusionMatrix(num_labels)
    matrix.update(sums.argmax(axis=1).astype(np.uint8)[None], labels[None])
    return matrix


@pytest.mark.parametrize("members, k", [(1, 3), (2, 1), (2, 4), (3, 3), (6, 5)])
def test_counts_are_those_of_all_pixels(members, k, monkeypatch):
    monkeypatch.setattr(ensemble_counts, "DENSE_BYTES", 3000)
    monkeypatch.setattr(ensemble_counts, "PIXELS_AT_ONCE", 100)
    rng, num_labels = np.random.default_rng(members * 10 + k), 9
    videos = []
    counts = WeightedCounts(num_labels, 3, members)
    for video in range(3):
        labels = rng.integers(0, num_labels - video, 400).astype(np.uint8)
        videos.append((labels, *random_members(rng, labels, members, num_labels, k)))
        counts.add(video, *videos[-1])
    counts.join()
    assert members == 1 or 0 < counts.open_pixels < 1200
    tried = [*np.eye(members), np.ones(members), *rng.integers(0, 4, (6, members)), *rng.random((6, members))]
    for weights in tried:
        if not np.any(weights):
            continue
        hits, predicted = counts.counts(weights)
        for video, (labels, classes, scores) in enumerate(videos):
            wanted = brute_force(labels, classes, scores, weights, num_labels).class_pixels()
            for mine, its in zip((hits, counts.in_truth, predicted), wanted, strict=True):
                np.testing.assert_array_equal(mine[video], its)
        matrix = ConfusionMatrix(num_labels)
        for one in videos:
            matrix.merge(brute_force(*one, weights, num_labels))
        assert SearchedPixels(counts, np.arange(3)).mean_iou(weights) == matrix.compute()["mean_iou"]


def counts_of(seed, members=3, videos=6, num_labels=7, pixels=300):
    rng = np.random.default_rng(seed)
    counts, kept = WeightedCounts(num_labels, videos, members), []
    for video in range(videos):
        labels = rng.integers(0, num_labels, pixels).astype(np.uint8)
        kept.append((labels, *random_members(rng, labels, members, num_labels, num_labels)))
        counts.add(video, *kept[-1])
    return counts, kept


def test_grid_search_is_brute_force():
    counts, kept = counts_of(0)
    searched = np.array([0, 2, 3, 5])
    best = {}
    for whole in product(range(11), repeat=3):
        if sum(whole) == 10:
            matrix = ConfusionMatrix(7)
            for video in searched:
                matrix.merge(brute_force(*kept[video], whole, 7))
            best[whole] = matrix.compute()["mean_iou"]
    assert sorted(tuple(np.rint(w * 10).astype(int)) for w in grid(3, 10)) == sorted(best)
    found = search(counts, np.eye(3), searched, SearchSettings(step=0.1, method="grid"))
    assert best[tuple(np.rint(found * 10).astype(int))] == max(best.values()) > best[(10, 0, 0)]
    highest = [np.array(w) / 10 for w, value in best.items() if value == max(best.values())]
    assert np.square(found - 1 / 3).sum() == pytest.approx(min(np.square(w - 1 / 3).sum() for w in highest))


def test_coordinate_search_climbs_a_hill():
    """On a concave score it ends at the best weights; it never ends below equal ones."""
    top = np.array([0.1, 0.6, 0.3])
    found, value = coordinate_search(3, 20, lambda weights: -float(np.abs(weights - top).sum() ** 2))
    np.testing.assert_allclose(found, top, atol=0.02)
    assert value <= 0
    counts, _ = counts_of(1, members=5)
    pixels = SearchedPixels(counts, np.arange(6))
    found = search(counts, np.eye(5), np.arange(6), SearchSettings(step=0.1, method="coordinate"))
    assert pixels.mean_iou(found) >= pixels.mean_iou(np.ones(5))


def test_groups_are_searched_as_groups():
    counts, _ = counts_of(2, members=4)
    members = [{"name": f"m{i}", "group": group} for i, group in enumerate("SWSW")]
    config = EnsembleConfig(members=members, groups={"S": 1, "W": 1})
    flat = flat_weights(config)
    np.testing.assert_array_equal(flat, [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]])
    report = report_of(config, counts, SearchSettings(step=0.1))
    s, w = report["weights"]
    assert report["searched"] == ["S", "W"] and s + w == pytest.approx(1)
    assert report["results"][-1]["weights"] == pytest.approx([s / 2, w / 2, s / 2, w / 2])
    kept, groups = with_weights(members, config.groups, [0.0, 1.0])
    assert [member["name"] for member in kept] == ["m1", "m3"] and groups == {"W": 1.0}


# --- what is stored


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_members(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def root(models, tmp_path_factory):
    """Four videos of odd sizes, labelled by a mixture of two models, with noise and void."""
    parts = [VideoSegmenter.from_pretrained(models / name, "cpu") for name in ("image", "video")]
    rng, labels = np.random.default_rng(0), {}
    for seed, (name, length, size) in enumerate(
        (("a", 5, (45, 71)), ("b", 3, (48, 64)), ("c", 4, (33, 50)), ("d", 1, (45, 71)))
    ):
        maps = []
        for frame in moving_frames(length, *size, seed=seed):
            mixture = sum(part.score_maps([frame])[0].dense() for part in parts).argmax(0).numpy().astype(np.uint8)
            wrong = rng.random(size) < 0.2
            mixture[wrong] = rng.integers(0, 5, wrong.sum())
            mixture[rng.random(size) < 0.1] = 255
            maps.append(mixture)
        for part in parts:
            part.reset()
        labels[name] = maps
    return write_labelled(tmp_path_factory.mktemp("data") / "root", labels)


def test_stored_scores_are_near_the_full_ones():
    """A score is off by at most 1/131070; labels of a sum differ only where its margin is less than what is lost."""
    rng = np.random.default_rng(0)
    num_labels, size, sampling = 30, (37, 53), Sampling(top_k=6, stride=4)
    labels = rng.integers(0, num_labels, size).astype(np.uint8)
    labels[rng.random(size) < 0.2] = 255
    members = [torch.from_numpy(rng.normal(0, 2.5, (num_labels, *size))).float().softmax(0) for _ in range(3)]
    weights = np.array([0.5, 0.3, 0.2])
    rows, columns = np.arange(2, 37, 4), np.arange(2, 53, 4)
    wanted = labels[np.ix_(rows, columns)].ravel()
    full, stored, lost = 0.0, 0.0, 0.0
    for weight, scores in zip(weights, members, strict=True):
        truth, classes, values = sampled_scores(DenseScores(scores), labels, sampling)
        np.testing.assert_array_equal(truth, wanted[wanted != 255])
        exact = scores[:, rows][:, :, columns].flatten(1).t().double().numpy()[wanted != 255]
        dense = np.zeros_like(exact)
        np.put_along_axis(dense, classes.astype(np.int64), values / 65535, axis=1)
        top = np.sort(exact, axis=1)[:, -6:]
        np.testing.assert_allclose(np.sort(dense, axis=1)[:, -6:], top, atol=1 / 131070 + 1e-6)
        full, stored = full + weight * exact, stored + weight * dense
        lost = lost + weight * np.maximum(1 / 131070, top[:, 0])
    margin = -np.diff(np.sort(full, axis=1)[:, :-3:-1], axis=1)[:, 0]
    same = full.argmax(1) == stored.argmax(1)
    assert same[margin > 2 * lost].all() and same.mean() > 0.97
    assert (margin > 2 * lost).mean() > 0.3


def test_search(models, root, tmp_path, capsys):
    """The command: its numbers are those of full scores up to what storing loses, the folder has the weights."""
    out = tmp_path / "e"
    words = ["ensemble", "search", out, "--data", root, "--stride", 1, "--every", 1, "--top-k", 5, "--step", 0.1]
    words += ["--device", "cpu", "--num-workers", 0, "--json", tmp_path / "report.json"]
    words += [word for name in ("image", "video", "masks") for word in ("--member", models / name)]
    assert run_command(*words) == 0
    told = capsys.readouterr()
    assert "at most 0.6 MB for each member before packing; 12 of 12 files are still to be made" in told.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == json.loads((out / "search.json").read_text())
    assert report["videos"] == {"searched": 2, "held_out": 2} and report["method"] == "grid"
    rows = {row["name"]: row for row in report["results"]}
    assert len(rows) == 5 and rows["searched"]["searched"] >= max(row["searched"] for row in rows.values())
    whole = evaluated(models / "image", root, tmp_path)
    folds = run_folds(words)
    assert folds["results"][0]["searched"] == folds["results"][0]["held_out"] == pytest.approx(whole, abs=2e-3)
    assert evaluated(out, root, tmp_path) == pytest.approx(folds["results"][-1]["searched"], abs=2e-3)
    config = EnsembleConfig.from_pretrained(out)
    assert config.weights == pytest.approx([weight for weight in folds["weights"] if weight])
    assert "0 of 12 files are still to be made" in capsys.readouterr().err  # that was from what is stored
    gain = report["gains"]["equal"]
    assert gain["interval"][0] <= gain["held_out"] <= gain["interval"][1]


def run_folds(words):
    words = [*words, "--folds", 2]
    assert run_command(*words) == 0
    report = json.loads(Path(words[words.index("--json") + 1]).read_text())
    assert report["videos"] == {"searched": 4, "held_out": 4} and len(report["fold_weights"]) == 2
    return report


def run_command(*words):
    with pytest.raises(SystemExit) as ended:
        command_line([str(word) for word in words])
    return ended.value.code or 0


def evaluated(model, root, tmp_path):
    assert run_command("evaluate", model, "--data", root, "--device", "cpu", "--json", tmp_path / "r.json") == 0
    return json.loads((tmp_path / "r.json").read_text())["mean_iou"]


def test_a_video_model_sees_the_frames_between(models, root, tmp_path):
    """With every=2, the stored scores are those of frames 0, 2, 4 of the video; an image model sees no others."""
    members = [{"name": str(models / name)} for name in ("video", "image")]
    sampling, frames = Sampling(top_k=5, stride=1, every=2), []

    def count(items, total, name):
        frames.append(total)
        return items

    search_ensemble(members, tmp_path / "e", root, sampling=sampling, device="cpu", progress=count)
    assert frames == [13, 8]
    folder = next((tmp_path / "e.scores").glob("video-*"))
    stored = np.load(folder / "00000.npz")
    segmenter, wanted = VideoSegmenter.from_pretrained(models / "video", "cpu"), []
    for number, frame in enumerate(moving_frames(5, 45, 71, seed=0)):
        (scores,) = segmenter.score_maps([frame])
        if number % 2 == 0:
            wanted.append(scores.dense().flatten(1).t().numpy())
    whole = np.concatenate(wanted)
    values = [np.array(Image.open(root / f"data/a/mask/{n:08d}.png")).ravel() for n in (0, 2, 4)]
    whole = whole[np.concatenate(values) > 0]
    np.testing.assert_array_equal(stored["labels"], np.concatenate(values)[np.concatenate(values) > 0] - 1)
    np.testing.assert_allclose(
        stored["scores"].T / 65535, np.take_along_axis(whole, stored["classes"].T.astype(int), axis=1), atol=1e-5
    )


def test_other_members_or_settings_are_stored_anew(models, root, tmp_path):
    def files(**changes):
        member = {"name": str(models / "image"), **changes.pop("member", {})}
        arguments = {"sampling": Sampling(stride=8), "device": "cpu", "scores": tmp_path / "scores", **changes}
        search_ensemble([member], tmp_path / "e", root, **arguments)
        return len(list((tmp_path / "scores").iterdir()))

    assert [files(), files(), files(member={"tta": "flip"}), files(sampling=Sampling(stride=9))] == [1, 1, 2, 3]
    (models / "image" / "model.safetensors").touch()
    assert files() == 4
    damaged = max((tmp_path / "scores").glob("*/00001.npz"), key=lambda path: path.stat().st_mtime)
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"00001\.npz is damaged"):
        files()


def test_a_search_that_is_broken_off_goes_on(models, root, tmp_path):
    """Whole videos are there, and only the others are run again."""
    frames, members = [], [{"name": str(models / "image")}]
    settings = {"sampling": Sampling(stride=2, every=1), "device": "cpu", "batch_size": 1}

    def breaking(items, total, name):
        for number, item in enumerate(items):
            if number == 10:  # in the third video, of 5 + 3 + 4 + 1 frames
                raise KeyboardInterrupt
            yield item

    def counting(items, total, name):
        frames.append(total)
        return items

    search_ensemble(members, tmp_path / "straight", root, progress=counting, **settings)
    with pytest.raises(KeyboardInterrupt):
        search_ensemble(members, tmp_path / "broken", root, progress=breaking, **settings)
    assert sorted(path.name for path in (tmp_path / "broken.scores").rglob("*.npz*")) == ["00000.npz", "00001.npz"]
    assert not (tmp_path / "broken").exists()
    search_ensemble(members, tmp_path / "broken", root, progress=counting, **settings)
    assert frames == [13, 5]
    straight, broken = (
        {path.name: path.read_bytes() for path in (tmp_path / f"{name}.scores").rglob("*.*")}
        for name in ("straight", "broken")
    )
    assert straight == broken


@pytest.mark.slow
def test_a_killed_search_goes_on(models, root, tmp_path):
    arguments = [HERE / "killed_ensemble_search.py", root, models, tmp_path, 5]
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert set(found["codes"]) == {0} and found["kills"] >= 3 and found["different"] == []


# --- the report


def test_warnings():
    """A member that is right on the searched videos alone gets all the weight there, and that is said."""
    rng, videos = np.random.default_rng(0), 20
    settings = SearchSettings(step=0.1)
    ((searched, _),) = settings.splits(videos)

    def report(right):
        """Two members of which the second is right for a share of the pixels of each video."""
        counts = WeightedCounts(4, videos, 2)
        for video in range(videos):
            labels = rng.integers(0, 4, 400).astype(np.uint8)
            guesses = np.stack([labels, labels])
            for guess, share in zip(guesses, (0.7, right(video)), strict=True):
                wrong = rng.random(400) >= share
                guess[wrong] = (guess[wrong] + 1 + video % 3) % 4
            others = (guesses + 1) % 4
            classes = [np.stack([g, o], axis=1) for g, o in zip(guesses, others, strict=True)]
            scores = [np.full((400, 2), (first, 255 - first), np.uint16) for first in (200, 180)]
            counts.add(video, labels, classes, scores)
        config = EnsembleConfig(members=[{"name": "a"}, {"name": "b"}])
        return report_of(config, counts, settings)

    fitted = report(lambda video: 0.9 if video in searched else 0.55)
    assert fitted["gains"]["equal"]["searched"] > 0.1 > 0 > fitted["gains"]["equal"]["held_out"]
    assert any("over-fitting" in line for line in fitted["warnings"])
    assert fitted["gains"]["equal"]["interval"][1] < 0 and "so they are worse" in fitted["warnings"][0]
    equal = report(lambda video: 0.7)
    assert equal["gains"]["equal"]["interval"][1] > 0 and "may be chance" in equal["warnings"][0]
    better = report(lambda video: 0.95)
    gained = better["gains"]["equal"]
    assert better["weights"][1] > 0.5 and better["gains"]["equal"]["interval"][0] > 0
    assert not any("equal weights" in line for line in better["warnings"])
    (line, _) = warnings_of(dict.fromkeys(("equal", "best_member"), gained), 1)
    assert "may be chance" in line  # draws of one video are all alike, so that the interval says nothing


def test_splits():
    for settings in (SearchSettings(), SearchSettings(folds=3), SearchSettings(held_out=0.2, seed=4)):
        splits = settings.splits(11)
        for searched, held_out in splits:
            assert sorted([*searched, *held_out]) == list(range(11))
        if settings.folds:
            assert sorted(np.concatenate([held_out for _, held_out in splits])) == list(range(11))
    assert len(SearchSettings(held_out=0.2).splits(11)[0][1]) == 2
    assert not np.array_equal(SearchSettings(seed=0).splits(11)[0][1], SearchSettings(seed=1).splits(11)[0][1])


@pytest.mark.parametrize(
    "words, message",
    [
        (("--step", "0.3"), "expected a part of 1"),
        (("--method", "gird"), "expected grid or coordinate"),
        (("--held-out", "1"), "a share between 0 and 1"),
        (("--folds", "1"), "at least 2"),
        (("--folds", "9"), "4 videos: too few"),
        (("--top-k", "0"), "expected a whole number from 1"),
        (("--split", "nowhere"), "nowhere"),
        (("--source", "camvdi"), "camvid"),
    ],
)
def test_what_is_refused(words, message, models, root, tmp_path, capsys):
    assert run_command("ensemble", "search", tmp_path / "e", "--data", root, "--member", models / "image", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists() and not (tmp_path / "e.scores").exists()


def test_a_model_is_not_overwritten(models, root, tmp_path, capsys):
    assert run_command("ensemble", "search", models / "image", "--data", root, "--member", models / "image") == 2
    assert "holds no ensemble" in capsys.readouterr().err
    create_ensemble(tmp_path / "e", [{"name": str(models / "image")}])
    assert NAMES == list(EnsembleConfig.from_pretrained(tmp_path / "e").id2label.values())
