"""What a split's labels look like in numbers: how often every class occurs, where, and beside which others.

Counted once from the masks (scan.py keeps the counts), saved as JSON, and used for class weights, class priors and
the drawing of rare classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import sparse

from .labels import IGNORE_INDEX
from .scan import LabelScan, known_scan, scan_labels
from .splits import LabelledSplit


FORMAT = 1  # of the JSON
_PLAIN = ("dataset", "split", "source", "table", "num_videos", "num_frames", "void_pixels")
FREQUENT, RARE = 0.10, 0.02  # of the videos: where the head begins and the tail ends
CLASS_WEIGHTS = ("inverse_sqrt", "literal_sqrt", "inverse", "effective_number")


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Counts over the labels of a split; C classes.

    Args:
        names: of the classes, by label.
        pixels: int64 (C,).
        frames: int64 (C,), frames that hold the class.
        videos: int64 (C,), videos that hold it.
        together: int64 (C, C), frames that hold both classes; the diagonal is `frames`.
        void_pixels: pixels without a label.
        num_frames, num_videos: of the split; without frames whose mask cannot be read.
        dataset, split, source, table: where the labels are from: the folder's name, and as in `LabelledSplit`.
    """

    names: tuple[str, ...]
    pixels: np.ndarray
    frames: np.ndarray
    videos: np.ndarray
    together: np.ndarray
    void_pixels: int
    num_frames: int
    num_videos: int
    dataset: str
    split: str
    source: str = "vspw"
    table: str | None = None

    @property
    def unit(self) -> str:
        """What the videos are: "videos", or "images" if each has one frame."""
        return "images" if self.num_videos == self.num_frames else "videos"

    @property
    def shares(self) -> np.ndarray:
        """float64 (C,): the share of each class in the labelled pixels, its prior; all 0 where nothing is labelled."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def ignored_share(self) -> float:
        """Share of all pixels that have no label, 0..1."""
        return self.void_pixels / max(1, self.void_pixels + int(self.pixels.sum()))

    def occurring(self) -> np.ndarray:
        """The labels that occur, int64, those of the most pixels first."""
        order = np.lexsort((-self.videos, -self.pixels))
        return order[self.pixels[order] > 0]

    def groups(self, frequent: float = FREQUENT, rare: float = RARE) -> list[str]:
        """ "head", "medium" or "tail" for every class, by the share of the videos that hold it; "absent" for none.

        Args:
            frequent: from this share on, a class belongs to the head.
            rare: below this share, it belongs to the tail.
        """
        return class_groups(self.videos, self.num_videos, frequent, rare)

    def class_weights(self, kind: str = "inverse_sqrt") -> np.ndarray:
        """Weights of the classes in a loss, float64 (C,).

        Args:
            kind: one of CLASS_WEIGHTS, see `weights_of_classes`.

        Raises:
            ValueError: no such kind, or nothing is labelled.
        """
        if not self.pixels.any():
            where = f"split {self.split!r} of {self.dataset}"
            raise ValueError(f"{where}: no labelled pixel, so there are no class weights")
        return weights_of_classes(self.pixels, kind)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; the opposite of `from_dict`."""
        classes = zip(self.names, self.pixels.tolist(), self.frames.tolist(), self.videos.tolist(), strict=True)
        return {
            "label_statistics": FORMAT,
            **{key: getattr(self, key) for key in _PLAIN},
            "classes": [{"name": n, "pixels": p, "frames": f, "videos": v} for n, p, f, v in classes],
            "together": self.together.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], names: Sequence[str] | None = None) -> LabelStatistics:
        """What `to_dict` gave; other keys are passed over.

        Args:
            values: from JSON.
            names: the class names that are expected, in order; None: any.

        Raises:
            ValueError: not of this format, or of other classes.
        """
        found = values.get("label_statistics")
        if found != FORMAT:
            raise ValueError(f"label statistics have format {found!r}; expected {FORMAT}: write them anew")
        classes = values["classes"]
        statistics = cls(
            names=tuple(entry["name"] for entry in classes),
            pixels=np.array([entry["pixels"] for entry in classes], dtype=np.int64),
            frames=np.array([entry["frames"] for entry in classes], dtype=np.int64),
            videos=np.array([entry["videos"] for entry in classes], dtype=np.int64),
            together=np.array(values["together"], dtype=np.int64),
            **{key: values[key] for key in _PLAIN},
        )
        if names is not None:
            statistics.check_names(names)
        return statistics

    def check_names(self, names: Sequence[str]) -> None:
        """Raise ValueError unless these are the classes that were counted, in this order."""
        if len(self.names) != len(names):
            difference = f"{len(self.names)} classes, expected {len(names)}"
        elif wrong := [i for i, name in enumerate(names) if self.names[i] != name]:
            difference = f"class {wrong[0]} is {self.names[wrong[0]]!r}, expected {names[wrong[0]]!r}"
        else:
            return
        raise ValueError(f"label statistics of {self.dataset} are of other classes: {difference}; count them anew")


