"""Losses and semantic inference of Facebook's MaskFormer and Mask2Former, with a fixed matching and fixed points."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import Mask2FormerConfig
from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher

from vss_hf.modeling.dense_masks import upsampled_mask_argmax, upsampled_mask_scores
from vss_hf.modeling.mask_losses import Mask2FormerCriterion, MaskFormerCriterion


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/06_maskformer"
pytestmark = pytest.mark.skipif(not FIXTURE.exists(), reason="parity fixture 06_maskformer is not there")
NUM_LABELS = 13


@pytest.fixture(scope="module")
def tensors():
    return load_file(FIXTURE / "tensors.safetensors")


@pytest.fixture(scope="module")
def values():
    return json.loads((FIXTURE / "values.json").read_text())


@pytest.fixture(scope="module")
def targets(tensors):
    """Masks and classes of the two images, and bool masks as our own label preparation gives them."""
    masks = [tensors[f"target{i}_masks"] for i in range(2)]
    return masks, [tensors[f"target{i}_labels"] for i in range(2)]


def criterion(kind, points=None):
    if kind == "maskformer":
        weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
        matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
        return MaskFormerCriterion(NUM_LABELS, matcher, weights, eos_coef=0.1).eval()
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    loss = Mask2FormerCriterion(Mask2FormerConfig(num_labels=NUM_LABELS), weights).eval()
    if points is not None:
        loss.sample_points_using_uncertainty = lambda *arguments: points
    return loss


def fixed_pairs(values):
    """The same for both models."""
    return [tuple(map(torch.tensor, image)) for image in values["maskformer_v1"]["matching"]]


@pytest.mark.parametrize("bool_masks", [False, True])
@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_losses_and_gradients_with_the_fixed_matching(tensors, values, targets, kind, bool_masks):
    masks, classes = targets
    masks = [mask.bool() for mask in masks] if bool_masks else masks
    expected = values["maskformer_v1" if kind == "maskformer" else kind]
    class_logits = tensors["pred_logits"].clone().requires_grad_()
    mask_logits = tensors["pred_masks"].clone().requires_grad_()
    loss = criterion(kind, tensors["mask2former/point_coords"])
    pairs = fixed_pairs(values)
    num_masks = loss.get_num_masks(classes, torch.device("cpu"))
    parts = {
        **loss.loss_masks(mask_logits, masks, pairs, num_masks),
        **loss.loss_labels(class_logits, classes, pairs),
    }
    names = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
    for reference, own in names.items():
        assert parts[own].item() == pytest.approx(expected["losses"][reference], rel=1e-5), own
    total = sum(weight * parts[name] for name, weight in loss.weight_dict.items())
    assert total.item() == pytest.approx(expected["total"], rel=1e-5)
    total.backward()
    for own, name in ((class_logits, "pred_logits"), (mask_logits, "pred_masks")):
        reference = tensors[f"{kind}/grad_{name}"]
        assert (own.grad - reference).abs().max() <= 1e-4 * reference.abs().max(), name


def test_our_matching_is_the_fixed_one(tensors, values, targets):
    pairs = criterion("maskformer").match(tensors["pred_masks"], tensors["pred_logits"], *targets, None)
    for own, fixed in zip(pairs, fixed_pairs(values), strict=True):
        assert own[0].tolist() == fixed[0].tolist() and own[1].tolist() == fixed[1].tolist()


def test_masks_are_upsampled_before_the_classes_are_summed(tensors):
    expected = tensors["semantic/d2_upsampled_first"]
    scores = upsampled_mask_scores(tensors["pred_logits"], tensors["pred_masks"], tuple(expected.shape[-2:]))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=2e-5)
    labels = upsampled_mask_argmax(tensors["pred_logits"], tensors["pred_masks"], tuple(expected.shape[-2:]))
    assert torch.equal(labels.long(), expected.argmax(1))
    low = upsampled_mask_scores(tensors["pred_logits"], tensors["pred_masks"], tuple(tensors["pred_masks"].shape[-2:]))
    torch.testing.assert_close(low, tensors["semantic/lowres"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("kind", "first"), [("maskformer", None), ("mask2former", (384, 384))])
def test_transformers_label_maps_are_the_same_scores_in_another_order(tensors, kind, first):
    """transformers sums the classes at the masks' size (MaskFormer) or at 384x384 (Mask2Former), then resizes."""
    expected = tensors[f"semantic/hf_{kind}_labels_97x161"]
    scores = upsampled_mask_scores(
        tensors["pred_logits"], tensors["pred_masks"], first or tensors["pred_masks"].shape[-2:]
    )
    labels = F.interpolate(scores, size=(97, 161), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(labels.int(), expected)
