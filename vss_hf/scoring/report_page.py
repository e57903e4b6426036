"""The page of a report: what the template `report.html.jinja` needs, made of an evaluation's results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from vss_hf.data.labels import ClassList

from .class_scores import GROUPS, group_size, headline_rows, protocol_rows, sources_of
from .report_pictures import KEYS, LAYERS, ShownFrame, hexadecimal


MARK = '<meta name="generator" content="vss-hf report">'  # by which an older report is known
PLOT_POINTS, PLOT_HEIGHT = 240, 24
TITLES = {
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
    "mean_iou_head": "mean IoU, head",
    "mean_iou_medium": "mean IoU, medium",
    "mean_iou_tail": "mean IoU, tail",
    "vc8": "VC8",
    "vc16": "VC16",
    "tc": "TC",
    "flicker_rate": "flicker rate",
}
MADE_WITH = {
    "tta": "test-time augmentation",
    "members": "ensemble of",
    "score_steps": "steps on scores",
    "label_steps": "steps on labels",
}


@dataclass
class Clip:
    """A video with pictures.

    Args:
        position: in the split.
        scores: its entry in `per_video`.
        why: for which lists it was chosen.
        plot: of its flicker.
        marks: where its frames are in the plot, 0..100.
        frames: that are shown.
    """

    position: int
    scores: dict[str, Any]
    why: list[str]
    plot: dict[str, Any]
    marks: list[float]
    frames: list[ShownFrame]


def page(
    results: dict[str, Any],
    classes: ClassList,
    videos: dict[int, dict[str, Any]],
    plots: dict[int, dict[str, Any]],
    top: float,
    clips: list[Clip],
    compare: Path | None,
) -> str:
    """The text of the page.

    Args:
        results: of `evaluate_model` or `score_predictions`.
        classes: that are scored.
        videos: entries of `per_video`, by position in the split.
        plots: of their flicker (`plot`).
        top: the rate at the upper end of all plots.
        clips: with pictures.
        compare: where the other dump lies.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
    )
    environment.filters["score"] = score
    template = environment.from_string((here / "report.html.jinja").read_text(encoding="utf-8"))
    frames = [frame for clip in clips for frame in clip.frames]
    layers = LAYERS if compare is None else {**LAYERS, "prediction": "prediction A", "other": "prediction B"}
    return template.render(
        mark=MARK,
        style=(here / "report.css").read_text(encoding="utf-8"),
        script=(here / "report.js").read_text(encoding="utf-8"),
        results=results,
        sources=sources_of(results),
        headlines=[(TITLES.get(key, key), key, *row) for key, *row in headline_rows(results)],
        protocols=protocol_rows(results),
        made_with=made_with(results),
        classes=class_rows(results, classes),
        groups=[(name, group_size(results, name), results.get(f"mean_iou_{name}")) for name in GROUPS],
        unscored=[name for name, iou in results["per_class_iou"].items() if iou is None],
        videos=[(position, scores, plots[position]) for position, scores in videos.items()],
        clips=clips,
        with_pictures={clip.position for clip in clips},
        top=top,
        plot_height=PLOT_HEIGHT,
        layers=layers,
        keys={kind: [(name, hexadecimal(colour)) for name, colour in key] for kind, key in KEYS.items()},
        compare=None if compare is None else compare.resolve().name,
        data={"names": classes.names, "layers": layers, "grids": {frame.key: frame.grid for frame in frames}},
    )


def score(value: float | None) -> str:
    """A number on the page."""
    return "–" if value is None else f"{value:.4f}"


def made_with(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What made the labels beside the model: what it is and its settings."""
    lines = []
    for key, title in MADE_WITH.items():
        entries = results.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            lines.append((title, entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)))
    return lines


def class_rows(results: dict[str, Any], classes: ClassList) -> list[dict[str, Any]]:
    """The classes that are scored, the worst first."""
    labelled = max(1, sum(results["per_class_pixels"].values()))
    rows = [
        {
            "name": name,
            "colour": hexadecimal(colour),
            "iou": results["per_class_iou"][name],
            "accuracy": results["per_class_accuracy"][name],
            "pixels": results["per_class_pixels"][name],
            "share": results["per_class_pixels"][name] / labelled,
            "frames": results["per_class_frames"][name],
            "group": results["class_groups"][name],
        }
        for name, colour in zip(classes.names, classes.palette, strict=True)
        if results["per_class_iou"][name] is not None
    ]
    return sorted(rows, key=lambda row: row["iou"])


def worst_videos(videos: dict[int, dict[str, Any]], count: int) -> dict[int, list[str]]:
    """Positions of the worst videos and what they are worst by: first by mean IoU, then by flicker rate.

    Args:
        videos: entries of `per_video`.
        count: how many by each; one that is in both comes once. Videos that do not flicker are not among the worst.
    """
    by_iou = [position for position, scores in videos.items() if scores["mean_iou"] is not None]
    by_iou.sort(key=lambda position: videos[position]["mean_iou"])
    by_flicker = [position for position, scores in videos.items() if scores["flicker_rate"]]
    by_flicker.sort(key=lambda position: -videos[position]["flicker_rate"])
    chosen: dict[int, list[str]] = {}
    for order, what in ((by_iou, "mean IoU"), (by_flicker, "flicker")):
        for rank, position in enumerate(order[:count], start=1):
            chosen.setdefault(position, []).append(f"{what}: worst" if rank == 1 else f"{what}: {ordinal(rank)} worst")
    return chosen


def ordinal(number: int) -> str:
    """2nd, 3rd, 4th, 11th, 21st, ..."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def plot(rates: list[float | None], top: float) -> dict[str, Any]:
    """A small plot of flicker rates for an SVG of `width` by `PLOT_HEIGHT` units.

    Args:
        rates: of every frame; None: a gap. Of long videos, each point is the highest of several frames.
        top: the rate at the upper end.

    Returns:
        path: of the line; width; highest: of the rates (None: there are none) and where it is, a frame's number.
    """
    together = -(-len(rates) // PLOT_POINTS)
    points: list[float | None] = []
    for start in range(0, len(rates), together):
        known = [rate for rate in rates[start : start + together] if rate is not None]
        points.append(max(known, default=None))
    path, open_line = [], False
    for x, rate in enumerate(points):
        if rate is not None:
            y = (PLOT_HEIGHT - 1) - (PLOT_HEIGHT - 2) * (rate / top if top else 0.0)
            path.append(f"L{x} {y:.1f}" if open_line else f"M{x} {y:.1f}h0")  # h0: a dot, if it is alone
        open_line = rate is not None
    known = [(rate, -number) for number, rate in enumerate(rates) if rate is not None]
    highest, number = max(known, default=(None, 0))
    return {"path": "".join(path), "width": max(1, len(points) - 1), "highest": highest, "at": -number}
