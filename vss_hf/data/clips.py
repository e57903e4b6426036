"""VSPW as samples for training and evaluation: a labelled frame with the frames before it, decoded on access."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, IterableDataset, NamedSplit

from vss_hf.modeling.clip_frames import clip_frames

from .labels import ClassList
from .masks import LabelReader
from .order import EveryFrame, VideoWindows
from .packed import fitting_window
from .parquet import download_split, hub_id
from .splits import LabelledSplit, open_split
from .stream import FrameStream
from .vspw import VSPWVideo, image_tensor, matching


ClipStart = Literal["repeat", "drop", "mirror"]


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
        root: the data set folder; or one packed by `write_parquet`; or the id of such a data set on the Hub,
            "owner/name" or "owner/name@revision": downloaded first, or with `streaming` fetched while it is read.
        split: "train", "val", "test", or any list file's name without ".txt".
        streaming: False for a map-style `datasets.Dataset`. True for a `datasets.IterableDataset` in file order with
            one shard per video; with `shuffle_seed`, a `FrameStream` that mixes videos and resumes exactly. Of packed
            data it mixes up to 16 videos at a time, so that each rank and worker fetches its own videos only.
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
        OSError: the Hub cannot be reached; also on access.
    """
    if not streaming and hub_id(root) is not None:
        root = download_split(root, split)
    return load_split(
        open_split(root, split, classes=classes),
        streaming=streaming,
        frame_offsets=frame_offsets,
        clip_start=clip_start,
        reference_labels=reference_labels,
        raw_labels=raw_labels,
        shuffle_seed=shuffle_seed,
        cache=cache,
    )


def load_split(
    split: LabelledSplit,
    *,
    streaming: bool = False,
    frame_offsets: Sequence[int] = (),
    clip_start: ClipStart = "repeat",
    reference_labels: bool = False,
    raw_labels: bool = False,
    shuffle_seed: int | None = None,
    cache: bool = False,
) -> Dataset | IterableDataset | FrameStream:
    """The samples of an opened split of any data set; arguments, samples and errors as `load_vspw`."""
    offsets = _checked_offsets(frame_offsets, clip_start)
    if shuffle_seed is not None and not streaming:
        raise ValueError("shuffle_seed needs streaming=True; a map-style data set is shuffled by its sampler")
    if cache and streaming:
        raise ValueError("cache=True with streaming=True: a stream keeps nothing; leave one of them out")
    if reference_labels and not offsets:
        raise ValueError("reference_labels=True without frame_offsets: a sample has no other frames to label")
    for wanted, name in ((raw_labels, "raw_labels"), (reference_labels, "reference_labels")):
        if wanted and not split.has_masks:
            raise ValueError(f"{name}=True, but {split} has no masks")
    shards = [list(_clip_rows(split.root, video, offsets, clip_start, reference_labels)) for video in split.videos]
    if not any(shards):
        raise ValueError(f"clip_start='drop' with frame_offsets {offsets} leaves no sample: all videos are too short")
    decoder = ClipDecoder(str(split.root), split.reader, raw_labels, {} if cache else None)
    if streaming and shuffle_seed is None:
        stream = IterableDataset.from_generator(_flatten, gen_kwargs={"shards": shards}, split=NamedSplit(split.name))
        return stream.map(decoder, remove_columns=["images", "masks"])
    rows = [row for shard in shards for row in shard]
    dataset = Dataset.from_list(rows, split=NamedSplit(split.name)).with_transform(decoder.decode_batch)
    if shuffle_seed is None:
        return dataset
    lengths = [len(shard) for shard in shards]
    order = VideoWindows(lengths, fitting_window(split.videos)) if split.packed else EveryFrame(len(rows))
    return FrameStream(dataset, seed=shuffle_seed, order=order, data=split.fingerprint)


def _checked_offsets(frame_offsets: Sequence[int], clip_start: str) -> tuple[int, ...]:
    offsets = tuple(frame_offsets)
    if any(offset >= 0 for offset in offsets) or list(offsets) != sorted(set(offsets)):
        raise ValueError(f"frame_offsets is {offsets}; expected ascending negative numbers such as (-9, -6, -3)")
    if clip_start not in ("repeat", "drop", "mirror"):
        raise ValueError(f"clip_start is {clip_start!r}; expected 'repeat', 'drop' or 'mirror'")
    return offsets


def _clip_rows(
    root: Path, video: VSPWVideo, offsets: tuple[int, ...], clip_start: str, reference_labels: bool
) -> Iterator[dict[str, Any]]:
    """The undecoded samples of a video: file names instead of pixels, relative to the data set's folder.

    "masks" are those of the last of the "images": of all of them, of the labelled frame, or none.
    """
    prefix = f"{root}{os.sep}"  # of every path; many times faster than Path.relative_to
    images = [str(frame.image_path).removeprefix(prefix) for frame in video.frames]
    masks = [str(frame.mask_path).removeprefix(prefix) for frame in video.frames if frame.mask_path]
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
        reader: turns mask files into labels.
        raw_labels: adds the values on disk.
        cache: where decoded files are kept, by path; None: nowhere.
    """

    folder: str
    reader: LabelReader
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
            known[path] = image_tensor(path)
        return known[path]

    def labels(
        self, path: str, image_path: str, image: torch.Tensor, known: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The labels in a frame's mask file, and if wanted the values on disk, both (H, W); decoded if not known."""
        if path not in known:
            values = matching(self.reader.values(path), path, image, image_path)
            known[path] = (
                torch.from_numpy(self.reader.lookup.take(values)),
                torch.from_numpy(values) if self.raw_labels else None,
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
