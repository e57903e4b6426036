"""What an evaluation says of single classes: the means of head, medium and tail, and tables for a terminal.

Which classes are head, medium or tail is decided by the share of the videos that hold them (`LabelStatistics.groups`):
of the training videos, where their labels have been counted, because what a model has seldom seen is what it finds
hard; otherwise of the videos that are evaluated on. `class_groups_of` in the results says which.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vss_hf.data.parquet import hub_id
from vss_hf.data.splits import LabelledSplit, open_split
from vss_hf.data.statistics import LabelStatistics, known_statistics
from vss_hf.inference.processes import failing_together, gather_texts, is_first
from vss_hf.metrics.made_by import beside_the_model


GROUPS = ("head", "medium", "tail")
SHOWN = 20  # rows of the table of classes, so that it fits on a screen


def group_scores(per_class_iou: Sequence[float | None], groups: Sequence[str]) -> dict[str, float]:
    """Mean IoU of each group of classes.

    Args:
        per_class_iou: IoU of each class; None: not scored.
        groups: "head", "medium", "tail" or "absent" of each class.

    Returns:
        `mean_iou_head`, `mean_iou_medium`, `mean_iou_tail`; a group without a scored class is left out.
    """
    means = {}
    for group in GROUPS:
        scored = [iou for iou, of in zip(per_class_iou, groups, strict=True) if of == group and iou is not None]
        if scored:
            means[f"mean_iou_{group}"] = float(np.mean(scored))
    return means


# --- the training data, if its labels have been counted


def shared_statistics(split: LabelledSplit | None) -> LabelStatistics | None:
    """The label statistics of a split, in all processes, if the first one knows them; nothing is counted here."""
    text = ""
    with failing_together():
        if is_first() and split is not None and (known := known_statistics(split)) is not None:
            text = json.dumps(known.to_dict())
    text = gather_texts(text)[0]
    return LabelStatistics.from_dict(json.loads(text)) if text else None


def training_statistics(
    root: str | Path, names: Sequence[str], source: str = "vspw", table: str | Path | None = None
) -> LabelStatistics | None:
    """The label statistics of the split "train" of a data set, if they are known; nothing is counted or downloaded.

    `vss-hf data stats` counts them, and so does a training run that needs them. All processes must call this.

    Args:
        root: the data set's folder; of one on the Hub nothing is known.
        names: of the classes that are scored; of others nothing is known.
        source, table: as for `open_split`.
    """
    split = None
    with failing_together():
        if is_first() and not hub_id(root):
            try:
                split = open_split(root, "train", source=source, table=table)
            except (FileNotFoundError, ValueError):
                pass  # no such split; what is wrong with the data set itself, the evaluation will say
    fits = split is not None and split.has_masks and split.classes.names == tuple(names)
    return shared_statistics(split if fits else None)


# --- tables


def show_results(results: dict[str, Any], console: Console | None = None) -> None:
    """Tables for people; every number stands with its protocol. The last one tells of the worst classes."""
    console = console or Console()
    for sentence in results["warnings"]:
        console.print(f"[bold yellow]note:[/] {escape(sentence)}", soft_wrap=True)
    console.print(results_table(results))
    console.print()
    console.print(protocol_table(results))
    console.print()
    console.print(class_table(results))


def sources_of(results: dict[str, Any]) -> str:
    """In whose classes a data set is scored, where that is not VSPW's layout as it is."""
    if "source" not in results:
        return ""
    of = f"table {results['table']}" if results["table"] else "its own classes"
    return f" ({results['source']}, {of})"


def headline_rows(results: dict[str, Any]) -> list[tuple[str, float | None, str]]:
    """The means over all classes and windows: name, value and protocol of each."""
    protocol, scored = results["protocol"], results["classes_scored"]
    of_classes = f"{protocol}, {scored} classes"
    rows = [(key, results[key], of_classes) for key in ("mean_iou", "frequency_weighted_iou", "mean_accuracy")]
    rows.append(("pixel_accuracy", results["pixel_accuracy"], protocol))
    for group in GROUPS:
        if (key := f"mean_iou_{group}") in results:
            rows.append((key, results[key], f"{protocol}, {group_size(results, group)} classes"))
    for key in ("vc8", "vc16"):
        rows.append((key, results[key], f"{results['vc_protocol']}, {results['vc_clips'].get(key, 0)} clips"))
    if "tc_skipped" in results:
        rows.append(("tc", None, f"skipped: {results['tc_skipped']}"))
    else:
        made_with = f"{results['tc_protocol']}, {results['tc_videos']} videos, {results['tc_flow'].get('name')}"
        rows.append(("tc", results["tc"], made_with))
    rows.append(("flicker_rate", results["flicker_rate"], "changes of label where the truth stays"))
    return rows


