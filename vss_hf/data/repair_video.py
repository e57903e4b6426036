"""One video of a repaired data set: what is sound stays, the rest is made from the originals or left out.

Sizes are those of VSPW's own 480p version: height 480, width rounded down, frames resized with PIL's bilinear filter
and written as JPEG of PIL's default quality, masks with the nearest pixel's index.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from vss_hf.files import write_bytes

from .findings import Finding
from .verify import intact_size
from .vspw import IMAGE_SUFFIXES, check_frame_mode, is_text, naming_damage, open_image, open_mask


Size = tuple[int, int]  # (width, height), as PIL has it
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class VideoJob:
    """What is to be done for one video.

    Args:
        source: the video's folder among the originals; only read.
        target: its folder in the repaired data set.
        removed: where files that cannot stay in `target` are moved.
        height: of the repaired frames in pixels; smaller frames keep their size.
        labelled: whether the video's split has masks: then every frame needs one.
    """

    source: Path
    target: Path
    removed: Path
    height: int
    labelled: bool


@dataclass
class VideoResult:
    """What became of a video: counts of frames and masks per action, and what a reader of the report should know."""

    frames: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    dropped: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    moved: list[Finding] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        """How many frames the repaired video has."""
        return sum(self.frames.values()) - self.frames["dropped"]


@dataclass(frozen=True)
class VideoFiles:
    """The image files of a video folder by stem, sound or not; a damaged folder can have several of one stem."""

    frames: dict[str, list[Path]]
    masks: dict[str, list[Path]]

    @classmethod
    def of(cls, folder: Path) -> VideoFiles:
        """Lists `folder`/origin and `folder`/mask; a missing folder is an empty one."""
        return cls(_by_stem(folder / "origin", IMAGE_SUFFIXES), _by_stem(folder / "mask", (".png",)))


class _UnusableError(ValueError):
    """Why a frame cannot be in the repaired data set."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class _Piece:
    """The frame or the mask that the repaired video gets: a file that stays where it is, or bytes to write."""

    action: str
    path: Path
    data: bytes | None = None


