"""The counts of masks that were scanned before, in a file of JSON lines, one line per mask:

    <root>/.vss_hf/mask_values_<encoding>.jsonl
    {"name": "data/v/mask/00000000.png", "size": 3457, "mtime_ns": 17..., "digest": "5f...", "height": 480,
     "width": 853, "values": [0, 29, 253], "counts": [1200, 407000, 1240]}

Lines are only ever added and the last one of a name counts. Each begins with its own line break: what a killed process
left unfinished spoils no other line, and several processes may write at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.constants import HF_HOME

from .packed import is_packed
from .splits import LabelledSplit


class MaskCounts(NamedTuple):
    """What a line of the cache says of a mask file, without its name."""

    size: int
    mtime_ns: int
    digest: str
    height: int
    width: int
    values: list[int]
    counts: list[int]


class ScanCache:
    """The counts that are known, and where new ones are written.

    Args:
        split: whose masks are counted.
    """

    def __init__(self, split: LabelledSplit):
        self.prefix = f"{split.root}{os.sep}"
        self.files = _cache_files(split)
        self.by_name: dict[str, MaskCounts] = {}
        for file in reversed(self.files):
            self.by_name.update(_read_lines(file))
        self.by_digest = {line.digest: line for line in self.by_name.values()}

    def name(self, path: str) -> str:
        """How the cache calls a mask: the data set can move, and its name stays."""
        return path.removeprefix(self.prefix)

    def keep(self, counted: Iterable[tuple[str, MaskCounts | None]]) -> None:
        """Writes what is new; a file that cannot be written makes way for the next one, with a warning."""
        new = {self.name(path): line for path, line in counted if line is not None}
        new = {name: line for name, line in new.items() if self.by_name.get(name) != line}
        self.by_name.update(new)
        self.by_digest.update((line.digest, line) for line in new.values())
        text = "".join("\n" + _to_json(name, line) for name, line in new.items()).encode()
        while text and self.files:
            try:
                self.files[0].parent.mkdir(parents=True, exist_ok=True)
                with open(self.files[0], "ab", buffering=0) as file:  # one write: nothing comes between its lines
                    file.write(text)
                return
            except OSError as error:
                failed = self.files.pop(0)
                where = f"are kept in {self.files[0]}" if self.files else "are not kept; the next scan starts anew"
                problem = error.strerror or error
                warnings.warn(f"{failed}: {problem}; counts of labels {where}", RuntimeWarning, stacklevel=3)


def _cache_files(split: LabelledSplit) -> list[Path]:
    """Where counts may be kept, the first choice first; Parquet folders are copied and uploaded as they are."""
    name = f"mask_values_{split.reader.encoding}.jsonl"
    if split.reader.colours:  # other values for the same file
        name = name.replace(".", f"-{_digest(repr(split.reader.colours))}.")
    packed = is_packed(str(split.videos[0].frames[0].mask_path))
    place = os.path.realpath(split.root) if os.path.isdir(split.root) else str(split.root)
    readable = re.sub(r"[^\w.-]+", "_", os.path.basename(place))
    own = Path(HF_HOME) / "vss_hf" / f"{readable}-{_digest(place)}" / name
    return [own] if packed else [Path(split.root) / ".vss_hf" / name, own]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


def _to_json(name: str, line: MaskCounts) -> str:
    return json.dumps({"name": name, **line._asdict()}, separators=(",", ":"), ensure_ascii=False)


def _read_lines(file: Path) -> dict[str, MaskCounts]:
    """Name to counts; lines that are not whole are left out: a process was ended while it wrote them."""
    lines: dict[str, MaskCounts] = {}
    try:
        with open(file, "rb") as content:
            for text in content:
                try:
                    name, line = _from_json(text)
                except (ValueError, TypeError):
                    continue
                lines[name] = line
    except OSError:
        return lines  # nothing there yet, or nothing that this user may read
    return lines


def _from_json(text: bytes) -> tuple[str, MaskCounts]:
    """The opposite of `_to_json`; ValueError or TypeError for any other text."""
    fields = json.loads(text)
    if not isinstance(fields, dict) or "name" not in fields:
        raise ValueError("not a line of counts")
    return fields.pop("name"), MaskCounts(**fields)
