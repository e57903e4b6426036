"""A split of any data set, undecoded: its videos, its classes and how its masks are read.

Everything that looks at labelled data (samples, statistics, filters, evaluation, Parquet export) works on a
`LabelledSplit` and does not know whose layout the files have. A set of still images is a set of videos of one frame.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from .labels import ClassList
from .masks import LabelReader
from .vspw import VSPWVideo


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
        checksums: of the shards, for packed data.
    """

    root: Path
    name: str
    classes: ClassList
    reader: LabelReader
    videos: tuple[VSPWVideo, ...]
    source: str = "vspw"
    table: str | None = None
    checksums: tuple[str, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Whether the split is labelled."""
        return self.videos[0].has_masks

    @property
    def num_frames(self) -> int:
        """Frames of all videos."""
        return sum(len(video.frames) for video in self.videos)

    @property
    def packed(self) -> bool:
        """Whether the files lie in Parquet shards, which are best read a video at a time."""
        return self.source == "parquet"

    @property
    def fingerprint(self) -> int:
        """A number for the frames and their order, the same wherever the data set lies; not for what labels mean.

        Of files the names count. Of packed data the checksums count too: an export of another day is noticed, a copy
        of the same one (another commit, a download) is not.
        """
        prefix = f"{self.root}{os.sep}"
        number = zlib.crc32("\n".join(self.checksums).encode())
        for video in self.videos:
            files = (str(path).removeprefix(prefix) for frame in video.frames for path in frame[1:])
            number = zlib.crc32("\n".join((video.name, *files)).encode("utf-8", "surrogateescape"), number)
        return number

    def __str__(self) -> str:
        return f"split {self.name!r} of {self.root}"


def open_split(
    root: str | Path,
    split: str,
    *,
    source: str = "vspw",
    table: str | Path | None = None,
    classes: ClassList | None = None,
    min_labelled: float = 0.0,
) -> LabelledSplit:
    """Lists the files of a split; opens no image, except to count labels for `min_labelled`.

    Args:
        root: the data set folder in its official layout; for VSPW's layout also a packed one or one on the Hub.
        split: its name on disk. "train" and "val" are understood for every source ("train2017", "validation", ...).
        source: which data set it is; the names in `sources.SOURCES`.
        table: None keeps the source's own classes; "default", "liberal" or the path of a CSV file remaps them to
            VSPW's (see `remap.load_table`).
        classes: the class list, for source "vspw" only; default is the data set's own.
        min_labelled: leaves out images of which a smaller share (0..1) has a label, after remapping.

    Raises:
        FileNotFoundError: a folder, file or class list is missing; the message says what was expected.
        ValueError: unknown source, split or table, or the data set is damaged.
    """
    from .layouts_videos import open_vspw  # these import this file
    from .remap import load_table, nearest
    from .sources import SOURCES

    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; {nearest(source, SOURCES)}")
    if classes is not None and source != "vspw":
        raise ValueError(f"classes with source {source!r}: it has a class list of its own; leave classes out")
    opened = open_vspw(root, split, classes) if source == "vspw" else SOURCES[source](Path(root), split)
    if table is not None:
        opened = load_table(source, table).apply(opened)
    if min_labelled:
        from .scan import filter_labelled

        opened = filter_labelled(opened, min_labelled)
    return opened
