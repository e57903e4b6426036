"""Tables that say which of VSPW's classes each class of another data set is, and the way back.

Each source has one table, a CSV file in `tables/`: a row per class, with the VSPW class that it becomes by default,
the candidate that a liberal reading would take, how sure that is, and a note. Several classes may become one; a class
without a counterpart becomes 255 and is ignored. `RemapTable.apply` changes how a split's masks are read (one lookup
per pixel, at decode time), nothing on disk.

The way back (`RemapTable.reverse`) is for scoring: a model of VSPW's classes is measured on the source's own labels,
where source classes that share a VSPW class count as one group. `tables/reverse.csv` adds VSPW classes that no source
class becomes but that plainly are part of one: "house" is "building" in Cityscapes.

The tables are proposals, made by comparing class lists: nobody has published the one that papers used. COCO-Stuff's
has as many mapped (131) and ignored (41) classes as BetterThing reports.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .labels import IGNORE_INDEX, VSPW, ClassList
from .splits import LabelledSplit


TABLES = Path(__file__).with_name("tables")
_FILE_OF = {  # a table lists all names; a layout may have some of them, or other values on disk
    "coco_stuff": "coco_stuff.csv",
    "coco_stuff10k": "coco_stuff.csv",
    "ade20k": "ade20k.csv",
    "cityscapes": "cityscapes.csv",
    "cityscapes19": "cityscapes.csv",
    "pascal_context": "pascal_context.csv",
    "pascal_context59": "pascal_context.csv",
    "camvid": "camvid.csv",
}
SOURCES_WITH_TABLE = tuple(_FILE_OF)
SAME_CLASSES = ("vspw", "vipseg")  # every class becomes itself
COLUMNS = ("id", "name", "vspw", "candidate", "confidence", "note")


class RemapRow(NamedTuple):
    """One class of a source.

    `id` is its number in the source, None for a name of another version (CamVid's 11 classes) or where a user's table
    has no such column. `vspw` is the class that it becomes, None: ignored. `candidate` is the one that the liberal
    table takes. `confidence` is "high", "medium", "low" or "none".
    """

    id: int | None
    name: str
    vspw: str | None
    candidate: str | None
    confidence: str
    note: str


@dataclass(frozen=True)
class RemapTable:
    """Which VSPW class every class of a source becomes.

    Args:
        source: whose classes the rows are.
        name: "default", "liberal", or the name of the user's file.
        rows: one per source class.
    """

    source: str
    name: str
    rows: tuple[RemapRow, ...]

    def labels(self, classes: ClassList) -> np.ndarray:
        """The new label of every class of a class list, by name.

        Args:
            classes: some or all of the source's classes, in any order.

        Returns:
            uint8 (num_labels,), labels of VSPW, 255 = ignored.

        Raises:
            ValueError: the table does not list one of the classes.
        """
        vspw_of = {row.name: row.vspw for row in self.rows}
        new = np.full(classes.num_labels, IGNORE_INDEX, dtype=np.uint8)
        for label, name in enumerate(classes.names):
            if name not in vspw_of:
                raise ValueError(f"class {name!r} is not in the remap table {self}; {nearest(name, vspw_of)}")
            if (vspw := vspw_of[name]) is not None:
                new[label] = VSPW.label2id[vspw]
        return new

    def apply(self, split: LabelledSplit) -> LabelledSplit:
        """The same files, read as labels of VSPW. Errors as `labels`."""
        reader = split.reader.remapped(self.labels(split.classes))
        return replace(split, classes=VSPW, reader=reader, table=self.name)

    def reverse(self, classes: ClassList) -> ReverseMap:
        """The way back from VSPW's classes to the source's own.

        Source classes that become the same VSPW class cannot be told apart and are one group. A source class that is
        ignored on the way there is not scored. A VSPW class that no class of the list becomes joins the group that
        `tables/reverse.csv` says, or none.

        Args:
            classes: some or all of the source's classes, in any order.

        Raises:
            ValueError: as `labels`, or no class of the list has a counterpart.
        """
        forward = self.labels(classes)  # (num_labels of the source,)
        reached = list(dict.fromkeys(label for label in forward.tolist() if label != IGNORE_INDEX))
        if not reached:
            raise ValueError(f"no class of the list has a counterpart in the remap table {self}")
        labels = np.full(classes.num_labels, IGNORE_INDEX, dtype=np.uint8)
        predictions = np.full(VSPW.num_labels, IGNORE_INDEX, dtype=np.uint8)
        names, palette = [], []
        for group, vspw_label in enumerate(reached):  # in the order of their first members
            members = np.flatnonzero(forward == vspw_label)
            labels[members] = predictions[vspw_label] = group
            names.append("|".join(classes.names[member] for member in members))
            palette.append(classes.palette[members[0]])
        for added in additions(self.source):
            # only where this class list reaches none: CamVid's 32 classes have a wall, in its 11 it is a building
            if added.name in classes.label2id and predictions[VSPW.label2id[added.vspw]] == IGNORE_INDEX:
                predictions[VSPW.label2id[added.vspw]] = labels[classes.label2id[added.name]]
        groups = ClassList(tuple(names), tuple(palette), tuple(range(1, len(names) + 1)))
        return ReverseMap(groups, labels, predictions)

    def __str__(self) -> str:
        return f"{self.name!r} of {self.source}"


def load_table(source: str, table: str | Path = "default") -> RemapTable:
    """Reads a remap table.

    Args:
        source: "coco_stuff", "coco_stuff10k", "ade20k", "cityscapes", "cityscapes19", "pascal_context",
            "pascal_context59", "camvid" (its official 32 classes and the 11 that papers use), or "vspw" and "vipseg",
            whose classes are VSPW's. With a file of one's own: any.
        table: "default"; "liberal", which also takes doubtful candidates; or the path of a CSV file in UTF-8 with the
            columns name and vspw (empty: ignored), and any of id, candidate, confidence, note.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown source or table; or the file lacks a column, has a doubled or empty name or an unknown VSPW
            class, or is not UTF-8 text. The message names the file, the line and the nearest name.
    """
    if table not in ("default", "liberal"):
        path = _path_of(table)
        return RemapTable(source, path.name, _read_table(path))
    if source in SAME_CLASSES:
        rows = tuple(RemapRow(i, name, name, name, "high", "") for i, name in enumerate(VSPW.names, start=1))
    else:
        rows = _read_table(TABLES / _file_of(source))
    if table == "liberal":
        rows = tuple(row._replace(vspw=row.candidate) for row in rows)
    return RemapTable(source, str(table), rows)


def source_names(source: str) -> list[tuple[int, str]]:
    """The (id, name) pairs of a source's official class list, in order; ids have gaps.

    Names that are no classes are among them: COCO-Stuff's 0 "unlabeled", Cityscapes' -1 "license plate", ...
    """
    return [(row.id, row.name) for row in load_table(source).rows if row.id is not None]


@dataclass(frozen=True, eq=False)
class ReverseMap:
    """How a model of VSPW's classes is scored in a source's own.

    Args:
        classes: the groups that are scored, named like "person|rider", with the colour of their first member.
        labels: uint8 (num_labels of the source,), the group of every source class, 255 = not scored.
        predictions: uint8 (124,), the group of every predicted VSPW class, 255 = none of them.
    """

    classes: ClassList
    labels: np.ndarray
    predictions: np.ndarray


def reverse_map(source: str, classes: ClassList, table: str | Path = "default") -> ReverseMap:
    """`RemapTable.reverse` of a source's table; source and table as for `load_table`."""
    return load_table(source, table).reverse(classes)


class ReverseRow(NamedTuple):
    """A VSPW class that no class of a source becomes, but that is part of the one named `name`."""

    vspw: str
    name: str
    confidence: str
    note: str


def additions(source: str) -> list[ReverseRow]:
    """The rows of `tables/reverse.csv` for a source."""
    stem = _FILE_OF.get(source, "").removesuffix(".csv")
    rows = _read_csv(TABLES / "reverse.csv", needed=("source", *ReverseRow._fields), others=())
    return [ReverseRow(**cells) for _, cells in rows if cells.pop("source") == stem]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them where none is near."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"nearest: {near[0]!r}" if near else f"known: {', '.join(known)}"


# --- reading the files


def _file_of(source: str) -> str:
    if source == "folder":
        raise ValueError("source 'folder' has no remap table of its own; give the path of a CSV file")
    if source not in _FILE_OF:
        raise ValueError(f"unknown source {source!r} of remap tables; {nearest(source, (*_FILE_OF, *SAME_CLASSES))}")
    return _FILE_OF[source]


def _path_of(table: str | Path) -> Path:
    path = Path(table)
    if path.is_file():
        return path
    if path.suffix.lower() != ".csv" and path.name == str(table):  # one word: rather a mistyped name
        raise ValueError(f"unknown remap table {path.name!r}; expected 'default', 'liberal' or the path of a CSV file")
    raise FileNotFoundError(f"{path}: no such file; a remap table is a CSV file with the columns name and vspw")


def _read_table(path: Path) -> tuple[RemapRow, ...]:
    """The rows of a table file, checked."""
    rows: list[RemapRow] = []
    lines: dict[str | int, int] = {}  # where each name and id stands
    for line, cells in _read_csv(path, needed=("name", "vspw"), others=COLUMNS):
        place = f"{path}, line {line}"
        row = RemapRow(
            id=_whole_number(cells.get("id", ""), place),
            name=cells["name"],
            vspw=cells["vspw"] or None,
            candidate=cells.get("candidate") or cells["vspw"] or None,
            confidence=cells.get("confidence", ""),
            note=cells.get("note", ""),
        )
        if not row.name:
            raise ValueError(f"{place}: no class name")
        for key in (row.name, row.id):
            if key in lines:
                raise ValueError(f"{place}: {key!r} is on line {lines[key]} already; a class has one row")
            if key is not None:
                lines[key] = line
        for column, name in (("vspw", row.vspw), ("candidate", row.candidate)):
            if name is not None and name not in VSPW.label2id:
                raise ValueError(f"{place}: {column} {name!r} is no class of VSPW; {nearest(name, VSPW.names)}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows; expected one per class of the source")
    return tuple(rows)


def _read_csv(path: Path, needed: tuple[str, ...], others: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: text}) of the rows of a CSV file; blank lines are skipped.

    Raises:
        ValueError: not UTF-8 text or not CSV, empty, a needed column is missing, an unknown one is there, or a row has
            more or fewer cells than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = _checked_header(path, cells, needed, others)
            elif len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells for {len(header)} columns "
                    f'({", ".join(header)}); text with commas stands in "quotes"'
                )
            else:
                rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    if not header:
        raise ValueError(f"{path}: empty file; expected a CSV file with the columns {', '.join(needed)}")
    return rows


def _checked_header(path: Path, header: list[str], needed: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    if missing := [column for column in needed if column not in header]:
        raise ValueError(f"{path}: no column {missing[0]!r}; found: {', '.join(header)}")
    allowed = dict.fromkeys((*needed, *others))
    for column in header:
        if column not in allowed:
            raise ValueError(f"{path}: unknown column {column!r}; known: {', '.join(allowed)}")
        if header.count(column) > 1:
            raise ValueError(f"{path}: the column {column!r} is there twice")
    return header


def _whole_number(text: str, place: str) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        raise ValueError(f"{place}: id {text!r} is not a whole number") from None
