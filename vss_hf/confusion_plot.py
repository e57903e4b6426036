"""Draws a confusion matrix: which classes are taken for which."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .visualize import short_name, write_picture


IN_CELLS = 24  # up to so many classes the cells hold their figures; beyond, the largest confusions are listed
SIZES = ((IN_CELLS, 0.42, 8.5), (60, 0.22, 8.0), (10**9, 0.13, 6.0))  # classes; inches of a cell, points of a name
LISTED = (10, 30)  # lines, as many as the matrix is high
RIGHT = LinearSegmentedColormap.from_list("right", ["white", "#3c9a5f", "#00441b"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["white", "#f0705a", "#8b0a14"])
INCHES_PER_LETTER = 0.0083  # for each point of font size


def plot_confusion(counts: Any, names: Sequence[str], path: str | Path, title: str = "") -> Path:
    """A picture of a confusion matrix: rows are true classes, columns predicted ones, a row is 100 %.

    Classes without a pixel in ground truth and prediction are left out, and counted in the caption. One that is only
    predicted has a column, marked with a star, and no row.

    Args:
        counts: pixels of every pair of classes, (num_labels, num_labels), rows ground truth, as
            `evaluate_model(with_confusion=True)` gives them.
        names: of the classes.
        path: where to write; .png, .svg or .pdf.
        title: what was evaluated.

    Returns:
        The path.

    Raises:
        ValueError: the counts do not fit the names, or no pixel is labelled.
    """
    path, counts = Path(path), np.asarray(counts)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"counts are {counts.shape}: expected a row and a column for each of {len(names)} classes")
    in_truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    rows = np.flatnonzero(in_truth)
    if not len(rows):
        raise ValueError(f"nothing to draw in {path}: no pixel is labelled")
    columns = np.concatenate([rows, np.flatnonzero((in_truth == 0) & (predicted > 0))])
    shares = counts[np.ix_(rows, columns)] / in_truth[rows, None]  # (rows, columns)
    row_names = [short_name(names[int(i)]) for i in rows]
    column_names = [short_name(names[int(i)]) + ("" if in_truth[i] else " *") for i in columns]
    caption = "rows: true class, columns: predicted class; a row is 100 %; green: right, red: taken for another"
    notes = [f"{len(names) - len(columns)} of {len(names)} classes do not occur"] * (len(columns) < len(names))
    notes += ["*: predicted, but not in the ground truth"] * (len(columns) > len(rows))
    told = "\n".join(filter(None, [caption, "; ".join(notes)]))
    figure = _draw(shares, columns[None] == rows[:, None], row_names, column_names, title, told)
    write_picture(path, lambda file: figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=150))
    return path


def title_of(results: Mapping[str, Any]) -> str:
    """What `evaluate_model` evaluated, in one line."""
    data = f"{results['dataset']} {results['split']}: {results['videos']} videos, {results['frames']} frames"
    return f"{results['model']} on {data}, mean IoU {results['mean_iou']:.4f} (protocol {results['protocol']})"


def _draw(
    shares: np.ndarray, right: np.ndarray, row_names: list[str], column_names: list[str], title: str, told: str
) -> Figure:
    """The picture of shares (rows, columns); `right` are the cells of a class with itself, `told` stands below.

    The layout is by hand, in inches: matplotlib's takes seconds for so many names.
    """
    few = len(column_names) <= IN_CELLS
    cell, font = next((cell, font) for most, cell, font in SIZES if len(column_names) <= most)
    width, height = cell * len(column_names), cell * len(row_names)
    beside = INCHES_PER_LETTER * font * max(map(len, row_names)) + 0.25
    above = INCHES_PER_LETTER * font * max(map(len, column_names)) + 0.15
    count = 0 if few else int(np.clip(height / 0.22 - 2, *LISTED))  # of lines of the list
    wide = max(beside + width + (0.2 if few else 3.9), 5.2)
    lines = wrap(title, int(14 * wide)) or [""]
    head = 0.2 * len(lines) + 0.2
    size = (wide, head + above + max(height, 0.22 * (count + 2)) + 0.5)
    figure = Figure(figsize=size)  # no pyplot: needs no display, keeps no state
    top = size[1] - head - above  # from below
    axis = figure.add_axes((beside / size[0], (top - height) / size[1], width / size[0], height / size[1]))
    shades = np.sqrt(shares)  # so that a few per cent can be seen
    axis.imshow(np.where(right[..., None], RIGHT(shades), WRONG(shades)), aspect="auto", interpolation="none")
    _label(axis, row_names, column_names, font)
    if few:
        _write_figures(axis, shares, shades)
    else:
        _rule(axis, *shares.shape)
        left = (beside + width + 0.3) / size[0]
        text = "\n".join(_largest(np.where(right, 0, shares), row_names, column_names, count))
        figure.text(left, top / size[1], text, fontsize=10, va="top", linespacing=1.5)
    figure.text(0.1 / size[0], 0.1 / size[1], told, fontsize=7, color="0.3", va="bottom")
    figure.text(0.1 / size[0], 1 - 0.1 / size[1], "\n".join(lines), fontsize=9.5, va="top")
    return figure


def _label(axis, row_names: list[str], column_names: list[str], font: float) -> None:
    """Names of the classes on the left and above, and lines between the cells."""
    axis.set_yticks(range(len(row_names)), row_names, fontsize=font)
    axis.set_xticks(range(len(column_names)), column_names, fontsize=font, rotation=90)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, pad=2)
    axis.set_xticks(np.arange(0.5, len(column_names) - 1), minor=True)
    axis.set_yticks(np.arange(0.5, len(row_names) - 1), minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.4)
    axis.tick_params(which="minor", length=0)
    for side in axis.spines.values():
        side.set_color("0.6")


def _rule(axis, rows: int, columns: int) -> None:
    """A line after every tenth class, to keep the place on the way to the names."""
    for place in range(10, max(rows, columns), 10):
        axis.axhline(place - 0.5, color="0.55", linewidth=0.5)
        axis.axvline(place - 0.5, color="0.55", linewidth=0.5)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def _write_figures(axis, shares: np.ndarray, shades: np.ndarray) -> None:
    """The per cent of each cell, where it is not next to nothing."""
    for row, column in np.argwhere(shares >= 0.005):
        color = "white" if shades[row, column] > 0.5 else "0.15"
        axis.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)


def _largest(wrong: np.ndarray, row_names: list[str], column_names: list[str], count: int) -> Iterator[str]:
    """The largest confusions in words; `wrong` are the shares, 0 where a class is right."""
    yield from ("Largest confusions (true → predicted)", "")
    for place in np.argsort(-wrong, axis=None, kind="stable")[:count]:
        row, column = np.unravel_index(place, wrong.shape)
        if wrong[row, column] > 0:
            yield f"{wrong[row, column]:4.0%}  {row_names[row]} → {column_names[column]}"
