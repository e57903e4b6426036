"""What the readers of official layouts share: finding folders, listing files, pairing images with masks.

Nothing here opens an image. A still image is a video of one frame, named like the image.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from .labels import ClassList, palette_of
from .vspw import IMAGE_SUFFIXES, FrameRecord, VSPWVideo, is_text


PNG = (".png",)
NAMED = 3  # so many of the files that are wrong are named


def class_list(names: Iterable[str]) -> ClassList:
    """Classes known by name and order. Disk ids are those that they would get in VSPW's layout: 1, 2, 3, ..."""
    names = tuple(names)
    return ClassList(names, palette_of(names), tuple(range(1, len(names) + 1)))


# --- folders and lists


def find_folder(root: Path, candidates: Sequence[str], layout: str) -> Path:
    """The first folder `root`/`candidates` that exists.

    Args:
        root: the data set folder.
        candidates: paths below it, the usual one first.
        layout: what the data set looks like, with an example, for the message.

    Raises:
        FileNotFoundError: there is none.
    """
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    missing = f"no folder {candidates[0]}" if root.is_dir() else "no such folder"
    raise FileNotFoundError(f"{root}: {missing}; expected {layout}")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def named_split(split: str, found: Collection[str], root: Path, usual: Mapping[str, str] | None = None) -> str:
    """The split's name on disk.

    Args:
        split: what the user calls it.
        found: the splits that there are.
        root: the data set folder, for the message.
        usual: {"train" or "val": the source's own name for it}.

    Raises:
        ValueError: no such split.
    """
    own = split if split in found else (usual or {}).get(split, split)
    if own not in found:
        near = get_close_matches(split, found, n=1, cutoff=0.6)
        listed = f"nearest: {near[0]!r}; found: " if near else "found: "
        raise ValueError(f"{root}: unknown split {split!r}; {listed}{', '.join(sorted(found)) or 'none'}")
    return own


def read_list(path: Path) -> list[str]:
    """The lines of a list file without blank ones, with or without a last line end.

    Raises:
        ValueError: not UTF-8 text, empty, or a line appears twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: empty list; expected one name per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: lists {twice!r} twice")
    return names


# --- files


def list_files(folder: Path, endings: Sequence[str], but_not: Sequence[str] = ()) -> dict[str, Path]:
    """Name without ending -> path of the files in a folder, sorted by name; {} without a folder. Skips dotfiles.

    Args:
        folder: is not searched deeper.
        endings: of the wanted files, lower case; the first that fits is cut off.
        but_not: endings of files that are left out, although they have one of `endings`.

    Raises:
        ValueError: two files would have one name, or a name is not UTF-8.
    """
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    files: dict[str, Path] = {}
    leave, want = tuple(but_not), tuple(endings)
    for name in names:
        lower = name.lower()
        if not lower.endswith(want) or (leave and lower.endswith(leave)):
            continue
        if not is_text(name):
            raise ValueError(f"{folder}: the file name {name!r} is not UTF-8; rename it")
        stem = name[: -len(next(ending for ending in want if lower.endswith(ending)))]
        if stem in files:
            raise ValueError(f"{folder}: {files[stem].name} and {name} are one image; keep one of them")
        files[stem] = folder / name
    return files


def find_images(folder: Path) -> dict[str, Path]:
    """Name -> file of the images in a folder; FileNotFoundError where there is none."""
    images = list_files(folder, IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"{folder}: no images; expected {', '.join('*' + s for s in IMAGE_SUFFIXES)}")
    return images


def still_images(images: Mapping[str, Path], masks: Mapping[str, Path] | None, place: Path) -> tuple[VSPWVideo, ...]:
    """Pairs images with masks of the same name: a video of one frame each, in the order of `images`.

    Args:
        images: name -> file.
        masks: name -> file; None for a split without labels.
        place: where the masks are, for messages.

    Raises:
        FileNotFoundError: no images, or some have no mask.

    Warns:
        UserWarning: masks without an image are left out.
    """
    if not images:
        raise FileNotFoundError(f"{place}: no image belongs to this split")
    if masks is not None:
        if missing := [name for name in images if name not in masks]:
            raise FileNotFoundError(
                f"{place}: {len(missing):,} of {len(images):,} images have no mask: {some(missing)}; "
                "every image of a labelled split needs one"
            )
        if surplus := [name for name in masks if name not in images]:
            warnings.warn(
                f"{place}: {len(surplus):,} masks have no image and are left out: {some(surplus)}", stacklevel=3
            )
    get = (lambda name: None) if masks is None else masks.get
    return tuple(VSPWVideo(name, (FrameRecord(path.stem, path, get(name)),)) for name, path in images.items())


def chosen(files: Mapping[str, Path], names: Iterable[str], list_file: Path, folder: Path) -> dict[str, Path]:
    """The files that a list names, in its order; FileNotFoundError where some are missing."""
    names = list(names)
    if missing := [name for name in names if name not in files]:
        raise FileNotFoundError(
            f"{folder}: {len(missing):,} of the {len(names):,} images in {list_file} are missing: {some(missing)}"
        )
    return {name: files[name] for name in names}


def some(names: Sequence[str]) -> str:
    """The first of many names, for messages."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
