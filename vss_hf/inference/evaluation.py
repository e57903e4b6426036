"""Evaluation of a model, or of anybody's prediction files, on labelled videos.

Where torch.distributed runs, every process takes whole videos and all of them get the result of one process, to the
last bit: pixels are counted in integers, video consistency is summed in the order of the data set.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vss_hf.data.labels import ClassList
from vss_hf.data.vspw import VSPWVideo, read_image, read_mask, scan_split
from vss_hf.data.workers import end_with_parent
from vss_hf.metrics import ConfusionMatrix, VideoConsistency, sum_over_processes

from .batches import runs
from .processes import check_same_everywhere, failing_together, is_first, largest, own_share, rank_and_world
from .segmenter import VideoSegmenter


@dataclass
class LabelledFrame:
    """One decoded frame: its video's position, RGB image (None when only the mask is wanted), mask as on disk."""

    video: int
    name: str
    image: np.ndarray | None
    raw_labels: np.ndarray


class FrameReader(Dataset):
    """Decodes the frames of videos in order.

    Args:
        videos: from `labelled_videos`.
        chosen: positions of the videos to read.
        with_images: whether to decode the frames beside the masks.
    """

    def __init__(self, videos: list[VSPWVideo], chosen: Sequence[int], with_images: bool = True):
        self.frames = [(i, record) for i in chosen for record in videos[i].frames]
        self.with_images = with_images

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        video, record = self.frames[index]
        image = read_image(record.image_path) if self.with_images else None
        assert record.mask_path is not None  # `labelled_videos` has looked
        labels = read_mask(record.mask_path)
        if image is not None and image.shape[:2] != labels.shape:
            raise ValueError(
                f"{record.mask_path}: mask is {labels.shape[1]}x{labels.shape[0]} and its frame "
                f"{image.shape[1]}x{image.shape[0]} (width x height); they must agree"
            )
        return LabelledFrame(video, record.stem, image, labels)


