"""Which values every mask of a split holds: counted once and kept beside the data; and the filter that needs it.

Values are what the files store, not labels: so one scan serves every remap table.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .labels import IGNORE_INDEX
from .masks import LabelReader
from .packed import is_packed, parse_packed, read_packed
from .scan_cache import MaskCounts, ScanCache
from .splits import LabelledSplit


MASKS_PER_TASK = 16  # of a thread; a killed scan loses about that many per thread
YOUNG = 2_000_000_000  # ns; a file can change again within the same tick of its file system's clock


@dataclass(frozen=True, eq=False)
class LabelScan:
    """The values in the masks of a split, frame by frame, sparse.

    Frames are numbered as in the split: videos in order, their frames in order; n is the number of (frame, value)
    pairs that occur.

    Args:
        split: what was scanned.
        frame: int64 (n,), ascending: the frame of each pair.
        values: uint16 (n,), what the mask stores.
        counts: int64 (n,), pixels of the frame with that value.
        unreadable: frames whose mask cannot be read, ascending; they have no pairs.
    """

    split: LabelledSplit
    frame: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    unreadable: tuple[int, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """uint8 (n,): the label of each pair after the split's lookup, 255 = ignore."""
        return self.split.reader.lookup[self.values]

    def pixels(self) -> np.ndarray:
        """int64 (frames,): all pixels of each frame; 0 for a mask that cannot be read."""
        return self._sum(self.counts)

    def labelled_pixels(self) -> np.ndarray:
        """int64 (frames,): the pixels of each frame that have a label."""
        return self._sum(np.where(self.labels != IGNORE_INDEX, self.counts, 0))

    def _sum(self, numbers: np.ndarray) -> np.ndarray:
        total = np.zeros(self.split.num_frames, dtype=np.int64)
        np.add.at(total, self.frame, numbers)
        return total


def scan_labels(
    split: LabelledSplit, *, on_bad_sample: str = "raise", num_workers: int | None = None, progress: bool = True
) -> LabelScan:
    """Counts the values in every mask of a split; masks that were counted before and are unchanged are not opened.

    A scan that was stopped, by whatever, goes on where it was when it is called again. Where the data set's folder
    cannot be written, and for Parquet files, the counts are kept in `<HF_HOME>/vss_hf`.

    Args:
        split: with masks.
        on_bad_sample: a mask that is damaged or gone is an error ("raise"), or "skip": left out, and one
            warning tells how many.
        num_workers: threads (decoding releases the GIL); default is the number of processors.
        progress: draws a bar on stderr when that is a terminal.

    Raises:
        FileNotFoundError, ValueError: the split has no masks, or one cannot be read (it is named).
    """
    if on_bad_sample not in ("raise", "skip"):
        raise ValueError(f"on_bad_sample is {on_bad_sample!r}; expected raise or skip")
    paths = [str(frame.mask_path) for video in split.videos for frame in video.frames if frame.mask_path]
    if len(paths) != split.num_frames:
        raise ValueError(f"{split} has {len(paths)} masks for {split.num_frames} frames; labels cannot be counted")
    cache = ScanCache(split)
    tasks = [paths[i : i + MASKS_PER_TASK] for i in range(0, len(paths), MASKS_PER_TASK)]
    found: list[MaskCounts | None] = []
    problems: list[Exception] = []
    bar = tqdm(
        total=len(paths), desc="counting labels", unit="mask", file=sys.stderr, disable=None if progress else True
    )
    with bar, ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        results: Any = pool.map(partial(_count_all, split.reader, cache), tasks)  # a generator
        with closing(results):  # before the pool is: an error or Ctrl-C then drops the tasks that have not begun
            for task, outcomes in zip(tasks, results, strict=True):
                counted = [None if isinstance(outcome, Exception) else outcome for outcome in outcomes]
                cache.keep(zip(task, counted, strict=True))
                problems += (outcome for outcome in outcomes if isinstance(outcome, Exception))
                if problems and on_bad_sample == "raise":
                    raise problems[0]
                found += counted
                bar.update(len(task))
    if problems:
        bad = f"{len(problems)} of {len(paths)} masks cannot be read and are not counted"
        warnings.warn(f"{bad}; the first: {problems[0]}", RuntimeWarning, stacklevel=2)
    return _joined(split, found)


