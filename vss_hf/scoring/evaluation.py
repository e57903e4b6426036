"""Evaluation of a model, or of anybody's prediction files, on labelled videos.

Where torch.distributed runs, every process takes whole videos and all of them get the result of one process, to the
last bit: pixels are counted in integers, video consistency is summed in the order of the data set.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from vss_hf.data.splits import LabelledSplit
from vss_hf.data.statistics import LabelStatistics
from vss_hf.data.vspw import read_image
from vss_hf.data.workers import end_with_parent
from vss_hf.inference.batches import runs
from vss_hf.inference.processes import (
    check_same_everywhere,
    failing_together,
    is_first,
    largest,
    own_share,
    rank_and_world,
)
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.metrics import sum_over_processes

from .coverage import Coverage, coverage_warnings
from .dumps import Dump, open_dump
from .ground_truth import GroundTruth, data_set_name, open_ground_truth, pinned_everywhere
from .predicted_values import PredictedValues
from .video_scores import LabelledFrame, VideoScores


if TYPE_CHECKING:
    from vss_hf.refinement.flow import Flow

    from .report import Report


class FrameReader(Dataset):
    """Decodes the frames of videos in order.

    Args:
        split: a split with masks.
        chosen: positions of the videos to read.
        with_images: whether to decode the frames beside the masks.
    """

    def __init__(self, split: LabelledSplit, chosen: Sequence[int], with_images: bool = True):
        self.reader = split.reader
        self.frames = [(i, *numbered) for i in chosen for numbered in enumerate(split.videos[i].frames)]
        self.with_images = with_images

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        video, number, record = self.frames[index]
        image = read_image(record.image_path) if self.with_images else None
        assert record.mask_path is not None  # `open_ground_truth` has looked
        values = self.reader.values(record.mask_path)
        if image is not None and image.shape[:2] != values.shape:
            raise ValueError(
                f"{record.mask_path}: mask is {values.shape[1]}x{values.shape[0]} and its frame "
                f"{image.shape[1]}x{image.shape[0]} (width x height); they must agree"
            )
        return LabelledFrame(video, number, record.stem, image, values)


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
    flow: "Flow | None" = None,
    tc_protocol: str = "vspw-official",
    with_confusion: bool = False,
    with_timeline: bool = False,
    report: "Report | None" = None,
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
        protocol: of the mIoU that leads: `vspw` (classes present in the ground truth) or `evaluate` (classes with
            union > 0). The results hold both.
        vc_protocol: of the video consistency that leads: `vspw-official`, `paper` or `dvis-legacy`. The results hold
            all.
        training: label statistics of the training data (`training_statistics`), for the groups head, medium and tail;
            None: of the videos that are evaluated on.
        batch_size: frames per forward pass of an image model; a batch holds frames of one video. A video model takes
            one at a time, in order.
        num_workers: processes that decode.
        flow: optical flow between two frames for the temporal consistency (TC), e.g. of `load_raft`; None: no TC.
        tc_protocol: `vspw-official` or `paper`, see `TemporalConsistency`.
        with_confusion: add `confusion` to the results.
        with_timeline: add `timeline` to the results.
        report: keeps frames meanwhile, for the pictures that its `write` makes afterwards.
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

        Under all protocols: mean_iou_protocols (mean_iou and classes_scored of each), consistency (vc8, vc16, clips
        and dropped_clips of each). mean_iou_interval: what 95 % of 1000 draws of as many videos, with repetition, give
        (`mean_iou_interval`; None for one video). flicker_rate: of the pixels whose true class stays the same from one
        frame to the next, the share whose predicted label changes; `timeline`: that of every frame, by video.
        per_video: a list of video, frames, mean_iou, frequency_weighted_iou, pixel_accuracy, classes (in its truth),
        vc8, vc16, consistency and flicker_rate; mean_iou_over_videos and frequency_weighted_iou_over_videos: the means
        of these. tc, and where it is a number tc_protocol, tc_videos and tc_flow, otherwise tc_skipped, the reason.
        warnings: sentences that belong beside the numbers.

    Raises:
        ValueError: the split has no masks, the model's classes are not the data set's, or the processes see different
            data.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    root = pinned_everywhere([root]).get(str(root), root)
    with failing_together():
        truth = open_ground_truth(root, split, source, table, segmenter.names)
        scores = VideoScores(truth, protocol, vc_protocol, training, flow, tc_protocol)
    if report is not None:
        scores.kept = report.begin(truth)
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
    results, seconds = scores.results(with_timeline), largest(seconds)
    return {
        **results,
        **data_set_scored(truth, root, source),
        **segmenter.settings(),
        "warnings": [],
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
    flow: "Flow | None" = None,
    tc_protocol: str = "vspw-official",
    values: str = "labels",
    resize: bool = False,
    missing: str = "error",
    with_confusion: bool = False,
    with_timeline: bool = False,
    report: "Report | None" = None,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> dict[str, Any]:
    """Score anybody's prediction files. Processes share the videos as in `evaluate_model`.

    Args:
        predictions: folder or zip file with `<video>/<frame>.png` or `<video>/mask/<frame>.png`, also below other
            folders (`open_dump`); 8-bit grey or palette PNGs of one value per pixel.
        root, split, source: as for `evaluate_model`.
        table: as for `evaluate_model`, and "reverse" has to be said: files do not tell whose labels they hold.
        protocol: as for `evaluate_model`.
        vc_protocol, training, flow, tc_protocol: as for `evaluate_model`; TC has to read the frames, too.
        values: what the files hold: "labels" (0..num_labels-1) or "disk" (as in the masks, e.g. 1..124 of VSPW, 0 for
            none).
        resize: bring predictions of another size to that of the mask (nearest neighbour) instead of refusing them.
        missing: what is done about frames without a prediction: "error"; "skip": they are not scored, and no window
            of video consistency reaches over them; "wrong": all their pixels count as wrong, and none as steady.
        with_confusion, with_timeline, report, progress: as for `evaluate_model`.

    Returns:
        As `evaluate_model`, without the model's speed. coverage: videos and frames that were wanted, are missing, or
        belong to no frame (`Coverage.results`); predictions: path, values, resized_frames. Where files were skipped
        or are too many, `warnings` says so.

    Raises:
        FileNotFoundError: a frame has no prediction (all are wanted: leaving some out would change the score).
        ValueError: a prediction has another size or a value outside the classes, or is no 8-bit PNG of indices.
        OtherProcessFailed: as `evaluate_model`.
    """
    root = pinned_everywhere([root]).get(str(root), root)
    with failing_together():
        truth = open_ground_truth(root, split, source, table)
        scores = VideoScores(truth, protocol, vc_protocol, training, flow, tc_protocol)
        read = PredictedValues(truth, values, resize)
        dump = open_dump(predictions, truth.split.videos)
        coverage = Coverage(dump, truth.split.videos, missing)
        coverage.check()
    coverage.check_same_everywhere()
    if report is not None:
        scores.kept = report.begin(truth, values)
    reader = FrameReader(truth.split, share_of(truth.split, root), with_images=flow is not None)
    with dump, failing_together():
        in_order: Iterator[LabelledFrame] = (reader[i] for i in range(len(reader)))
        for frame in progress(in_order, len(reader)) if progress and is_first() else in_order:
            score_file(dump, frame, truth.split.videos[frame.video].name, scores, read, missing)
    scores.reduce()
    covered = coverage.results()
    return {
        **scores.results(with_timeline),
        **data_set_scored(truth, root, source),
        "coverage": covered,
        "predictions": {
            "path": str(predictions),
            "values": values,
            "resized_frames": int(sum_over_processes(read.resized)),
        },
        "warnings": coverage_warnings(covered) + read.other_meaning(scores.confusion.counts.numpy()),
        "frames_per_second": None,
        "model": Path(predictions).resolve().name,
        **environment("cpu"),
        **({"confusion": scores.confusion.counts.tolist()} if with_confusion else {}),
    }


def score_file(
    dump: Dump, frame: LabelledFrame, video: str, scores: VideoScores, read: PredictedValues, missing: str
) -> None:
    """Count the prediction of one frame; errors name its file."""
    if (video, frame.name) not in dump.files:
        if missing == "wrong":
            scores.add(frame, None)
        else:
            scores.leave_out(frame.video)
        return
    stored, name = dump.read(video, frame.name), dump.name(video, frame.name)
    prediction = read.labels(stored, frame.values.shape, name)
    try:
        scores.add(frame, prediction)
    except ValueError as error:
        raise ValueError(f"{name}: {error}{read.hint(stored)}") from error


def data_set_scored(truth: GroundTruth, root: str | Path, source: str) -> dict[str, Any]:
    """What was scored; source and table are left out for a data set in VSPW's layout with its own classes."""
    scored = {"split": truth.split.name, "dataset": data_set_name(root)}
    return scored if source == "vspw" and truth.table is None else {**scored, "source": source, "table": truth.table}


def share_of(split: LabelledSplit, root: str | Path) -> list[int]:
    """The positions of the videos that this process counts."""
    listing = "\n".join(f"{video.name} {len(video.frames)}" for video in split.videos)
    check_same_everywhere(listing, f"split '{split.name}' of {root}")
    return own_share([len(video.frames) for video in split.videos])


def flatten(batches: Any) -> Iterator[LabelledFrame]:
    """Single frames from lists of them."""
    for batch in batches:
        yield from batch


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
