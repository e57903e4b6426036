"""What the page holds for each visitor: the frames, label maps and scores of one source, in files with a limit."""

import io
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vss_hf.visualize import Palette, label_png

from .kept_scores import Arrays, load_scores, save_scores, scores_at
from .labelling import LabelledFrame
from .uploads import Limits, Refused, safe_name


SCORES_SHARE = 0.75  # of the limit, for scores: frames and label maps come first
IDLE_SECONDS = 3600.0
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class KeptFrame:
    """What is known of a frame without opening its files.

    Args:
        name: as in `SegmentedFrame`.
        time: seconds since the first frame, or None.
        size: (height, width).
        pixels: of each model, int64 (num_labels,): pixels of each class.
        changed: of each model, the share of pixels whose class differs from the frame before; None: no such frame.
        has_scores: of each model, whether its scores are kept.
    """

    name: str
    time: float | None
    size: tuple[int, int]
    pixels: list[np.ndarray]
    changed: list[float | None]
    has_scores: list[bool]


class Result:
    """The frames of one source with what each model says about them, in a folder of its own.

    Args:
        folder: that exists, and is removed by `close`.
        name: of the source, safe in a zip file.
        num_labels: classes.
        palette: one (red, green, blue) per class; viewers show the label PNGs in it.
        rate: frames per second, where frames have no times; None: not known.
        limit: bytes that the files may take.
    """

    def __init__(
        self, folder: Path, name: str, num_labels: int, palette: Palette, rate: float | None, limit: int
    ) -> None:
        self.folder, self.name, self.num_labels, self.palette, self.rate = folder, name, num_labels, palette, rate
        self.limit = limit
        self.frames: list[KeptFrame] = []
        self.bytes = self.score_bytes = 0
        self.used = time.monotonic()
        self.pictures_shown = itertools.count()
        self.stop = threading.Event()  # whoever labels looks at it
        self._before: list[np.ndarray] = []

    def add(self, frame: LabelledFrame) -> None:
        """Keep the next frame.

        Raises:
            Refused: the limit is reached; what was kept before stays.
        """
        number, size = len(self.frames), frame.image.shape[:2]
        picture = io.BytesIO()
        Image.fromarray(frame.image).save(picture, **JPEG)
        files = {self._path(number, "frame.jpg"): picture.getbuffer()}
        for model, labels in enumerate(frame.labels):
            files[self._path(number, f"labels{model}.png")] = label_png(labels, self.palette)
        needed = sum(len(data) for data in files.values())
        if self.bytes + self.score_bytes + needed > self.limit:
            room = f"{self.limit / 2**30:.1f} GB"
            raise Refused(f"the {room} for a result are full after {number} frames; these are shown")
        for path, data in files.items():
            path.write_bytes(data)
        self.bytes += needed
        has_scores = [self._keep_scores(number, model, arrays) for model, arrays in enumerate(frame.scores)]
        before = self._before or [None] * len(frame.labels)
        changed = [changed_share(*pair) for pair in zip(before, frame.labels, strict=True)]
        pixels = [np.bincount(labels.ravel(), minlength=self.num_labels)[: self.num_labels] for labels in frame.labels]
        self._before = frame.labels
        self.frames.append(KeptFrame(frame.name, frame.time, size, pixels, changed, has_scores))
        self.used = time.monotonic()

    def image(self, number: int) -> np.ndarray:
        """A frame as it is shown, uint8 (H, W, 3): it went through a JPEG of high quality."""
        with Image.open(self._path(number, "frame.jpg")) as picture:
            return np.array(picture)

    def labels(self, number: int, model: int) -> np.ndarray:
        """What a model said, uint8 (H, W)."""
        with Image.open(self.label_file(number, model)) as picture:
            return np.array(picture)

    def label_file(self, number: int, model: int) -> Path:
        """The label PNG, as `vss-hf predict` writes it."""
        return self._path(number, f"labels{model}.png")

    def scores(self, number: int, model: int, y: int, x: int) -> np.ndarray | None:
        """The scores of all classes at a pixel, float64 (num_labels,), summing to 1; None: they are not kept."""
        if not self.frames[number].has_scores[model]:
            return None
        return scores_at(load_scores(self._path(number, f"scores{model}.npz")), y, x)

    def member_names(self) -> Iterator[str]:
        """`<video>/<frame>.png` of each frame, as `vss-hf predict` calls its label maps."""
        for frame in self.frames:
            yield f"{self.name}/{safe_name(frame.name)}.png"

    def close(self) -> None:
        """End the labelling and remove the files."""
        self.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_scores(self, number: int, model: int, arrays: Arrays | None) -> bool:
        size = 0 if arrays is None else sum(array.nbytes for array in arrays.values())
        if arrays is None or self.score_bytes + size > SCORES_SHARE * self.limit:
            return False
        save_scores(arrays, self._path(number, f"scores{model}.npz"))
        self.score_bytes += size
        return True

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:08d}-{name}"


def changed_share(before: np.ndarray | None, labels: np.ndarray) -> float | None:
    """The share of pixels whose class is another one than a frame before; None: there is none of this size."""
    if before is None or before.shape != labels.shape:
        return None
    return float(np.mean(before != labels))


class Results:
    """The results of all visitors, one each, below one temporary folder.

    Args:
        limits: how many there are, and how large.

    Attributes:
        folder: that is removed by `close`, with whatever else was put there.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._temporary = tempfile.TemporaryDirectory(prefix="vss_hf_demo_", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._of_visitor: dict[str, Result] = {}
        self._lock = threading.Lock()

    def begin(self, visitor: str, name: str, num_labels: int, palette: Palette, rate: float | None) -> Result:
        """A new result for a visitor, whose old one goes; so do those that nobody looks at any more."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        result = Result(folder, name, num_labels, palette, rate, self.limits.result_bytes)
        with self._lock:
            old = [self._of_visitor.pop(visitor, None)]
            idle = time.monotonic() - IDLE_SECONDS
            by_use = sorted(self._of_visitor, key=lambda other: self._of_visitor[other].used)
            surplus = len(by_use) + 1 - self.limits.results
            for place, other in enumerate(by_use):
                if place < surplus or self._of_visitor[other].used < idle:
                    old.append(self._of_visitor.pop(other))
            self._of_visitor[visitor] = result
        for one in old:
            if one is not None:
                one.close()
        return result

    def of(self, visitor: str) -> Result | None:
        """A visitor's result, if it is still there and holds a frame."""
        result = self._of_visitor.get(visitor)
        if result is None or not result.frames:
            return None
        result.used = time.monotonic()
        return result

    def stop(self, visitor: str) -> None:
        """End the labelling for a visitor; what is there stays."""
        if (result := self._of_visitor.get(visitor)) is not None:
            result.stop.set()

    def end(self, visitor: str) -> None:
        """A visitor has left."""
        with self._lock:
            result = self._of_visitor.pop(visitor, None)
        if result is not None:
            result.close()

    def close(self) -> None:
        """Remove everything."""
        for visitor in list(self._of_visitor):
            self.end(visitor)
        self._temporary.cleanup()
