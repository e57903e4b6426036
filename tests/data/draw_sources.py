"""Draws one sample of every source with its own labels and with VSPW's: docs/images/remapped_sources.png.

    python tests/data/draw_sources.py docs/images/remapped_sources.png

The pictures are read back from small trees in the official layouts, as a user's files would be. Classes have the
colours of what was drawn, not those of the data sets: VSPW's sky, grass and tree are three shades of red.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import official_trees as trees
from PIL import Image, ImageDraw, ImageFont

from vss_hf.data import VSPW, load_split, open_split
from vss_hf.files import replacing
from vss_hf.visualize import colorize


# heading, source, how its tree is made, split, sample
ROWS = (
    ("COCO-Stuff", "coco_stuff", trees.make_coco_stuff, "train", 0),
    ("ADE20K", "ade20k", trees.make_ade20k, "train", 0),
    ("Cityscapes", "cityscapes", trees.make_cityscapes, "val", 0),
    ("Pascal Context", "pascal_context", trees.make_pascal_context, "train", 0),
    ("VIPSeg", "vipseg", trees.make_vipseg, "val", 2),
    ("CamVid", "camvid", trees.make_camvid, "train", 4),
)
PICTURE = (330, 220)
GAP, TOP, HEAD, LEGEND = 14, 40, 30, 540  # between pictures; above all; above a row; width of the legend
INK, GREY, PAPER, IGNORED = (32, 34, 38), (120, 124, 130), (255, 255, 255), (0, 0, 0)
SWATCH, LINE = 11, 21
LINES = 11  # of the legend in one column


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def draw(path: Path) -> None:
    """Makes the trees, reads them, writes the sheet."""
    width = 4 * GAP + 3 * PICTURE[0] + LEGEND
    row_height = HEAD + PICTURE[1] + GAP
    sheet = Image.new("RGB", (width, TOP + len(ROWS) * row_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    titles = ("image", "the source's own classes", "remapped to VSPW's 124", "own class → VSPW class")
    for column, title in enumerate(titles):
        pen.text((GAP + column * (PICTURE[0] + GAP), 12), title, INK, font(15, bold=True))
    with tempfile.TemporaryDirectory() as folder:
        for row, (heading, source, make, split, sample) in enumerate(ROWS):
            tree = make(Path(folder, source), size=(480, 320))
            draw_row(sheet, TOP + row * row_height, heading, tree, source, split, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        sheet.quantize(256, dither=Image.Dither.NONE).save(partial, format="PNG", optimize=True)


def draw_row(
    sheet: Image.Image, top: int, heading: str, tree: trees.Tree, source: str, split: str, sample: int
) -> None:
    """One source: a caption, three pictures, a legend."""
    pen = ImageDraw.Draw(sheet)
    splits = [open_split(tree.root, split, source=source, table=table) for table in (None, "default")]
    samples = [load_split(opened)[sample] for opened in splits]
    labels = [sample["labels"].numpy() for sample in samples]
    palettes = [palette(splits[0].classes.names, tree.names), palette(VSPW.names, tree.vspw)]
    share = [f"{(each != 255).mean():.0%}" for each in labels]
    pen.line([(GAP, top), (sheet.width - GAP, top)], (224, 226, 230))
    pen.text((GAP, top + 7), heading, INK, font(14, bold=True))
    start = GAP + pen.textlength(heading, font(14, bold=True)) + 10
    facts = f'source="{source}", {splits[0].classes.num_labels} classes; labelled pixels here: {share[0]} → {share[1]}'
    pen.text((start, top + 9), facts, GREY, font(12))
    frame = Image.fromarray(samples[0]["frames"][-1].permute(1, 2, 0).numpy())
    pictures = [frame.resize(PICTURE, Image.Resampling.LANCZOS)]
    for each, colours in zip(labels, palettes, strict=True):
        pictures.append(Image.fromarray(colorize(each, colours)).resize(PICTURE, Image.Resampling.NEAREST))
    for column, picture in enumerate(pictures):
        sheet.paste(picture, (GAP + column * (PICTURE[0] + GAP), top + HEAD))
    legend = legend_rows(labels, (splits[0].classes.names, VSPW.names), palettes)
    for number, row in enumerate(legend):
        left = GAP + 3 * (PICTURE[0] + GAP) + (number // LINES) * (LEGEND // 2)
        y = top + HEAD + (number % LINES) * (PICTURE[1] // LINES)
        for colour, name in row:
            pen.rectangle([left, y + 3, left + SWATCH, y + 3 + SWATCH], colour)
            pen.text((left + SWATCH + 6, y), name, INK if name != "ignored" else GREY, font(12))
            left += SWATCH + 6 + pen.textlength(name, font(12)) + 6


def palette(classes: tuple[str, ...], name_of: dict[str, str | None]) -> list[tuple[int, int, int]]:
    """A strong form of the colour of the first part that is called so, for every class."""
    colour_of = {name: trees.COLOURS[part] for part, name in reversed(name_of.items())}
    colours = []
    for name in classes:
        colour = np.array(colour_of[name] if name in colour_of and name != "background" else (150, 150, 156), float)
        colours.append(tuple(np.clip(colour.mean() + (colour - colour.mean()) * 1.5, 0, 255).astype(int).tolist()))
    return colours


def legend_rows(labels: list[np.ndarray], names, palettes) -> list[list[tuple]]:
    """[(colour, own class), (colour, VSPW class)] of every own class in the picture, the largest first."""
    own, new = labels
    rows = []
    found, counts = np.unique(own, return_counts=True)
    for label in found[np.argsort(-counts)].tolist():
        if label == 255:
            continue
        target = int(new[own == label][0])
        became = (IGNORED, "ignored") if target == 255 else (palettes[1][target], names[1][target])
        same = names[0] == names[1]  # then one name says it
        name = names[0][label]
        rows.append([became] if same else [(palettes[0][label], f"{name} →"), became])
    return rows


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
