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

from vss_hf.data.splits import LabelledSplit
from vss_hf.data.statistics import LabelStatistics, class_groups
from vss_hf.data.vspw import read_image, read_mask
from vss_hf.data.workers import end_with_parent
from vss_hf.metrics import ConfusionMatrix, VideoConsistency, sum_over_processes

from .batches import runs
from .class_scores import group_scores
from .ground_truth import GroundTruth, data_set_name, open_ground_truth, pinned_everywhere
from .processes import check_same_everywhere, failing_together, is_first, largest, own_share, rank_and_world
from .segmenter import VideoSegmenter


@dataclass
class LabelledFrame:
    """One decoded frame: its video's position, RGB image (None when only the mask is wanted), the mask's values."""

    video: int
    name: str
    image: np.ndarray | None
    values: np.ndarray


class FrameReader(Dataset):
    """Decodes the frames of videos in order.

    Args:
        split: a split with masks.
        chosen: positions of the videos to read.
        with_images: whether to decode the frames beside the masks.
    """

    def __init__(self, split: LabelledSplit, chosen: Sequence[int], with_images: bool = True):
        self.reader = split.reader
        self.frames = [(i, record) for i in chosen for record in split.videos[i].frames]
        self.with_images = with_images

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        video, record = self.frames[index]
        image = read_image(record.image_path) if self.with_images else None
        assert record.mask_path is not None  # `open_ground_truth` has looked
        values = self.reader.values(record.mask_path)
        if image is not None and image.shape[:2] != values.shape:
            raise ValueError(
                f"{record.mask_path}: mask is {values.shape[1]}x{values.shape[0]} and its frame "
                f"{image.shape[1]}x{image.shape[0]} (width x height); they must agree"
            )
        return LabelledFrame(video, record.stem, image, values)


