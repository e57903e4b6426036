"""Pictures of a report: for a frame its photo, label maps painted with the palette, and where they are wrong.

Label maps are palette PNGs, a few kB each; the page lays them over the photo itself. Which class lies under the
pointer a page cannot read from a picture beside it (browsers refuse that for files), so a coarse grid of labels goes
into the page as runs.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vss_hf.data.labels import IGNORE_INDEX
from vss_hf.data.vspw import FrameRecord, read_image
from vss_hf.files import write_bytes
from vss_hf.visualize import save_label_png

from .ground_truth import GroundTruth
from .report_frames import KeptVideo, accuracy_of


GRID_WIDTH = 96  # cells of the grid that tells classes under the pointer
JPEG_QUALITY = 82

# What a layer of a frame shows.
LAYERS = {
    "photo": "picture",
    "truth": "truth",
    "prediction": "prediction",
    "errors": "errors",
    "other": "other prediction",
    "better": "who is right",
    "changes": "flicker",
}
PALE, DARK = (226, 232, 240), (84, 84, 96)
RED, BLUE, ORANGE, VIOLET = (200, 30, 50), (0, 114, 178), (230, 159, 0), (160, 0, 150)  # told apart by all eyes
KEYS = {
    "errors": (("right", PALE), ("wrong", RED)),
    "better": (("both right", PALE), ("only A right", BLUE), ("only B right", ORANGE), ("both wrong", DARK)),
    "changes": (("steady", PALE), ("label changed, truth did not", VIOLET)),
}
NOT_SCORED = (0, 0, 0)


@dataclass
class Layer:
    """One picture of a frame.

    Args:
        kind: a key of `LAYERS`.
        file: its path below the report's folder.
        alt: what it shows, in words.
    """

    kind: str
    file: str
    alt: str


@dataclass
class ShownFrame:
    """A frame on the page.

    Args:
        key: its own on the page: positions of video and frame.
        name: its stem.
        size: width and height of its pictures.
        why: why it is shown.
        accuracy: share of its labelled pixels that are right; None: none is labelled.
        other_accuracy: that of the other dump; None: no other dump, or it lacks the frame.
        layers: its pictures.
        classes: those in the scored pixels of truth or prediction, the largest first: name, colour, IoU in this frame.
        grid: labels in coarse cells: number of columns, and for truth, prediction and other [label, run, ...].
    """

    key: str
    name: str
    size: tuple[int, int]
    why: list[str]
    accuracy: float | None
    other_accuracy: float | None = None
    layers: list[Layer] = field(default_factory=list)
    classes: list[tuple[str, str, float]] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)


class FramePainter:
    """Makes the pictures of frames.

    Args:
        folder: of the report; `pictures` is made in it.
        truth: what is scored.
        width: of the pictures, at most; smaller ones stay as they are.
    """

    def __init__(self, folder: Path, truth: GroundTruth, width: int):
        self.folder, self.truth, self.width = folder, truth, width
        (folder / "pictures").mkdir()

    def paint(self, video: int, number: int, kept: KeptVideo, other: np.ndarray | None) -> ShownFrame:
        """Writes the pictures of one frame.

        Args:
            video, number: positions of the video in the split and of the frame in the video.
            kept: of the video.
            other: the labels that another dump has for it, (H, W); None: no such picture.
        """
        of_video = self.truth.split.videos[video]
        record, prediction = of_video.frames[number], kept.maps[number]
        values, labels = self.values_and_labels(record)
        height, width = labels.shape
        size = (min(width, self.width), max(1, round(height * min(width, self.width) / width)))
        frame = ShownFrame(
            f"{video}-{number}", record.stem, size, reasons(number, kept), accuracy_of(prediction, labels)
        )
        where = f"frame {record.stem} of {of_video.name}"

        self.save_photo(frame, read_image(record.image_path), f"{where}: the picture")
        palette = self.truth.classes.palette
        self.save(frame, "truth", labels, palette, f"{where}: true classes")
        self.save(frame, "prediction", prediction, palette, f"{where}: predicted classes")
        scored, right = labels != IGNORE_INDEX, prediction == labels
        colours = [colour for _, colour in KEYS["errors"]]
        self.save(frame, "errors", mapped(~right, scored), colours, f"{where}: wrong pixels")
        if other is not None:
            frame.other_accuracy = accuracy_of(other, labels)
            self.save(frame, "other", other, palette, f"{where}: classes predicted by the other")
            who = 2 * ~right + (other != labels)  # as in KEYS
            colours = [colour for _, colour in KEYS["better"]]
            self.save(frame, "better", mapped(who, scored), colours, f"{where}: which of the two is right")
        if number - 1 in kept.maps:
            values_before, _ = self.values_and_labels(of_video.frames[number - 1])
            changed = prediction != kept.maps[number - 1]
            colours = [colour for _, colour in KEYS["changes"]]
            still = scored & (values == values_before)
            self.save(frame, "changes", mapped(changed, still), colours, f"{where}: labels that changed")
        maps = {"truth": labels, "prediction": prediction, **({} if other is None else {"other": other})}
        frame.grid = grid_of(maps)
        frame.classes = self.classes_in(labels, prediction)
        return frame

    def values_and_labels(self, record: FrameRecord) -> tuple[np.ndarray, np.ndarray]:
        """What must be constant where flicker is counted, and the true labels; each (H, W)."""
        assert record.mask_path is not None  # it was scored
        values = self.truth.split.reader.values(record.mask_path)
        labels = self.truth.lookup[values]
        return (values if self.truth.raw_consistency else labels), labels

    def save_photo(self, frame: ShownFrame, image: np.ndarray, alt: str) -> None:
        """The frame itself, as JPEG."""
        buffer = io.BytesIO()
        Image.fromarray(image).resize(frame.size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY)
        file = f"pictures/{frame.key}-photo.jpg"
        write_bytes(self.folder / file, buffer.getbuffer())
        frame.layers.append(Layer("photo", file, alt))

    def save(
        self, frame: ShownFrame, kind: str, labels: np.ndarray, palette: Sequence[Sequence[int]], alt: str
    ) -> None:
        """A map of labels, 255 = black."""
        file = f"pictures/{frame.key}-{kind}.png"
        small = Image.fromarray(labels).resize(frame.size, Image.Resampling.NEAREST)
        save_label_png(np.asarray(small), self.folder / file, palette)
        frame.layers.append(Layer(kind, file, alt))

    def classes_in(self, labels: np.ndarray, prediction: np.ndarray) -> list[tuple[str, str, float]]:
        """Name, colour and IoU of the classes in a frame, the largest first."""
        scored = labels != IGNORE_INDEX
        count = self.truth.classes.num_labels
        true, guess = labels[scored], prediction[scored]
        in_truth, predicted = (np.bincount(values, minlength=256)[:count] for values in (true, guess))
        right = np.bincount(true[true == guess], minlength=256)[:count]
        either = in_truth + predicted - right
        order = [label for label in np.argsort(-either, kind="stable") if either[label]]
        names, palette = self.truth.classes.names, self.truth.classes.palette
        return [(names[i], hexadecimal(palette[i]), float(right[i] / either[i])) for i in order]


def reasons(number: int, kept: KeptVideo) -> list[str]:
    """Why a frame is shown."""
    said = []
    if number in kept.worst:
        said.append(f"least accurate of its part of the video ({kept.worst.index(number) + 1} of {len(kept.worst)})")
    if number == kept.flicker:
        said.append("flickers most against the frame before")
    elif kept.flicker is not None and number == kept.flicker - 1:
        said.append("the frame before the strongest flicker")
    return said


def mapped(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Small integers as labels, uint8 (H, W), 255 where nothing is scored."""
    return np.where(scored, values, IGNORE_INDEX).astype(np.uint8)


def grid_of(maps: dict[str, np.ndarray]) -> dict[str, Any]:
    """Label maps of one frame in cells, as runs of equal labels in reading order."""
    height, width = next(iter(maps.values())).shape
    columns = min(width, GRID_WIDTH)
    rows = max(1, round(height * columns / width))
    grid: dict[str, Any] = {"columns": columns, "rows": rows}
    for kind, labels in maps.items():
        cells = np.asarray(Image.fromarray(labels).resize((columns, rows), Image.Resampling.NEAREST)).ravel()
        starts = np.flatnonzero(np.diff(cells, prepend=-1))  # int: 255 - (-1) does not wrap
        runs = np.diff(starts, append=cells.size)
        grid[kind] = np.stack([cells[starts], runs], 1).ravel().tolist()
    return grid


def hexadecimal(colour: Sequence[int]) -> str:
    """A colour in a style sheet."""
    return "#" + "".join(f"{value:02x}" for value in colour)
