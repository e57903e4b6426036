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
from vss_hf.metrics.made_by import beside_the_model

from .processes import failing_together, gather_texts, is_first


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
    """Tables for people; every number stands with its protocol. The second one tells of the worst classes."""
    console = console or Console()
    console.print(results_table(results))
    console.print()
    console.print(class_table(results))


def results_table(results: dict[str, Any]) -> Table:
    """The means over all classes, with their protocols."""
    data = f"{results['dataset']} {results['split']}: {results['videos']} videos, {results['frames']} frames"
    if "source" in results:
        of = f"table {results['table']}" if results["table"] else "its own classes"
        data += f" ({results['source']}, {of})"
    if made_by := beside_the_model(results):
        data += f"\n{escape(made_by)}"
    table = Table(title=f"{results['model']} on {data}")
    for heading in ("metric", "value", "protocol"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    of_classes = f"{results['protocol']}, {results['classes_scored']} classes"
    for key in ("mean_iou", "frequency_weighted_iou", "mean_accuracy"):
        table.add_row(key, f"{results[key]:.4f}", of_classes)
    table.add_row("pixel_accuracy", f"{results['pixel_accuracy']:.4f}", results["protocol"])
    for group in GROUPS:
        if (key := f"mean_iou_{group}") in results:
            table.add_row(key, f"{results[key]:.4f}", f"{results['protocol']}, {group_size(results, group)} classes")
    for key in ("vc8", "vc16"):
        value = "-" if results[key] is None else f"{results[key]:.4f}"
        table.add_row(key, value, f"{results['vc_protocol']}, {results['vc_clips'].get(key, 0)} clips")
    if results["frames_per_second"]:
        table.add_row("frames_per_second", f"{results['frames_per_second']:.1f}", results["hardware"])
    return table


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
    table = Table(
        title=f"{results['dataset']} {results['split']}: {few}{len(ious)} classes; groups of "
        f"{results['class_groups_of']}",
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
            "-" if accuracy is None else f"{accuracy:.4f}",
            f"{pixels[name] / labelled:.2%}",
            f"{frames[name] / max(1, results['frames']):.1%}",
            results["class_groups"][name],
        )
    return table
