"""What a card reads of a model folder: JSON and YAML files, checked for the kinds of entries that it needs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .card_text import scrub
from .eval_results import model_index


# Of what kind the entries are that the card reads, where there are any.
CONFIG_KINDS = {
    "model_type": str, "id2label": dict, "backbone_config": dict, "in_indices": list, "frame_offsets": list,
}  # fmt: skip
BACKBONE_KINDS = {"model_type": str, "backbone": str, "depths": list, "out_features": list}
RUN_KINDS = {
    "dataset": str,
    "source": str,
    "table": str,
    "split": str,
    "train_split": str,
    "hardware": str,
    "versions": dict,
    "date": str,
}
KIND_WORDS = {str: "text", dict: "names with values", list: "a list", int: "a whole number"}


def read_mapping(path: Path) -> dict[str, Any] | None:
    """A JSON or YAML file's mapping; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        scrub(content)  # fails on a YAML value that contains itself
    except (ValueError, yaml.YAMLError, RecursionError, LookupError, AttributeError, TypeError) as error:
        # PyYAML checks little before it converts: `!!int ''`, `!!bool maybe`
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a mapping of names to values")
    return content


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], place: str | Path) -> None:
    """Raise for an entry that is there and of another kind than the card reads."""
    for key, kind in kinds.items():
        value = values.get(key)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{place}: {key} is {str(value)[:80]!r}, expected {KIND_WORDS[kind]}")


def read_results(path: Path) -> dict[str, Any] | None:
    """The evaluation JSON with every key that the card asks for; None if there is no such file."""
    results = scrub(read_mapping(path))
    if results is None:
        return None
    check_kinds(results, RUN_KINDS, path)
    keys = ("protocol", "vc_protocol", "split", "videos", "frames", "frames_per_second", "hardware", "versions")
    results = {**dict.fromkeys(keys), **results}
    for key in ("per_class_iou", "vc_clips"):
        results[key] = results.get(key) or {}
        if not isinstance(results[key], dict):
            raise ValueError(f"{path}: {key} is a {type(results[key]).__name__}, expected names with values")
    try:
        model_index(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return results


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists count as values."""
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
