"""Inference: frames in, labels out: class scores, segmentation of videos, prediction files, submissions."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .prediction import predict as predict
    from .score_maps import semantic_labels as semantic_labels
    from .scores import semantic_scores as semantic_scores
    from .segmenter import SegmentedFrame as SegmentedFrame
    from .segmenter import VideoSegmenter as VideoSegmenter
    from .views import TTA as TTA

_HOME = {
    "SegmentedFrame": "segmenter",
    "TTA": "views",
    "VideoSegmenter": "segmenter",
    "predict": "prediction",
    "semantic_labels": "score_maps",
    "semantic_scores": "scores",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