class VideoScores:
    """Confusion counts and video consistency of predictions that come in frame by frame.

    Args:
        classes: class list of the data set.
        num_videos: of the data set, counted in this process or not.
        protocol: of the mIoU, `vspw` or `evaluate`.
        vc_protocol: of the video consistency, e.g. `vspw-official`.
    """

    def __init__(
        self, classes: ClassList, num_videos: int, protocol: str = "vspw", vc_protocol: str = "vspw-official"
    ):
        self.classes, self.protocol, self.vc_protocol = classes, protocol, vc_protocol
        self.confusion = ConfusionMatrix(classes.num_labels)
        self.confusion.compute(protocol)  # an unknown protocol is an error now, not after hours of frames
        self.consistency = VideoConsistency(protocol=vc_protocol)  # of the open video
        self.video: int | None = None
        self.frames = torch.zeros(num_videos, dtype=torch.int64)
        self.totals = torch.zeros(num_videos, *self.consistency.totals.shape, dtype=torch.float64)

    def add(self, frame: LabelledFrame, prediction: np.ndarray) -> None:
        """Count one frame; the frames of a video must come in order."""
        if frame.video != self.video:
            self.end_video()
            self.video = frame.video
        labels = self.classes.lookup[frame.raw_labels]
        self.confusion.update(prediction, labels)
        # The official script compares masks as they lie on disk, where 0 ("others") and 255 (void) are two values.
        self.consistency.add_frame(prediction, frame.raw_labels if self.vc_protocol != "paper" else labels)
        self.frames[frame.video] += 1

    def end_video(self) -> None:
        """Close the video that is open, if any."""
        if self.video is not None:
            self.consistency.end_video()
            self.totals[self.video] += self.consistency.totals
            self.consistency.reset()
            self.video = None

    def reduce(self) -> None:
        """Add what the other processes counted, in every process. Call it once, at the end."""
        self.end_video()
        self.confusion.reduce()
        self.frames, self.totals = sum_over_processes(self.frames), sum_over_processes(self.totals)

    def results(self) -> dict[str, Any]:
        """All numbers with their protocols; see `evaluate_model`."""
        self.end_video()
        scores = self.confusion.compute(self.protocol)
        consistency = VideoConsistency(protocol=self.vc_protocol)
        for totals in self.totals:
            consistency.add_totals(totals)
        vc = consistency.compute()
        return {
            "protocol": self.protocol,
            "vc_protocol": self.vc_protocol,
            "videos": int(self.frames.count_nonzero()),
            "frames": int(self.frames.sum()),
            **{k: scores[k] for k in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy")},
            "classes_scored": scores["num_classes_scored"],
            "per_class_iou": dict(zip(self.classes.names, scores["per_class_iou"], strict=True)),
            "vc8": number_or_none(vc["vc8"]),
            "vc16": number_or_none(vc["vc16"]),
            "vc_clips": vc["clips"],
        }


def evaluate_model(
    segmenter: VideoSegmenter,
    root: str | Path,
    split: str = "val",
    *,
    protocol: str = "vspw",
    vc_protocol: str = "vspw-official",
    batch_size: int = 4,
    num_workers: int = 0,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the labelled videos of a split, at the size of the ground truth.

    Where torch.distributed runs, all processes must call this, each with the same model and data: they share the
    videos, and all get the result of one process, to the last bit.

    Args:
        segmenter: image or video model and processor. It begins anew with every video, and at the end.
        root: data set in VSPW layout.
        split: a split with masks.
        protocol: of the mIoU: `vspw` (classes present in the ground truth) or `evaluate` (classes with union > 0).
        vc_protocol: `vspw-official`, `paper` or `dvis-legacy`.
        batch_size: frames per forward pass of an image model; a batch holds frames of one video. A video model takes
            one at a time, in order.
        num_workers: processes that decode.
        progress: wraps the first process's iterator of frames (given with their number), e.g. for a progress bar.

    Returns:
        Dictionary for `--json`: protocols, split, dataset, videos, frames, mean_iou, frequency_weighted_iou,
        pixel_accuracy, mean_accuracy, per_class_iou (name: value or None), vc8, vc16, vc_clips, frames_per_second
        (preprocessing, model and label map, of all processes together; without decoding and scoring), model,
        versions, hardware.

    Raises:
        ValueError: the split has no masks, the model's classes are not the data set's, or the processes see different
            data.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    with failing_together():
        videos = labelled_videos(root, split)
        classes = ClassList.from_root(root)
        check_classes(segmenter.names, classes, root)
        scores = VideoScores(classes, len(videos), protocol, vc_protocol)
    reader = FrameReader(videos, share_of(videos, root, split))
    seconds = 0.0
    with failing_together():
        batches = DataLoader(
            reader,
            batch_size,
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=end_with_parent,
            # A process that just talked to others has threads in torch.distributed; a worker forked at that moment
            # can wait for ever for a lock that one of them held (seen with Python 3.11, once in some hundred runs).
            multiprocessing_context="forkserver" if num_workers and rank_and_world()[1] > 1 else None,
        )
        frames_in_order = flatten(batches)
        if progress and is_first():
            frames_in_order = progress(frames_in_order, len(reader))
        # Which frames run through the model together changes the last bits of its output. This depends on the video
        # alone, so it does not matter which process takes it.
        video = None
        for frames in runs(frames_in_order, batch_size, key=lambda frame: (frame.video, frame.raw_labels.shape)):
            if frames[0].video != video:
                segmenter.reset()
                video = frames[0].video
            began = time.perf_counter()
            predictions = segmenter.label_batch([f.image for f in frames])
            seconds += time.perf_counter() - began
            for frame, prediction in zip(frames, predictions, strict=True):
                scores.add(frame, prediction)
        segmenter.reset()  # the last video's memory is not needed any more
    scores.reduce()
    results, seconds = scores.results(), largest(seconds)
    return {
        **results,
        "split": split,
        "dataset": Path(root).resolve().name,
        "frames_per_second": results["frames"] / seconds if seconds else None,
        "model": Path(str(segmenter.model.config.name_or_path)).name or type(segmenter.model).__name__,
        **environment(segmenter.model.device),
    }


def score_predictions(
    predictions: str | Path,
    root: str | Path,
    split: str = "val",
    *,
    protocol: str = "vspw",
    vc_protocol: str = "vspw-official",
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> dict[str, Any]:
    """Score anybody's prediction files. Processes share the videos as in `evaluate_model`.

    Args:
        predictions: folder with `<video>/<frame>.png`, 8-bit indices 0..num_labels-1, at the size of the ground truth.
        root: data set in VSPW layout.
        split: a split with masks.
        protocol: as for `evaluate_model`.
        vc_protocol: as for `evaluate_model`.
        progress: as for `evaluate_model`.

    Returns:
        As `evaluate_model`, without the model's speed.

    Raises:
        FileNotFoundError: a frame has no prediction (all are wanted: leaving some out would change the score).
        ValueError: a prediction has another size or a value outside the classes.
        OtherProcessFailed: as `evaluate_model`.
    """
    with failing_together():
        videos = labelled_videos(root, split)
        scores = VideoScores(ClassList.from_root(root), len(videos), protocol, vc_protocol)
        files = [prediction_file(predictions, video.name, record.stem) for video in videos for record in video.frames]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} predictions are missing, the first is {missing[0]}"
            )
    reader = FrameReader(videos, share_of(videos, root, split), with_images=False)
    with failing_together():
        in_order: Iterator[LabelledFrame] = (reader[i] for i in range(len(reader)))
        for frame in progress(in_order, len(reader)) if progress and is_first() else in_order:
            path = prediction_file(predictions, videos[frame.video].name, frame.name)
            score_file(path, frame, scores)
    scores.reduce()
    results = {**scores.results(), "split": split, "dataset": Path(root).resolve().name, "frames_per_second": None}
    return {**results, "model": Path(predictions).resolve().name, **environment("cpu")}


def score_file(path: Path, frame: LabelledFrame, scores: VideoScores) -> None:
    """Count the prediction of one frame; errors name its file."""
    prediction = read_mask(path)  # as masks: no lossy format, and no 4-bit grey, whose values PIL stretches
    wanted = frame.raw_labels.shape
    if prediction.shape != wanted:
        raise ValueError(f"{path}: found {prediction.shape}, expected {wanted} as the mask (height, width)")
    try:
        scores.add(frame, prediction)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def labelled_videos(root: str | Path, split: str) -> list[VSPWVideo]:
    """The videos of a split that has masks."""
    videos = scan_split(root, split)
    if not videos[0].has_masks:
        raise ValueError(f"split '{split}' of {root} has no masks: it can be predicted, not scored")
    return videos


def share_of(videos: list[VSPWVideo], root: str | Path, split: str) -> list[int]:
    """The positions of the videos that this process counts."""
    listing = "\n".join(f"{video.name} {len(video.frames)}" for video in videos)
    check_same_everywhere(listing, f"split '{split}' of {root}")
    return own_share([len(video.frames) for video in videos])


def prediction_file(folder: str | Path, video: str, frame: str) -> Path:
    """Where the prediction of a frame lies."""
    return Path(folder) / video / f"{frame}.png"


def check_classes(names: list[str], classes: ClassList, root: str | Path) -> None:
    """Raise unless the model's classes are the data set's, in order."""
    if len(names) != classes.num_labels:
        raise ValueError(
            f"the model has {len(names)} classes (num_labels) and {root} has {classes.num_labels}: "
            "train on this data set, or evaluate on the one that the model was trained on"
        )
    for i, (ours, theirs) in enumerate(zip(names, classes.names, strict=True)):
        if ours != theirs and not ours.startswith("LABEL_"):
            raise ValueError(
                f"class {i} is '{ours}' for the model and '{theirs}' in {root}: another class list or order"
            )


def flatten(batches: Any) -> Iterator[LabelledFrame]:
    """Single frames from lists of them."""
    for batch in batches:
        yield from batch


def number_or_none(value: float | None) -> float | None:
    """NaN has no place in JSON."""
    return None if value is None or np.isnan(value) else float(value)


def environment(device: Any) -> dict[str, Any]:
    """Versions and hardware, to be kept beside every number."""
    packages = ("vss-hf", "torch", "transformers", "datasets", "timm", "numpy")
    if torch.device(device).type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{cpu_name()}, {torch.get_num_threads()} threads"
    world = rank_and_world()[1]
    if world > 1:  # a speed is that of all of them
        hardware = f"{world} x {hardware}"
    return {"versions": {name: version(name) for name in packages}, "hardware": hardware}


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
