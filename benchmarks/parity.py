"""By how much every fixture differs from the numbers of the original code, and how much is tolerated.

    python benchmarks/parity.py [FIXTURES] [--json OUT] [--markdown FILE]

FIXTURES (by default ../shared/parity beside this repository) holds numbers that the original public code gave on
random narrow weights, fp32 on the CPU; its README.md explains them. Each fixture is compared as in tests/parity.
One line per fixture: how many quantities it has, and the one that is closest to its tolerance, or farthest beyond it.
Exact quantities (label maps, counts) have the tolerance 0.

--markdown rewrites the table between the two marks in FILE (docs/models.md). The exit code is 1 when a quantity is
beyond its tolerance or a fixture cannot be compared.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/parity")]  # runs from a checkout that is not installed

from all_cases import Case, find_cases  # noqa: E402
from rows import PARITY, Row  # noqa: E402

from benchmarks.markdown_tables import write_between  # noqa: E402


HEADING = [
    "| fixture | quantities | closest to its tolerance | difference | tolerance | ok |",
    "|---|---|---|---|---|---|",
]
MARKS = ("<!-- parity: begin (benchmarks/parity.py --markdown) -->", "<!-- parity: end -->")


def rows_of(case: Case) -> list[Row]:
    """The quantities of a fixture; a fixture that does not fit our model is one that is not equal."""
    try:
        return case.compare()
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        return [Row(f"not compared, {type(error).__name__}: {error}", float("nan"), 0.0)]


def closest(rows: list[Row]) -> Row:
    """The quantity that uses up most of its tolerance."""
    return max(rows, key=lambda row: row.used)


def text_line(name: str, rows: list[Row]) -> str:
    """One line of the printed table."""
    row = closest(rows)
    numbers = f"{row.difference:>11.1e}{row.tolerance:>11.1e}"
    return f"{name:<42}{len(rows):>11}{numbers}  {'yes' if all_equal(rows) else 'NO':<5}{row.what}"


def markdown_line(name: str, rows: list[Row]) -> str:
    """One line of docs/models.md."""
    row = closest(rows)
    numbers = f"{row.difference:.1e} | {row.tolerance:.1e} | {'yes' if all_equal(rows) else '**no**'}"
    return f"| `{name}` | {len(rows)} | {row.what} | {numbers} |"


def all_equal(rows: list[Row]) -> bool:
    """Whether no quantity is beyond its tolerance."""
    return all(row.equal for row in rows)


def write_json(path: Path, results: dict[str, list[Row]]) -> None:
    """All quantities of all fixtures."""
    fixtures = {name: [json_quantity(row) for row in rows] for name, rows in results.items()}
    path.write_text(json.dumps({"torch": torch.__version__, "fixtures": fixtures}, indent=2) + "\n")


def json_quantity(row: Row) -> dict[str, Any]:
    """One quantity; JSON has no nan."""
    difference = None if math.isnan(row.difference) else row.difference
    return {"quantity": row.what, "difference": difference, "tolerance": row.tolerance}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", nargs="?", type=Path, default=PARITY, help="default: ../shared/parity")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all quantities here too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite the table of fixtures in this file")
    options = parser.parse_args()

    cases = find_cases(options.fixtures)
    if not cases:
        parser.error(f"no fixtures of a known kind in {options.fixtures}; expected folders such as 01_ocr_swin")
    print(f"{'fixture':<42}{'quantities':>11}{'difference':>11}{'tolerance':>11}  ok   closest to its tolerance")
    results = {}
    for case in cases:
        rows = results[case.name] = rows_of(case)
        print(text_line(case.name, rows), flush=True)
    beyond = [name for name, rows in results.items() if not all_equal(rows)]
    print(f"{len(cases) - len(beyond)} of {len(cases)} fixtures are inside all tolerances")
    if options.json:
        write_json(options.json, results)
    if options.markdown:
        lines = [markdown_line(name, rows) for name, rows in results.items()]
        write_between(MARKS, [*HEADING, *lines], options.markdown)
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
