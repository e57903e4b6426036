"""Values in the entries of `training.losses`: numbers in a range, lists and matrices of them, also from files."""

import json
import math
from pathlib import Path
from typing import Any

from vss_hf.fields import shown


def check_number(value: float, place: str, least: float = 0, most: float = math.inf) -> None:
    """Raise unless the number is finite and in least..most."""
    if not (least <= value <= most and math.isfinite(value)):
        words = f"{least} <= value <= {most}" if math.isfinite(most) else f"a number of at least {least}"
        raise ValueError(f"{place}: {shown(value)}: expected {words}")


def check_weights(values: Any, place: str) -> list[float]:
    """The values, if they are a list of finite numbers from 0."""
    if not isinstance(values, list):
        raise ValueError(f"{place}: expected a list of numbers; found {shown(values)}")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{place}[{index}]: expected a number; found {shown(value)}")
        check_number(value, f"{place}[{index}]")
    return values


def check_prior(values: Any, place: str) -> list[float]:
    """The values, if they are a list of numbers above 0."""
    for label, value in enumerate(check_weights(values, place)):
        if not value:
            raise ValueError(f"{place}[{label}]: expected a number above 0: its logarithm is taken")
    return values


def read_matrix(path: str, size: int, place: str) -> list[list[float]]:
    """A square matrix of numbers from 0, in a JSON or CSV file."""
    if path.endswith(".csv"):
        rows = [line.split(",") for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        try:
            matrix: Any = [[float(cell) for cell in row] for row in rows]
        except ValueError as error:
            raise ValueError(f"{place}: expected rows of numbers with commas between them: {error}") from error
    else:
        matrix = read_json(path, place)
    if not isinstance(matrix, list) or len(matrix) != size:
        found = f"{len(matrix)} rows" if isinstance(matrix, list) else shown(matrix)
        raise ValueError(f"{place}: expected a matrix of {size} x {size}, one row for each true class; found {found}")
    for index, row in enumerate(matrix):
        if len(check_weights(row, f"{place}[{index}]")) != size:
            raise ValueError(f"{place}[{index}]: {len(row)} numbers; expected {size}, one for each predicted class")
    return [[float(value) for value in row] for row in matrix]


def read_json(path: str, place: str) -> Any:
    """What a JSON file holds; `place` is named in the error."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{place}: not JSON: {error}") from error
