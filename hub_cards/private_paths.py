"""Files of a model folder as they may be read by others: folders of this machine are reduced to their last name.

What a run writes about itself names where its data lay, where it was written and what it began with, so that it can be
done again here; on the Hub that tells of somebody's machine and helps nobody. The files here stay as they are.
"""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .card_text import last_part, scrub
from .checks import TEXT


# Written by this package or by transformers' Trainer, so that it is known what in them is a path.
OURS = (
    "training_recipe.yaml", "training_stages.json", "training_log.json", "train_results.json", "eval_results.json",
    "all_results.json", "averaging.json", "conversion.json",
)  # fmt: skip
# Class names are keys, too, so that one slash does not make a path.
PATH_KEY = re.compile(r"(/[^/]+){2,}/?|~/.+|[A-Za-z]:\\.+|\\\\.+")
HOME = re.compile(r"(?<![\w.])(?:/(?:home|Users|root)/|[A-Za-z]:\\+Users\\+)\w")


def without_paths(files: Mapping[str, Path]) -> dict[str, bytes]:
    """What to send in place of those files that name folders of this machine; the others are not in it.

    Texts that somebody wrote are not changed; a warning says where one of them names a home folder.

    Args:
        files: what is to be sent, by path in the repository.

    Raises:
        ValueError: one of our files cannot be read.
    """
    changed = {}
    for name, path in files.items():
        if name not in OURS:
            continue
        text = path.read_text(encoding="utf-8")
        try:
            short = _short_yaml(text) if path.suffix == ".yaml" else _short_json(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read ({error}); save it again") from error
        if short != text:
            changed[name] = short.encode()
    _warn_of_homes({name: path for name, path in files.items() if name not in changed and path.suffix in TEXT})
    return changed


def _short_json(text: str) -> str:
    """The same JSON with short paths; the same text if it has none."""
    content = json.loads(text)
    short = _shortened(content)
    return text if short == content else json.dumps(short, indent=2, ensure_ascii=False) + "\n"


def _shortened(content: Any) -> Any:
    """`scrub`, for names of entries, too: a teacher stands under the path of its folder."""
    if isinstance(content, list):
        return [_shortened(item) for item in content]
    if not isinstance(content, dict):
        return scrub(content)
    entries = {}
    for key, item in scrub(content).items():
        short = last_part(key) if PATH_KEY.fullmatch(str(key)) else key
        while short in entries:  # of two folders of one name
            short = f"{short}'"
        entries[short] = _shortened(item)
    return entries


def _short_yaml(text: str) -> str:
    """The same YAML with short paths. All else stays as it is written: a recipe has its own rules for numbers."""
    found = {}
    waiting = [yaml.compose(text, yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.ScalarNode) and (short := scrub(node.value)) != node.value:
            end = "\n" if node.style in ("|", ">") else ""  # a block, which reaches to the next line
            found[node.start_mark.index] = (node.end_mark.index, json.dumps(short, ensure_ascii=False) + end)
    for start in sorted(found, reverse=True):
        stop, short = found[start]
        text = text[:start] + short + text[stop:]
    return text


def _warn_of_homes(files: Mapping[str, Path]) -> None:
    """One warning for the texts that name somebody's home folder."""
    places = []
    for name, path in files.items():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        places += [f"{name}, line {number}" for number, line in enumerate(lines, 1) if HOME.search(line)]
    if places:
        listed = "; ".join(places[:5]) + (f" and {len(places) - 5} more lines" if len(places) > 5 else "")
        warnings.warn(f"a home folder of this machine is named in {listed}: it is sent as it is", stacklevel=4)
