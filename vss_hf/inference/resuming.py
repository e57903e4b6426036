"""A run that goes on where another one stopped: both must have the same model and settings."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vss_hf.modeling.loading import is_hub_id

from .segmenter import VideoSegmenter


NAMES = ("model.name", "data.name")  # of folders, which may be renamed


def model_description(segmenter: VideoSegmenter) -> dict[str, Any]:
    """What of a model and its processor (of an ensemble: its members' processors) decides the labels, as plain values;
    and its name."""
    model = segmenter.model
    processors = [json.loads(part.processor.to_json_string()) for part in segmenter.parts]
    place = str(model.config.name_or_path)
    return {
        "name": place if is_hub_id(place) else Path(place).name or type(model).__name__,
        "architecture": type(model).__name__,
        "weights_sha256": weights_sha256(model),
        "processor": processors[0] if segmenter.parts == [segmenter] else processors,
    }


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, by name: the same in whatever file they are kept."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_same(begun: dict[str, Any], described: dict[str, Any], path: Path, otherwise: str = "another --out") -> None:
    """Raise for a folder that was begun with another model, other data or settings; names of folders may change.

    Args:
        begun: what `path` says; other fields than those of `described` do not count.
        described: what decides the labels now, as plain values.
        path: how the error calls it.
        otherwise: what can be given instead of the same.
    """
    before, now = (dict(flat({key: of.get(key) for key in described})) for of in (begun, described))
    for key in [*now, *before]:
        if key not in NAMES and before.get(key) != now.get(key):
            raise ValueError(
                f"{path}: begun with {key} {before.get(key)!r}, now it is {now.get(key)!r}; give the same to go on, "
                f"or {otherwise}"
            )


def flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries with dotted names."""
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
