"""The HTML report: a page without anything from elsewhere, whose numbers are those of the evaluation."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from report_data import EVIL, NAMES, VIDEOS, Page, write

from vss_hf.cli import main
from vss_hf.scoring import Report, score_predictions
from vss_hf.scoring.report_page import PLOT_POINTS, plot, worst_videos


def as_text(value):
    return "" if value is None else str(value)


# --- the page


def test_all_that_the_page_needs_lies_beside_it(made, page):
    out, _ = made
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    ids = {element["id"] for element in page.elements if "id" in element}
    shown = set()
    for element in page.elements:
        for key in ("src", "href"):
            if (link := element.get(key)) is None:
                continue
            if link.startswith("#"):
                assert link[1:] in ids
            else:
                assert (out / link).is_file() and not link.startswith(("/", ".", "//"))
                shown.add(out / link)
    assert shown == {*(out / "pictures").iterdir()}  # and nothing that is not shown
    assert {path.name for path in out.iterdir()} == {"index.html", "pictures"}
    assert [path.name for path in out.parent.iterdir()] == ["report"]
    assert not page.open  # every element was closed
    assert len(ids) == sum("id" in element for element in page.elements)


def test_names_of_users_are_only_text(page):
    assert len(page.all("script")) == 2  # the data and our own code
    assert not [element for element in page.elements if any(key.startswith("on") for key in element)]
    assert all("src" not in element or element["src"].startswith("pictures/") for element in page.elements)
    assert page.data["names"] == list(NAMES)
    names = [element["text"] for element in page.all("th", within="classes", scope="row")]
    assert {name.strip() for name in names if name.strip()} == {"road", EVIL, "a & b"}
    assert list(VIDEOS)[1] in [element["text"] for element in page.all("h3", within="clip")]


def test_numbers_are_those_of_the_results(made, page):
    _, results = made
    shown = {}
    for block in page.all("div", within="headlines"):
        (value,) = [
            element["data-value"]
            for element in page.all("b", within="headlines")
            if any(of.get("data-metric") == block["data-metric"] for of in element["inside"])
        ]
        shown[block["data-metric"]] = value
    wanted = (
        "mean_iou",
        "frequency_weighted_iou",
        "mean_accuracy",
        "pixel_accuracy",
        "vc8",
        "vc16",
        "flicker_rate",
        "tc",
    )
    assert {key: shown[key] for key in wanted} == {key: as_text(results[key]) for key in wanted}
    protocols = [value for (value,) in page.rows("protocols")]
    assert protocols[:2] == [str(scores["mean_iou"]) for scores in results["mean_iou_protocols"].values()]
    assert protocols[2:4] == [str(results["mean_iou_interval"][end]) for end in ("low", "high")]
    assert [row for row in page.rows("coverage")] == [["3", "0", "0"], ["20", "0", "0"]]

    ious = {name: iou for name, iou in results["per_class_iou"].items() if iou is not None}
    rows = page.rows("classes")
    assert [row[0] for row in rows] == sorted(ious, key=ious.__getitem__) and len(rows) == 3
    for name, iou, accuracy, pixels, frames, group in rows:
        assert iou == str(ious[name]) and accuracy == str(results["per_class_accuracy"][name])
        assert pixels == str(results["per_class_pixels"][name]) and frames == str(results["per_class_frames"][name])
        assert group == results["class_groups"][name]
    keys = ("video", "frames", "classes", "mean_iou", "pixel_accuracy", "vc8", "vc16", "flicker_rate")
    assert page.rows("videos") == [[as_text(video[key]) for key in keys] for video in results["per_video"]]


def test_the_page_can_be_heard_and_used_without_a_mouse(page):
    assert page.elements[0]["lang"] == "en"
    assert all(picture["alt"] for picture in page.all("img") if "src" in picture)
    assert all(plot["aria-label"] and plot["role"] == "img" for plot in page.all("svg"))
    levels = [int(element["tag"][1]) for element in page.elements if element["tag"] in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    for control in page.all("input") + page.all("select"):
        assert any(of["tag"] == "label" for of in control["inside"])
    assert {control["type"] for control in page.all("input", within="controls")} == {"range"}
    assert all(heading["scope"] in ("row", "col") for heading in page.all("th"))


@pytest.mark.slow
def test_two_processes_make_the_report_of_one(data, tmp_path):
    folder, _ = data
    command = ["-m", "vss_hf", "score", "--predictions", folder / "labels", "--data", folder / "root", "--html"]
    subprocess.run([sys.executable, *command, tmp_path / "alone"], check=True)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29617"]
    subprocess.run([sys.executable, *launch, *command, tmp_path / "together"], check=True)
    alone, together = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "alone", tmp_path / "together")
    )
    assert alone.keys() == together.keys()
    different = [path.name for path in alone if alone[path] != together[path]]
    assert different == ["index.html"]  # which names the hardware: "2 x ..."
    pages = [Page(tmp_path / name / "index.html") for name in ("alone", "together")]
    assert pages[0].rows("videos") == pages[1].rows("videos") and pages[0].data == pages[1].data


def test_videos_are_the_worst_by_both_orders():
    def video(mean_iou, flicker_rate):
        return {"mean_iou": mean_iou, "flicker_rate": flicker_rate}

    videos = {0: video(0.5, 0.0), 4: video(0.1, 0.2), 5: video(None, 0.9), 6: video(0.3, None), 9: video(0.2, 0.3)}
    assert worst_videos(videos, 2) == {
        4: ["mean IoU: worst"],
        9: ["mean IoU: 2nd worst", "flicker: 2nd worst"],
        5: ["flicker: worst"],
    }
    assert worst_videos(videos, 0) == {}


def test_plots_have_gaps_and_a_bounded_length():
    drawn = plot([None, 0.5, None, 0.0, 1.0], 1.0)
    assert drawn == {"path": "M1 12.0h0M3 23.0h0L4 1.0", "width": 4, "highest": 1.0, "at": 4}
    rates = [None, *np.random.default_rng(0).random(5000).tolist()]
    drawn = plot(rates, 1.0)
    assert drawn["width"] < PLOT_POINTS and drawn["highest"] == max(rates[1:]) == rates[drawn["at"]]
    assert plot([None], 0.0) == {"path": "", "width": 1, "highest": None, "at": 0}


# --- folders and errors


def test_an_older_report_is_replaced_and_nothing_else(data, tmp_path):
    folder, _ = data
    out = tmp_path / "report"
    for clips in (1, 0):
        report = Report(f"{out}/", clips=clips)
        (tmp_path / "report.part/kept").mkdir(parents=True)  # by a run that was broken off
        report.write(score_predictions(folder / "labels", folder / "root", report=report))
    assert not [*(out / "pictures").iterdir()] and [path.name for path in tmp_path.iterdir()] == ["report"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="a folder of its own"):
        Report(out)
    other = tmp_path / "site"
    other.mkdir()
    Report(other)  # empty
    (other / "index.html").write_text("<p>my page")
    with pytest.raises(FileExistsError, match="a folder of its own"):
        Report(other)
    late = Report(tmp_path / "late")
    results = score_predictions(folder / "labels", folder / "root", report=late)
    (tmp_path / "late").mkdir()
    (tmp_path / "late/thesis.tex").write_text("x")  # meanwhile
    with pytest.raises(FileExistsError, match="a folder of its own"):
        late.write(results)
    assert (tmp_path / "late/thesis.tex").read_text() == "x"
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part/thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="no report broken off earlier"):
        score_predictions(folder / "labels", folder / "root", report=Report(tmp_path / "mine"))
    assert (tmp_path / "mine.part/thesis.tex").read_text() == "x"


def test_errors_come_before_the_work(data, tmp_path):
    folder, _ = data
    wrong: list[tuple[dict[str, Any], str]] = [({"clips": -1}, "clips=-1"), ({"frames": 0}, "frames=0")]
    for settings, words in [*wrong, ({"width": 3}, "width=3")]:
        with pytest.raises(ValueError, match=words):
            Report(tmp_path / "report", **settings)
    with pytest.raises(RuntimeError, match="give the report to"):
        Report(tmp_path / "report").write({})
    seen = []
    for compare, words in ((folder / "nowhere", "no such folder"), (folder / "root", "no prediction of any frame")):
        report = Report(tmp_path / "report", compare=compare)
        if compare.name == "root":
            (tmp_path / "empty").mkdir()
            report = Report(tmp_path / "report", compare=tmp_path / "empty")
        with pytest.raises(FileNotFoundError, match=words):
            score_predictions(
                folder / "labels",
                folder / "root",
                report=report,
                progress=lambda frames, total: seen.append(1) or frames,
            )
    assert not seen and not (tmp_path / "report.part").exists()


def test_another_dump_with_other_values_is_named(data, tmp_path):
    folder, videos = data
    for name, (values, _, _) in videos.items():
        write(tmp_path / "disk" / name, values)
    report = Report(tmp_path / "report", compare=tmp_path / "disk")
    results = score_predictions(folder / "labels", folder / "root", report=report)
    with pytest.raises(ValueError, match=r"disk/.*\.png: holds the value 4; labels are 0\.\.3.*--values disk"):
        report.write(results)


def command(*words):
    """The exit code of `vss-hf`."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_commands(data, tmp_path, capsys):
    folder, _ = data
    score = ["score", "--predictions", folder / "labels", "--data", folder / "root", "--compare", folder / "other"]
    settings = ["--html-clips", 1, "--html-frames", 2, "--json", tmp_path / "results.json"]
    assert command(*score, "--html", tmp_path / "report", *settings) == 0
    page = Page(tmp_path / "report/index.html")
    results = json.loads((tmp_path / "results.json").read_text())
    assert page.all("b", within="headlines")[0]["data-value"] == str(results["mean_iou"])
    assert "timeline" not in results and 1 <= len(page.all("article")) <= 2
    assert command(*score) == 2
    assert "give --html FOLDER" in capsys.readouterr().err