def results_table(results: dict[str, Any]) -> Table:
    """The means over all classes, with their protocols."""
    data = f"{results['dataset']} {results['split']}: {results['videos']} videos, {results['frames']} frames"
    title = f"{results['model']} on {data}{sources_of(results)}"
    if made_by := beside_the_model(results):
        title += f"\n{made_by}"
    table = Table(title=escape(title))
    for heading in ("metric", "value", "protocol"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for name, value, protocol in headline_rows(results):
        table.add_row(name, number(value), escape(protocol))
    if results["frames_per_second"]:
        table.add_row("frames_per_second", f"{results['frames_per_second']:.1f}", results["hardware"])
    return table


def protocol_rows(results: dict[str, Any]) -> list[tuple[str, str, float | None, str]]:
    """Every score under every protocol: name, protocol, value and what it is a mean over."""
    rows = []
    for protocol, scores in results["mean_iou_protocols"].items():
        rows.append(("mIoU", protocol, scores["mean_iou"], f"{scores['classes_scored']} classes"))
    if interval := results["mean_iou_interval"]:
        over = f"{interval['resamples']} draws of {results['videos']} {interval['over']}"
        for end in ("low", "high"):
            name = f"mIoU, {end} end of {interval['level']:.0%}"
            rows.append((name, results["protocol"], interval[end], over))
    videos = sum(video["mean_iou"] is not None for video in results["per_video"])
    rows.append(("mIoU, mean of videos", results["protocol"], results["mean_iou_over_videos"], f"{videos} videos"))
    for key in ("vc8", "vc16"):
        for protocol, scores in results["consistency"].items():
            rows.append((key.upper(), protocol, scores[key], f"{scores['clips'][key]} clips"))
    return rows


def protocol_table(results: dict[str, Any]) -> Table:
    """All protocols of the mIoU and of the video consistency beside each other."""
    table = Table(
        title="all protocols", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
    )
    for heading in ("score", "protocol", "value", "over"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for name, protocol, value, over in protocol_rows(results):
        table.add_row(name, protocol, number(value), over)
    return table


def number(value: float | None) -> str:
    """A score in a table."""
    return "-" if value is None else f"{value:.4f}"


def group_size(results: dict[str, Any], group: str) -> int:
    """How many classes of a group are scored."""
    groups = results["class_groups"]
    return sum(iou is not None and groups[name] == group for name, iou in results["per_class_iou"].items())


def class_table(results: dict[str, Any], rows: int = SHOWN) -> Table:
    """The classes that are scored, the worst first.

    Args:
        results: of `evaluate_model`.
        rows: at most; the title says how many there are.
    """
    ious = {name: iou for name, iou in results["per_class_iou"].items() if iou is not None}
    worst = sorted(ious, key=lambda name: ious[name])[:rows]
    few = f"the {len(worst)} worst of " if len(worst) < len(ious) else ""
    data, groups_of = f"{results['dataset']} {results['split']}", results["class_groups_of"]
    table = Table(
        title=escape(f"{data}: {few}{len(ious)} classes; groups of {groups_of}"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    for column in ("IoU", "accuracy", "of pixels", "of frames"):
        table.add_column(column, justify="right")
    table.add_column("group")
    pixels, frames = results["per_class_pixels"], results["per_class_frames"]
    labelled = max(1, sum(pixels.values()))
    for name in worst:
        accuracy = results["per_class_accuracy"][name]
        table.add_row(
            escape(name),
            f"{ious[name]:.4f}",
            number(accuracy),
            f"{pixels[name] / labelled:.2%}",
            f"{frames[name] / max(1, results['frames']):.1%}",
            results["class_groups"][name],
        )
    return table
