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
from .labelling import LabelledFrame, ask_to_stop, asked_to_stop
from .storage import Storage, bytes_in
from .uploads import Limits, Refused, safe_name


SCORES_SHARE = 0.75  # of the limit, for scores: frames and label maps come first
IDLE_SECONDS = 3600.0
SWEEP_SECONDS = 60.0
MEMBER_BYTES = 400  # at most, of what a zip file says of one of its files
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

    Attributes:
        running: frames are still to come.
        only: the class that the visitor wants to see alone; None: all.
        mark: (y, x) of the pixel that the visitor asked for, or None.
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
        self.running = True
        self.only: int | None = None
        self.mark: tuple[int, int] | None = None
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
        maps = [label_png(labels, self.palette) for labels in frame.labels]
        for model, data in enumerate(maps):
            files[self._path(number, f"labels{model}.png")] = data
        # The zip file will hold the label maps again.
        needed = sum(len(data) for data in files.values()) + sum(len(data) + MEMBER_BYTES for data in maps)
        if self.bytes + self.score_bytes + needed > self.limit:
            raise Refused(f"the {self._room} for a result are full after {number} frames; these are shown")
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

    def check_room(self) -> None:
        """Raise `Refused` if the files have become more than the limit."""
        if bytes_in(self.folder) > self.limit:
            raise Refused(f"the {self._room} for a result are full")

    def stop(self) -> None:
        """End the labelling after the frame at hand."""
        ask_to_stop(self.folder)

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to stop, or the result is gone."""
        return asked_to_stop(self.folder)

    def close(self) -> None:
        """End the labelling and remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # a file may have come while the others went

    def _keep_scores(self, number: int, model: int, arrays: Arrays | None) -> bool:
        size = 0 if arrays is None else sum(array.nbytes for array in arrays.values())
        if arrays is None or self.score_bytes + size > SCORES_SHARE * self.limit:
            return False
        path = self._path(number, f"scores{model}.npz")
        save_scores(arrays, path)
        self.score_bytes += path.stat().st_size
        return True

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:08d}-{name}"

    @property
    def _room(self) -> str:
        return f"{self.limit / 2**30:.1f} GB"


def changed_share(before: np.ndarray | None, labels: np.ndarray) -> float | None:
    """The share of pixels whose class is another one than a frame before; None: there is none of this size."""
    if before is None or before.shape != labels.shape:
        return None
    return float(np.mean(before != labels))


class Results:
    """The results of all visitors, one each.

    Those that nobody looks at any more go, whether or not somebody comes.

    Args:
        limits: how many there are, and how large.

    Attributes:
        storage: where they are; `close` removes it.
    """

    def __init__(self, limits: Limits):
        self.limits, self.storage = limits, Storage(limits)
        self._of_visitor: dict[str, Result] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="vss_hf_demo_sweep", daemon=True).start()

    def begin(self, visitor: str, name: str, num_labels: int, palette: Palette, rate: float | None) -> Result:
        """A new result for a visitor, whose old one goes; so do others until there is room for this one."""
        room = self.limits.disk_bytes // 2
        limit = min(self.limits.result_bytes, room)
        folder = Path(tempfile.mkdtemp(dir=self.storage.results))
        result = Result(folder, name, num_labels, palette, rate, limit)
        with self._lock:
            old = [self._of_visitor.pop(visitor, None)]
            by_use = sorted(self._of_visitor, key=lambda other: self._of_visitor[other].used)
            taken = {other: bytes_in(self._of_visitor[other].folder) for other in by_use}
            for other in by_use:
                if len(taken) < self.limits.results and sum(taken.values()) + limit <= room:
                    break
                del taken[other]
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
            result.stop()

    def end(self, visitor: str) -> None:
        """A visitor has left."""
        with self._lock:
            result = self._of_visitor.pop(visitor, None)
        if result is not None:
            result.close()

    def drop_idle(self) -> None:
        """Remove the results that were not used for `IDLE_SECONDS`: their visitors left without a word."""
        oldest = time.monotonic() - IDLE_SECONDS
        for visitor, result in list(self._of_visitor.items()):
            if result.used < oldest:
                self.end(visitor)

    def close(self) -> None:
        """Remove everything."""
        self._closed.set()
        for visitor in list(self._of_visitor):
            self.end(visitor)
        self.storage.close()

    def _sweep(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            self.drop_idle()
            self.storage.drop_old_uploads()
