"""Scoring: models and prediction files against labelled videos, with every protocol, tables and the HTML report."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .evaluation import evaluate_model as evaluate_model
    from .evaluation import score_predictions as score_predictions
    from .report import Report as Report

_HOME = {
    "Report": "report",
    "evaluate_model": "evaluation",
    "score_predictions": "evaluation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
