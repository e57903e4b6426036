"""Refinement: what changes scores or labels afterwards: CascadePSP, SSA with SAM's masks, smoothing over time."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .cascade_psp import CascadePSP as CascadePSP

_HOME = {"CascadePSP": "cascade_psp"}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
