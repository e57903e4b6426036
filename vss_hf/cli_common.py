"""What several commands of `vss-hf` share: options, bars, tables, reading and writing of small files."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from vss_hf.files import write_json


DataFolder = Annotated[
    Path, typer.Option("--data", help="Data set: a folder, or owner/name of packed data on the Hub.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the results here, for programs.")]


def progress_bar(items: Iterable, total: int | None, name: str) -> Iterator:
    """Wrap an iterator with a bar on the error stream, so that standard output stays clean."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, desc=name, unit="frame", file=sys.stderr, mininterval=0.5, leave=False))


def camera_or_path(source: str | None, camera: int | None) -> str | int:
    """What to label: the number of a camera, or a path."""
    if (source is None) == (camera is None):
        raise ValueError("give either INPUT (a path) or --camera (its number)")
    if camera is not None:
        return camera
    assert source is not None
    return int(source) if source.isdecimal() and not Path(source).exists() else source


def by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    """Names by what is said of them."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def read_class_names(path: Path) -> list[str]:
    """Class names from a JSON list."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); expected a list of class names") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a JSON list of class names")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: names {twice[0]!r} more than once; every class needs a name of its own")
    return names


def read_settings(settings: list[str]) -> dict[str, Any]:
    """The fields and values of FIELD=VALUE; values are YAML, as in recipes."""
    from vss_hf.training.recipe import parse_yaml

    fields: dict[str, Any] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals or not field.strip():
            raise ValueError(f"--set {setting}: expected FIELD=VALUE, e.g. --set frame_offsets=[-2,-1]")
        if field.strip() in fields:
            raise ValueError(f"--set {setting}: {field.strip()} is already set")
        fields[field.strip()] = parse_yaml(value, f"--set {setting}")
    return fields


def read_numbers(text: str, option: str) -> list[float]:
    """The numbers in '1,1,2' or '1 1 2'."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"{option} {text}: expected numbers with commas between them, e.g. {option} 1,1,2") from None


def check_writable(path: Path | None) -> None:
    """Raise before the work when its result could not be written."""
    if path is not None:
        folder = path.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"{path}: folder {folder} does not exist")
        if not os.access(folder, os.W_OK) or path.is_dir():
            raise PermissionError(f"{path}: cannot be written")


def write_results(results: dict[str, Any], path: Path | None) -> None:
    """JSON for programs, whole or not at all."""
    if path is not None:
        write_json(path, results)
