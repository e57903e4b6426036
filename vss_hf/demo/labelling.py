"""The models of a demo, and how they label what a visitor gave, frame by frame."""

import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vss_hf.data.labels import palette_of
from vss_hf.inference import VideoSegmenter
from vss_hf.video_io import FrameSource

from .kept_scores import Arrays, kept_scores
from .uploads import Limits, Refused, check_size


STOP = "stop"  # file in the folder of a result whose labelling is to end


@dataclass(frozen=True)
class DemoModels:
    """One model, or two of the same classes that are compared.

    Args:
        names: how the page calls them.
        segmenters: one for each.
    """

    names: tuple[str, ...]
    segmenters: tuple[VideoSegmenter, ...]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the label values."""
        return self.segmenters[0].names

    @property
    def palette(self) -> Sequence[Sequence[int]]:
        """One (red, green, blue) per class."""
        return palette_of(self.classes)


@dataclass
class LabelledFrame:
    """A frame and what each model says about it.

    Args:
        name: as in `SegmentedFrame`.
        time: seconds since the first frame, or None.
        image: uint8 (H, W, 3) RGB.
        labels: of each model, uint8 (H, W).
        scores: of each model, see `kept_scores`.
    """

    name: str
    time: float | None
    image: np.ndarray
    labels: list[np.ndarray]
    scores: list[Arrays | None]


def open_models(sources: Sequence[str], device: str | None = None) -> DemoModels:
    """Load the models of a demo.

    Args:
        sources: one or two model folders or Hub ids.
        device: where to run; None: a GPU if there is one.

    Raises:
        ValueError: the second model has other classes than the first.
        As `VideoSegmenter.from_pretrained`.
    """
    segmenters = tuple(VideoSegmenter.from_pretrained(source, device) for source in sources)
    names = [short_name(source) for source in sources]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    first = segmenters[0].names
    for source, segmenter in zip(sources[1:], segmenters[1:], strict=True):
        if segmenter.names != first:
            difference = class_difference(first, segmenter.names)
            raise ValueError(f"--compare {source}: {difference}; expected the classes of {sources[0]}")
    return DemoModels(tuple(names), segmenters)


def short_name(source: str) -> str:
    """How people call a model: its Hub id, or the folder's name, or its parent's for `.../my-run/model`."""
    path = Path(source)
    if not path.is_dir():
        return source
    path = path.resolve()
    return path.parent.name if path.name in ("model", "best") and path.parent.name else path.name


def class_difference(first: list[str], second: list[str]) -> str:
    """Where two class lists differ."""
    if len(first) != len(second):
        return f"it has {len(second)} classes instead of {len(first)}"
    number = next(i for i, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
    return f"its class {number} is {second[number]!r} instead of {first[number]!r}"


def labelled_frames(
    models: DemoModels, source: FrameSource, limits: Limits, folder: Path | None = None
) -> Generator[LabelledFrame, None, None]:
    """Label a source; memory does not grow with it. The models take one source at a time.

    Args:
        models: that label it.
        source: what is labelled.
        limits: on its frames.
        folder: where `ask_to_stop` ends it; also from another process, which is where hardware that Spaces share
            (ZeroGPU) runs this.

    Raises:
        Refused: the source is longer than it said, or a frame larger.
    """
    for segmenter in models.segmenters:
        segmenter.reset()
    try:
        for number, frame in enumerate(source):
            if folder is not None and asked_to_stop(folder):
                return
            if number == limits.frames:
                raise Refused(f"it is longer than the {limits.frames} frames that this page takes; these are shown")
            height, width = frame.image.shape[:2]
            check_size(source.name, height, width, limits)
            maps = [segmenter.score_maps([frame.image])[0] for segmenter in models.segmenters]
            labels = [one.labels().cpu().numpy() for one in maps]
            yield LabelledFrame(frame.name, frame.time, frame.image, labels, [kept_scores(one) for one in maps])
    finally:
        for segmenter in models.segmenters:
            segmenter.reset()


def ask_to_stop(folder: Path) -> None:
    """End the labelling of a result after the frame at hand; argument: its folder. Nothing happens if it is gone."""
    with suppress(FileNotFoundError):
        (folder / STOP).touch()


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody asked to stop, or the folder is gone."""
    return not folder.is_dir() or (folder / STOP).exists()


class Progress:
    """How far the labelling is.

    Args:
        total: frames to come; None: not known.
    """

    def __init__(self, total: int | None):
        self.total, self.done, self._began = total, 0, time.monotonic()

    @property
    def rate(self) -> float:
        """Frames per second so far."""
        return self.done / max(time.monotonic() - self._began, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None: not known."""
        return (self.total - self.done) / self.rate if self.total and self.done else None
