"""What values the fields of recipes and settings can hold, and what is said about others."""

import dataclasses
import sys
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from transformers.trainer_utils import IntervalStrategy


Settings = TypeVar("Settings")

TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    list: "a list",
    tuple: "a list",
    dict: "fields",
}


def known_or_raise(name: Any, known, what: str) -> None:
    """Raise with the nearest known name when `name` is not known."""
    if name not in list(known):  # a mapping would refuse a list for a name
        near = get_close_matches(str(name)[:100], [str(k) for k in known], n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"{what} '{str(name)[:100]}'; {hint}")


def of_type(value: Any, hint: Any, place: str) -> Any:
    """The value, if it has the type of its field; `place` is named in the error."""
    kinds = kinds_of(hint)
    if value is False and IntervalStrategy in kinds:
        return "no"  # YAML takes a bare `no` for false
    if not any(fits(value, kind) for kind in kinds):
        words = [TYPE_WORDS[kind] for kind in map(bare, kinds) if kind in TYPE_WORDS]
        found = "null" if value is None else shown(value)
        raise ValueError(f"{place}: expected {' or '.join(dict.fromkeys(words))}; found {found}")
    if isinstance(value, int) and float in kinds and int not in kinds and abs(value) > sys.float_info.max:
        raise ValueError(f"{place}: {shown(value)} is too large for a number")
    return value


def settings_from(kind: type[Settings], given: Any, place: str) -> Settings:
    """A settings dataclass from the fields of JSON or YAML.

    Args:
        kind: the dataclass; its `__post_init__` checks ranges and begins messages with the field's name.
        given: its fields.
        place: how messages call it, e.g. "--tta".

    Raises:
        ValueError: a field does not exist (with the nearest one), is missing, or has a value that does not fit.
    """
    of_type(given, dict, place)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name in given:
        known_or_raise(name, list(fields), f"{place} has no field")
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}: the field '{name}' is missing")
    values = {name: of_type(value, fields[name].type, f"{place}.{name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{place}.{error}") from None


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a hint such as `str | None` allows."""
    return (hint,) if get_origin(hint) in (tuple, list, dict) else get_args(hint) or (hint,)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from YAML can stand for a type: lists are tuples too, whole numbers are numbers too."""
    kind = bare(kind)
    if kind is Literal:
        return False
    if isinstance(value, bool):
        return kind is bool
    accepted = {float: (int, float), tuple: (list, tuple)}.get(kind, kind)
    return isinstance(value, accepted)


def shown(value: Any) -> str:
    """A value for a message: at most a line of it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def bare(kind: Any) -> Any:
    """`list` of `list[str]`, and so on."""
    return get_origin(kind) or kind
