"""Drawing: label maps over frames, sheets for cards and docs, training curves, label statistics, label PNGs."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image, ImageDraw, ImageFont

from vss_hf.files import write_bytes


if TYPE_CHECKING:
    from vss_hf.data import ClassList
    from vss_hf.data.statistics import LabelStatistics

Palette = Sequence[Sequence[int]]

IGNORE = 255
PANEL_WIDTH = 400  # pixels of one picture in a sheet
GAP = 10
FONT_SIZE = 15
INK, PAPER = (40, 40, 40), (255, 255, 255)


# --- label maps as colours


def colorize(labels: np.ndarray | torch.Tensor, palette: Palette) -> np.ndarray:
    """A label map as a picture of its classes' colours.

    Args:
        labels: integer (H, W); 0..len(palette)-1, or 255 = void, which becomes black.
        palette: one (red, green, blue) per class, 0..255.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ValueError: if a label has no colour.
    """
    return _color_table(palette)[_checked_labels(labels, len(palette))]  # (H, W, 3)


def overlay(
    image: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor, palette: Palette, alpha: float = 0.5
) -> np.ndarray:
    """A frame with its label map painted over it; void pixels stay unpainted.

    Args:
        image: uint8 RGB; an array (H, W, 3) or a tensor (3, H, W).
        labels: integer (H, W), as in `colorize`.
        palette: one (red, green, blue) per class, 0..255.
        alpha: strength of the colours, 0 (none) to 1 (hides the frame); rounded to 256ths.

    Returns:
        uint8 (H, W, 3) RGB, a new array.

    Raises:
        ValueError: if shapes, dtypes or values are not as said above.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected 0..1")
    image, labels = _checked_image(image), _checked_labels(labels, len(palette))
    if image.shape[:2] != labels.shape:
        raise ValueError(f"labels are {labels.shape} (H, W), the image is {image.shape[:2]}: expected the same size")
    # Fixed point, in 256ths: several times as fast as floats, and no eye sees the difference.
    weight = round(256 * alpha)
    mixed = image.astype(np.uint16)  # (H, W, 3)
    mixed *= 256 - weight
    mixed += (_color_table(palette).astype(np.uint16) * weight + 128)[labels]
    mixed >>= 8
    painted = mixed.astype(np.uint8)
    np.copyto(painted, image, where=(labels == IGNORE)[..., None])
    return painted


def save_label_png(labels: np.ndarray | torch.Tensor, path: str | Path, palette: Palette | None = None) -> None:
    """Write a label map as an 8-bit palette PNG whose pixel values are the labels themselves; see `label_png`.

    Args:
        labels: integer (H, W), 0..255.
        path: the file; its folder must exist.
        palette: colours in which viewers show the labels; None: greys. It does not change the values.

    Raises:
        ValueError: if a value is outside 0..255 or `labels` is not a two-dimensional integer map.
    """
    write_bytes(path, label_png(labels, palette))


def label_png(labels: np.ndarray | torch.Tensor, palette: Palette | None = None) -> memoryview:
    """The bytes of the file that `save_label_png` writes."""
    picture = Image.fromarray(_checked_labels(labels, 256))
    # All 256 entries, always: Pillow writes 1, 2 or 4 bits a pixel for short palettes.
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1) if palette is None else _color_table(palette)
    picture.putpalette(table.tobytes())
    buffer = io.BytesIO()
    # Label maps are runs of one value. Looking for nothing else takes a third of the time of zlib's default (0.9 and
    # 3.0 ms for 480 x 853 pixels of ten regions, 1.8 and 9.9 ms for fine ones) and 10 to 25 % more bytes.
    picture.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getbuffer()


# --- sheets


