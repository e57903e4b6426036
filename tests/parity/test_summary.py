"""The summary of all fixtures (benchmarks/parity.py): its table, its files and its exit code."""

import json
import sys

import pytest
from all_cases import Case, Kind
from rows import Row

from benchmarks import parity


def case(name, *rows, error=None):
    def compare(folder):
        if error:
            raise error
        return list(rows)

    return Case(name, None, Kind("", bool, compare, ()))


FINE = case("01/fine", Row("logits", 1e-6, 2e-5), Row("labels", 0, 0.0), Row("grad_input", 4e-4, 1e-3))
WRONG = case("02/wrong", Row("logits", 1e-6, 2e-5), Row("labels", 3, 0.0), Row("grad_input", 4e-1, 1e-3))
UNLIKE = case("03/unlike", error=ValueError("no counterpart here"))


def run(monkeypatch, cases, *options):
    monkeypatch.setattr(parity, "find_cases", lambda folder: cases)
    monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, options)])
    return parity.main()


def test_the_quantity_closest_to_its_tolerance_is_shown(monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", parity.MARKS[0], "old", parity.MARKS[1], "after"]))
    assert run(monkeypatch, [FINE], "--markdown", page, "--json", tmp_path / "out.json") == 0
    _, line, summary = capsys.readouterr().out.splitlines()
    assert line.split() == ["01/fine", "3", "4.0e-04", "1.0e-03", "yes", "grad_input"]
    assert summary.startswith("1 of 1 fixtures")
    lines = ["| `01/fine` | 3 | grad_input | 4.0e-04 | 1.0e-03 | yes |"]
    assert page.read_text().split("\n") == [
        "before",
        parity.MARKS[0],
        *parity.HEADING,
        *lines,
        parity.MARKS[1],
        "after",
    ]
    quantities = json.loads((tmp_path / "out.json").read_text())["fixtures"]["01/fine"]
    assert quantities[0] == {"quantity": "logits", "difference": 1e-6, "tolerance": 2e-5} and len(quantities) == 3


def test_a_difference_is_shown_and_ends_with_an_error(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, [WRONG, UNLIKE, FINE], "--json", tmp_path / "out.json") == 1
    _, wrong, unlike, fine, summary = capsys.readouterr().out.splitlines()
    assert wrong.split()[-2:] == ["NO", "labels"]  # what has to be exact goes before what has a tolerance
    assert " NO " in unlike and unlike.endswith("not compared, ValueError: no counterpart here")
    assert " yes " in fine and summary.startswith("1 of 3 fixtures")
    json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)  # nan is no JSON


def test_a_folder_without_fixtures_is_an_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["parity.py", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stopped:
        parity.main()
    assert stopped.value.code and f"no fixtures of a known kind in {tmp_path / 'nowhere'}" in capsys.readouterr().err
