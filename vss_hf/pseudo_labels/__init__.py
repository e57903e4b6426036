"""Pseudo labels: a model labels videos, and what it is sure of becomes a data set to train on."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .labelling import pseudo_label as pseudo_label

_HOME = {"pseudo_label": "labelling"}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
