"""Checks a data set in VSPW's layout, file by file, before a training run finds the damage at night.

Errors are what would stop or spoil training and evaluation; warnings are what a reader should know. The check itself
goes on whatever it meets: each damaged file becomes one line of the report.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .findings import Finding, print_findings, shown
from .labels import IGNORE_INDEX, LABEL_FILE, VSPW, ClassList
from .parquet import INDEX_FILE, read_index, verify_parquet
from .vspw import (
    IMAGE_SUFFIXES,
    NotIndicesError,
    check_frame_mode,
    list_images,
    naming_damage,
    open_image,
    open_mask,
    read_split,
)


# videos and frames of VSPW as published; 251,633 frames in all
OFFICIAL_COUNTS = {"train": (2806, 198_244), "val": (343, 24_502), "test": (387, 28_887)}
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class SplitCounts:
    """What a split holds. Pixels are counted by training id; `void_pixels` are all others."""

    videos: int = 0
    frames: int = 0
    masks: int = 0
    class_pixels: dict[str, int] = field(default_factory=dict)
    class_videos: dict[str, int] = field(default_factory=dict)
    void_pixels: int = 0


@dataclass
class VerifyReport:
    """The result of `verify_dataset`.

    Args:
        root: the folder that was checked.
        class_list: "VSPW" or "N classes", or None when the class list could not be read.
        splits: per split, the counts.
        errors: findings that break or spoil training or evaluation.
        warnings: findings that do not.
    """

    root: str
    class_list: str | None = None
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def print(self, console: Console | None = None) -> None:
        """Writes the counts, the class table and the findings (the first few of each kind) for a person."""
        console = console or Console()
        console.print(self._count_table())
        if any(counts.class_pixels for counts in self.splits.values()):
            console.print(self._class_table())
        print_findings(console, "error", "red", self.errors)
        print_findings(console, "warning", "yellow", self.warnings)
        verdict = "[green]no errors[/]" if self.ok else f"[red]{len(self.errors)} errors[/]"
        console.print(f"{verdict}, {len(self.warnings)} warnings in {escape(self.root)}", soft_wrap=True)

    def _count_table(self) -> Table:
        table = Table(title=f"class list: {self.class_list or 'unreadable'}")
        table.add_column("split")
        official = self.class_list == "VSPW"
        for column in ("videos", "frames", "masks", *(["official videos", "official frames"] if official else [])):
            table.add_column(column, justify="right")
        for split, counts in self.splits.items():
            cells = [counts.videos, counts.frames, counts.masks]
            if official:
                cells += OFFICIAL_COUNTS.get(split, ())
            table.add_row(escape(split), *(f"{cell:,}" for cell in cells))
        return table

    def _class_table(self) -> Table:
        table = Table(title="share of pixels (videos) per class")
        table.add_column("class")
        labelled = {split: counts for split, counts in self.splits.items() if counts.class_pixels}
        for split in labelled:
            table.add_column(escape(split), justify="right")
        totals = {split: max(1, sum(c.class_pixels.values()) + c.void_pixels) for split, c in labelled.items()}
        for name in next(iter(labelled.values())).class_pixels:
            shares = (f"{c.class_pixels[name] / totals[s]:.2%} ({c.class_videos[name]})" for s, c in labelled.items())
            table.add_row(escape(shown(name)), *shares)
        table.add_row("(void)", *(f"{c.void_pixels / totals[split]:.2%}" for split, c in labelled.items()))
        return table


def verify_dataset(
    root: str | Path,
    splits: Sequence[str] | None = None,
    max_workers: int | None = None,
    *,
    progress: bool = True,
) -> VerifyReport:
    """Opens every file of a data set and reports what is damaged, missing or odd.

    Errors: no class list, a list file that cannot be used, missing or doubled videos, a video in several splits, a
    frame without its mask (in a split with masks), a mask of another size than its frame, masks that hold no indices,
    labelled videos whose frames change size, unreadable files. Warnings: masks without a frame, folders in no list,
    mask values outside the class list (training ignores them), unlabelled videos whose frames change size, and counts
    that are not the official ones of VSPW. Of a packed data set the checksums are compared (see `verify_parquet`).

    Args:
        root: the data set folder.
        splits: which lists to check; default is those of train, val and test that exist.
        max_workers: threads (decoding releases the GIL); default is the number of processors.
        progress: draws a bar on stderr when that is a terminal.

    Returns:
        The report. Damage is never raised.
    """
    root = Path(root)
    report = VerifyReport(root=shown(root))
    if (root / INDEX_FILE).is_file():
        return _verify_packed(root, report, progress)
    classes = _read_classes(root, report)
    lists = _read_lists(root, splits, report)
    tasks = [(split, name) for split, names in lists.items() for name in names]
    folders = [root / "data" / name for _, name in tasks]
    checks = in_threads(lambda folder: _check_video(folder, classes), folders, max_workers, "checking", progress)
    per_video = dict(zip(tasks, checks, strict=True))
    for split, names in lists.items():
        report.splits[split] = _gather(split, [per_video[split, name] for name in names], classes, report)
    if classes is VSPW:
        _compare_official(report)
    return report


def in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    max_workers: int | None,
    title: str,
    progress: bool = True,
) -> list[_Result]:
    """The results of a function for each video, in order, with a bar on stderr.

    When one call raises, also by Ctrl-C, those that have not begun are given up.
    """
    bar = Progress(
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("videos"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not progress,
    )  # fmt: skip
    with bar, ThreadPoolExecutor(max_workers or os.cpu_count()) as pool:
        jobs = [pool.submit(function, item) for item in items]
        try:
            for job in bar.track(as_completed(jobs), total=len(jobs)):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [job.result() for job in jobs]


# --- lists


def _read_classes(root: Path, report: VerifyReport) -> ClassList | None:
    try:
        classes = ClassList.from_root(root)
    except (OSError, ValueError) as error:
        report.errors.append(Finding.of("class_list", root / LABEL_FILE, error))
        return None
    report.class_list = "VSPW" if classes is VSPW else f"{classes.num_labels} classes"
    return classes


def _read_lists(root: Path, splits: Sequence[str] | None, report: VerifyReport) -> dict[str, list[str]]:
    """The video names of each wanted list, each once. Compares the lists with each other and with the folders."""
    present = [split for split in OFFICIAL_COUNTS if os.path.lexists(root / f"{split}.txt")]  # a broken link too
    wanted = list(dict.fromkeys(splits)) if splits is not None else present
    if not wanted:
        found = "has none of train.txt, val.txt, test.txt" if os.path.isdir(root) else "is no folder"
        report.errors.append(Finding.of("split_file", root, found))
    lists: dict[str, list[str]] = {}
    for split in dict.fromkeys([*wanted, *present]):
        try:
            names = lists[split] = read_split(root, split, unique=False)
        except (OSError, ValueError) as error:
            if split in wanted:
                report.errors.append(Finding.of("split_file", root / f"{split}.txt", error))
            continue
        for name, count in Counter(names).items():
            if count > 1 and split in wanted:
                detail = f"lists {name!r} {count} times"
                report.errors.append(Finding.of("doubled_video", root / f"{split}.txt", detail))
        lists[split] = list(dict.fromkeys(names))
    _compare_lists(root, lists, wanted, report)
    return {split: lists[split] for split in wanted if split in lists}


def _compare_lists(root: Path, lists: dict[str, list[str]], wanted: list[str], report: VerifyReport) -> None:
    homes: dict[str, list[str]] = {}
    for split, names in lists.items():
        for name in names:
            homes.setdefault(name, []).append(split)
    for name, found_in in homes.items():
        if len(found_in) > 1 and set(found_in) & set(wanted):
            detail = f"listed in {', '.join(found_in)}; scores on one split would be of videos seen in another"
            report.errors.append(Finding.of("video_in_several_splits", root / "data" / name, detail))
    try:
        folders = sorted(entry.name for entry in os.scandir(root / "data") if not entry.name.startswith("."))
    except OSError as error:
        report.errors.append(Finding.of("data_folder", root / "data", error))
        folders = []
    for name in folders:
        if name not in homes:
            report.warnings.append(Finding.of("unlisted_video", root / "data" / name, "in no split's list"))


# --- one video


@dataclass
class _VideoCheck:
    """What checking one video gave; `histogram` counts the pixels of each mask value (256,)."""

    folder: Path
    frames: int = 0
    masks: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    has_masks: bool = False
    frames_without_mask: list[Path] = field(default_factory=list)
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    def error(self, kind: str, path: Path, detail: str | Exception) -> None:
        self.errors.append(Finding.of(kind, path, detail))

    def warn(self, kind: str, path: Path, detail: str | Exception) -> None:
        self.warnings.append(Finding.of(kind, path, detail))


def _check_video(folder: Path, classes: ClassList | None) -> _VideoCheck:
    check = _VideoCheck(folder)
    try:
        if not os.path.isdir(folder):
            check.error("missing_video", folder, "listed, but there is no such folder")
            return check
        frames = list_images(folder / "origin", IMAGE_SUFFIXES)
        masks = list_images(folder / "mask", (".png",))
    except (OSError, ValueError) as error:
        check.error("unreadable_folder", folder, error)
        return check
    if not frames:
        check.error("empty_video", folder / "origin", "holds no frames")
    check.frames, check.masks, check.has_masks = len(frames), len(masks), bool(masks)
    check.frames_without_mask = [path for stem, path in frames.items() if stem not in masks]
    sizes: dict[str, tuple[int, int]] = {}
    for stem, path in frames.items():
        if size := _check_frame(check, path):
            sizes[stem] = size
    for stem, path in masks.items():
        if stem in frames:
            _check_mask(check, path, sizes.get(stem), classes)
        else:
            check.warn("mask_without_frame", path, "there is no frame of this number; the mask is not used")
    if sizes:
        (width, height), _ = Counter(sizes.values()).most_common(1)[0]
        for stem, size in sizes.items():
            if size != (width, height):
                detail = f"{size[0]}x{size[1]} pixels, most frames of the video have {width}x{height}"
                tell = check.error if masks else check.warn  # evaluation compares neighbours in a labelled video
                tell("frame_size_changes", frames[stem], f"{detail}; frames across the change cannot be compared")
    return check


def _check_frame(check: _VideoCheck, path: Path) -> tuple[int, int] | None:
    """Decodes a frame and returns (width, height), or None when that failed."""
    try:
        return intact_size(path)
    except Exception as error:  # PIL has no common error for damaged files, and this check must go on
        check.error(_kind_of(path, error), path, error)
        return None


def intact_size(path: Path) -> tuple[int, int]:
    """(width, height) of a frame, all of whose data can be decoded; an error otherwise."""
    with open_image(path) as image:
        size = image.size
        check_frame_mode(path, image)
        image.draft("L", (1, 1))  # JPEG: all data is still parsed, but an eighth of the height and width is made
        with naming_damage(path):
            image.load()
    return size


def _check_mask(check: _VideoCheck, path: Path, frame_size: tuple[int, int] | None, classes: ClassList | None) -> None:
    try:
        mask = open_mask(path)
    except Exception as error:  # as above
        check.error(_kind_of(path, error), path, error)
        return
    if frame_size and mask.size != frame_size:
        detail = f"{mask.size[0]}x{mask.size[1]} pixels, its frame has {frame_size[0]}x{frame_size[1]}"
        check.error("size_mismatch", path, detail)
    histogram = np.array(mask.histogram(), dtype=np.int64)  # (256,) of the stored indices
    check.histogram += histogram
    if classes is not None:
        void = {0, 252, 253, 254, 255} if classes is VSPW else {0, 255}
        odd = {i: int(histogram[i]) for i in np.flatnonzero(histogram) if classes.lookup[i] == 255 and i not in void}
        if odd:
            counts = ", ".join(f"{value} ({count} pixels)" for value, count in odd.items())
            check.warn("values_outside_class_list", path, f"holds {counts}; read as {IGNORE_INDEX} = ignore")


def _kind_of(path: Path, error: Exception) -> str:
    if isinstance(error, NotIndicesError):
        return "not_an_index_mask"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty_file"
    return "truncated_file" if "truncated" in str(error).lower() else "unreadable_file"


# --- the report


def _verify_packed(root: Path, report: VerifyReport, progress: bool) -> VerifyReport:
    """The checksums of a Parquet folder, and the counts that its index states."""
    report.errors = verify_parquet(root, progress=progress)
    if not any(finding.kind in ("bad_index", "no_class_list") for finding in report.errors):
        classes = ClassList.from_root(root)
        report.class_list = "VSPW" if classes is VSPW else f"{classes.num_labels} classes"
        for split, stated in read_index(root)["splits"].items():
            report.splits[split] = SplitCounts(stated["videos"], stated["frames"], stated["masks"])
    return report


def _gather(split: str, checks: list[_VideoCheck], classes: ClassList | None, report: VerifyReport) -> SplitCounts:
    labelled = sum(check.has_masks for check in checks)
    counts = SplitCounts(len(checks), sum(c.frames for c in checks), sum(c.masks for c in checks))
    for check in checks:
        report.errors += check.errors
        report.warnings += check.warnings
        if labelled == 0:
            continue  # a split without masks, such as test
        if not check.has_masks and check.frames:
            detail = f"no masks, while {labelled} of {len(checks)} videos of {split!r} have them"
            report.errors.append(Finding.of("video_without_masks", check.folder / "mask", detail))
        elif check.frames:
            without = check.frames_without_mask
            report.errors += [Finding.of("frame_without_mask", path, "has no mask") for path in without]
    if labelled and classes is not None:
        histograms = np.stack([check.histogram for check in checks])  # (videos, 256)
        ids = list(classes.disk_ids)
        counts.class_pixels = dict(zip(classes.names, histograms.sum(0)[ids].tolist(), strict=True))
        counts.class_videos = dict(zip(classes.names, (histograms[:, ids] > 0).sum(0).tolist(), strict=True))
        counts.void_pixels = int(histograms.sum()) - sum(counts.class_pixels.values())
    elif not labelled and split in ("train", "val"):
        detail = "no video has masks; it can be neither trained nor scored on"
        report.warnings.append(Finding("split_without_masks", split, detail))
    return counts


def _compare_official(report: VerifyReport) -> None:
    for split, counts in report.splits.items():
        if split not in OFFICIAL_COUNTS:
            continue
        videos, frames = OFFICIAL_COUNTS[split]
        if (counts.videos, counts.frames) != (videos, frames):
            detail = f"{counts.videos} videos and {counts.frames} frames, officially {videos} and {frames}"
            hint = "; the 480p mirror is known to lack some frames" if counts.frames < frames else ""
            report.warnings.append(Finding("official_counts", split, detail + hint))