def label_statistics(
    split: LabelledSplit, *, on_bad_sample: str = "raise", num_workers: int | None = None, progress: bool = True
) -> LabelStatistics:
    """Counts the labels of a split; arguments and errors as `scan_labels`, which keeps what it has counted."""
    return statistics_of(scan_labels(split, on_bad_sample=on_bad_sample, num_workers=num_workers, progress=progress))


def known_statistics(split: LabelledSplit) -> LabelStatistics | None:
    """The statistics of a split that was counted before and has not changed; else None. No mask is opened."""
    scan = known_scan(split)
    return None if scan is None else statistics_of(scan)


def class_groups(videos: np.ndarray, num_videos: int, frequent: float = FREQUENT, rare: float = RARE) -> list[str]:
    """The groups of `LabelStatistics.groups`, from the number of videos that hold each class, (C,), and of all."""
    shares = videos / max(1, num_videos)
    names = np.select([shares == 0, shares < rare, shares < frequent], ["absent", "tail", "medium"], "head")
    return names.tolist()


def statistics_of(scan: LabelScan) -> LabelStatistics:
    """The statistics of a scanned split."""
    split, num_labels = scan.split, scan.split.classes.num_labels
    labels = scan.labels
    pixels = np.zeros(256, dtype=np.int64)
    np.add.at(pixels, labels, scan.counts)
    in_frame = _presence(scan.frame, labels, split.num_frames, num_labels)
    in_video = _presence(_video_of_frame(split)[scan.frame], labels, len(split.videos), num_labels)
    together = (in_frame.T @ in_frame).toarray()
    read = np.unique(scan.frame)
    return LabelStatistics(
        names=split.classes.names,
        pixels=pixels[:num_labels],
        frames=together.diagonal().copy(),
        videos=np.asarray(in_video.sum(0)).ravel(),
        together=together,
        void_pixels=int(pixels[IGNORE_INDEX]),
        num_frames=len(read),
        num_videos=len(np.unique(_video_of_frame(split)[read])),
        dataset=Path(split.root).resolve().name,
        split=split.name,
        source=split.source,
        table=split.table,
    )


def weights_of_classes(pixels: np.ndarray, kind: str = "inverse_sqrt") -> np.ndarray:
    """Weights of the classes in a loss, from their pixels: 1 for a class with the mean number m of pixels.

    Args:
        pixels: (C,), n of each class; at least one is not 0. m is the mean over the classes that occur.
        kind: "inverse_sqrt", sqrt(m / n): BetterThing's pixel-distribution weights as its text wants them;
            "literal_sqrt", sqrt(n / m): as its sec. 4.2.1 prints them, which weighs frequent classes up;
            "inverse", m / n;
            "effective_number", (1 - 1 / e) / (1 - exp(-n / m)): Cui et al., CVPR 2019, with beta = 1 - 1 / m, which
            is like "inverse" for rare classes and levels off for frequent ones.

    Returns:
        float64 (C,). Classes that are absent get the weight of the rarest present one.

    Raises:
        ValueError: no such kind.
    """
    present = pixels > 0
    relative = np.where(present, pixels, pixels[present].min()) / pixels[present].mean()
    if kind == "inverse_sqrt":
        return relative**-0.5
    if kind == "literal_sqrt":
        return relative**0.5
    if kind == "inverse":
        return 1 / relative
    if kind == "effective_number":
        return np.expm1(-1) / np.expm1(-relative)
    raise ValueError(f"class weights {kind!r}: unknown; expected {', '.join(CLASS_WEIGHTS)}")


