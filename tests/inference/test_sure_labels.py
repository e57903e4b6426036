"""Labels that are found without scores: the right ones, and the rest made pixel by pixel."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from vss_hf.inference.score_maps import (
    PIXEL_COST,
    DenseScores,
    LogitScores,
    MaskScores,
    WeightedScores,
    semantic_labels,
)
from vss_hf.inference.sliding import Axis, Placement


SIZES = [((13, 17), (61, 83)), ((9, 9), (9, 9)), ((20, 31), (7, 5)), ((1, 1), (5, 3)), ((12, 3), (40, 80))]
NUM_LABELS = 9


def regions(shape, number=NUM_LABELS, seed=0):
    """Smooth maps (number, *shape), each the highest in a region."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, number, 3, 4, generator=generator) * 4
    return F.interpolate(coarse, size=shape, mode="bicubic")[0] + torch.randn(number, *shape, generator=generator) / 9


def resized(tensor, size, align_corners=False):
    return F.interpolate(tensor[None].double(), size=size, mode="bilinear", align_corners=align_corners)[0]


def check(scores, wanted):
    """Against all scores in float64 (K, H, W)."""
    best, second = wanted.topk(2, dim=0).values
    right, clear = wanted.argmax(0), best - second > 1e-5
    sure = scores.sure_labels()
    known = sure >= 0
    assert torch.equal(sure[known & clear], right[known & clear])
    assert torch.equal(scores.labels().long()[clear], right[clear])
    pixels = torch.arange(wanted[0].numel())[::7]
    torch.testing.assert_close(scores.at(pixels).double(), wanted.flatten(1).t()[pixels], atol=2e-5, rtol=0)
    return float(known.double().mean())