def known_scan(split: LabelledSplit) -> LabelScan | None:
    """What `scan_labels` has kept of a split; None if a mask is new or has changed. No mask is opened.

    Args:
        split: with masks.
    """
    cache, found = ScanCache(split), []
    for video in split.videos:
        for frame in video.frames:
            path = str(frame.mask_path)
            line = cache.by_name.get(cache.name(path))
            if line is None or (line.size, line.mtime_ns) != _stamp(path):
                return None
            found.append(line)
    return _joined(split, found)


def _joined(split: LabelledSplit, found: Sequence[MaskCounts | None]) -> LabelScan:
    known = [counts for counts in found if counts is not None]
    return LabelScan(
        split,
        frame=np.repeat(np.arange(len(found)), [len(counts.values) if counts else 0 for counts in found]),
        values=np.fromiter(chain.from_iterable(counts.values for counts in known), dtype=np.uint16),
        counts=np.fromiter(chain.from_iterable(counts.counts for counts in known), dtype=np.int64),
        unreadable=tuple(i for i, counts in enumerate(found) if counts is None),
    )


# --- one mask


def _count_all(reader: LabelReader, cache: ScanCache, paths: Sequence[str]) -> list[MaskCounts | Exception]:
    outcomes: list[MaskCounts | Exception] = []
    for path in paths:
        try:
            outcomes.append(_count(reader, cache, path))
        except (OSError, ValueError) as error:  # what `reader.values` raises; whether it matters, the caller decides
            outcomes.append(error)
    return outcomes


def _count(reader: LabelReader, cache: ScanCache, path: str) -> MaskCounts:
    """The counts of one mask: from its line if size and time agree, else by its content, which may be known too."""
    stamp = _stamp(path)
    line = cache.by_name.get(cache.name(path))
    if line is not None and (line.size, line.mtime_ns) == stamp:
        return line
    digest = hashlib.blake2b(_content(path), digest_size=16)
    if reader.colours:
        digest.update(os.path.basename(os.path.dirname(path)).encode("utf-8", "surrogateescape"))  # it matters there
    digest = digest.hexdigest()
    line = cache.by_digest.get(digest)
    if line is None:
        values = reader.values(path)
        height, width = values.shape
        line = MaskCounts(0, 0, digest, height, width, *_histogram(values))
    size, mtime_ns = stamp
    # of a file that has just been written nothing but the content is sure, also next time
    young = time.time_ns() - mtime_ns < YOUNG
    return line._replace(size=size, mtime_ns=-1 if young else mtime_ns)


