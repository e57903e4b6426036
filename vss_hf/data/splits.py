"""A split of any data set, undecoded: its videos, its classes and how its masks are read.

Everything that looks at labelled data (samples, statistics, filters, evaluation, Parquet export) works on a
`LabelledSplit` and does not know whose layout the files have. A set of still images is a set of videos of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .labels import ClassList
from .masks import LabelReader
from .vspw import VSPWVideo, scan_split


@dataclass(frozen=True, eq=False)
class LabelledSplit:
    """The files of one split and what they mean.

    Args:
        root: the data set's folder; every file of `videos` lies below it.
        name: of the split.
        classes: what the labels mean.
        reader: turns mask files into labels of `classes`.
        videos: in order; frames in order of time.
        source: which layout it was read from ("vspw", "coco_stuff", ...).
        table: the remap table that was applied, or None: the data set's own classes.
    """

    root: Path
    name: str
    classes: ClassList
    reader: LabelReader
    videos: tuple[VSPWVideo, ...]
    source: str = "vspw"
    table: str | None = None

    @property
    def has_masks(self) -> bool:
        """Whether the split is labelled."""
        return self.videos[0].has_masks

    @property
    def num_frames(self) -> int:
        """Frames of all videos."""
        return sum(len(video.frames) for video in self.videos)

    def __str__(self) -> str:
        return f"split {self.name!r} of {self.root}"


def open_split(root: str | Path, split: str, *, classes: ClassList | None = None) -> LabelledSplit:
    """Lists the files of a split; opens no image.

    Args:
        root: the data set folder, in VSPW's layout.
        split: its name.
        classes: the class list; default is the data set's own.

    Raises:
        FileNotFoundError, ValueError: as `scan_split` and `ClassList.from_root`.
    """
    classes = ClassList.from_root(root) if classes is None else classes
    return LabelledSplit(Path(root), split, classes, LabelReader.of_classes(classes), tuple(scan_split(root, split)))