@pytest.mark.parametrize("shape,size", SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_logits(shape, size, align_corners, mirrored):
    logits = regions(shape)
    wanted = resized(logits, size, align_corners).softmax(0)
    scores = LogitScores(logits, size, align_corners, mirrored)
    share = check(scores, wanted.flip(-1) if mirrored else wanted)
    assert share > (0.5 if shape == (13, 17) else 0)


@pytest.mark.parametrize("shape,size", SIZES)
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("certain", [0.5, 4])
def test_masks(shape, size, normalised, certain):
    maps = regions(shape, number=7, seed=1)
    best = maps.topk(2, dim=0).values
    masks = 2 * (maps - torch.where(maps == best[:1], best[1:], best[:1]))
    classes = torch.randn(7, NUM_LABELS + 1, generator=torch.Generator().manual_seed(3)) * certain
    wanted = torch.einsum("qk,qhw->khw", classes.double().softmax(-1)[:, :-1], resized(masks, size).sigmoid())
    wanted = wanted / wanted.sum(0) if normalised else wanted
    share = check(MaskScores(classes, masks, size, normalised=normalised), wanted)
    assert share > (0.25 if shape == (13, 17) and certain > 1 else 0)


@torch.no_grad()
def test_autocast_does_not_round_scores():
    """124 classes by 50 masks: so many pixels are sure that the others are made one by one."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(50, 125, generator=generator) * 3
    masks = F.interpolate(torch.randn(1, 50, 3, 3, generator=generator), (24, 24), mode="bicubic")[0] * 6
    scores = MaskScores(classes, masks, (97, 97))
    wanted, sure = scores.labels(), scores.sure_labels()
    assert 0.5 < (sure >= 0).double().mean() < 0.9
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scores.labels(), wanted)


def test_most_pixels_are_made_without_rows(monkeypatch):
    scores = LogitScores(regions((20, 30), number=124), (80, 120))
    plain = scores.dense().argmax(0)
    monkeypatch.setattr(LogitScores, "rows", None)
    asked = []
    at = LogitScores.ranking_at
    monkeypatch.setattr(LogitScores, "ranking_at", lambda self, pixels: asked.append(pixels) or at(self, pixels))
    assert torch.equal(scores.labels().long(), plain)
    assert 0 < sum(map(len, asked)) < 0.5 * plain.numel()
    assert len(asked) > 3  # in parts, each of which needs a few rows of the logits
    assert max(int(pixels[-1] - pixels[0]) for pixels in asked) < plain.numel() / 15


def test_where_most_pixels_are_unsure_rows_are_taken(monkeypatch):
    scores = LogitScores(torch.randn(5, 20, 30), (80, 120))
    assert (scores.sure_labels() < 0).double().mean() > 5 / (5 + PIXEL_COST)
    monkeypatch.setattr(LogitScores, "at", None)
    assert torch.equal(scores.labels().long(), scores.dense().argmax(0))


def test_the_first_class_wins_a_tie_everywhere():
    # small integers at a factor of 4: every weight and product is exact, so ties are real ties
    logits = torch.randint(0, 2, (40, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    logits[3:5, :4] = 2  # two classes share a region
    wanted = resized(logits, (24, 28)).argmax(0)
    scores = LogitScores(logits, (24, 28))
    assert (scores.sure_labels() == 3).any()
    assert torch.equal(scores.labels().long(), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype):
    logits = regions((13, 17)).to(dtype)
    wanted = resized(logits, (61, 83)).softmax(0)
    assert check(LogitScores(logits, (61, 83)), wanted) > 0.5


def test_a_view_in_windows():
    """Logits of four windows side by side: pixels of one depend on distant columns of the mosaic."""
    vertical = Axis.of(48, 32, 16, 1, 60)
    horizontal = Axis.of(64, 32, 32, 1, 80, mirrored=True)
    placement = Placement(vertical, horizontal, (8, 8), False, torch.float32, torch.device("cpu"))
    logits = regions((16, 16), seed=5)
    scores = LogitScores(logits, (60, 80), interpolation=placement.whole)
    wy, wx = placement.whole.wy.double(), placement.whole.wx.double()
    assert check(scores, torch.einsum("yh,khw,xw->kyx", wy, logits.double(), wx).softmax(0)) > 0.3


@pytest.mark.parametrize("window", [64, 32])
def test_masks_of_a_view_of_another_size(window):
    """Of a resized view, in one piece or in windows: its supports are longer, and begin at few positions."""
    vertical, horizontal = (Axis.of(length, window, 32, 1, frame) for length, frame in ((48, 60), (64, 100)))
    placement = Placement(vertical, horizontal, (12, 16), False, torch.float32, torch.device("cpu"))
    wy, wx = placement.whole.wy.double(), placement.whole.wx.double()
    maps = regions((wy.shape[1], wx.shape[1]), number=7, seed=1)
    best = maps.topk(2, dim=0).values
    masks = 2 * (maps - torch.where(maps == best[:1], best[1:], best[:1]))
    classes = torch.randn(7, NUM_LABELS + 1, generator=torch.Generator().manual_seed(3)) * 4
    resampled = torch.einsum("yh,khw,xw->kyx", wy, masks.double(), wx)
    wanted = torch.einsum("qk,qhw->khw", classes.double().softmax(-1)[:, :-1], resampled.sigmoid())
    scores = MaskScores(classes, masks, (60, 100), interpolation=placement.whole)
    assert check(scores, wanted) > (0.2 if window == 64 else 0)
    cells = placement.whole.cells
    most = (12, 16) if window == 64 else (60, 100)
    assert all(len(axis.index) <= number for axis, number in zip(cells, most, strict=True))


def test_sums_of_maps():
    size = (61, 83)
    maps = [regions((13, 17)), regions((20, 27)), torch.randn(NUM_LABELS, 5, 5)]
    soft = [resized(one, size).softmax(0) for one in maps]
    members = [(w, LogitScores(one, size)) for w, one in zip((0.4, 1.1, 0), maps, strict=True)]
    share = check(WeightedScores(members), 0.4 * soft[0] + 1.1 * soft[1])  # a weight of 0 leaves all sure
    assert share > 0.4
    dense = (1.0, DenseScores(torch.rand(NUM_LABELS, *size)))
    assert WeightedScores([*members, dense]).sure_labels() is None
    wanted = 0.4 * soft[0] + 1.1 * soft[1] + dense[1].scores.double()
    best, second = wanted.topk(2, dim=0).values
    clear = best - second > 1e-5
    assert torch.equal(WeightedScores([*members, dense]).labels().long()[clear], wanted.argmax(0)[clear])


def test_a_batch_and_an_empty_one():
    model = SimpleNamespace(config=SimpleNamespace(align_corners=False))
    logits = torch.stack([regions((13, 17)), regions((13, 17), seed=2)])
    found = semantic_labels(model, SimpleNamespace(logits=logits), (61, 83))
    wanted = F.interpolate(logits.double(), size=(61, 83), mode="bilinear").argmax(1)
    assert found.dtype == torch.uint8 and (found == wanted).double().mean() > 0.9999
    assert semantic_labels(model, SimpleNamespace(logits=logits[:0]), (61, 83)).shape == (0, 61, 83)
