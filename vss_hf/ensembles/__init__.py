"""Ensembles: several models used like one, and the search for what each of them counts."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .ensemble import create_ensemble as create_ensemble
    from .search import search_ensemble as search_ensemble

_HOME = {
    "create_ensemble": "ensemble",
    "search_ensemble": "search",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
