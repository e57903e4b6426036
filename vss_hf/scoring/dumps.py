"""Prediction files of any toolbox: which file belongs to which frame, in a folder or in a zip file.

A frame's file is a PNG that is called like the frame and lies in a folder that is called like its video, or one folder
deeper (`<video>/mask/<frame>.png`); what lies above does not matter (`result_submission/<video>/<frame>.png`). Where
several would do, the one nearest to the top is taken. Hidden files and folders are not looked at. A zip file is read
in memory; nothing of it is ever written.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np

from vss_hf.data.vspw import VSPWVideo, read_mask
from vss_hf.inference.submission import unsafe_name


DEPTH = 4  # folders below the given one: result_submission/<video>/mask/ and one to spare
LARGEST = 256 * 2**20  # bytes of a PNG in a zip file
Frame = tuple[str, str]  # names of a video and of a frame without suffix


class Dump:
    """Prediction files by frame; `open_dump` makes it. Close it, or use it in a `with`.

    Args:
        path: the folder or zip file.
        files: the file of every frame that was asked for and is there.
        extra: PNG files that belong to no frame that was asked for.
        archive: the open zip file; None for a folder.
    """

    def __init__(self, path: Path, files: dict[Frame, str], extra: list[str], archive: zipfile.ZipFile | None = None):
        self.path, self.files, self.extra, self.archive = path, files, extra, archive

    def __enter__(self) -> "Dump":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the zip file, if it is one."""
        if self.archive is not None:
            self.archive.close()

    def name(self, video: str, frame: str) -> str:
        """How messages call a frame's file, also one that is missing."""
        file = self.files.get((video, frame), f"{video}/{frame}.png")
        return f"{self.path}:{file}" if self.archive else str(self.path / file)

    def read(self, video: str, frame: str) -> np.ndarray:
        """The values stored for a frame, uint8 (H, W).

        Raises:
            KeyError: there is no such file.
            ValueError: the file is damaged or does not hold 8-bit indices (colour, 16 bits, ...).
        """
        file, name = self.files[video, frame], self.name(video, frame)
        if self.archive is None:
            return read_mask(name)  # as masks: no lossy format, and no 4-bit grey, whose values PIL stretches
        member = self.archive.getinfo(file)
        if member.file_size > LARGEST:
            raise ValueError(f"{name}: {member.file_size} bytes unpacked; a label map has at most {LARGEST}")
        try:
            data = self.archive.read(member)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
            raise ValueError(f"{name}: cannot be unpacked: {error}") from error  # damaged, encrypted, odd method
        return read_mask(name, data)


def open_dump(path: str | Path, videos: Sequence[VSPWVideo]) -> Dump:
    """Finds the prediction files of frames.

    Args:
        path: a folder or a zip file.
        videos: whose frames are wanted.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: it is neither a folder nor a zip file, two files are equally good for one frame, or a zip file
            holds names that lead out of a folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or zip file with predictions")
    if path.is_dir():
        return Dump(path, *sort_files(path, files_below(path), videos))
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: neither a folder nor a zip file that can be read ({error})") from error
    try:
        return Dump(path, *sort_files(path, members_of(path, archive), videos), archive)
    except BaseException:
        archive.close()
        raise


def files_below(root: Path) -> Iterator[str]:
    """Visible PNG files up to `DEPTH` folders below, as relative names with slashes; links to folders are followed
    once."""
    seen, waiting = set(), [("", 0)]
    for prefix, depth in waiting:  # which grows meanwhile, so that the folders nearest to the top come first
        place = os.path.realpath(root / prefix)
        if place in seen:
            continue
        seen.add(place)
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir() and depth < DEPTH:
                waiting.append((f"{prefix}{entry.name}/", depth + 1))
            elif is_picture(entry.name) and entry.is_file():
                yield f"{prefix}{entry.name}"


def members_of(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Visible PNG files of a zip file. A ValueError names one whose name is not safe to unpack."""
    for name in archive.namelist():
        if not is_picture(PurePosixPath(name).name):
            continue
        if why := unsafe_name(name):
            raise ValueError(f"{path}: unsafe name {name!r} ({why}); pack it anew")
        if not any(part.startswith(".") for part in PurePosixPath(name).parts):
            yield name


def is_picture(name: str) -> bool:
    """Whether a file is a PNG, by its name; what macOS packs beside every file (._00.png) is not."""
    return name.lower().endswith(".png") and not name.startswith(".")


def sort_files(path: Path, names: Iterator[str], videos: Sequence[VSPWVideo]) -> tuple[dict[Frame, str], list[str]]:
    """The file of every wanted frame that has one, and the other files."""
    wanted = {(video.name, record.stem) for video in videos for record in video.frames}
    found: dict[Frame, list[tuple[bool, int, str]]] = {}
    extra = []
    for name in names:
        *folders, file = PurePosixPath(name).parts
        stem = file[: -len(".png")]
        frames = [(folder, stem) for folder in folders[:-3:-1]]  # the last two, the last one first
        frame = next((frame for frame in frames if frame in wanted), None)
        if frame is None:
            extra.append(name)
        else:
            found.setdefault(frame, []).append((frame[0] != folders[-1], len(folders), name))
    files = {}
    for frame, candidates in found.items():
        best, *others = sorted(candidates)
        if others and others[0][:2] == best[:2]:
            raise ValueError(
                f"{path}: {best[2]} and {others[0][2]} are both predictions of frame {frame[1]} of video {frame[0]}; "
                "give the folder that holds one set of predictions"
            )
        files[frame] = best[2]
        extra += [name for *_, name in others]
    return files, extra
