"""The YAML of recipes: plain values, 1e-4 among the numbers; what is written is read back as the same."""

import itertools
import math
import re
from collections.abc import Hashable, Iterator
from types import NoneType
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from vss_hf.fields import shown


MOST_VALUES = 10_000


class RecipeLoader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in its version 1.2: to version 1.1 (PyYAML) it is text, as it has no dot.

    As in that version a key may stand only once in a mapping (PyYAML silently takes the last), and `<<` is no merging.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merging with << is not offered; write it out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportArgumentType]
            if isinstance(key, Hashable):  # PyYAML itself refuses the others
                if key in seen:
                    raise ConstructorError(None, None, f"the mapping has {key!r} twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads back as the same: '1e5' needs quotes, and rare line ends an escape."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


RecipeDumper.add_representer(str, RecipeDumper.represent_str)

for side in (RecipeLoader, RecipeDumper):
    side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text, of plain values only and sharing none of them; `place` is named in the error."""
    try:
        value = yaml.load(text, RecipeLoader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML checks little before it converts: `!!int ''`, `!!bool maybe`, 2001-99-99
        raise ValueError(f"{place} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return unshared(value, place, itertools.count())
    except RecursionError:
        raise ValueError(f"{place}: an anchored value contains itself") from None


def to_yaml(value: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back as the same."""
    return yaml.dump(value, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)


def unshared(value: Any, place: str, counter: Iterator[int]) -> Any:
    """A copy in which anchored values stand as often as they are named; raises for what a recipe cannot hold."""
    if next(counter) > MOST_VALUES:
        raise ValueError(f"{place}: more than {MOST_VALUES:,} values; aliases repeat them too often")
    if isinstance(value, dict):
        return {unshared(key, place, counter): unshared(item, place, counter) for key, item in value.items()}
    if isinstance(value, list):
        return [unshared(item, place, counter) for item in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{place}: .nan is no value for a field")
    if not isinstance(value, (int, float, str, NoneType)):
        raise ValueError(f"{place}: a {type(value).__name__} ({shown(value)}) is no value for a field; quote text")
    return value


def plain(value: Any) -> Any:
    """Tuples as lists, paths and enums as text: what YAML and JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