def scaled_size(size: Size, height: int) -> Size:
    """The size of a frame in the repaired data set: `height` high, the width rounded down; never enlarged."""
    if size[1] <= height:
        return size
    return max(1, height * size[0] // size[1]), height


def repair_video(job: VideoJob) -> VideoResult:
    """Brings `job.target` in order. What is there and sound is not written again, so a second call changes nothing.

    Raises:
        OSError: the target cannot be written. What was written before stays, and the call can be repeated.
    """
    result = VideoResult()
    originals, own = VideoFiles.of(job.source), VideoFiles.of(job.target)
    sound = {stem: found for stem, paths in own.frames.items() if (found := _first(_with_size, paths))}
    stems = sorted({*originals.frames, *own.frames})
    sizes = {stem: size for stem in stems if (size := frame_size(originals.frames.get(stem, [])))}
    made = {stem: scaled_size(size, job.height) for stem, size in sizes.items()}
    wanted = {stem: size for stem, (_, size) in sound.items()} | made
    usual = Counter((made or wanted).values()).most_common(1)  # the originals know better than a damaged target
    for stem in stems:
        paths, size = originals.frames.get(stem, []), wanted.get(stem)
        try:
            if not is_text(stem):
                raise _UnusableError("file_name", "the file name is not UTF-8")
            if size is None:
                raise _UnusableError("broken_frame", _why_broken(paths))
            if job.labelled and size != usual[0][0]:
                detail = f"would be {_by(size)}, most frames of this labelled video {_by(usual[0][0])}"
                raise _UnusableError("frame_size_changes", f"{detail}; frames across the change cannot be compared")
            frame = _frame(paths, sound.get(stem), size, stem in sizes)
            mask = _mask(originals.masks.get(stem, []), own.masks.get(stem, []), size) if job.labelled else None
            result.frames[frame.action] += 1
            if mask is not None:
                result.masks[mask.action] += 1
        except _UnusableError as error:
            frame = mask = None
            result.frames["dropped"] += 1
            result.dropped.append(Finding.of(error.kind, [*paths, *own.frames.get(stem, [])][0], error))
        _put(job, "origin", own.frames.get(stem, []), frame, result)
        _put(job, "mask", own.masks.pop(stem, []), mask, result)
    for paths in own.masks.values():  # of no frame
        _put(job, "mask", paths, None, result)
    _note_oddities(job, originals, sizes, result)
    return result


def _frame(paths: list[Path], sound: tuple[Path, Size] | None, wanted: Size, readable: bool) -> _Piece:
    """The frame of one stem.

    Args:
        paths: the originals of this stem.
        sound: the intact file of the target and its size.
        wanted: the size that it must have.
        readable: whether an original's size could be read.
    """
    if sound is not None and sound[1] == wanted:
        return _Piece("kept" if readable else "restored", sound[0])
    problems = []
    for path in paths:
        try:
            return _made_frame(path, wanted)
        except Exception as error:  # PIL has no common error for damaged files
            problems.append(_damage(error))
    raise _UnusableError("broken_frame", problems[0])


def _made_frame(path: Path, wanted: Size) -> _Piece:
    """A frame made of an original; its bytes as they are where it has the right size already."""
    with open_image(path) as image:
        check_frame_mode(path, image)
        if image.size == wanted:
            intact_size(path)
            return _Piece("copied", path, path.read_bytes())
        if scaled_size(image.size, wanted[1]) != wanted:
            raise ValueError(f"{path}: {_by(image.size)} pixels do not give {_by(wanted)}")
        with naming_damage(path):
            # A palette cannot be interpolated, and JPEG has no transparency; readers see RGB.
            picture = image if image.mode in ("L", "RGB") else image.convert("RGB")
            picture = picture.resize(wanted, Image.Resampling.BILINEAR)
    data = io.BytesIO()
    picture.save(data, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    return _Piece("derived", path, data.getvalue())


def _mask(paths: list[Path], own: list[Path], wanted: Size) -> _Piece:
    """The mask of a frame of size `wanted`: of the target's own files, or made of the originals `paths`."""
    for path in own:
        try:
            if open_mask(path).size == wanted:
                return _Piece("kept" if frame_size(paths) else "restored", path)
        except Exception as error:
            _damage(error)
    problems = []
    for path in paths:
        try:
            return _made_mask(path, wanted)
        except Exception as error:
            problems.append(_damage(error))
    if problems:
        raise _UnusableError("broken_mask", f"its mask cannot be used: {problems[0]}")
    raise _UnusableError("frame_without_mask", "has no usable mask" if own else "has no mask")


def _made_mask(path: Path, wanted: Size) -> _Piece:
    mask = open_mask(path)
    if mask.size == wanted:
        return _Piece("copied", path, path.read_bytes())
    # Programs that round widths instead of cutting them off write masks one pixel wider.
    if abs(mask.width * wanted[1] / mask.height - wanted[0]) > 1 or mask.height < wanted[1] - 1:
        raise ValueError(f"{path}: {_by(mask.size)} pixels; the frame is made {_by(wanted)}, which is another shape")
    values = mask.resize(wanted, Image.Resampling.NEAREST)
    if values.mode == "P":
        _name_all_indices(values)
    data = io.BytesIO()
    values.save(data, "PNG")
    return _Piece("derived", path, data.getvalue())


def _name_all_indices(image: Image.Image) -> None:
    """Lengthens a palette that is shorter than the indices: PIL would write the file with too few bits per pixel."""
    palette = image.getpalette() or []
    missing = 3 * (int(np.asarray(image).max()) + 1) - len(palette)
    if missing > 0:
        image.putpalette(palette + [0] * missing)


# --- files


def _put(job: VideoJob, kind: str, own: list[Path], piece: _Piece | None, result: VideoResult) -> None:
    """Makes `piece` the only file of its stem in a folder of the target; others are moved away, not deleted."""
    for path in own:
        if piece is None or path != piece.path:
            why = "replaced" if piece is not None else "belongs to no frame of the repaired data set"
            result.moved.append(Finding.of("moved", set_aside(path, job.removed / kind), why))
    if piece is not None and piece.data is not None:
        folder = job.target / kind
        if os.path.lexists(folder) and not os.path.isdir(folder):
            result.moved.append(Finding.of("moved", set_aside(folder, job.removed), "not a folder"))
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / piece.path.name, piece.data)


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a file or folder into `folder` under a name that is free there, and returns its new path."""
    folder.mkdir(parents=True, exist_ok=True)
    place, number = folder / path.name, 1
    while os.path.lexists(place):
        number += 1
        place = folder / f"{path.stem}.{number}{path.suffix}"
    os.rename(path, place)
    return place


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    if not os.path.isdir(folder):
        return {}
    files: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if not name.startswith(".") and path.suffix.lower() in suffixes:
            files.setdefault(path.stem, []).append(path)
    return files


def frame_size(paths: list[Path]) -> Size | None:
    """The size of the first image whose beginning can be read; nothing is decoded."""
    return _first(_header_size, paths)


def _header_size(path: Path) -> Size:
    with open_image(path) as image:
        check_frame_mode(path, image)
        return image.size


def _with_size(path: Path) -> tuple[Path, Size]:
    return path, intact_size(path)


def _first(read: Callable[[Path], _Found], paths: list[Path]) -> _Found | None:
    """What `read` gives for the first path that it can read."""
    for path in paths:
        try:
            return read(path)
        except Exception as error:
            _damage(error)
    return None


def _why_broken(paths: list[Path]) -> str:
    for path in paths:
        try:
            _header_size(path)
        except Exception as error:
            return _damage(error)
    return "broken, and there is no original"


def _damage(error: Exception) -> str:
    """What an error says of a file; an error that is not the file's fault goes on."""
    if isinstance(error, MemoryError):
        raise error
    return str(error) or type(error).__name__


# --- words


def _note_oddities(job: VideoJob, originals: VideoFiles, sizes: dict[str, Size], result: VideoResult) -> None:
    low = [stem for stem, size in sizes.items() if size[1] < job.height]
    if low:
        detail = f"{len(low)} frames are lower than {job.height} pixels ({_by(sizes[low[0]])}); not enlarged"
        result.notes.append(Finding.of("small_frames", job.source / "origin", detail))
    for files in (originals.frames, originals.masks):
        for paths in files.values():
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                result.notes.append(Finding.of("doubled_file", paths[0], f"{names} are one frame; one is used"))
    extra = [paths[0] for stem, paths in originals.masks.items() if stem not in originals.frames or not job.labelled]
    if extra:
        why = "without a frame" if job.labelled else "in a split without masks"
        result.notes.append(Finding.of("unused_masks", extra[0], f"{len(extra)} masks {why} are left out"))


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
