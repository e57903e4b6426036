"""Inference: class scores, segmentation of videos, evaluation, prediction files, pseudo labels."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .cascade_psp import CascadePSP as CascadePSP
    from .ensemble import create_ensemble as create_ensemble
    from .ensemble_search import search_ensemble as search_ensemble
    from .evaluation import evaluate_model as evaluate_model
    from .evaluation import score_predictions as score_predictions
    from .prediction import predict as predict
    from .pseudo_labels import pseudo_label as pseudo_label
    from .report import Report as Report
    from .score_maps import semantic_labels as semantic_labels
    from .scores import semantic_scores as semantic_scores
    from .segmenter import SegmentedFrame as SegmentedFrame
    from .segmenter import VideoSegmenter as VideoSegmenter
    from .views import TTA as TTA

_HOME = {
    "CascadePSP": "cascade_psp",
    "TTA": "views",
    "Report": "report",
    "SegmentedFrame": "segmenter",
    "VideoSegmenter": "segmenter",
    "create_ensemble": "ensemble",
    "evaluate_model": "evaluation",
    "predict": "prediction",
    "pseudo_label": "pseudo_labels",
    "score_predictions": "evaluation",
    "search_ensemble": "ensemble_search",
    "semantic_labels": "score_maps",
    "semantic_scores": "scores",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
