"""Makes a clean data set out of a damaged one, or VSPW's 480p version out of the full-size frames.

The originals are only read. Files of the clean data set are whole or not there, so a run that was killed is simply
started again; what is there and sound is left as it is. Nothing is deleted: what cannot stay is moved to `removed`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vss_hf.files import write_bytes

from .findings import Finding, print_findings, shown
from .labels import LABEL_FILE, ClassList
from .parquet import INDEX_FILE
from .repair_video import VideoFiles, VideoJob, VideoResult, frame_size, repair_video, scaled_size, set_aside
from .verify import OFFICIAL_COUNTS, VerifyReport, in_threads, verify_dataset
from .vspw import read_split


ACTIONS = ("kept", "restored", "copied", "derived", "dropped")
REMOVED = "removed"
# A video belongs to one split only: one that is scored on rather than to train, one with masks rather than to test.
_CLAIMS = ("val", "test", "train")
# For the estimate of disk space, bytes per pixel: a JPEG of PIL's default quality, a PNG photograph, a mask
_JPEG, _PNG, _MASK = 0.2, 1.5, 0.05


@dataclass
class RepairReport:
    """The result of `repair_dataset`.

    Args:
        source: the folder of the originals.
        out: the folder that was repaired.
        height: of its frames.
        frames: frames per action: "kept" (was there and sound), "restored" (was there and sound, and is not among the
            originals or broken there), "copied" (an original's bytes), "derived" (resized), "dropped".
        masks: the same of masks.
        dropped: each frame that is not in `out`, and each video without a frame left, with the reason.
        notes: what was mended or left out besides.
        moved: files that were moved to `out`/removed.
        result: the check of `out` afterwards.
    """

    source: str
    out: str
    height: int
    frames: dict[str, int] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    dropped: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    moved: list[Finding] = field(default_factory=list)
    result: VerifyReport = field(default_factory=lambda: VerifyReport(""))

    @property
    def ok(self) -> bool:
        """Whether `out` is clean."""
        return self.result.ok

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        values = {name: getattr(self, name) for name in ("source", "out", "height", "frames", "masks")}
        findings = {name: [vars(f) for f in getattr(self, name)] for name in ("dropped", "notes", "moved")}
        return {"ok": self.ok, **values, **findings, "result": self.result.to_dict()}

    def print(self, console: Console | None = None) -> None:
        """Writes what was done and the check of the result for a person."""
        console = console or Console()
        table = Table(title=f"{escape(self.out)}, made from {escape(self.source)}")
        for column in ("", *ACTIONS):
            table.add_column(column, justify="right" if column else "left")
        for name, counts in (("frames", self.frames), ("masks", self.masks)):
            table.add_row(name, *(f"{counts.get(action, 0):,}" for action in ACTIONS))
        console.print(table)
        print_findings(console, "dropped", "red", self.dropped)
        print_findings(console, "note", "yellow", self.notes)
        if self.moved:
            console.print(f"{len(self.moved)} files moved to {escape(self.out)}/{REMOVED}", soft_wrap=True)
        self.result.print(console)


def repair_dataset(
    root: str | Path,
    out: str | Path,
    *,
    height: int = 480,
    max_workers: int | None = None,
    progress: bool = True,
) -> RepairReport:
    """Makes `out` a clean data set of the videos of `root`, with frames of the given height.

    Frames and masks of `out` that are sound and of the right size stay as they are. The others are made from `root`:
    copied where they are not higher than `height`, otherwise resized as for VSPW's 480p version (width rounded down).
    A frame that is broken on both sides, or in a labelled split has no usable mask, is left out with its mask; a video
    without a frame left leaves the lists. Videos that only the lists of `out` name stay.

    Args:
        root: the data set folder; nothing below it is changed.
        out: the folder to make or to mend, for example an incomplete download of the 480p version.
        height: of the frames in pixels.
        max_workers: threads; default is the number of processors.
        progress: draws bars on stderr when that is a terminal.

    Returns:
        What was done, with a check of `out`.

    Raises:
        FileNotFoundError: no folder `root`.
        ValueError: `out` and `root` lie within each other or have different classes, `out` holds something else or
            frames of another height, a folder in `out` is a link, or neither has a list of videos.
        OSError: `out` cannot be written or its disk is too small. Started again, the call goes on.
    """
    root, out = Path(root), Path(out)
    if height < 1:
        raise ValueError(f"height is {height}: expected at least 1 pixel")
    _check_places(root, out)
    report = RepairReport(shown(root), shown(out), height)
    class_list = _class_list(root, out, report)
    lists = _plan_lists(root, out, report)
    if not any(lists.values()):
        why = "; ".join(note.detail for note in report.notes if note.kind == "split_file") or "none is there"
        raise ValueError(f"{root}: has no usable train.txt, val.txt or test.txt: {why}")
    jobs = [_job(root, out, name, height) for names in lists.values() for name in names]
    surveys = dict(zip(jobs, in_threads(_survey, jobs, max_workers, "looking at", progress), strict=True))
    _check_heights(out, height, surveys)
    _check_space(out, sum(survey.bytes_to_make for survey in surveys.values()))
    labelled = _labelled_splits(out, lists, surveys, report)
    (out / "data").mkdir(parents=True, exist_ok=True)
    tasks = [_job(root, out, name, height, split in labelled) for split, names in lists.items() for name in names]
    results = in_threads(_repaired, tasks, max_workers, "repairing", progress)
    frames = {task.target.name: result.num_frames for task, result in zip(tasks, results, strict=True)}
    _gather(results, report)
    if class_list is not None:
        _write_text(out / LABEL_FILE, class_list, report)
    _write_lists(root, out, lists, frames, report)
    report.result = verify_dataset(out, max_workers=max_workers, progress=progress)
    return report


# --- before anything is written


def _check_places(root: Path, out: Path) -> None:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for folder in (root, out):
        if (folder / INDEX_FILE).exists():
            raise ValueError(f"{folder}: a Parquet data set; only folders of frames can be repaired")
    for originals in (root, root / "data"):
        _refuse_overlap(originals, out)
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if found and not found & {"data", LABEL_FILE, *(f"{split}.txt" for split in OFFICIAL_COUNTS)}:
        raise ValueError(f"{out}: holds files, but no data set; give an empty or a new folder, or one with data/")
    for folder in (out / "data", out / REMOVED, out / REMOVED / "data"):
        _refuse_link(folder)


def _refuse_overlap(originals: Path, out: Path) -> None:
    """Raise where writing to `out` could reach the originals."""
    one, other = Path(os.path.realpath(originals)), Path(os.path.realpath(out))
    same = os.path.exists(originals) and os.path.exists(out) and os.path.samefile(originals, out)
    if same or one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(f"{out} and {originals} lie within each other; a repaired data set needs its own folder")


def _refuse_link(folder: Path) -> None:
    """Raise for a folder through which files elsewhere, perhaps the originals, would be moved and replaced."""
    if os.path.islink(folder):
        raise ValueError(f"{folder}: a link; a data set that is repaired needs folders of its own")


def _class_list(root: Path, out: Path, report: RepairReport) -> str | None:
    """The text of the class list that `out` gets, or None where there is none: the check of the result tells."""
    found: dict[Path, ClassList] = {}
    for folder in (root, out):
        try:
            found[folder] = ClassList.from_root(folder)
        except (OSError, ValueError) as error:
            if folder is root or (out / LABEL_FILE).exists():
                report.notes.append(Finding.of("class_list", folder / LABEL_FILE, error))
    if len(found) == 2 and found[root] != found[out]:
        raise ValueError(f"{out / LABEL_FILE}: other classes than in {root / LABEL_FILE}; two different data sets?")
    for folder in found:
        return (folder / LABEL_FILE).read_text(encoding="utf-8-sig")
    return None


def _plan_lists(root: Path, out: Path, report: RepairReport) -> dict[str, list[str]]:
    """The videos of each split: those of `root`, then those that only `out` lists; each in one split."""
    of_root = {split: _names(root, split, report) for split in OFFICIAL_COUNTS}
    of_out = {split: _names(out, split, report) for split in OFFICIAL_COUNTS}
    homes: dict[str, str] = {}
    for lists in (of_root, of_out):
        for split in _CLAIMS:
            for name in lists[split]:
                if homes.setdefault(name, split) != split and lists is of_root:
                    detail = f"{name!r} belongs to {homes[name]} too; it stays there only"
                    report.notes.append(Finding.of("video_in_several_splits", root / f"{split}.txt", detail))
    wanted = {split: dict.fromkeys([*of_root[split], *of_out[split]]) for split in OFFICIAL_COUNTS}
    return {split: [name for name in names if homes[name] == split] for split, names in wanted.items()}


def _names(folder: Path, split: str, report: RepairReport) -> list[str]:
    """The videos in a list file, each once; none where there is no usable file."""
    path = folder / f"{split}.txt"
    if not os.path.lexists(path):
        return []
    try:
        names = read_split(folder, split, unique=False)
    except (OSError, ValueError) as error:
        report.notes.append(Finding.of("split_file", path, error))
        return []
    for name, count in Counter(names).items():
        if count > 1:
            report.notes.append(Finding.of("doubled_video", path, f"lists {name!r} {count} times; once is right"))
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Survey:
    """What a look at a video's folders tells; no image is decoded."""

    frames: int
    masks: int  # of these frames
    bytes_to_make: int
    other_height: int | None  # of the frames that the target has, where the originals give another


def _job(root: Path, out: Path, name: str, height: int, labelled: bool = False) -> VideoJob:
    return VideoJob(root / "data" / name, out / "data" / name, out / REMOVED / "data" / name, height, labelled)


def _survey(job: VideoJob) -> _Survey:
    for kind in (".", "origin", "mask"):
        _refuse_link(job.target / kind)
        _refuse_link(job.removed / kind)
        if os.path.islink(job.source / kind):
            _refuse_overlap(job.source / kind, job.target.parents[1])
    originals, own = VideoFiles.of(job.source), VideoFiles.of(job.target)
    size = frame_size([path for paths in originals.frames.values() for path in paths])
    frames = {*originals.frames, *own.frames}
    other = None
    for stem, paths in own.frames.items():
        there, original = frame_size(paths), frame_size(originals.frames.get(stem, []))
        if there and original:
            other = there[1] if there[1] != scaled_size(original, job.height)[1] else None
            break
    return _Survey(
        frames=len(frames),
        masks=len(frames & {*originals.masks, *own.masks}),
        bytes_to_make=_bytes_to_make(originals, own, size, job.height),
        other_height=other,
    )


def _bytes_to_make(originals: VideoFiles, own: VideoFiles, size: tuple[int, int] | None, height: int) -> int:
    """About how many bytes of files the target lacks; `size` is that of the original frames."""
    if size is None:
        return 0
    width, height_made = scaled_size(size, height)
    pixels = width * height_made if size[1] > height else float("inf")  # copies are as large as they are
    total = 0.0
    for wanted, there, mask in ((originals.frames, own.frames, False), (originals.masks, own.masks, True)):
        for stem, paths in wanted.items():
            if stem not in there and os.path.isfile(paths[0]):
                density = _MASK if mask else _PNG if paths[0].suffix.lower() == ".png" else _JPEG
                total += min(paths[0].stat().st_size, density * pixels)
    return int(total)


def _check_heights(out: Path, height: int, surveys: dict[VideoJob, _Survey]) -> None:
    """Raise for a folder with frames of another height: it is not the one that was meant."""
    others = Counter(survey.other_height for survey in surveys.values() if survey.other_height)
    if 2 * sum(others.values()) > len(surveys):
        found = others.most_common(1)[0][0]
        raise ValueError(
            f"{out}: its frames are {found} pixels high and would be replaced by frames of {height}; "
            f"give another folder, or --height {found}"
        )


def _check_space(out: Path, needed: int) -> None:
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{out}: about {needed:,} bytes are needed, {free:,} are free on this disk")


def _labelled_splits(
    out: Path, lists: dict[str, list[str]], surveys: dict[VideoJob, _Survey], report: RepairReport
) -> set[str]:
    """The splits whose frames need masks; readers take all videos of a split with masks, or all without."""
    of_name = {job.target.name: survey for job, survey in surveys.items()}
    labelled = set()
    for split, names in lists.items():
        videos = [of_name[name] for name in names if of_name[name].frames]
        frames, masks = sum(video.frames for video in videos), sum(video.masks for video in videos)
        # A test split with some stray masks is one without; train and val are of no use without masks.
        if masks and (split != "test" or 2 * masks > frames):
            labelled.add(split)
            if without := sum(not video.masks for video in videos):
                detail = f"{without} of {len(videos)} videos have no masks; left out"
                report.notes.append(Finding.of("video_without_masks", out / f"{split}.txt", detail))
    return labelled


# --- the result


def _repaired(job: VideoJob) -> VideoResult:
    if os.path.lexists(job.target) and not os.path.isdir(job.target):
        moved = Finding.of("moved", set_aside(job.target, job.removed.parent), "not a folder")
        result = repair_video(job)
        result.moved.append(moved)
        return result
    return repair_video(job)


def _gather(results: list[VideoResult], report: RepairReport) -> None:
    report.frames = {action: sum(result.frames[action] for result in results) for action in ACTIONS}
    report.masks = {action: sum(result.masks[action] for result in results) for action in ACTIONS}
    for result in results:
        report.dropped += result.dropped
        report.notes += result.notes
        report.moved += result.moved


def _write_lists(
    root: Path, out: Path, lists: dict[str, list[str]], frames: dict[str, int], report: RepairReport
) -> None:
    """The lists of the splits and others of the same videos, such as VSPW's data.txt; without the lost videos."""
    for split, names in lists.items():
        for name in names:
            if not frames[name]:
                detail = f"has no usable frame; not in {split}.txt any more"
                report.dropped.append(Finding.of("video_dropped", root / "data" / name, detail))
    others = {path.stem for path in root.glob("*.txt") if not path.name.startswith(".")} - set(lists)
    for other in sorted(others):
        names = _names(root, other, report)
        if all(name in frames for name in names):
            lists = {**lists, other: names}
        elif names:
            detail = "not copied: it does not list videos of the splits only"
            report.notes.append(Finding.of("other_file", root / f"{other}.txt", detail))
    for split, names in lists.items():
        path, left = out / f"{split}.txt", [name for name in names if frames[name]]
        if left:
            _write_text(path, "".join(f"{name}\n" for name in left), report)
        elif os.path.lexists(path):
            report.moved.append(Finding.of("moved", set_aside(path, out / REMOVED), "lists no video any more"))


def _write_text(path: Path, text: str, report: RepairReport) -> None:
    """Writes a small file where it is not there like that already; a copy of the old one is kept."""
    data = text.encode("utf-8")
    if os.path.isfile(path) and path.read_bytes() == data:
        return
    if os.path.isfile(path):
        copy = path.with_name(f"{path.name}.old")
        shutil.copy2(path, copy)
        report.moved.append(Finding.of("moved", set_aside(copy, path.parent / REMOVED), "replaced"))
    elif os.path.lexists(path):
        report.moved.append(Finding.of("moved", set_aside(path, path.parent / REMOVED), "not a file"))
    write_bytes(path, data)
