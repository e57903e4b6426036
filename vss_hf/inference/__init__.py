"""Inference: class scores, segmentation of videos, evaluation, prediction files, pseudo labels."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .evaluation import evaluate_model as evaluate_model
    from .evaluation import score_predictions as score_predictions
    from .prediction import predict as predict
    from .pseudo_labels import pseudo_label as pseudo_label
    from .scores import semantic_labels as semantic_labels
    from .scores import semantic_scores as semantic_scores
    from .segmenter import SegmentedFrame as SegmentedFrame
    from .segmenter import VideoSegmenter as VideoSegmenter
    from .views import TTA as TTA

_HOME = {
    "TTA": "views",
    "SegmentedFrame": "segmenter",
    "VideoSegmenter": "segmenter",
    "evaluate_model": "evaluation",
    "predict": "prediction",
    "pseudo_label": "pseudo_labels",
    "score_predictions": "evaluation",
    "semantic_labels": "scores",
    "semantic_scores": "scores",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
