"""Checks of single fields that the configurations of models and backbones share. Each raises a ValueError."""

from difflib import get_close_matches
from typing import Any


# A damaged number above these would build modules, or allocate tensors, until the memory is full.
MOST_BLOCKS = 1000
MOST_CHANNELS = 2**16


def check_at_least_one(config: Any, fields: tuple[str, ...]) -> None:
    """Raise for a width or count below 1; None stands for a default."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < 1:
            raise ValueError(f"{type(config).__name__}.{field}={value}: expected at least 1")


def check_at_most(config: Any, field: str, limit: int) -> None:
    """Raise for a number above `limit`."""
    if getattr(config, field) > limit:
        raise ValueError(f"{type(config).__name__}.{field}={getattr(config, field)}: expected at most {limit}")


def check_odd(config: Any, field: str) -> None:
    """Raise for a kernel that would not keep a map's size."""
    value = getattr(config, field)
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{type(config).__name__}.{field}={value}: expected an odd number from 1 up")


def check_positive_list(config: Any, field: str, length: int | None = None) -> None:
    """Raise unless a field is a list of numbers from 1 up, `length` of them or any number."""
    values = list(getattr(config, field))
    if not values or min(values) < 1 or (length is not None and len(values) != length):
        count = length or "one or more"
        raise ValueError(f"{type(config).__name__}.{field}={values}: expected {count} numbers from 1 up")


def check_drop_path_rate(config: Any) -> None:
    """Raise unless the probability of skipping a branch is in [0, 1)."""
    if not 0 <= config.drop_path_rate < 1:
        name = type(config).__name__
        raise ValueError(f"{name}.drop_path_rate={config.drop_path_rate}: expected 0 <= value < 1")


def refuse_misspelt(config_class: Any, unknown: dict[str, Any], known: tuple[str, ...] = ()) -> None:
    """Raise for an unknown key that is nearly a field: transformers itself accepts it silently.

    Keys that resemble no field pass, because configs on the Hub may carry more than this version knows.

    Args:
        config_class: a configuration class.
        unknown: keys that are no fields, with their values.
        known: names beside the fields that `config_class` takes.
    """
    fields = [*config_class.__dataclass_fields__, "num_labels", "id2label", "label2id", *known]
    for key in unknown:
        if key not in fields and (near := get_close_matches(key, fields, n=1, cutoff=0.8)):
            raise ValueError(f"{config_class.__name__} has no field '{key}'; did you mean '{near[0]}'?")
