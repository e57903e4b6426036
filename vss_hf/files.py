"""Files that are whole or not there: everything written for people goes beside its place and is then moved onto it.

So a process that is killed while it writes, and a disk that is full, leave the previous file as it was. This module
imports nothing of the package, so that every room may use it.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yields `<path>.part` to write; without an error it becomes `path`, otherwise it is removed.

    Args:
        path: the file to make or replace; its folder must exist.
        needed: its size in bytes where that is known, for the message on a full disk.

    Raises:
        OSError: the disk is full: the message names the file, the bytes needed (as far as known) and the bytes free.

    Example:
        >>> with replacing("labels.txt") as partial:  # doctest: +SKIP
        ...     partial.write_text("road")
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        written = 0
        if os.path.lexists(partial):
            written = partial.lstat().st_size
            partial.unlink()
        if is_full_disk(error):
            # After the removal: what is free now is what was free before.
            raise full_disk_error(path, needed, written) from error
        raise


def check_new_folder(path: Path) -> None:
    """Raise unless `path` is free for `new_folder`: not there, or an empty folder.

    Raises:
        FileExistsError: it is a file, or holds something.
        NotADirectoryError: it would be inside a file.
        ValueError: it is the current folder or another one that nothing can be moved onto.
    """
    if path.name in ("", ".."):
        raise ValueError(f"--out {path}: a new folder needs a name, since it is made beside its place and then moved")
    inside = next(folder for folder in path.absolute().parents if folder.exists())
    if not inside.is_dir():
        raise NotADirectoryError(f"--out {path}: {inside} is no folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is already there and not empty; give another folder to --out, or remove it")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path` to fill; without an error it becomes `path`, otherwise it is removed.

    Raises:
        OSError: the disk is full.
        FileExistsError, NotADirectoryError, ValueError: as `check_new_folder`.
    """
    check_new_folder(path)
    partial = path.with_name(f"{path.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.is_dir():
            path.rmdir()  # empty, or this says so
        partial.rename(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_full_disk(error):
            raise full_disk_error(path) from error
        raise


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes a file, whole or not at all; errors as `replacing`."""
    with replacing(path, len(data)) as partial, open(partial, "wb") as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text with the line ends that it has, whole or not at all; errors as `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON for people and programs, whole or not at all; errors as `replacing`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that the disk is full or the quota used up; not every library raises an OSError then."""
    text = str(error)  # safetensors: "I/O error: No space left on device (os error 28)"
    return getattr(error, "errno", None) in FULL_DISK or "No space left on device" in text


def full_disk_error(path: str | Path, needed: int | None = None, at_least: int = 0) -> OSError:
    """The error to raise when `path` could not be written for want of space; see `full_disk_message`."""
    error = OSError(full_disk_message(path, needed, at_least))
    error.errno = errno.ENOSPC  # beside the message, not in it: two arguments would print "[Errno 28]"
    return error


def full_disk_message(path: str | Path, needed: int | None = None, at_least: int = 0) -> str:
    """One line on a full disk.

    Args:
        path: what was to be written.
        needed: its bytes, if known.
        at_least: bytes that had been written when the disk was full; said where `needed` is not known.
    """
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if needed is not None:
        wanted = f"{needed:,} bytes needed, "
    else:
        wanted = f"more than {at_least:,} bytes needed, " if at_least else ""
    free = shutil.disk_usage(folder).free
    space = f"no space left on the disk or in the quota: {wanted}{free:,} bytes free"
    return f"{path}: {space}; the previous one is untouched"