def overlay_sheet(
    frames: Sequence[np.ndarray | torch.Tensor],
    labels: Sequence[np.ndarray | torch.Tensor] | None,
    predictions: Sequence[np.ndarray | torch.Tensor],
    class_list: ClassList,
    path: str | Path,
    *,
    alpha: float = 0.6,
) -> Path:
    """One picture for a card or a page: a row per frame; columns image, ground truth, prediction; a legend below.

    Args:
        frames: uint8 RGB, each an array (H, W, 3) or a tensor (3, H, W).
        labels: ground truth (H, W) per frame, or None for a sheet without that column.
        predictions: (H, W) per frame.
        class_list: names and colours; the legend holds only the classes that occur in the sheet.
        path: where to write; .jpg or .png.
        alpha: strength of the colours, 0..1.

    Returns:
        The path.

    Raises:
        ValueError: if the lists are empty or differ in length, or a map does not fit its frame.
    """
    path = Path(path)
    columns = {"image": None, "ground truth": labels, "prediction": predictions}
    if labels is None:
        del columns["ground truth"]
    for name, maps in columns.items():
        if not frames or (maps is not None and len(maps) != len(frames)):
            found = len(frames if maps is None else maps)
            raise ValueError(f"{found} maps of {name} for {len(frames)} frames: expected one per frame, at least one")

    rows, seen = [], np.zeros(256, np.int64)
    for index, frame in enumerate(frames):
        image = _checked_image(frame)
        row = [_panel(image)]
        for maps in list(columns.values())[1:]:
            row.append(_panel(overlay(image, maps[index], class_list.palette, alpha)))
            seen += np.bincount(_checked_labels(maps[index], len(class_list.palette)).ravel(), minlength=256)
        rows.append(row)

    font = ImageFont.load_default(size=FONT_SIZE)
    width = len(columns) * (PANEL_WIDTH + GAP) + GAP
    present = [label for label in np.argsort(-seen, kind="stable") if seen[label] and label != IGNORE]
    entries = _legend_layout([(class_list.names[i], tuple(class_list.palette[i])) for i in present], font, width)

    header = FONT_SIZE + 2 * GAP
    picture_rows = sum(row[0].height + GAP for row in rows)
    legend_height = entries[-1][1] + FONT_SIZE + 2 * GAP if entries else 0
    sheet = Image.new("RGB", (width, header + picture_rows + legend_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        middle = GAP + column * (PANEL_WIDTH + GAP) + PANEL_WIDTH // 2
        draw.text((middle, header // 2), name, INK, font, anchor="mm")
    top = header
    for row in rows:
        for column, panel in enumerate(row):
            sheet.paste(panel, (GAP + column * (PANEL_WIDTH + GAP), top))
        top += row[0].height + GAP
    for x, y, name, color in entries:
        draw.rounded_rectangle((x, top + y, x + FONT_SIZE, top + y + FONT_SIZE), 3, color, outline=(140, 140, 140))
        draw.text((x + FONT_SIZE + 6, top + y + FONT_SIZE // 2 + 1), name, INK, font, anchor="lm")

    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    write_picture(path, lambda file: sheet.save(file, format=kind, **({} if kind == "PNG" else {"quality": 92})))
    return path


def _panel(image: np.ndarray) -> Image.Image:
    """A picture scaled to the width of a column."""
    height = max(1, round(image.shape[0] * PANEL_WIDTH / image.shape[1]))
    return Image.fromarray(image).resize((PANEL_WIDTH, height), Image.Resampling.LANCZOS)


def _legend_layout(
    classes: list[tuple[str, tuple[int, ...]]], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[tuple[int, int, str, tuple[int, ...]]]:
    """(x, y, name, colour) of every legend entry, wrapped like the words of a line."""
    entries, x, y = [], GAP, 0
    for name, color in classes:
        name = name.replace("_", " ")
        length = FONT_SIZE + 6 + int(font.getlength(name))
        if x > GAP and x + length > width - GAP:
            x, y = GAP, y + FONT_SIZE + 8
        entries.append((x, y, name, color))
        x += length + 2 * GAP
    return entries


# --- curves


def plot_training_curve(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Training loss and, where it was evaluated, mean IoU over the optimizer steps.

    Args:
        log_history: as `trainer.state.log_history`: entries with "step" and "loss" (training) or "eval_mean_iou"
            (evaluation; a fraction, 0..1). Entries with neither are passed over.
        path: where to write; .png, .svg or .pdf.

    Returns:
        The path.

    Raises:
        ValueError: if there is nothing to draw.
    """
    path = Path(path)
    losses = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    scores = [(entry["step"], entry["eval_mean_iou"]) for entry in log_history if "eval_mean_iou" in entry]
    if not losses and not scores:
        raise ValueError(f"nothing to draw in {path}: the log has no entry with 'loss' or 'eval_mean_iou'")

    count = bool(losses) + bool(scores)
    figure = Figure(figsize=(7, 2.6 * count), layout="constrained")  # no pyplot: needs no display, keeps no state
    axes = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    if losses:
        _draw_loss(axes[0], *np.array(losses, dtype=float).T)
    if scores:
        _draw_score(axes[-1], *np.array(scores, dtype=float).T)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.margins(x=0.02)
    axes[-1].set_xlabel("optimizer step")
    write_picture(path, lambda file: figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=150))
    return path


def _draw_loss(axis, steps: np.ndarray, values: np.ndarray) -> None:
    """Logged values and, once there are many, their running mean over a twentieth of the run."""
    window = len(values) // 20
    plain = dict(alpha=0.3) if window > 1 else dict(marker=".")
    axis.plot(steps, values, color="tab:blue", linewidth=1, **plain)
    if window > 1:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        middle = steps[(window - 1) // 2 :][: len(smooth)]
        axis.plot(middle, smooth, color="tab:blue", linewidth=1.8)
    axis.set_ylabel("training loss")


def _draw_score(axis, steps: np.ndarray, values: np.ndarray) -> None:
    axis.plot(steps, values, color="tab:green", marker="o", markersize=3.5, linewidth=1.5)
    axis.set_ylabel("mean IoU")
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        axis.plot(steps[best], values[best], "o", color="tab:green", markersize=8, fillstyle="none")
        axis.set_title(f"best {values[best]:.4f} at step {int(steps[best])}", fontsize="medium", loc="right")


# --- label statistics


ROWS_PER_COLUMN = 44  # classes below each other
IN_MATRIX = 28  # classes that the matrix of co-occurrence can name
LONGEST_NAME = 26  # characters


def plot_label_statistics(statistics: LabelStatistics, palette: Palette, path: str | Path) -> Path:
    """Bars of how often each class occurs, and for the most frequent ones how often beside each other.

    Args:
        statistics: of a split.
        palette: one (red, green, blue) per class, 0..255.
        path: where to write; .png, .svg or .pdf.

    Returns:
        The path.

    Raises:
        ValueError: if no pixel is labelled.
    """
    path = Path(path)
    order = statistics.occurring()
    if not len(order):
        raise ValueError(f"nothing to draw in {path}: split {statistics.split!r} has no labelled pixel")
    count = -(-len(order) // ROWS_PER_COLUMN)
    columns = np.array_split(order, count)
    shown = min(len(order), IN_MATRIX)
    side = 1.9 + 0.23 * max(shown, 12)  # inches of the matrix
    figure = Figure(figsize=(3.9 * count + side, max(0.19 * len(columns[0]) + 1.3, 0.92 * side)), layout="constrained")
    *bars, matrix = figure.subplots(1, count + 1, width_ratios=[3.9] * count + [side])
    lowest = 10 ** float(np.floor(np.log10(statistics.shares[order[-1]]) - 0.3))
    for axis, classes in zip(bars, columns, strict=True):
        _draw_shares(axis, statistics, classes, palette, lowest)
        axis.set_ylim(len(columns[0]) - 0.4, -0.6)  # the same height of a bar in every column
    bars[0].legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=2, fontsize=7.5, frameon=False)
    _draw_together(matrix, statistics, order[:shown])
    counts = f"{statistics.num_videos:,} {statistics.unit}"
    if statistics.unit == "videos":
        counts += f", {statistics.num_frames:,} frames"
    remapped = f", {statistics.source} by the {statistics.table} table" if statistics.table else ""
    notes = f"{len(order)} of {len(statistics.names)} classes, {statistics.ignored_share:.1%} of the pixels ignored"
    figure.suptitle(f"{statistics.dataset} {statistics.split}{remapped}: {counts}, {notes}", fontsize="medium")
    write_picture(path, lambda file: figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=110))
    return path


def check_picture_name(path: Path) -> None:
    """Raise before the work when the name of a drawing does not tell its format."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path}: a drawing is a .png, .svg or .pdf file")


def _draw_shares(axis, statistics: LabelStatistics, classes: np.ndarray, palette: Palette, lowest: float) -> None:
    """A bar per class, its share of the labelled pixels, and a ring, its share of the videos; on a log scale."""
    rows = np.arange(len(classes))
    colors = np.array(palette)[classes] / 255
    videos = statistics.videos[classes] / max(1, statistics.num_videos)
    axis.barh(rows, statistics.shares[classes], color=colors, edgecolor="0.35", linewidth=0.4, height=0.74)
    axis.plot(
        videos, rows, "o", color="0.15", markersize=3.6, fillstyle="none", markeredgewidth=0.9,
        label=f"share of {statistics.unit}",
    )  # fmt: skip
    axis.plot([], [], "s", color="0.6", markersize=6, label="share of labelled pixels")
    axis.set_xscale("log")
    axis.set_xlim(lowest, 1.3)
    axis.set_yticks(rows, [short_name(statistics.names[i]) for i in classes], fontsize=7.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=7.5)
    axis.xaxis.set_major_locator(LogLocator(numticks=6))
    axis.xaxis.set_major_formatter(
        lambda share, _: f"{np.format_float_positional(100 * share, 3, fractional=False, trim='-')}%"
    )
    axis.minorticks_off()
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)


def _draw_together(axis, statistics: LabelStatistics, classes: np.ndarray) -> None:
    """Of the frames with the class of a row, the share that also holds the class of a column."""
    frames = statistics.frames[classes]
    shares = statistics.together[np.ix_(classes, classes)] / np.maximum(1, frames)[:, None]
    np.fill_diagonal(shares, np.nan)  # always 100 %
    image = axis.imshow(shares, cmap="GnBu", vmin=0, vmax=1)
    names = [short_name(statistics.names[i]) for i in classes]
    size = 7.5 if len(classes) <= 20 else 6.5
    axis.set_xticks(range(len(classes)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(classes)), names, fontsize=size)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(np.arange(1, len(classes)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(classes)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.set_anchor("N")
    bar = axis.figure.colorbar(image, ax=axis, location="top", shrink=0.6, aspect=40, pad=0.015)
    bar.set_label("frames with the row's class that also hold the column's", fontsize=7.5)
    bar.ax.tick_params(labelsize=7.5, length=0)
    bar.ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    bar.outline.set_visible(False)


def short_name(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1].rstrip()}…"


# --- checks and files


def _checked_image(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """uint8 (H, W, 3), whichever of the two forms came."""
    if isinstance(image, torch.Tensor):
        array = image.movedim(0, -1).cpu().numpy()  # (3, H, W) -> (H, W, 3)
    else:
        array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"image is {image.dtype} {tuple(image.shape)}: expected uint8, an array (H, W, 3) or a tensor (3, H, W)"
        )
    return array


def _checked_labels(labels: np.ndarray | torch.Tensor, num_labels: int) -> np.ndarray:
    """uint8 (H, W) with values that are classes or void."""
    array = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"labels are {array.dtype} {array.shape}: expected integers (H, W)")
    wrong = (array < 0) | ((array >= num_labels) & (array != IGNORE))
    if wrong.any():
        raise ValueError(f"labels hold the value {array[wrong].flat[0]}: expected 0..{num_labels - 1}, or 255 = void")
    return array.astype(np.uint8)


def _color_table(palette: Palette) -> np.ndarray:
    """uint8 (256, 3): the palette, then black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table


def write_picture(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a picture in memory, then to its file, so that no half-written one is ever seen."""
    buffer = io.BytesIO()
    write(buffer)
    write_bytes(path, buffer.getbuffer())
