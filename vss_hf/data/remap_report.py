"""A remap table for people and programs: its rows, what they add up to, and a copy to edit."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vss_hf.files import write_text

from .labels import IGNORE_INDEX, VSPW, ClassList, palette_of
from .remap import COLUMNS, SAME_CLASSES, RemapRow, RemapTable, additions


def remap_report(table: RemapTable, reverse: bool = False) -> dict[str, Any]:
    """What a table says, as plain data.

    Args:
        table: from `load_table`.
        reverse: adds the way back from VSPW's classes.

    Returns:
        "source", "table", and "versions" of the class list (one; CamVid has two, its 32 official classes and 11), each
        with "classes" (the rows), "mapped", "ignored", "vspw_covered", "vspw_not_covered" and, if wanted, "reverse":
        "groups" of source classes, and per VSPW class ("vspw") its "group" (or None), "confidence" and "note".
    """
    numbered = [row for row in table.rows if row.id is not None]
    others = [row for row in table.rows if row.id is None]
    versions = []
    for rows in filter(None, (numbered, others)):
        versions.append(_version(rows))
        if reverse:
            versions[-1]["reverse"] = _reverse(table, rows)
    return {"source": table.source, "table": table.name, "versions": versions}


def _version(rows: list[RemapRow]) -> dict[str, Any]:
    covered = {row.vspw for row in rows} - {None}
    mapped = sum(row.vspw is not None for row in rows)
    return {
        "classes": [row._asdict() for row in rows],
        "mapped": mapped,
        "ignored": len(rows) - mapped,
        "vspw_covered": len(covered),
        "vspw_not_covered": [name for name in VSPW.names if name not in covered],
    }


def _reverse(table: RemapTable, rows: list[RemapRow]) -> dict[str, Any]:
    names = tuple(row.name for row in rows)
    back = table.reverse(ClassList(names, palette_of(names), tuple(range(1, len(names) + 1))))
    direct = {row.vspw for row in rows}
    added = {row.vspw: row for row in additions(table.source) if row.name in names}
    vspw = {}
    for name, group in zip(VSPW.names, back.predictions.tolist(), strict=True):
        part = added[name] if group != IGNORE_INDEX and name not in direct else None
        vspw[name] = {
            "group": None if group == IGNORE_INDEX else back.classes.names[group],
            "confidence": part.confidence if part else "",
            "note": part.note or "part of it" if part else "",
        }
    return {"groups": list(back.classes.names), "vspw": vspw}


def print_report(report: dict[str, Any]) -> None:
    """Tables for people, ignored classes dim; where the output is no terminal, lines without boxes and breaks."""
    console = Console(markup=False, highlight=False)  # names come from files and may hold anything
    if not console.is_terminal:
        console.width = 1000
    source, name = report["source"], report["table"]
    if source in SAME_CLASSES and name in ("default", "liberal"):
        console.print(f"{source} has VSPW's own {VSPW.num_labels} classes: nothing to remap")
        return
    for version in report["versions"]:
        if "reverse" in version:
            _print_reverse(version["reverse"], f"VSPW -> {source}, table {name}", console)
        else:
            _print_forward(version, f"{source} -> VSPW, table {name}", console)


def _print_forward(version: dict[str, Any], title: str, console: Console) -> None:
    table = _table(title, ("id", "class", "VSPW class", "confidence", "note"), console)
    for row in version["classes"]:
        ignored = "ignored" if row["candidate"] is None else f"ignored (candidate {row['candidate']})"
        number = "" if row["id"] is None else str(row["id"])
        cells = (number, row["name"], row["vspw"] or ignored, row["confidence"], row["note"])
        table.add_row(*cells, style=None if row["vspw"] else "dim")
    console.print(table)
    covered, missing = version["vspw_covered"], version["vspw_not_covered"]
    console.print(
        f"{len(version['classes'])} classes: {version['mapped']} mapped, {version['ignored']} ignored; "
        f"{covered} of {VSPW.num_labels} VSPW classes covered"
    )
    console.print(f"not covered: {', '.join(missing) or 'none'}\n", style="dim", soft_wrap=not console.is_terminal)


def _print_reverse(reverse: dict[str, Any], title: str, console: Console) -> None:
    table = _table(title, ("VSPW class", "counts as", "confidence", "note"), console)
    for name, entry in reverse["vspw"].items():
        cells = (name, entry["group"] or "none", entry["confidence"], entry["note"])
        table.add_row(*cells, style=None if entry["group"] else "dim")
    console.print(table)
    counted = sum(entry["group"] is not None for entry in reverse["vspw"].values())
    console.print(
        f"{counted} of {VSPW.num_labels} VSPW classes count as one of {len(reverse['groups'])} classes or groups; "
        "a prediction of any other counts as missed\n"
    )


def _table(title: str, headings: tuple[str, ...], console: Console) -> Table:
    table = Table(title=title) if console.is_terminal else Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "id" else "left")
    return table


def write_copy(table: RemapTable, path: str | Path) -> None:
    """Writes a table as a file to edit, which `load_table` reads.

    Raises:
        FileExistsError: the file is there already.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path}: exists already; a table that somebody edited is not overwritten")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(table.rows)  # None is written as nothing
    write_text(path, text.getvalue())
