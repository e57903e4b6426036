"""Every fixture equals the numbers of the original code; how each is compared: the `*_cases.py` files beside."""

import re

import pytest
import torch
from all_cases import find_cases
from rows import PARITY, Row, compare, compare_exactly, compare_largest, compare_numbers


CASES = find_cases(PARITY)


@pytest.mark.skipif(not CASES, reason="no reference numbers in ../shared/parity")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_equals_the_original(case):
    rows = case.compare()
    assert [row for row in rows if not row.equal] == []
    names = [row.what for row in rows]
    assert len(names) == len(set(names)) >= 2
    assert [name for name in case.kind.rows if not any(re.fullmatch(name, what) for what in names)] == []


def test_a_difference_is_seen():
    """What the rows of all fixtures lean on."""
    ones, nan = torch.ones(2, 3), float("nan")
    almost, wrong = ones.clone(), ones.clone()
    almost[0, 1], wrong[0, 1] = 1 + 1e-4, 1 + 2e-4
    assert compare("", almost, ones).equal and not compare("", wrong, ones).equal
    assert not compare("", ones * nan, ones).equal and not compare_largest("", ones * nan, ones, 1).equal
    assert compare_largest("", almost, ones, 1e-3).equal and not compare_largest("", almost, ones, 1e-5).equal
    assert compare_numbers("", [1.0, None], [1.0, None], 0).equal
    assert not compare_numbers("", [1.0, None], [1.0, 2.0], 9).equal
    assert not compare_numbers("", [1.0], [1.1], 1e-9).equal
    assert compare_exactly("", [1, 2], [1, 2]).equal and not compare_exactly("", ones, wrong).equal
    for unlike in (torch.ones(3, 2), torch.ones(1, 3)):
        with pytest.raises(AssertionError):
            compare("", unlike, ones)
    used = [row.used for row in (Row("", 0.5, 2.0), Row("", 0, 0), Row("", 3.0, 2.0), Row("", 1, 0), Row("", nan, 1))]
    assert used == [0.25, 0.0, 1.5, float("inf"), float("inf")]
