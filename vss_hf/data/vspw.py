"""VSPW and every data set in its layout, read as it lies on disk.

    root/train.txt val.txt test.txt          one video name per line
    root/label_num_dic_final.json            {"class name": mask value}
    root/data/<video>/origin/00000170.jpg    frames; the stem is the frame's number in the source video
    root/data/<video>/mask/00000170.png      index images (mode L or P); no folder where a split has no masks

Masks are read as the indices they store. Any detour through RGB or a mode conversion returns other numbers for the
palette masks that VSPW mixes in. `scan_split` lists videos without opening an image, `decode_frame` opens one frame,
and `load_vspw` joins both into a `datasets` object.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset, NamedSplit
from PIL import Image, ImageFile

from vss_hf.modeling.clip_frames import clip_frames

from .labels import VSPW, ClassList
from .stream import FrameStream


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ClipStart = Literal["repeat", "drop", "mirror"]


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
        raise ValueError(f"unknown split {split!r}: no file {path}; found: {', '.join(found) or 'no .txt file'}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: lists no video; expected one video name per line")
    seen = set()
    for name in names:
        if name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
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
        if not _is_text(path.name):
            raise ValueError(f"{folder}: the file name {path.name!r} is not UTF-8; rename it")
        if path.stem in images:
            raise ValueError(f"{folder}: {images[path.stem].name} and {path.name} are one frame; keep one of them")
        images[path.stem] = path
    if all(stem.isdecimal() for stem in images):  # numbers without leading zeros sort as numbers too
        return dict(sorted(images.items(), key=lambda item: (int(item[0]), item[0])))
    return dict(sorted(images.items()))


def _is_text(name: str) -> bool:
    """Whether a file name can be written as UTF-8; Arrow tables and JSON take no other."""
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in name)


# --- decoding: one file to one array


def read_image(path: str | Path) -> np.ndarray:
    """Reads a frame as uint8 (H, W, 3) RGB. ValueError names the file: empty, truncated, no image, above 8 bits."""
    with open_image(path) as image:
        check_frame_mode(path, image)
        with naming_damage(path):
            return np.array(image.convert("RGB"))


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask as uint8 (H, W), the values stored in the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, truncated or no image, or does not hold 8-bit indices (colour, 16 bits, ...).
    """
    return np.array(open_mask(path))


def open_mask(path: str | Path) -> Image.Image:
    """Opens and decodes a mask as the PIL image of its indices, mode L or P. Errors as `read_mask`."""
    with open_image(path) as image:
        _check_index_image(path, image)
        with naming_damage(path):
            image.load()
        return image


class NotIndicesError(ValueError):
    """An intact image that cannot be a mask, because it does not store class indices."""


def open_image(path: str | Path) -> ImageFile.ImageFile:
    """Opens an image file without decoding it; errors as `read_image`. Close it, or use it in a `with`."""
    if not os.path.isfile(path):  # also keeps us from waiting at a pipe for ever
        if os.path.lexists(path):
            raise ValueError(f"{path}: not a file; expected an image")
        folder = os.path.dirname(path)
        gone = "" if os.path.isdir(folder or ".") else "; its folder is gone too"
        raise FileNotFoundError(f"{path}: no such file{gone}")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path}: empty file (0 bytes); expected an image")
    with naming_damage(path):
        return Image.open(path)


@contextmanager
def naming_damage(path: str | Path) -> Iterator[None]:
    """Turns PIL's many ways to report damage into a ValueError that names the file.

    PIL can be told, for the whole process, to fill what is missing from a picture with grey. Not here.
    """
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


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
    frame = _image_tensor(record.image_path)
    if record.mask_path is None:
        return frame, None
    mask = _matching_mask(record.mask_path, frame, record.image_path)
    return frame, torch.from_numpy(classes.lookup[mask])


