"""Which frames a report shows, and that its pictures show what was scored."""

import json

import numpy as np
import pytest
import tiny_models
from PIL import Image
from report_data import SIZE, Page, write

from vss_hf.data.labels import ClassList
from vss_hf.inference import VideoSegmenter
from vss_hf.scoring import Report, evaluate_model, score_predictions
from vss_hf.scoring.ground_truth import open_ground_truth
from vss_hf.scoring.report_frames import KeptFrames
from vss_hf.scoring.report_pictures import BLUE, DARK, ORANGE, PALE, RED, VIOLET
from vss_hf.scoring.video_scores import LabelledFrame


# --- which frames


def accuracy(prediction, values):
    scored = ~np.isin(values, (0, 255))
    labels = np.select([values == 2, values == 4], [1, 2], 0)
    return (prediction == labels)[scored].mean()


def test_worst_frames_of_parts_and_the_strongest_flicker_are_shown(data, made, page):
    _, videos = data
    _, results = made
    for position, (name, (values, a, _)) in enumerate(videos.items()):
        length = len(a)
        parts = [[t for t in range(length) if t * 3 // length == part] for part in range(3)]
        chosen = {min(part, key=lambda t: accuracy(a[t], values[t])) for part in parts if part}
        rates = results["timeline"][name]
        if length > 1:
            top = max(range(1, length), key=lambda t: rates[t])
            chosen |= {top - 1, top}
        frames = [frame for frame in page.all("div") if frame.get("id", "").startswith(f"frame-{position}-")]
        assert [frame["data-key"] for frame in frames] == [f"{position}-{t}" for t in sorted(chosen)]
        for frame, t in zip(frames, sorted(chosen), strict=True):
            assert float(frame["data-accuracy"]) == pytest.approx(accuracy(a[t], values[t]), abs=1e-12)
            told = " ".join(element["text"] for element in page.all("p", within=frame["id"]))
            assert ("flickers most" in told.lower()) == (length > 1 and t == top)


# --- pictures


def classes_in(path, palette):
    """Labels of a painted map, told by its colours as a reader sees them."""
    colours = np.asarray(Image.open(path).convert("RGB")).astype(int)
    table = np.array([*palette, (0, 0, 0)])
    equal = (colours[:, :, None] == table).all(-1)
    assert (equal.sum(-1) == 1).all()
    found = equal.argmax(-1)
    return np.where(found == len(palette), 255, found)


def test_pictures_show_truth_prediction_and_where_they_differ(data, made):
    folder, videos = data
    palette = ClassList.from_root(folder / "root").palette
    kinds = set()
    for path in sorted((made[0] / "pictures").iterdir()):
        key, _, kind = path.stem.rpartition("-")
        position, t = map(int, key.split("-"))
        values, a, b = (of[t] for of in list(videos.values())[position])
        labels = np.select([values == 1, values == 2, values == 4], [0, 1, 2], 255)
        scored = labels != 255
        kinds.add(kind)
        if kind == "photo":
            assert Image.open(path).size == SIZE[::-1]
        elif kind in ("truth", "prediction", "other"):
            wanted = {"truth": labels, "prediction": a, "other": b}[kind]
            np.testing.assert_array_equal(classes_in(path, palette), wanted)
        elif kind == "errors":
            np.testing.assert_array_equal(classes_in(path, [PALE, RED]), np.where(scored, a != labels, 255))
        elif kind == "better":
            shown = classes_in(path, [PALE, BLUE, ORANGE, DARK])
            for y, x in np.ndindex(SIZE):
                right = (a[y, x] == labels[y, x], b[y, x] == labels[y, x])
                number = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[right]
                assert shown[y, x] == (number if scored[y, x] else 255)
        elif kind == "changes":
            before_values, before, _ = (of[t - 1] for of in list(videos.values())[position])
            shown = classes_in(path, [PALE, VIOLET])
            np.testing.assert_array_equal(shown, np.where(scored & (values == before_values), a != before, 255))
            name = list(videos)[position]
            counted = shown != 255
            assert (shown == 1).sum() / counted.sum() == pytest.approx(made[1]["timeline"][name][t])
    assert kinds == {"photo", "truth", "prediction", "errors", "other", "better", "changes"}


def test_the_frame_that_the_other_dump_lacks_has_no_picture_of_it(data, tmp_path):
    folder, _ = data
    report = Report(tmp_path / "report", frames=12, compare=folder / "other")
    report.write(score_predictions(folder / "labels", folder / "root", report=report))
    kinds = {path.stem.rpartition("-")[2] for path in (tmp_path / "report/pictures").glob("0-11-*")}
    assert kinds >= {"photo", "truth", "prediction", "errors"} and not kinds & {"other", "better"}
    assert (tmp_path / "report/pictures/0-10-other.png").is_file()


def test_cells_tell_the_classes_under_the_pointer(data, made, page):
    _, videos = data
    for key, grid in page.data["grids"].items():
        position, t = map(int, key.split("-"))
        values, a, b = (of[t] for of in list(videos.values())[position])
        labels = np.select([values == 1, values == 2, values == 4], [0, 1, 2], 255)
        assert (grid["rows"], grid["columns"]) == SIZE  # smaller than the grid may be
        for kind, wanted in (("truth", labels), ("prediction", a), ("other", b)):
            if kind in grid:
                runs = np.array(grid[kind]).reshape(-1, 2)
                np.testing.assert_array_equal(np.repeat(*runs.T).reshape(SIZE), wanted)
                assert (np.diff(runs[:, 0]) != 0).all()


def test_pictures_have_a_largest_width_and_number(data, tmp_path):
    folder, _ = data
    report = Report(tmp_path / "report", clips=1, frames=1, width=16)
    report.write(score_predictions(folder / "labels", folder / "root", report=report))
    pictures = [*(tmp_path / "report/pictures").iterdir()]
    assert {Image.open(path).size for path in pictures} == {(16, 12)}
    assert len({path.name.split("-")[0] for path in pictures}) <= 2  # the worst of each order
    assert len(pictures) <= 2 * 3 * 5
    none = Report(tmp_path / "none", clips=0)
    none.write(score_predictions(folder / "labels", folder / "root", report=none))
    assert not [*(tmp_path / "none/pictures").iterdir()] and not Page(tmp_path / "none/index.html").all(
        "img", within="clips"
    )


# --- other evaluations


def test_missing_frames_are_shown_as_none_or_left_out(data, tmp_path):
    folder, videos = data
    dump = tmp_path / "dump"
    for name, (_, a, _) in videos.items():
        if name != "one":
            write(dump / name, a)
    (dump / "dense/0005.png").unlink()
    for missing in ("skip", "wrong"):
        report = Report(tmp_path / missing, frames=12)
        results = score_predictions(dump, folder / "root", missing=missing, with_timeline=True, report=report)
        report.write(results)
        page = Page(tmp_path / missing / "index.html")
        assert [element["text"] for element in page.all("p", within="main") if element.get("class") == "warning"]
        shown = {frame["data-key"]: frame["data-accuracy"] for frame in page.all("div", **{"class": "frame"})}
        if missing == "wrong":
            assert shown["0-5"] == "0.0" and shown["2-0"] == "0.0"
            prediction = Image.open(tmp_path / missing / "pictures/0-5-prediction.png").convert("RGB")
            assert prediction.getextrema() == ((0, 0),) * 3
        else:
            assert "0-5" not in shown and "2-0" not in shown
            # nothing flickers over the gap
            assert "0-6" in shown and not (tmp_path / missing / "pictures/0-6-changes.png").exists()


def test_a_model_with_a_memory_is_shown_as_it_was_scored(tmp_path):
    root = tmp_path / "root"
    for name, length in (("a", 9), ("b", 6)):
        frames = tiny_models.moving_frames(length, seed=length)
        write(root / "data" / name / "origin", frames)
        write(root / "data" / name / "mask", [frame[..., 0] % 6 for frame in frames])
    (root / "val.txt").write_text("a\nb\n")
    names = {name: i for i, name in enumerate(tiny_models.NAMES, start=1)}
    (root / "label_num_dic_final.json").write_text(json.dumps(names))
    segmenter = VideoSegmenter.from_pretrained(tiny_models.save_model(tmp_path / "model", video=True), "cpu")
    report = Report(tmp_path / "report")
    results = evaluate_model(segmenter, root, report=report)
    report.write(results)
    assert results == {**evaluate_model(segmenter, root), "frames_per_second": results["frames_per_second"]}
    shown = sorted((tmp_path / "report/pictures").glob("*-prediction.png"))
    assert len(shown) >= 6
    whole = [[*segmenter.label_video(root / "data" / name / "origin")] for name in "ab"]
    for path in shown:
        position, t, _ = path.stem.split("-")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), whole[int(position)][int(t)])


def test_processes_find_what_the_others_kept(data, tmp_path):
    folder, videos = data
    truth = open_ground_truth(folder / "root", "val")
    one, two = (KeptFrames(tmp_path, truth, 3) for _ in range(2))
    for kept, position in ((one, 0), (two, 1)):
        values, a, _ = list(videos.values())[position]
        for t in range(len(a)):
            labels = truth.lookup[values[t]]
            kept.add(LabelledFrame(position, t, f"{t:04d}", None, values[t]), labels, a[t], (100, t))
        kept.end_video()
    of_other = one.read(1)
    assert of_other.flicker == 6 and of_other.rates == [t / 100 for t in range(7)]
    assert {5, 6} <= set(of_other.maps) == {*of_other.worst, 5, 6}
    for t, labels in of_other.maps.items():
        np.testing.assert_array_equal(labels, list(videos.values())[1][1][t])
    with pytest.raises(FileNotFoundError, match="one that all of them see"):
        one.read(2)