def frame_weights(
    scan: LabelScan, by: Literal["pixels", "videos"] = "videos", threshold: float | None = None
) -> np.ndarray:
    """How often frames should be drawn so that rare classes are seen more: repeat factors as for LVIS.

    A class of frequency f has the factor max(1, sqrt(threshold / f)), and a frame the largest factor of its classes.
    LVIS (Gupta et al. 2019) takes the share of images for f, and 0.001 for the threshold.

    Args:
        scan: of the split.
        by: "videos": f is the share of videos that hold the class; "pixels": its share of the labelled pixels.
        threshold: of f, below which a class counts as rare; default: the median of the classes that occur, so that
            half of them are drawn more often.

    Returns:
        float64 (frames,), at least 1, in the order of the split's frames; 1 for frames without a label.

    Raises:
        ValueError: `by` is unknown, or the threshold is not above 0.
    """
    if by not in ("pixels", "videos"):
        raise ValueError(f"by is {by!r}; expected pixels or videos")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold is {threshold}; expected a share above 0")
    statistics = statistics_of(scan)
    frequency = statistics.shares if by == "pixels" else statistics.videos / max(1, statistics.num_videos)
    occurs = frequency > 0
    if not occurs.any():
        return np.ones(scan.split.num_frames)
    threshold = float(np.median(frequency[occurs])) if threshold is None else threshold
    factors = np.ones(256)  # of void too
    factors[: len(frequency)][occurs] = np.maximum(1, np.sqrt(threshold / frequency[occurs]))
    weights = np.ones(scan.split.num_frames)
    np.maximum.at(weights, scan.frame, factors[scan.labels])
    return weights


def print_statistics(statistics: LabelStatistics, console: Console | None = None) -> None:
    """Writes a table of the classes for a person, the most frequent first."""
    videos = statistics.unit == "videos"
    counts = [f"{statistics.num_videos:,} {statistics.unit}"] + [f"{statistics.num_frames:,} frames"] * videos
    counts += [f"{int(statistics.pixels.sum()) + statistics.void_pixels:,} pixels"]
    counts += [f"{statistics.ignored_share:.2%} ignored"]
    table = Table(title=f"{statistics.dataset} {statistics.split}: {', '.join(counts)}", title_justify="left")
    table.add_column("class", overflow="fold")
    for column in ("labelled pixels", statistics.unit, *["frames"] * videos):
        table.add_column(column, justify="right")
    table.add_column("group")
    groups = statistics.groups()
    for i in statistics.occurring():
        cells = [f"{statistics.shares[i]:.3%}", f"{statistics.videos[i]:,}", *[f"{statistics.frames[i]:,}"] * videos]
        table.add_row(escape(statistics.names[i]), *cells, groups[i])
    sizes = ", ".join(f"{groups.count(name)} {name}" for name in ("head", "medium", "tail", "absent"))
    console = console or Console()
    console.print(table)
    console.print(
        f"{sizes} (head: in at least {FREQUENT:.0%} of the {statistics.unit}, tail: in less than {RARE:.0%})"
    )


def _video_of_frame(split: LabelledSplit) -> np.ndarray:
    return np.repeat(np.arange(len(split.videos)), [len(video.frames) for video in split.videos])


def _presence(rows: np.ndarray, labels: np.ndarray, num_rows: int, num_labels: int) -> sparse.csr_array:
    """int64 (num_rows, num_labels): 1 where a label occurs in a row."""
    pairs = np.unique(rows.astype(np.int64) * 256 + labels)
    pairs = pairs[pairs % 256 < num_labels]
    ones = np.ones(len(pairs), dtype=np.int64)
    return sparse.csr_array((ones, (pairs // 256, pairs % 256)), shape=(num_rows, num_labels))