def _image_tensor(path: str | Path) -> torch.Tensor:
    """(3, H, W), lying in memory as (H, W, 3): so resizing is several times faster."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)


def _matching_mask(mask_path: str | Path, frame: torch.Tensor, image_path: str | Path) -> np.ndarray:
    mask = read_mask(mask_path)
    if mask.shape != tuple(frame.shape[1:]):
        raise ValueError(
            f"{mask_path}: {mask.shape[1]}x{mask.shape[0]} pixels, its frame {Path(image_path).name} has "
            f"{frame.shape[2]}x{frame.shape[1]}; mask and frame must have one size"
        )
    return mask


# --- samples: a labelled frame with the frames before it


def load_vspw(
    root: str | Path,
    split: str,
    *,
    streaming: bool = False,
    frame_offsets: Sequence[int] = (),
    clip_start: ClipStart = "repeat",
    reference_labels: bool = False,
    raw_labels: bool = False,
    classes: ClassList | None = None,
    shuffle_seed: int | None = None,
    cache: bool = False,
) -> Dataset | IterableDataset | FrameStream:
    """Opens a split of VSPW, or of a data set in its layout. One sample per frame; files are decoded on access.

    A sample is a dict: "frames" uint8 (num_frames, 3, H, W) RGB, oldest first, the last one is the labelled one;
    "labels" uint8 (H, W), 255 = ignore (absent for a split without masks); "video" the video's name; "index" the
    frame's position in its video; "frame" its file stem; with `reference_labels` "reference_labels" uint8
    (num_frames - 1, H, W); and with `raw_labels` "raw_labels" uint8 (H, W) as on disk.

    Args:
        root: the data set folder.
        split: "train", "val", "test", or any list file's name without ".txt".
        streaming: False for a map-style `datasets.Dataset`. True for a `datasets.IterableDataset` in file order with
            one shard per video; with `shuffle_seed`, a `FrameStream` that mixes videos and resumes exactly.
        frame_offsets: which earlier frames come with each labelled one, in frames before it, ascending: (-9, -6, -3).
        clip_start: where an offset points before the first frame: "repeat" takes the first frame, "mirror" counts
            forwards from it instead, but not beyond the labelled frame (both as `clip_frames` does for video models),
            "drop" leaves such samples out.
        reference_labels: adds the labels of the frames before the labelled one.
        raw_labels: adds the values on disk, needed to score by the official script, in which void pixels count.
        classes: the class list; default is the data set's own (`ClassList.from_root`).
        shuffle_seed: only with `streaming`: with the epoch (`set_epoch`) it determines the order of the mixed stream.
        cache: keep every decoded file in memory (4 bytes a pixel), however many clips it is in; only without
            `streaming`. Samples then share their pixels: do not write into them. DataLoader workers keep their own.

    Raises:
        FileNotFoundError: folder, video, mask or class list missing.
        ValueError: an argument is out of its range, or the data set is damaged (see `scan_split`); on access, for a
            file that cannot be decoded or whose size is not its frame's.
    """
    offsets = _checked_offsets(frame_offsets, clip_start)
    if shuffle_seed is not None and not streaming:
        raise ValueError("shuffle_seed needs streaming=True; a map-style data set is shuffled by its sampler")
    if cache and streaming:
        raise ValueError("cache=True with streaming=True: a stream keeps nothing; leave one of them out")
    if reference_labels and not offsets:
        raise ValueError("reference_labels=True without frame_offsets: a sample has no other frames to label")
    classes = ClassList.from_root(root) if classes is None else classes
    videos = scan_split(root, split)
    for wanted, name in ((raw_labels, "raw_labels"), (reference_labels, "reference_labels")):
        if wanted and not videos[0].has_masks:
            raise ValueError(f"{name}=True, but split {split!r} of {root} has no masks")
    shards = [list(_clip_rows(video, offsets, clip_start, reference_labels)) for video in videos]
    if not any(shards):
        raise ValueError(f"clip_start='drop' with frame_offsets {offsets} leaves no sample: all videos are too short")
    decoder = ClipDecoder(str(Path(root) / "data"), classes, raw_labels, {} if cache else None)
    if streaming and shuffle_seed is None:
        stream = IterableDataset.from_generator(_flatten, gen_kwargs={"shards": shards}, split=NamedSplit(split))
        return stream.map(decoder, remove_columns=["images", "masks"])
    rows = [row for shard in shards for row in shard]
    dataset = Dataset.from_list(rows, split=NamedSplit(split)).with_transform(decoder.decode_batch)
    return dataset if shuffle_seed is None else FrameStream(dataset, seed=shuffle_seed)


def _checked_offsets(frame_offsets: Sequence[int], clip_start: str) -> tuple[int, ...]:
    offsets = tuple(frame_offsets)
    if any(offset >= 0 for offset in offsets) or list(offsets) != sorted(set(offsets)):
        raise ValueError(f"frame_offsets is {offsets}; expected ascending negative numbers such as (-9, -6, -3)")
    if clip_start not in ("repeat", "drop", "mirror"):
        raise ValueError(f"clip_start is {clip_start!r}; expected 'repeat', 'drop' or 'mirror'")
    return offsets


def _clip_rows(
    video: VSPWVideo, offsets: tuple[int, ...], clip_start: str, reference_labels: bool
) -> Iterator[dict[str, Any]]:
    """The undecoded samples of a video: file names instead of pixels, relative to the data folder.

    "masks" are those of the last of the "images": of all of them, of the labelled frame, or none.
    """
    images = [f"{video.name}/origin/{frame.image_path.name}" for frame in video.frames]
    masks = [f"{video.name}/mask/{frame.mask_path.name}" for frame in video.frames if frame.mask_path]
    for index, frame in enumerate(video.frames):
        clip = clip_frames(index, offsets, "existing" if clip_start == "drop" else clip_start)
        if len(clip) <= len(offsets):  # only with "drop": some frames do not exist
            continue
        labelled = clip if reference_labels else [index]
        yield {
            "video": video.name,
            "index": index,
            "frame": frame.stem,
            "images": [images[i] for i in clip],
            "masks": [masks[i] for i in labelled] if masks else [],
        }


def _flatten(shards: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from shard


@dataclass(frozen=True)
class ClipDecoder:
    """Turns an undecoded sample (file names) into a decoded one; plain data, so that workers can receive it.

    Args:
        folder: the folder that the file names are relative to.
        classes: says which mask values are which labels.
        raw_labels: adds the values on disk.
        cache: where decoded files are kept, by path; None: nowhere.
    """

    folder: str
    classes: ClassList
    raw_labels: bool = False
    cache: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> ClipDecoder:
        return self  # a `datasets.Dataset` copies itself for many small things; the files in the cache must not follow

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        known = {} if self.cache is None else self.cache  # of one clip, too: a repeated first frame is read once
        paths = [os.path.join(self.folder, name) for name in row["images"]]
        images = [self.image(path, known) for path in paths]  # each (3, H, W)
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[-1].shape:
                raise ValueError(
                    f"{path}: {image.shape[2]}x{image.shape[1]} pixels, but {Path(paths[-1]).name} of the same clip "
                    f"has {images[-1].shape[2]}x{images[-1].shape[1]}; frames of a video must have one size"
                )
        sample: dict[str, Any] = {"frames": stacked_frames(images)}
        masks = [os.path.join(self.folder, name) for name in row["masks"]]
        labelled = list(zip(paths, images, strict=True))[len(paths) - len(masks) :]
        maps = [self.labels(mask, *frame, known) for mask, frame in zip(masks, labelled, strict=True)]
        if maps:
            sample["labels"], raw_labels = maps[-1]
            if self.raw_labels:
                sample["raw_labels"] = raw_labels
        if len(maps) > 1:
            sample["reference_labels"] = torch.stack([labels for labels, _ in maps[:-1]])
        return {**sample, "video": row["video"], "index": row["index"], "frame": row["frame"]}

    def image(self, path: str, known: dict[str, Any]) -> torch.Tensor:
        """The frame in a file, (3, H, W), decoded if it is not known yet."""
        if path not in known:
            known[path] = _image_tensor(path)
        return known[path]

    def labels(
        self, path: str, image_path: str, image: torch.Tensor, known: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The labels in a frame's mask file, and if wanted the values on disk, both (H, W); decoded if not known."""
        if path not in known:
            mask = _matching_mask(path, image, image_path)
            known[path] = (
                torch.from_numpy(self.classes.lookup[mask]),
                torch.from_numpy(mask) if self.raw_labels else None,
            )
        return known[path]

    def decode_batch(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The same for a batch in columns, as `datasets.Dataset.with_transform` wants it."""
        samples = [self(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
        return {key: [sample[key] for sample in samples] for key in samples[0]}


def stacked_frames(images: list[torch.Tensor]) -> torch.Tensor:
    """Frames (3, H, W), each lying in memory as (H, W, 3), as one tensor (T, 3, H, W) that lies there likewise."""
    if len(images) == 1:
        return images[0].unsqueeze(0)  # without copying
    return torch.stack([image.movedim(0, 2) for image in images]).movedim(3, 1)
