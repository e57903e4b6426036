"""Every number of an evaluation against loops over pixels that share no code with it."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vss_hf.data.labels import ClassList
from vss_hf.metrics.confusion import PROTOCOLS
from vss_hf.metrics.temporal_consistency import TemporalConsistency
from vss_hf.metrics.video_consistency import PROTOCOLS as VC_PROTOCOLS
from vss_hf.scoring import evaluate_model, score_predictions
from vss_hf.scoring.class_scores import show_results


NAMES = {"road": 1, "sky": 2, "car": 4, "tree": 5, "sea": 7}  # values on disk have gaps
VIDEOS = {"long": 21, "b": 18, "short": 5}
LABELS = {value: label for label, value in enumerate(NAMES.values())}


def video(name, length, shape=(9, 12)):
    """Values on disk that stay here and move there, and labels predicted for them, of which some are wrong."""
    rng = np.random.default_rng([*name.encode()])
    values = np.repeat(rng.choice([0, 1, 2, 4, 5, 77, 255], (1, *shape)), length, axis=0)
    for t in range(length):
        values[t:, rng.random(shape) < 0.03] = rng.choice([1, 2, 4])
    right = np.vectorize(lambda value: LABELS.get(value, 1))(values)
    predictions = np.where(rng.random(values.shape) < 0.1, rng.integers(0, 5, values.shape), right)
    values[:, 0, :3] = np.where(np.arange(length) % 2, 0, 255)[:, None]  # two kinds of void
    return values.astype(np.uint8), predictions.astype(np.uint8)


def write(root, name, maps):
    folder = root / name
    folder.mkdir(parents=True)
    for number, values in enumerate(maps):
        Image.fromarray(values).save(folder / f"{number:04d}.png")


class Painted:
    """Stands for a model: the frames' red is what it predicts."""

    names = list(NAMES)
    model = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(name_or_path="labels"))

    def reset(self):
        pass

    def settings(self):
        return {}

    def label_batch(self, frames):
        return [frame[..., 0] for frame in frames]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos, and the folders of truth and predictions."""
    folder = tmp_path_factory.mktemp("evaluation")
    videos = {name: video(name, length) for name, length in VIDEOS.items()}
    for name, (values, predictions) in videos.items():
        write(folder / "root/data" / name, "origin", np.stack([predictions, values, predictions], axis=-1))
        write(folder / "root/data" / name, "mask", values)
        write(folder / "labels", name, predictions)
    (folder / "root/val.txt").write_text("".join(f"{name}\n" for name in videos))
    (folder / "root/label_num_dic_final.json").write_text(json.dumps(NAMES))
    return folder, videos


# --- the same by loops


def naive_ious(videos, protocol):
    """IoU of each class that is scored: of all pixels of some videos."""
    pairs = []
    for values, predictions in videos:
        truths = [LABELS.get(value) for value in values.ravel().tolist()]
        pairs += [pair for pair in zip(truths, predictions.ravel().tolist(), strict=True) if pair[0] is not None]
    ious = {}
    for label in range(5):
        either = [pair for pair in pairs if label in pair]
        if either if protocol == "evaluate" else any(truth == label for truth, _ in pairs):
            ious[label] = sum(pair == (label, label) for pair in either) / len(either)
    weights = {label: sum(truth == label for truth, _ in pairs) / len(pairs) for label in range(5)}
    weighted = sum(weights[label] * iou for label, iou in ious.items())
    return np.mean(list(ious.values())), weighted, sum(a == b for a, b in pairs) / len(pairs), len(ious)


def naive_consistency(values, predictions, n, protocol):
    """The value of each window of a video."""
    length, windows = len(values), []
    for start in range(max(0, length - n + (protocol == "paper"))):
        constant = steady = 0
        for y, x in np.ndindex(values.shape[1:]):
            truth, guess = (maps[start : start + n, y, x].tolist() for maps in (values, predictions))
            if protocol == "paper":
                truth = [LABELS.get(value) for value in truth]
            if len(set(truth)) > 1 or truth[0] is None:
                continue
            constant += 1
            steady += guess == truth if protocol == "paper" else len(set(guess)) == 1
        windows += [steady / constant] if constant else []
    return windows


def naive_flicker(values, predictions):
    """Of each frame: pixels with constant label, and those of them whose prediction changed."""
    counts = [(0, 0)]
    for t in range(1, len(values)):
        stays = [p for p in np.ndindex(values.shape[1:]) if LABELS.get(int(values[t][p])) is not None]
        stays = [p for p in stays if values[t][p] == values[t - 1][p]]
        counts.append((len(stays), sum(predictions[t][p] != predictions[t - 1][p] for p in stays)))
    return counts


def rate(counts):
    pixels, changed = np.sum(counts, axis=0)
    return changed / pixels if pixels else None


# --- tests


def test_scores_of_each_video_and_of_all(data):
    folder, videos = data
    for protocol in PROTOCOLS:
        results = score_predictions(folder / "labels", folder / "root", protocol=protocol)
        assert [row["video"] for row in results["per_video"]] == list(VIDEOS)
        for row in results["per_video"]:
            mean, weighted, accuracy, _ = naive_ious([videos[row["video"]]], protocol)
            assert (row["mean_iou"], row["frequency_weighted_iou"]) == pytest.approx((mean, weighted), abs=1e-12)
            assert row["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)
            found = {LABELS.get(value) for value in np.unique(videos[row["video"]][0]).tolist()}
            assert (row["frames"], row["classes"]) == (VIDEOS[row["video"]], len(found - {None}))
        for key in ("mean_iou", "frequency_weighted_iou"):
            assert results[f"{key}_over_videos"] == pytest.approx(np.mean([v[key] for v in results["per_video"]]))
        mean, weighted, accuracy, classes = naive_ious(videos.values(), protocol)
        assert (results["mean_iou"], results["frequency_weighted_iou"]) == pytest.approx((mean, weighted), abs=1e-12)
        assert (results["pixel_accuracy"], results["classes_scored"]) == (pytest.approx(accuracy), classes)
        both = results["mean_iou_protocols"]
        assert both[protocol] == {"mean_iou": results["mean_iou"], "classes_scored": classes}
        assert list(both) == list(PROTOCOLS) and both["vspw"]["classes_scored"] == 4
        assert both["evaluate"]["classes_scored"] == 5  # nothing is sea, but some say so
        assert results["mean_iou_interval"]["low"] <= results["mean_iou"] <= results["mean_iou_interval"]["high"]


def test_video_consistency_by_all_protocols_in_one_pass(data):
    folder, videos = data
    found = score_predictions(folder / "labels", folder / "root")
    for protocol in VC_PROTOCOLS:
        windows = {n: {name: naive_consistency(*videos[name], n, protocol) for name in VIDEOS} for n in (8, 16)}
        if protocol == "dvis-legacy":
            windows[16] = {name: windows[8][name] + windows[16][name] for name in VIDEOS}
        for n in (8, 16):
            scores, every = found["consistency"][protocol], sum(windows[n].values(), [])
            assert scores[f"vc{n}"] == pytest.approx(np.mean(every), abs=1e-12) and 0 < scores[f"vc{n}"] < 1
            assert scores["clips"][f"vc{n}"] == len(every)
            for row in found["per_video"]:
                mean = np.mean(windows[n][row["video"]]) if windows[n][row["video"]] else None
                assert row["consistency"][protocol][f"vc{n}"] == (mean and pytest.approx(mean, abs=1e-12))
        alone = score_predictions(folder / "labels", folder / "root", vc_protocol=protocol)
        lead = alone["consistency"][protocol]
        assert (alone["vc8"], alone["vc16"], alone["vc_clips"]) == (lead["vc8"], lead["vc16"], lead["clips"])
        assert alone["consistency"] == found["consistency"]
        assert [row["vc8"] for row in alone["per_video"]] == [
            row["consistency"][protocol]["vc8"] for row in found["per_video"]
        ]
    assert len({scores["vc16"] for scores in found["consistency"].values()}) == len(VC_PROTOCOLS)


def test_flicker(data):
    folder, videos = data
    results = score_predictions(folder / "labels", folder / "root", with_timeline=True)
    counts = {name: naive_flicker(*videos[name]) for name in VIDEOS}
    assert results["flicker_rate"] == pytest.approx(rate(sum(counts.values(), [])))
    assert [row["flicker_rate"] for row in results["per_video"]] == [pytest.approx(rate(of)) for of in counts.values()]
    for name, frames in results["timeline"].items():
        assert frames[0] is None and frames == [None] + [pytest.approx(rate([of])) for of in counts[name][1:]]
    assert list(results["timeline"]) == list(VIDEOS) and 0 < results["flicker_rate"] < 1
    without = score_predictions(folder / "labels", folder / "root")
    assert without == {key: value for key, value in results.items() if key != "timeline"}


def test_frames_that_are_missing(data, tmp_path):
    """Skipped ones split their video; wrong ones are a label that nothing has, another one in every frame."""
    folder, videos = data
    gone = {"long": (0, 9, 10), "b": range(18)}
    for name, (_, predictions) in videos.items():
        write(tmp_path, name, predictions)
        for number in gone.get(name, ()):
            (tmp_path / name / f"{number:04d}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"21 of 44 predictions are missing, .*long/0000.png; .*--missing skip"
    ):
        score_predictions(tmp_path, folder / "root")

    skipped = score_predictions(tmp_path, folder / "root", missing="skip", with_timeline=True)
    kept = {name: [t for t in range(VIDEOS[name]) if t not in gone.get(name, ())] for name in ("long", "short")}
    parts = [videos[name][0][of] for name, of in kept.items()], [videos[name][1][of] for name, of in kept.items()]
    mean, *_ = naive_ious(zip(*parts, strict=True), "vspw")
    assert skipped["mean_iou"] == pytest.approx(mean, abs=1e-12)
    assert (skipped["videos"], skipped["frames"]) == (2, 23)
    stretches = [[maps[part] for maps in videos["long"]] for part in (slice(1, 9), slice(11, 21))]
    windows = sum((naive_consistency(*stretch, 8, "paper") for stretch in stretches), [])
    assert skipped["consistency"]["paper"]["vc8"] == pytest.approx(np.mean(windows), abs=1e-12)
    assert skipped["timeline"]["long"][:2] == [None, None] and skipped["timeline"]["long"][9:12] == [None] * 3
    assert skipped["timeline"]["long"][12] is not None and list(skipped["timeline"]) == ["long", "short"]
    assert [row["frames"] for row in skipped["per_video"]] == [18, 5]
    coverage = {"missing": "skip", "videos_wanted": 3, "videos_missing": 1, "videos_extra": 0, "frames_wanted": 44}
    assert coverage.items() <= skipped["coverage"].items() and skipped["coverage"]["frames_missing"] == 21
    assert skipped["coverage"]["first_missing"][:4] == ["long/0000", "long/0009", "long/0010", "b/0000"]
    assert "21 of 44 frames (1 whole videos) have no prediction and are NOT scored" in skipped["warnings"][0]

    wrong = score_predictions(tmp_path, folder / "root", missing="wrong")
    filled = {name: (values, predictions.astype(int)) for name, (values, predictions) in videos.items()}
    for name, numbers in gone.items():
        for number in numbers:
            filled[name][1][number] = 1000 + number
    assert wrong["mean_iou"] == pytest.approx(naive_ious(filled.values(), "vspw")[0], abs=1e-12)
    assert wrong["mean_iou"] < skipped["mean_iou"]
    for protocol in VC_PROTOCOLS[:2]:
        windows = sum((naive_consistency(*filled[name], 8, protocol) for name in VIDEOS), [])
        assert wrong["consistency"][protocol]["vc8"] == pytest.approx(np.mean(windows), abs=1e-12)
    assert wrong["per_video"][1]["flicker_rate"] == 1 and wrong["per_video"][1]["vc8"] == 0
    assert wrong["frames"] == 44 and "count as wrong" in wrong["warnings"][0]
    with pytest.raises(ValueError, match="missing 'skipp'; did you mean 'skip'"):
        score_predictions(tmp_path, folder / "root", missing="skipp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="44 of 44 predictions are missing"):
        score_predictions(tmp_path / "empty", folder / "root", missing="skip")


def test_values_on_disk(data, tmp_path):
    folder, videos = data
    disk = np.array([*NAMES.values()], np.uint8)
    for name, (_, predictions) in videos.items():
        write(tmp_path, name, disk[predictions])
    expected = score_predictions(folder / "labels", folder / "root")
    results = score_predictions(tmp_path, folder / "root", values="disk")
    same = ("mean_iou", "consistency", "per_video", "flicker_rate", "per_class_iou", "warnings")
    assert {key: results[key] for key in same} == {key: expected[key] for key in same}
    assert (results["predictions"]["values"], expected["predictions"]["values"]) == ("disk", "labels")
    with pytest.raises(ValueError, match=r"0000.png: .* value 5 .* are values as in the masks\? --values disk"):
        score_predictions(tmp_path, folder / "root")
    Image.fromarray(np.full((9, 12), 6, np.uint8)).save(tmp_path / "b/0003.png")
    with pytest.raises(ValueError, match=r"b/0003.png: holds the value 6; on disk classes are 1..7, and 0 or 255"):
        score_predictions(tmp_path, folder / "root", values="disk")
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(tmp_path / "b/0003.png")  # none of the classes
    lower = score_predictions(tmp_path, folder / "root", values="disk")
    assert lower["pixel_accuracy"] < results["pixel_accuracy"] and lower["classes_scored"] == 4
    with pytest.raises(ValueError, match="values 'disc'; did you mean 'disk'"):
        score_predictions(tmp_path, folder / "root", values="disc")


def test_files_read_as_what_they_do_not_hold_are_noticed(data, tmp_path):
    """Where all values are labels too, the score would only be bad."""
    folder, videos = data
    few, two = {"road": 1, "sky": 2, "car": 3}, tmp_path / "two"
    lookup = np.array([255, 1, 2, 255, 1, 2, *[255] * 250], np.uint8)
    truths = {name: lookup[values] for name, (values, _) in videos.items()}
    for name, values in truths.items():
        write(two / "data" / name, "origin", np.zeros((*values.shape, 3), np.uint8))
        write(two / "data" / name, "mask", values)
        write(tmp_path / "disk", name, np.where(values == 255, 1, values))
        write(tmp_path / "labels", name, np.where(values == 255, 1, values - 1))
    (two / "val.txt").write_text("".join(f"{name}\n" for name in videos))
    (two / "label_num_dic_final.json").write_text(json.dumps(few))
    assert ClassList.from_root(two).num_labels == 3
    for held, said in (("disk", "labels"), ("labels", "disk")):
        assert score_predictions(tmp_path / held, two, values=held)["warnings"] == []
        (warning,) = score_predictions(tmp_path / held, two, values=said)["warnings"]
        assert warning.startswith(f"100.0% of the pixels would be right with --values {held} and only ")


# --- temporal consistency


def to_the_left(first, second):
    """A flow; how far depends on both frames."""
    assert first.shape == second.shape and first.dtype == np.uint8
    flow = torch.zeros(2, *first.shape[:2])
    flow[0] = -1.0 - (int(first.sum()) > int(second.sum()))
    return flow


def tc_of(parts, protocol):
    """Each part by itself: predictions and values of successive frames."""
    metric = TemporalConsistency(5, to_the_left, protocol)
    for values, predictions in parts:
        for value, prediction in zip(values, predictions, strict=True):
            metric.add_frame(prediction, np.stack([prediction, value, prediction], axis=-1))
        metric.end_video()
    return metric.compute()


@pytest.mark.parametrize("protocol", ["vspw-official", "paper"])
def test_temporal_consistency(data, tmp_path, protocol):
    folder, videos = data
    settings = {"flow": to_the_left, "tc_protocol": protocol}
    results = score_predictions(folder / "labels", folder / "root", **settings)
    expected = tc_of(videos.values(), protocol)
    assert results["tc"] == expected["tc"] and 0 < results["tc"] < 1
    assert [row["tc"] for row in results["per_video"]] == expected["per_video"]
    assert (results["tc_protocol"], results["tc_videos"], results["tc_flow"]) == (protocol, 3, {"name": "function"})
    for name, (_, predictions) in videos.items():
        write(tmp_path, name, predictions)
    (tmp_path / "b/0009.png").unlink()
    gap = score_predictions(tmp_path, folder / "root", missing="skip", **settings)
    parts = tc_of([[maps[part] for maps in videos["b"]] for part in (slice(9), slice(10, 18))], "vspw-official")
    if protocol == "vspw-official":
        assert gap["per_video"][1]["tc"] != results["per_video"][1]["tc"]
        assert gap["per_video"][1]["tc"] == parts["tc"]
    assert gap["tc_videos"] == 3 and gap["per_video"][0]["tc"] == results["per_video"][0]["tc"]
    without = score_predictions(folder / "labels", folder / "root")
    assert without["tc"] is None and "--flow_weights" in without["tc_skipped"] and "tc_flow" not in without
    with pytest.raises(ValueError, match="protocol is 'official'"):
        score_predictions(folder / "labels", folder / "root", flow=to_the_left, tc_protocol="official")


def test_a_model_and_its_label_maps_have_the_same_scores(data):
    folder, _ = data
    settings = {"with_timeline": True, "flow": to_the_left}
    files = score_predictions(folder / "labels", folder / "root", **settings)
    model = evaluate_model(Painted(), folder / "root", batch_size=5, with_confusion=True, **settings)
    assert files.keys() - model.keys() == {"coverage", "predictions"} and model.keys() - files.keys() == {"confusion"}
    same = model.keys() - {"confusion", "frames_per_second"}
    assert {key: model[key] for key in same} == {key: files[key] for key in same}
    assert np.trace(model["confusion"]) / np.sum(list(model["per_class_pixels"].values())) == model["pixel_accuracy"]


def test_tables_show_names_as_they_are(data):
    """A name in brackets would be a style to the library that draws the tables."""
    folder, _ = data
    names = {"model": "[v2] of [us]", "dataset": "[our] data", "class_groups_of": "[old] data train"}
    console = Console(file=io.StringIO(), width=200)
    show_results(score_predictions(folder / "labels", folder / "root") | names, console)
    shown = console.file.getvalue()
    assert "[v2] of [us] on [our] data val: 3 videos" in shown
    assert "[our] data val: " in shown.partition("all protocols")[2] and "groups of [old] data train" in shown
