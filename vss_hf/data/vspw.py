"""VSPW and every data set in its layout, read as it lies on disk.

    root/train.txt val.txt test.txt          one video name per line
    root/label_num_dic_final.json            {"class name": mask value}
    root/data/<video>/origin/00000170.jpg    frames; the stem is the frame's number in the source video
    root/data/<video>/mask/00000170.png      index images (mode L or P); no folder where a split has no masks

Masks are read as the indices they store. Any detour through RGB or a mode conversion returns other numbers for the
palette masks that VSPW mixes in. `scan_split` lists videos without opening an image, `decode_frame` opens one frame;
`load_vspw` in clips.py joins both.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile

from .labels import VSPW, ClassList
from .packed import is_packed, read_packed


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameRecord(NamedTuple):
    """One frame on disk: file stem, image file, mask file (None where the split has no masks)."""

    stem: str
    image_path: Path
    mask_path: Path | None


@dataclass(frozen=True)
class VSPWVideo:
    """One video on disk: its name and its frames in order of time."""

    name: str
    frames: tuple[FrameRecord, ...]

    @property
    def has_masks(self) -> bool:
        """Whether the frames are labelled (all are, or none is)."""
        return self.frames[0].mask_path is not None


# --- the index: which files there are


def scan_split(root: str | Path, split: str) -> list[VSPWVideo]:
    """Lists the videos of a split with their files; opens no image.

    Args:
        root: the data set folder.
        split: name of a list file without ".txt" ("train", "val", "test").

    Returns:
        The videos in the order of the list file, frames in the order of their numbers.

    Raises:
        FileNotFoundError: no such folder, a listed video is absent, or a frame of a labelled video lacks its mask.
        ValueError: unknown split, empty list, a doubled or impossible video name, a video without frames, two frames
            of one stem, or a split in which only some videos have masks.
    """
    root = Path(root)
    videos = [scan_video(root / "data" / name) for name in read_split(root, split)]
    unlabelled = [video.name for video in videos if not video.has_masks]
    if unlabelled and len(unlabelled) < len(videos):
        raise ValueError(
            f"{root / 'data' / unlabelled[0] / 'mask'}: no masks, while other videos of split {split!r} have them "
            f"({len(unlabelled)} of {len(videos)} videos are without); label all videos of a split or none"
        )
    return videos


def read_split(root: str | Path, split: str, *, unique: bool = True) -> list[str]:
    """Reads a list file: one video name per line, any line ending, blank lines skipped.

    Args:
        root: the data set folder.
        split: the list file's name without ".txt".
        unique: whether a doubled name is an error, as for `scan_split`, or comes back twice.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected a VSPW folder with train.txt, val.txt and data/")
    path = root / f"{split}.txt"
    if os.path.basename(split) != split or not path.is_file():
        found = sorted(file.stem for file in root.glob("*.txt") if not file.name.startswith("."))
        others = ", ".join(found) or "no .txt file; a data set in another layout needs its source"
        raise ValueError(f"unknown split {split!r}: no file {path}; found: {others}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: lists no video; expected one video name per line")
    seen = set()
    for name in names:
        if not is_file_name(name):
            raise ValueError(f"{path}: {name!r} is no video name; expected the name of a folder in {root / 'data'}")
        if unique and name in seen:
            raise ValueError(f"{path}: lists {name!r} twice; every video belongs there once")
        seen.add(name)
    return names


def scan_video(folder: str | Path) -> VSPWVideo:
    """Lists the frames of one video folder. Errors as `scan_split`; masks without a frame are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, but the split lists this video")
    frames = list_images(folder / "origin", IMAGE_SUFFIXES)
    if not frames:
        raise ValueError(f"{folder / 'origin'}: no frames; expected {', '.join('*' + s for s in IMAGE_SUFFIXES)}")
    masks = list_images(folder / "mask", (".png",))
    if masks and (missing := [stem for stem in frames if stem not in masks]):
        raise FileNotFoundError(
            f"{folder / 'mask' / (missing[0] + '.png')}: no mask for {frames[missing[0]].name} "
            f"({len(missing)} of {len(frames)} frames are without); every frame of a labelled video needs one"
        )
    records = (FrameRecord(stem, path, masks.get(stem)) for stem, path in frames.items())
    return VSPWVideo(folder.name, tuple(records))


def list_images(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Stem to path of the images in a folder, by frame number; {} without a folder. Skips dotfiles and other files.

    Raises:
        ValueError: two files share a stem, or a name is not UTF-8.
    """
    if not folder.is_dir():
        return {}
    images: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if not is_text(path.name):
            raise ValueError(f"{folder}: the file name {path.name!r} is not UTF-8; rename it")
        if path.stem in images:
            raise ValueError(f"{folder}: {images[path.stem].name} and {path.name} are one frame; keep one of them")
        images[path.stem] = path
    if all(stem.isdecimal() for stem in images):  # numbers without leading zeros sort as numbers too
        return dict(sorted(images.items(), key=lambda item: (int(item[0]), item[0])))
    return dict(sorted(images.items()))


def is_file_name(name: str) -> bool:
    """Whether a text is the name of one file or folder: joined to a folder it does not lead out of it."""
    return is_text(name) and name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def is_text(name: str) -> bool:
    """Whether a file name can be written as UTF-8; Arrow tables and JSON take no other."""
    return name.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in name)


# --- decoding: one file to one array


