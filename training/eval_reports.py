"""What is kept of an evaluation: numbers for the log, a file that tells of every class, a picture of some frames."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from vss_hf.data.splits import LabelledSplit
from vss_hf.data.vspw import read_image
from vss_hf.files import write_json
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.scoring.class_scores import GROUPS
from vss_hf.scoring.ground_truth import open_ground_truth
from vss_hf.visualize import overlay_sheet

from .arguments import VSSTrainingArguments
from .sources import EvalData


EVALUATIONS = "evaluations/step-{step}.json"  # both in the output folder
OVERLAYS = "overlays/step-{step}.jpg"
LOGGED_AS = "eval/overlays"


def scores_to_log(results: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of an evaluation that are logged and can be `metric_for_best_model`."""
    means = ("mean_iou", *(f"mean_iou_{group}" for group in GROUPS), "frequency_weighted_iou")
    wanted = (*means, "pixel_accuracy", "mean_accuracy", "vc8", "vc16")
    return {f"{prefix}_{key}": results[key] for key in wanted if results.get(key) is not None}


def write_evaluation(
    args: VSSTrainingArguments, step: int, results: dict[str, Any], segmenter: VideoSegmenter, evaluated: EvalData
) -> Path | None:
    """Write all results of an evaluation during a run, and draw `logged_overlays` frames; in one process.

    Args:
        args: of the run.
        step: the optimizer step.
        results: of `evaluate_model`.
        segmenter: what was evaluated.
        evaluated: on what.

    Returns:
        The picture, if there is one.
    """
    path = Path(args.output_dir) / EVALUATIONS.format(step=step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    if not args.logged_overlays:
        return None
    picture = Path(args.output_dir) / OVERLAYS.format(step=step)
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_examples(picture, segmenter, open_ground_truth(*evaluated).split, args.logged_overlays)
    return picture


def draw_examples(path: Path, segmenter: VideoSegmenter, split: LabelledSplit, rows: int = 3) -> None:
    """A picture of frames, ground truth and prediction, spread over the split: always the same frames of a split."""
    places = [(video, index) for video in split.videos for index in range(len(video.frames))]
    chosen = [places[int(i)] for i in np.linspace(0, len(places) - 1, min(rows, len(places)))]
    past = getattr(segmenter.model.config, "num_past_frames", 0)  # what a video model looks at before it labels one
    frames, labels, predictions = [], [], []
    for video, index in chosen:
        clip = [read_image(record.image_path) for record in video.frames[max(index - past, 0) : index + 1]]
        frames.append(clip[-1])
        mask_path = video.frames[index].mask_path
        assert mask_path is not None  # a split without masks is not evaluated on
        labels.append(split.reader.labels(mask_path))
        *_, prediction = segmenter.label_video(clip)
        predictions.append(prediction)
    overlay_sheet(frames, labels, predictions, split.classes, path)


def log_picture(path: Path, step: int, callbacks: Iterable[TrainerCallback]) -> None:
    """Send a picture to those of the run's reports (`--report_to`) that show pictures.

    Args:
        path: of the picture.
        step: the optimizer step that it belongs to.
        callbacks: of the Trainer.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image(LOGGED_AS, read_image(path), step, dataformats="HWC")
            callback.tb_writer.flush()
        elif isinstance(callback, WandbCallback | TrackioCallback):
            report = import_module("wandb" if isinstance(callback, WandbCallback) else "trackio")
            report.log({LOGGED_AS: report.Image(str(path)), "train/global_step": step})
