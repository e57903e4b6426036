"""Segmentation models of every backbone and head against the original code's numbers (fixture_cases.py)."""

import pytest
from fixture_cases import compare_case, segmenter_cases


CASES = segmenter_cases()


@pytest.mark.skipif(not CASES, reason="no reference numbers in ../shared/parity")
@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_equals_the_original(folder):
    rows = compare_case(folder)
    assert {"logits", "zero_image_64x96_logits", "grad_input"} & {row.what for row in rows} and len(rows) >= 3
    assert [row for row in rows if not row.equal] == []