class VideoScores:
    """Confusion counts and video consistency of predictions that come in frame by frame.

    Args:
        truth: what the predictions are compared with; all its videos, counted in this process or not.
        protocol: of the mIoU, `vspw` or `evaluate`.
        vc_protocol: of the video consistency, e.g. `vspw-official`.
        training: label statistics of the training data, whose head, medium and tail classes are told apart; None:
            those of the ground truth.

    Raises:
        ValueError: an unknown protocol, or `training` counts other classes than those that are scored.
    """

    def __init__(
        self,
        truth: GroundTruth,
        protocol: str = "vspw",
        vc_protocol: str = "vspw-official",
        training: LabelStatistics | None = None,
    ):
        if training is not None:
            training.check_names(truth.classes.names)
        self.truth, self.protocol, self.vc_protocol, self.training = truth, protocol, vc_protocol, training
        self.confusion = ConfusionMatrix(truth.classes.num_labels)
        self.confusion.compute(protocol)  # an unknown protocol is an error now, not after hours of frames
        self.consistency = VideoConsistency(protocol=vc_protocol)  # of the open video
        self.video: int | None = None
        num_videos = len(truth.split.videos)
        self.frames = torch.zeros(num_videos, dtype=torch.int64)
        self.frames_with = torch.zeros(num_videos, truth.classes.num_labels, dtype=torch.int64)  # each class
        self.totals = torch.zeros(num_videos, *self.consistency.totals.shape, dtype=torch.float64)

    def add(self, frame: LabelledFrame, prediction: np.ndarray) -> None:
        """Count one frame; the frames of a video must come in order."""
        if frame.video != self.video:
            self.end_video()
            self.video = frame.video
        labels, prediction = self.truth.lookup[frame.values], self.truth.scored_prediction(prediction)
        before = self.confusion.in_truth
        self.confusion.update(prediction, labels)
        self.frames_with[frame.video] += self.confusion.in_truth > before
        raw = self.truth.raw_consistency and self.vc_protocol != "paper"
        self.consistency.add_frame(prediction, frame.values if raw else labels)
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
        self.frames_with = sum_over_processes(self.frames_with)

    def results(self) -> dict[str, Any]:
        """All numbers with their protocols; see `evaluate_model`."""
        self.end_video()
        scores = self.confusion.compute(self.protocol)
        consistency = VideoConsistency(protocol=self.vc_protocol)
        for totals in self.totals:
            consistency.add_totals(totals)
        vc = consistency.compute()
        videos = int(self.frames.count_nonzero())
        if self.training is None:
            counted_on = f"{data_set_name(self.truth.split.root)} {self.truth.split.name}"
            groups = class_groups((self.frames_with > 0).sum(0).numpy(), videos)
        else:
            counted_on, groups = f"{self.training.dataset} {self.training.split}", self.training.groups()
        return {
            "protocol": self.protocol,
            "vc_protocol": self.vc_protocol,
            "videos": videos,
            "frames": int(self.frames.sum()),
            **{k: scores[k] for k in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy")},
            "classes_scored": scores["num_classes_scored"],
            **group_scores(scores["per_class_iou"], groups),
            "per_class_iou": self.by_name(scores["per_class_iou"]),
            "per_class_accuracy": self.by_name(scores["per_class_accuracy"]),
            "per_class_pixels": self.by_name(self.confusion.in_truth.tolist()),
            "per_class_frames": self.by_name(self.frames_with.sum(0).tolist()),
            "class_groups": self.by_name(groups),
            "class_groups_of": counted_on,
            "vc8": number_or_none(vc["vc8"]),
            "vc16": number_or_none(vc["vc16"]),
            "vc_clips": vc["clips"],
        }

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        """One value per class, by the names of the classes."""
        return dict(zip(self.truth.classes.names, values, strict=True))


def evaluate_model(
    segmenter: VideoSegmenter,
    root: str | Path,
    split: str = "val",
    *,
    source: str = "vspw",
    table: str | Path | None = None,
    protocol: str = "vspw",
    vc_protocol: str = "vspw-official",
    training: LabelStatistics | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    with_confusion: bool = False,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the labelled videos of a split, at the size of the ground truth.

    Where torch.distributed runs, all processes must call this, each with the same model and data: they share the
    videos, and all get the result of one process, to the last bit.

    Args:
        segmenter: image or video model and processor. It begins anew with every video, and at the end.
        root: the data set: a folder, or packed data on the Hub.
        split: a split with masks.
        source: the data set's layout, as for `open_split`.
        table: in whose classes a data set of other classes is scored. "default", "liberal" or a CSV file: VSPW's
            (`load_table`). None: its own; a model of VSPW's classes is then scored with "reverse", in groups of the
            data set's classes that VSPW does not tell apart (`reverse_map`).
        protocol: of the mIoU: `vspw` (classes present in the ground truth) or `evaluate` (classes with union > 0).
        vc_protocol: `vspw-official`, `paper` or `dvis-legacy`.
        training: label statistics of the training data (`training_statistics`), for the groups head, medium and tail;
            None: of the videos that are evaluated on.
        batch_size: frames per forward pass of an image model; a batch holds frames of one video. A video model takes
            one at a time, in order.
        num_workers: processes that decode.
        with_confusion: add `confusion` to the results.
        progress: wraps the first process's iterator of frames (given with their number), e.g. for a progress bar.

    Returns:
        Dictionary for `--json`: protocols, split, dataset, videos, frames, mean_iou, frequency_weighted_iou,
        pixel_accuracy, mean_accuracy; mean_iou_head, mean_iou_medium, mean_iou_tail, each if a class of the group is
        scored; per_class_iou and per_class_accuracy (name: value or None), per_class_pixels and per_class_frames of
        the ground truth, class_groups (name: head, medium, tail, or absent from what was counted) and
        class_groups_of (what was counted); vc8, vc16, vc_clips, frames_per_second (preprocessing, model and label
        map, of all processes together; without decoding and scoring), model, versions, hardware; source and table,
        where the data set is not simply in VSPW's layout; and tta, score_steps and label_steps, where the segmenter
        has any (`VideoSegmenter.settings`). `confusion` is the pixels of every pair of classes, a list
        of rows, one for each true class.

    Raises:
        ValueError: the split has no masks, the model's classes are not the data set's, or the processes see different
            data.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    root = pinned_everywhere([root]).get(str(root), root)
    with failing_together():
        truth = open_ground_truth(root, split, source, table, segmenter.names)
        scores = VideoScores(truth, protocol, vc_protocol, training)
    reader = FrameReader(truth.split, share_of(truth.split, root))
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
        for frames in runs(frames_in_order, batch_size, key=lambda frame: (frame.video, frame.values.shape)):
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
        **data_set_scored(truth, root, source),
        **segmenter.settings(),
        "frames_per_second": results["frames"] / seconds if seconds else None,
        "model": Path(str(segmenter.model.config.name_or_path)).name or type(segmenter.model).__name__,
        **environment(segmenter.model.device),
        **({"confusion": scores.confusion.counts.tolist()} if with_confusion else {}),
    }


def score_predictions(
    predictions: str | Path,
    root: str | Path,
    split: str = "val",
    *,
    source: str = "vspw",
    table: str | Path | None = None,
    protocol: str = "vspw",
    vc_protocol: str = "vspw-official",
    training: LabelStatistics | None = None,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> dict[str, Any]:
    """Score anybody's prediction files. Processes share the videos as in `evaluate_model`.

    Args:
        predictions: folder with `<video>/<frame>.png`, 8-bit indices 0..num_labels-1, at the size of the ground truth.
        root, split, source: as for `evaluate_model`.
        table: as for `evaluate_model`, and "reverse" has to be said: files do not tell whose labels they hold.
        protocol: as for `evaluate_model`.
        vc_protocol, training: as for `evaluate_model`.
        progress: as for `evaluate_model`.

    Returns:
        As `evaluate_model`, without the model's speed.

    Raises:
        FileNotFoundError: a frame has no prediction (all are wanted: leaving some out would change the score).
        ValueError: a prediction has another size or a value outside the classes.
        OtherProcessFailed: as `evaluate_model`.
    """
    root = pinned_everywhere([root]).get(str(root), root)
    with failing_together():
        truth = open_ground_truth(root, split, source, table)
        videos = truth.split.videos
        scores = VideoScores(truth, protocol, vc_protocol, training)
        files = [prediction_file(predictions, video.name, record.stem) for video in videos for record in video.frames]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} predictions are missing, the first is {missing[0]}"
            )
    reader = FrameReader(truth.split, share_of(truth.split, root), with_images=False)
    with failing_together():
        in_order: Iterator[LabelledFrame] = (reader[i] for i in range(len(reader)))
        for frame in progress(in_order, len(reader)) if progress and is_first() else in_order:
            path = prediction_file(predictions, videos[frame.video].name, frame.name)
            score_file(path, frame, scores)
    scores.reduce()
    results = {**scores.results(), **data_set_scored(truth, root, source), "frames_per_second": None}
    return {**results, "model": Path(predictions).resolve().name, **environment("cpu")}


