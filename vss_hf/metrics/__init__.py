"""Scores for label maps: confusion matrix (mIoU and friends) and video consistency.

`MEAN_IOU` and `VIDEO_CONSISTENCY` are folders for `evaluate.load(str(...))`; `evaluate` itself is not imported here.
"""

from pathlib import Path

from ._tensors import sum_over_processes
from .confusion import ConfusionMatrix, class_scores
from .intervals import mean_iou_interval, mean_iou_resampled
from .steady_runs import SteadyRuns
from .video_consistency import VideoConsistency


MEAN_IOU = Path(__file__).resolve().parent / "mean_iou"
VIDEO_CONSISTENCY = Path(__file__).resolve().parent / "video_consistency_metric"

__all__ = [
    "MEAN_IOU",
    "VIDEO_CONSISTENCY",
    "ConfusionMatrix",
    "SteadyRuns",
    "VideoConsistency",
    "class_scores",
    "mean_iou_interval",
    "mean_iou_resampled",
    "sum_over_processes",
]
