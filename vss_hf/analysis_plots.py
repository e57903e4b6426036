"""Pictures of class dependencies and of features in the plane; the numbers come from analysis.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .visualize import short_name, write_picture


DPI = 110
LARGEST_CELL, SMALLEST_CELL = 0.34, 0.115  # inches: of a matrix of few classes, and of one of VSPW's 124
VALUES_IN_CELLS = 14  # classes up to which the cells hold their values
MARKERS = "os^Dv*P"  # after ten classes the colours come again, with another marker


def plot_dependencies(matrices: Sequence[dict[str, Any]], titles: Sequence[str], what: str, path: Path) -> None:
    """Draw dependency matrices side by side with the same colours for the same scores.

    Args:
        matrices: of `matrix_numbers`, all of the same number of classes.
        titles: of each, e.g. the model's name.
        what: the vectors that are compared, e.g. "class tokens".
        path: a .png file.
    """
    number = len(matrices[0]["classes"])
    cell = max(SMALLEST_CELL, min(LARGEST_CELL, 7 / number))
    side = max(2.6, cell * number)
    longest = max(len(short_name(name)) for name in matrices[0]["classes"])
    font = min(8.0, 72 * cell * 0.8)  # points: names do not touch
    heading = max(9.5, side)  # points
    left = longest * font * 0.6 / 72 + 0.2  # for the names
    width = len(matrices) * (side + left) + 1  # for the bar, too
    figure = Figure(figsize=(width, side), dpi=DPI)  # what lies outside is saved, too
    axes = [figure.add_axes(((left + i * (side + left)) / width, 0, side / width, 1)) for i in range(len(matrices))]
    values = [np.array(numbers["matrix"]) for numbers in matrices]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    for axis, matrix, numbers, title in zip(axes, values, matrices, titles, strict=True):
        image = axis.imshow(matrix, cmap="YlOrRd", vmin=low, vmax=high)
        labels = [short_name(name) for name in numbers["classes"]]
        axis.set_xticks(range(number), labels, rotation=90, fontsize=font)
        axis.set_yticks(range(number), labels, fontsize=font)
        axis.tick_params(length=0, pad=2)
        axis.spines[:].set_visible(False)
        axis.set_title(f"{title}\nmean of the diagonal {numbers['mean_diagonal']:.3f}", fontsize=heading)
        if number <= VALUES_IN_CELLS:
            write_values(axis, matrix, low, high)
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.8 / width, 0.15, 0.16 / width, 0.7)))
    bar.set_label(f"score of the column's class ({what}; a row adds up to 1)", fontsize=0.85 * heading)
    bar.ax.tick_params(labelsize=0.85 * heading, length=0)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    save(figure, path)


def write_values(axis: Any, matrix: np.ndarray, low: float, high: float) -> None:
    """The scores in their cells, with as many digits as tell them apart."""
    digits, size = (2, 6.5) if high - low > 0.1 else (3, 5.8)
    for (row, column), value in np.ndenumerate(matrix):
        dark = value > low + 0.6 * (high - low)
        text = f"{value:.{digits}f}".removeprefix("0")
        axis.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "0.25")


def plot_features(
    points: Sequence[np.ndarray], classes: np.ndarray, names: Sequence[str], titles: Sequence[str], path: Path
) -> None:
    """Draw samples of features in the plane, side by side, each class in the same colour.

    Args:
        points: of each model (N, 2), of the same samples.
        classes: (N,), positions in `names`.
        names: of the classes that are shown.
        titles: of each model.
        path: a .png file.
    """
    from matplotlib import colormaps

    colors = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    figure = Figure(figsize=(4.6 * len(points) + 1.6, 5.0), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(points), squeeze=False)[0]
    order = np.random.default_rng(0).permutation(len(classes))  # so that no class lies on top of all others
    for axis, own, title in zip(axes, points, titles, strict=True):
        for start in range(0, len(order), 50):
            chunk = order[start : start + 50]
            for k in np.unique(classes[chunk]):
                of_class = chunk[classes[chunk] == k]
                axis.plot(*own[of_class].T, **style(k, colors), markersize=3.2, alpha=0.75, linestyle="none")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("0.8")
        axis.set_title(title, fontsize=9.5)
        axis.set_box_aspect(1)
    handles = [axes[0].plot([], [], **style(k, colors), markersize=6, linestyle="none")[0] for k in range(len(names))]
    figure.legend(
        handles, [short_name(name) for name in names], loc="outside right center", fontsize=8.5, frameon=False
    )
    save(figure, path)


def style(k: int, colors: Sequence[Any]) -> dict[str, Any]:
    """Colour and marker of the k-th class."""
    marker = MARKERS[k // len(colors) % len(MARKERS)]
    return {"color": colors[k % len(colors)], "marker": marker, "markeredgewidth": 0}


def save(figure: Figure, path: Path) -> None:
    """Write a figure and all that lies around it as PNG, whole or not at all."""
    write_picture(path, lambda file: figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.1))