def _histogram(values: np.ndarray) -> tuple[list[int], list[int]]:
    if values.dtype == np.uint8:  # PIL is twice as fast as numpy here, and threads do not wait for each other
        histogram = np.array(Image.fromarray(values).histogram())
    else:
        histogram = np.bincount(values.ravel())
    present = np.flatnonzero(histogram)
    return present.tolist(), histogram[present].tolist()


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change of the file that holds a mask."""
    if path.startswith("hf:/"):
        return 0, 0  # the path names a commit, whose content never changes
    found = os.stat(parse_packed(path).shard if is_packed(path) else path)
    return found.st_size, found.st_mtime_ns


def _content(path: str) -> bytes:
    """The encoded bytes of a mask."""
    return read_packed(path) if is_packed(path) else Path(path).read_bytes()


# --- the filter


@dataclass(frozen=True)
class FilterReport:
    """What `select_labelled` did, in numbers.

    Args:
        min_labelled: the share that a frame needs.
        kept, dropped: frames.
        videos_kept, videos_dropped: videos with at least one frame left, and without any.
        unreadable: of the dropped frames, those whose mask cannot be read.
        ignored_before, ignored_after: share of the pixels without a label, 0..1, in all frames and in those kept.
        lost_classes: names of the classes that occurred and now do not.
        still_images: whether every video is one image.
    """

    min_labelled: float
    kept: int
    dropped: int
    videos_kept: int
    videos_dropped: int
    unreadable: int
    ignored_before: float
    ignored_after: float
    lost_classes: tuple[str, ...]
    still_images: bool

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        what = "images" if self.still_images else "frames"
        videos = "" if self.still_images else f" in {self.videos_kept:,} of {self._videos:,} videos"
        return (
            f"kept {self.kept:,} of {self.kept + self.dropped:,} {what}{videos} (at least "
            f"{100 * self.min_labelled:.4g}% labelled); "
            f"ignored pixels {self.ignored_before:.1%} before, {self.ignored_after:.1%} after"
        )

    @property
    def _videos(self) -> int:
        return self.videos_kept + self.videos_dropped


def filter_labelled(
    split: LabelledSplit,
    min_labelled: float,
    *,
    on_bad_sample: str = "raise",
    num_workers: int | None = None,
    progress: bool = True,
) -> LabelledSplit:
    """The split without frames of which too little is labelled.

    Args:
        split: with masks; its lookup says what is labelled, so remap first.
        min_labelled: the share of labelled pixels that a frame needs, 0..1; 0 keeps everything and scans nothing.
        on_bad_sample, num_workers: as `scan_labels`; "skip" drops frames whose mask cannot be read.
        progress: as `scan_labels`; also says on stderr, in one line, what was dropped.

    Raises:
        ValueError: min_labelled is out of range, or nothing is left. Else as `scan_labels`.
    """
    _check_share(min_labelled)
    if min_labelled == 0:
        return split
    scan = scan_labels(split, on_bad_sample=on_bad_sample, num_workers=num_workers, progress=progress)
    kept, report = select_labelled(scan, min_labelled)
    if progress:
        print(f"{split}: {report}", file=sys.stderr)
    return kept.split


def select_labelled(scan: LabelScan, min_labelled: float) -> tuple[LabelScan, FilterReport]:
    """The scan of those frames of which at least `min_labelled` (0..1) of the pixels are labelled, and a report.

    The frames before and after one that is dropped become neighbours. Warns about classes that are left without any
    frame. Errors as `filter_labelled`.
    """
    _check_share(min_labelled)
    split, pixels, labelled = scan.split, scan.pixels(), scan.labelled_pixels()
    keep = (pixels > 0) & (labelled / np.maximum(pixels, 1) >= min_labelled)
    if not keep.any():
        best = float((labelled / np.maximum(pixels, 1)).max())
        raise ValueError(
            f"min_labelled={min_labelled} leaves nothing of {split}: at most {best:.1%} of a frame is labelled"
        )
    wanted, videos = iter(keep), []
    for video in split.videos:
        frames = tuple(frame for frame, wants in zip(video.frames, wanted) if wants)  # noqa: B905  (`wanted` goes on)
        if frames:
            videos.append(replace(video, frames=frames))
    before, after = (np.unique(scan.labels[chosen]) for chosen in (slice(None), keep[scan.frame]))
    lost = tuple(split.classes.names[label] for label in np.setdiff1d(before, [*after, IGNORE_INDEX]))
    if lost:
        warnings.warn(
            f"min_labelled={min_labelled} leaves no frame of {split} with {', '.join(lost)}",
            RuntimeWarning,
            stacklevel=2,
        )
    report = FilterReport(
        min_labelled=min_labelled,
        kept=int(keep.sum()),
        dropped=int((~keep).sum()),
        videos_kept=len(videos),
        videos_dropped=len(split.videos) - len(videos),
        unreadable=len(scan.unreadable),
        ignored_before=1 - float(labelled.sum() / pixels.sum()),
        ignored_after=1 - float(labelled[keep].sum() / pixels[keep].sum()),
        lost_classes=lost,
        still_images=all(len(video.frames) == 1 for video in split.videos),
    )
    pairs = keep[scan.frame]
    frame = (np.cumsum(keep) - 1)[scan.frame[pairs]]  # their new numbers
    return LabelScan(replace(split, videos=tuple(videos)), frame, scan.values[pairs], scan.counts[pairs]), report


def _check_share(min_labelled: float) -> None:
    if not 0 <= min_labelled <= 1:
        raise ValueError(f"min_labelled is {min_labelled}; expected a share of the pixels, 0..1")