def score_file(path: Path, frame: LabelledFrame, scores: VideoScores) -> None:
    """Count the prediction of one frame; errors name its file."""
    prediction = read_mask(path)  # as masks: no lossy format, and no 4-bit grey, whose values PIL stretches
    wanted = frame.values.shape
    if prediction.shape != wanted:
        raise ValueError(f"{path}: found {prediction.shape}, expected {wanted} as the mask (height, width)")
    try:
        scores.add(frame, prediction)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def data_set_scored(truth: GroundTruth, root: str | Path, source: str) -> dict[str, Any]:
    """What was scored; source and table are left out for a data set in VSPW's layout with its own classes."""
    scored = {"split": truth.split.name, "dataset": data_set_name(root)}
    return scored if source == "vspw" and truth.table is None else {**scored, "source": source, "table": truth.table}


def share_of(split: LabelledSplit, root: str | Path) -> list[int]:
    """The positions of the videos that this process counts."""
    listing = "\n".join(f"{video.name} {len(video.frames)}" for video in split.videos)
    check_same_everywhere(listing, f"split '{split.name}' of {root}")
    return own_share([len(video.frames) for video in split.videos])


def prediction_file(folder: str | Path, video: str, frame: str) -> Path:
    """Where the prediction of a frame lies."""
    return Path(folder) / video / f"{frame}.png"


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