def read_image(path: str | Path) -> np.ndarray:
    """Reads a frame as uint8 (H, W, 3) RGB. ValueError names the file: empty, truncated, no image, above 8 bits."""
    with open_image(path) as image:
        check_frame_mode(path, image)
        with naming_damage(path):
            image.load()
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """Reads a mask as uint8 (H, W), the values stored in the file.

    Args:
        path: the file.
        data: what it holds, where that has been read already (from an archive); errors call it `path` all the same.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, truncated or no image, or does not hold 8-bit indices (colour, 16 bits, ...).
    """
    return np.array(open_mask(path, data))


def open_mask(path: str | Path, data: bytes | None = None) -> Image.Image:
    """Opens and decodes a mask as the PIL image of its indices, mode L or P. Arguments and errors as `read_mask`."""
    with open_image(path, data) as image:
        _check_index_image(path, image)
        with naming_damage(path):
            image.load()
        return image


class NotIndicesError(ValueError):
    """An intact image that cannot be a mask, because it does not store class indices."""


def open_image(path: str | Path, data: bytes | None = None) -> ImageFile.ImageFile:
    """Opens an image file without decoding it; errors as `read_image`. Close it, or use it in a `with`.

    A file in a Parquet shard has a virtual path (see packed.py). `data`: what the file holds, if it has been read.
    """
    if data is None and is_packed(path):
        data = read_packed(path)
    if data is not None:
        with naming_damage(path):
            return Image.open(io.BytesIO(data))
    check_file(path, "an image")
    with naming_damage(path):
        return Image.open(path)


def check_file(path: str | Path, expected: str) -> None:
    """Raise for a path that is no file, or an empty one; `expected` ends the message."""
    if not os.path.isfile(path):  # also keeps us from waiting at a pipe for ever
        if os.path.lexists(path):
            raise ValueError(f"{path}: not a file; expected {expected}")
        folder = os.path.dirname(path)
        gone = "" if os.path.isdir(folder or ".") else "; its folder is gone too"
        raise FileNotFoundError(f"{path}: no such file{gone}")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path}: empty file (0 bytes); expected {expected}")


@contextmanager
def naming_damage(path: str | Path) -> Iterator[None]:
    """Turns PIL's many ways to report damage into a ValueError that names the file."""
    with _refusing_truncated():
        try:
            yield
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: cannot be read as an image: {error}") from error


class _RefusingTruncated:
    """PIL can be told, for the whole process, to fill what is missing from a picture with grey. Not while we read.

    Threads may read at once: the first one to enter changes the setting and the last one to leave puts it back.
    """

    def __init__(self):
        self.lock, self.readers, self.setting = threading.Lock(), 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.readers == 0:
                self.setting, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self.readers += 1
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if self.readers == 0:
                    ImageFile.LOAD_TRUNCATED_IMAGES = self.setting


_refusing_truncated = _RefusingTruncated()


def check_frame_mode(path: str | Path, image: ImageFile.ImageFile) -> None:
    """Raise for frames of 16 or 32 bits: PIL cuts them off at 255, which shows as white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path}: {image.format} image of mode {image.mode}; a frame must have 8 bits per channel")


def _check_index_image(path: str | Path, image: ImageFile.ImageFile) -> None:
    # PIL stretches 2- and 4-bit grey to 0..255, which would turn class 1 into 85 or 17; `tile` tells the stored depth
    stored = image.tile[0][3] if image.tile else image.mode
    stored = stored[0] if isinstance(stored, tuple) else stored
    if image.mode not in ("L", "P") or stored in ("L;2", "L;4"):
        raise NotIndicesError(
            f"{path}: {image.format} image of mode {image.mode} ({stored}); a mask must hold 8-bit class indices "
            "(PNG of mode L or P). A coloured copy of a mask cannot be used: get the index masks"
        )
    if image.format != "PNG":
        raise NotIndicesError(f"{path}: {image.format} image; a mask must be a PNG, lossy formats change the indices")


def decode_frame(record: FrameRecord, classes: ClassList = VSPW) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decodes one frame and its mask.

    Args:
        record: an entry of `scan_split(...)[i].frames`.
        classes: says which mask values are which labels.

    Returns:
        The frame, uint8 (3, H, W) RGB, and its labels, uint8 (H, W) with 255 = ignore, or None without a mask.

    Raises:
        FileNotFoundError: a file is gone.
        ValueError: a file is damaged, the mask holds no indices, or its size is not the frame's.
    """
    frame = image_tensor(record.image_path)
    if record.mask_path is None:
        return frame, None
    mask = matching(read_mask(record.mask_path), record.mask_path, frame, record.image_path)
    return frame, torch.from_numpy(classes.lookup.take(mask))


def image_tensor(path: str | Path) -> torch.Tensor:
    """The frame in a file, (3, H, W), lying in memory as (H, W, 3): so resizing is several times faster."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)


def matching(mask: np.ndarray, mask_path: str | Path, frame: torch.Tensor, image_path: str | Path) -> np.ndarray:
    """The mask (H, W) of a frame (3, H, W) as it is; ValueError for another size."""
    if mask.shape != tuple(frame.shape[1:]):
        raise ValueError(
            f"{mask_path}: {mask.shape[1]}x{mask.shape[0]} pixels, its frame {Path(image_path).name} has "
            f"{frame.shape[2]}x{frame.shape[1]}; mask and frame must have one size"
        )
    return mask
