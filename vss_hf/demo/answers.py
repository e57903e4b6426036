"""What is shown of a result: pictures, shares, pixels, flicker, and files to take away. No model is asked again."""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vss_hf.overlay_video import FramePainter, OverlayWriter
from vss_hf.visualize import IGNORE, overlay

from .labelling import DemoModels
from .results import Result
from .uploads import Refused, safe_name


SIDE = 1280  # pixels of the longer side of a picture on the page: more is only slower
FRAME_RATE = 15.0  # of videos that do not tell theirs
NEXT_BEST = 3
PICTURES = 32  # for the page, kept at a time
FRAMES_BETWEEN_LOOKS = 25  # at how much an overlay video takes
STEPS = 50  # of the marked pixel across the longer side
RING = 9  # radius of the mark around a pixel, in pixels of the page's picture
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def painted(result: Result, number: int, model: int, alpha: float) -> np.ndarray:
    """A frame with its classes painted over it, uint8 (H, W, 3), at most `SIDE` pixels long.

    The class that the visitor chose is painted alone, the others darkened; a ring is around the chosen pixel.

    Args:
        result: that holds it.
        number: of the frame.
        model: whose labels.
        alpha: strength of the colours, 0..1.
    """
    only, mark = result.only, result.mark
    image, labels = result.image(number), result.labels(number, model)
    step = shrink(labels.shape)
    image, labels = image[::step, ::step].copy(), labels[::step, ::step].copy()
    if only is not None:
        others = labels != only
        image[others] //= 3
        labels[others] = IGNORE
    picture = overlay(image, labels, result.palette, alpha)
    if mark is not None:
        draw_ring(picture, mark[0] // step, mark[1] // step)
    return picture


def page_file(result: Result, picture: np.ndarray) -> Path:
    """A JPEG for the page with colours at full resolution: edges between classes stay sharp.

    Each has its own name, so that browsers ask for it; the one `PICTURES` before goes.
    """
    number = next(result.pictures_shown)
    path = result.folder / f"shown{number}.jpg"
    Image.fromarray(picture).save(path, format="JPEG", quality=88, subsampling=0)
    (result.folder / f"shown{number - PICTURES}.jpg").unlink(missing_ok=True)
    return path


def shrink(size: Sequence[int]) -> int:
    """Every how many-th pixel of a frame is shown: whole steps, so that each pixel shown is one of the frame."""
    return -(-max(size) // SIDE)


def draw_ring(picture: np.ndarray, y: int, x: int) -> None:
    """A white ring with a black one around it, in place."""
    top, left = max(0, y - RING - 1), max(0, x - RING - 1)
    part = picture[top : y + RING + 2, left : x + RING + 2]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    distance = np.hypot(rows - y, columns - x)
    part[abs(distance - RING) < 1.2] = BLACK
    part[abs(distance - RING + 2) < 1.2] = WHITE


# --- classes


@dataclass(frozen=True)
class ClassShare:
    """A class, and which share of the pixels has it by each model, 0..1."""

    label: int
    shares: list[float]


def class_shares(result: Result, number: int | None = None) -> list[ClassShare]:
    """The classes that a frame has (None: all frames together), those with most pixels first."""
    frames = result.frames if number is None else [result.frames[number]]
    counts = np.sum([frame.pixels for frame in frames], axis=0)  # (models, num_labels)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    order = np.argsort(-shares.sum(axis=0), kind="stable")
    return [ClassShare(int(label), shares[:, label].tolist()) for label in order if counts[:, label].any()]


def agreement(result: Result, number: int) -> float | None:
    """The share of a frame's pixels of which two models say the same; None: there is one model."""
    if len(result.frames[number].pixels) < 2:
        return None
    return float(np.mean(result.labels(number, 0) == result.labels(number, 1)))


@dataclass(frozen=True)
class PixelAnswer:
    """What a model says of a pixel.

    Args:
        label: its class.
        confidence: the share of the scores that it has, 0..1; None: the scores of this frame are not kept.
        next_best: (class, share) of the next ones.
    """

    label: int
    confidence: float | None
    next_best: list[tuple[int, float]]


def at_pixel(result: Result, number: int, y: int, x: int) -> list[PixelAnswer]:
    """What each model says of a pixel of a frame; one outside is moved to the edge."""
    height, width = result.frames[number].size
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    answers = []
    for model in range(len(result.frames[number].pixels)):
        label = int(result.labels(number, model)[y, x])
        scores = result.scores(number, model, y, x)
        if scores is None:
            answers.append(PixelAnswer(label, None, []))
            continue
        others = [int(i) for i in np.argsort(-scores, kind="stable") if i != label][:NEXT_BEST]
        answers.append(PixelAnswer(label, float(scores[label]), [(i, float(scores[i])) for i in others]))
    return answers


def moved(size: tuple[int, int], mark: tuple[int, int] | None, move: str) -> tuple[int, int]:
    """The (y, x) of the pixel a step "left", "right", "up" or "down" of a marked one; without one, in the middle.

    Args:
        size: (height, width) of the frame.
        mark: the marked pixel, or None.
        move: which way; anything else: to the middle.
    """
    down, right = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.get(move, (None, None))
    if mark is None or down is None or right is None:
        return size[0] // 2, size[1] // 2
    step = max(1, max(size) // STEPS)
    y, x = mark[0] + step * down, mark[1] + step * right
    return min(max(y, 0), size[0] - 1), min(max(x, 0), size[1] - 1)


def flicker(result: Result, model: int) -> list[tuple[int, float]]:
    """(number, share of pixels whose class differs from the frame before) of each frame that has one before it."""
    pairs = ((number, frame.changed[model]) for number, frame in enumerate(result.frames))
    return [(number, share) for number, share in pairs if share is not None]


# --- files to take away


def write_masks(result: Result, models: DemoModels, path: Path) -> Path:
    """A zip file with the label PNGs that `vss-hf predict` writes, `<video>/<frame>.png`, and `classes.json`.

    Of two models each has a folder with its name around that.

    Args:
        result: at least one frame.
        models: that made it.
        path: the file to write.
    """
    classes = [
        {"value": value, "name": name, "color": [int(part) for part in color]}
        for value, (name, color) in enumerate(zip(models.classes, models.palette, strict=True))
    ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
        archive.writestr("classes.json", json.dumps(classes, indent=1, ensure_ascii=False))
        for model, folder in enumerate(folders_of(models)):
            for number, member in enumerate(result.member_names()):
                archive.write(result.label_file(number, model), f"{folder}{member}")
    return path


def folders_of(models: DemoModels) -> list[str]:
    """In which folder of the zip file each model's label maps are, with its slash; one model needs none."""
    if len(models.names) == 1:
        return [""]
    return [f"{number}_{safe_name(name)}/" for number, name in enumerate(models.names, start=1)]


def write_overlay(
    result: Result, models: DemoModels, model: int, alpha: float, base: Path, progress: Callable[[int, int], None]
) -> Path:
    """The video of a model with frame, painted frame and legend, at `base`.mp4 (one frame: `base`.jpg).

    Args:
        result: at least one frame.
        models: that made it.
        model: whose labels.
        alpha: strength of the colours, 0..1.
        base: path without the suffix.
        progress: called with the number of frames painted and of all.

    Raises:
        Refused: it becomes larger than there is room.
    """
    painter = FramePainter(models.classes, models.palette, "side-by-side", alpha)
    try:
        with OverlayWriter(base, painter, result.rate or FRAME_RATE) as writer:
            for number, frame in enumerate(result.frames):
                writer.add(result.image(number), result.labels(number, model), frame.time, frame.name)
                if number % FRAMES_BETWEEN_LOOKS == FRAMES_BETWEEN_LOOKS - 1:
                    result.check_room()
                progress(number + 1, len(result.frames))
    except Refused:
        base.with_name(f"{base.name}.mp4").unlink(missing_ok=True)
        raise
    assert writer.path is not None  # there was a frame
    return writer.path
