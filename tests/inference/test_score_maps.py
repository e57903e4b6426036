"""Scores in blocks of rows against the full-size formulas in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vss_hf.inference.score_maps import DenseScores, LogitScores, MaskScores, WeightedScores, score_maps
from vss_hf.modeling import dense


SIZES = [((13, 17), (61, 83)), ((9, 9), (9, 9)), ((20, 31), (7, 5)), ((1, 1), (5, 3))]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows in each block, so that there are several."""
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 20_000)


def resized(tensor, size, align_corners=False):
    return F.interpolate(tensor[None].double(), size=size, mode="bilinear", align_corners=align_corners)[0]


@pytest.mark.parametrize("shape,size", SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_softmax_of_upsampled_logits(shape, size, align_corners, mirrored):
    logits = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)) * 4
    wanted = resized(logits, size, align_corners).softmax(0)
    wanted = wanted.flip(-1) if mirrored else wanted
    scores = LogitScores(logits, size, align_corners, mirrored)
    torch.testing.assert_close(scores.dense().double(), wanted, atol=6e-6, rtol=0)
    sure = wanted.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-5
    assert (scores.labels().long() == wanted.argmax(0))[sure].all()
    torch.testing.assert_close(scores.confidence(scores.labels()).double(), wanted.amax(0), atol=6e-6, rtol=0)
    other = (wanted.argmax(0) + 1) % len(wanted)
    torch.testing.assert_close(scores.confidence(other).double(), wanted.gather(0, other[None])[0], atol=6e-6, rtol=0)


def test_confidence_of_enormous_logits():
    logits = torch.tensor([3e4, -3e4, 2.9e4], dtype=torch.float16)[:, None, None].expand(3, 4, 4)
    scores = LogitScores(logits, (9, 9))
    assert (scores.labels() == 0).all() and (scores.confidence(scores.labels()) == 1).all()


@pytest.mark.parametrize("shape,size", SIZES)
@pytest.mark.parametrize("normalised", [False, True])
def test_mask_scores(shape, size, normalised):
    generator = torch.Generator().manual_seed(1)
    classes, masks = torch.randn(7, 5, generator=generator), torch.randn(7, *shape, generator=generator) * 3
    wanted = torch.einsum("qk,qhw->khw", classes.double().softmax(-1)[:, :-1], resized(masks, size).sigmoid())
    if normalised:
        wanted = wanted / wanted.sum(0)
    torch.testing.assert_close(
        MaskScores(classes, masks, size, normalised=normalised).dense().double(), wanted, atol=6e-6, rtol=0
    )
    mirrored = MaskScores(classes, masks.flip(-1), size, mirrored=True, normalised=normalised)
    torch.testing.assert_close(mirrored.dense().double(), wanted, atol=6e-6, rtol=0)


def test_weighted_sum_of_several_kinds():
    generator = torch.Generator().manual_seed(2)
    size = (33, 47)
    logits = [torch.randn(4, 9, 12, generator=generator), torch.randn(4, 17, 5, generator=generator)]
    full = torch.rand(4, *size, generator=generator)
    wanted = 0.3 * resized(logits[0], size).softmax(0) + 1.4 * resized(logits[1], size).softmax(0) + full.double()
    members = [(0.3, LogitScores(logits[0], size)), (1.4, LogitScores(logits[1], size)), (1.0, DenseScores(full))]
    kept = full.clone()
    scores = WeightedScores(members)
    for _ in range(2):  # nothing is overwritten on the way
        torch.testing.assert_close(scores.dense().double(), wanted, atol=6e-6, rtol=0)
    assert torch.equal(full, kept)
    with pytest.raises(ValueError, match="have no sum"):
        WeightedScores([members[0], (1.0, LogitScores(logits[0], (33, 48)))])
    with pytest.raises(ValueError, match="expected one map at least"):
        WeightedScores([])
    for weight in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="weight of .*: expected 0 or more"):
            WeightedScores([members[0], (weight, members[1][1])])


def test_never_holds_all_classes_at_full_size():
    """The biggest tensor of a row block is bounded by the block size, whatever the frame's."""
    scores = LogitScores(torch.randn(40, 20, 20), (300, 400))
    assert max(block.numel() * 4 for _, _, block in scores.blocks()) <= 40 * 400 * 4  # one row is more than a block
    assert scores.labels().shape == (300, 400)


def test_from_outputs_of_both_kinds():
    model = SimpleNamespace(config=SimpleNamespace(align_corners=True))
    logits = torch.randn(2, 3, 5, 5)
    both = score_maps(model, SimpleNamespace(logits=logits), (11, 9))
    wanted = resized(logits[1], (11, 9), True).softmax(0)
    torch.testing.assert_close(both[1].dense().double(), wanted, atol=6e-6, rtol=0)
    outputs = SimpleNamespace(class_queries_logits=torch.randn(2, 4, 4), masks_queries_logits=torch.randn(2, 4, 5, 5))
    first, _ = score_maps(model, outputs, (11, 9), normalised=True)
    assert first.num_labels == 3
    np.testing.assert_allclose(first.dense().sum(0).numpy(), 1, atol=1e-5)
