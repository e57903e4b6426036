"""The published cost of Swin-L + OCRNet: which head and which window the paper used shows in its GFLOPs."""

import pytest

from benchmarks.model_cost import PAPER_GMAC, model_cost


def test_swin_large_costs_what_the_paper_says():
    cost = model_cost("ocrnet-swin-large")
    # "540 GFLOPs" for 480x853 are multiply-accumulates, rounded to tens. UperNet instead would be 639, window 12 558.
    assert cost["gmac"] == pytest.approx(PAPER_GMAC["ocrnet-swin-large"], abs=5)
    assert cost["gmac"] == pytest.approx(536, rel=0.01)
    assert cost["backbone_gmac"] == pytest.approx(304.24, abs=0.01)  # measured on the official layers (fact sheet)

    # The heads by hand: multiply-accumulates of every layer on the stride-8 map.
    pixels, labels, read, channels, ocr = 60 * 107, 124, 192 * (2 + 4 + 8), 1024, 512
    coarse = pixels * (read * read + read * labels)
    regions = labels * pixels * channels
    query, key, value = (pixels * ocr * (channels + ocr), labels * ocr * (channels + ocr), labels * channels * ocr)
    attention = 2 * pixels * labels * ocr + pixels * ocr * channels + pixels * 2 * channels * channels
    decode = pixels * (9 * read * channels + channels * labels) + regions + query + key + value + attention
    assert cost["head_gmac"] * 1e9 == pytest.approx(coarse + decode, rel=1e-9)
