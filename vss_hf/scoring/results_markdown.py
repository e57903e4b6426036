"""Results of an evaluation as Markdown, for a README, an issue or a paper's notes: every number with its protocol."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vss_hf.files import write_bytes
from vss_hf.metrics.made_by import beside_the_model

from .class_scores import GROUPS, group_size, headline_rows, protocol_rows, sources_of


def write_markdown(path: str | Path, results: dict[str, Any]) -> None:
    """Write `markdown_of` to a file, whole or not at all."""
    write_bytes(path, markdown_of(results).encode())


def markdown_of(results: dict[str, Any]) -> str:
    """Tables of everything that the results hold.

    Args:
        results: of `evaluate_model` or `score_predictions`.
    """
    title = f"# {cell(results['model'])} on {cell(results['dataset'])} {cell(results['split'])}"
    data = f"{results['videos']} videos, {results['frames']} frames{sources_of(results)}"
    parts = [title, data]
    if made_by := beside_the_model(results):
        parts.append(f"Labels made with: `{made_by}`")
    parts += [f"> **Note:** {cell(sentence)}" for sentence in results["warnings"]]
    parts += ["## Scores", table(("metric", "value", "protocol"), headline_rows(results))]
    parts += ["## All protocols", table(("score", "protocol", "value", "over"), protocol_rows(results))]
    if "coverage" in results:
        parts += ["## Coverage", coverage_table(results["coverage"]), predictions_text(results["predictions"])]
    parts += [f"## Groups of classes (of {cell(results['class_groups_of'])})", groups_table(results)]
    parts += ["## Videos, the worst first", videos_table(results)]
    parts += ["## Classes, the worst first", classes_table(results)]
    parts += ["## Environment", environment_table(results)]
    return "\n\n".join(parts) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a list of numbers is aligned by the reader's program."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell(word) for word in line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value inside a line of Markdown."""
    if value is None:
        return "–"
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    for character in "\\|<*`[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def coverage_table(coverage: dict[str, Any]) -> str:
    """What was wanted, what was missing and what was there beside; with the first names."""
    rows = [
        [what, *(coverage[f"{what}_{key}"] for key in ("wanted", "missing", "extra"))] for what in ("videos", "frames")
    ]
    text = table(("", "wanted", "missing", "in no video or frame of the split"), rows)
    treated = {"error": "", "skip": ", not scored", "wrong": ", counted as wrong"}[coverage["missing"]]
    for key, what in (("first_missing", f"Missing{treated}"), ("first_extra", "Beside")):
        if coverage[key]:
            more = ", …" if coverage[f"frames_{key.removeprefix('first_')}"] > len(coverage[key]) else ""
            text += f"\n\n{what}: {', '.join(cell(name) for name in coverage[key])}{more}"
    return text


def predictions_text(predictions: dict[str, Any]) -> str:
    """How files of predictions were read."""
    resized = predictions["resized_frames"]
    return f"Files read as {predictions['values']}" + (f", {resized} frames resized to the mask" if resized else "")


def groups_table(results: dict[str, Any]) -> str:
    """Head, medium and tail."""
    rows = [(group, group_size(results, group), results.get(f"mean_iou_{group}")) for group in GROUPS]
    return table(("group", "classes scored", "mean IoU"), rows)


def videos_table(results: dict[str, Any]) -> str:
    """One row per video."""
    keys = ("video", "frames", "classes", "mean_iou", "frequency_weighted_iou", "vc8", "vc16", "flicker_rate")
    videos = sorted(results["per_video"], key=lambda video: 2.0 if video["mean_iou"] is None else video["mean_iou"])
    return table(keys, ([video[key] for key in keys] for video in videos))


def classes_table(results: dict[str, Any]) -> str:
    """One row per class that is scored."""
    ious = {name: iou for name, iou in results["per_class_iou"].items() if iou is not None}
    accuracies, groups = results["per_class_accuracy"], results["class_groups"]
    pixels, frames = results["per_class_pixels"], results["per_class_frames"]
    rows = (
        (name, ious[name], accuracies[name], pixels[name], frames[name], groups[name])
        for name in sorted(ious, key=lambda name: ious[name])
    )
    return table(("class", "IoU", "accuracy", "pixels", "frames", "group"), rows)


def environment_table(results: dict[str, Any]) -> str:
    """Versions and hardware."""
    rows = [*results["versions"].items(), ("hardware", results["hardware"])]
    if results["frames_per_second"]:
        rows.append(("frames per second", f"{results['frames_per_second']:.1f}"))
    return table(("", ""), rows)
