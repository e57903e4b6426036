"""Losses and semantic inference of Facebook's MaskFormer and Mask2Former, with a fixed matching and fixed points."""

import json
from pathlib import Path
from typing import Any

import torch
from rows import GRADIENT, LOSS_RTOL, Row, compare, compare_exactly, compare_largest, compare_numbers, part
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher

from vss_hf.modeling.dense_masks import upsampled_mask_argmax, upsampled_mask_scores
from vss_hf.modeling.mask_losses import Mask2FormerCriterion, MaskFormerCriterion


LOSSES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}  # the original's: ours
# What transformers' image processors do first: MaskFormer's keeps the masks' size, Mask2Former's has a fixed one.
FIRST_SIZES = {"hf_maskformer_labels_": None, "hf_mask2former_labels_": (384, 384)}


def compare_masks(folder: Path) -> list[Row]:
    """Losses with their gradients, the matching, scores and label maps."""
    tensors, values = load_file(folder / "tensors.safetensors"), json.loads((folder / "values.json").read_text())
    # transformers' matching, which MaskFormer's fixture has; it is the same for both models
    pairs = [tuple(map(torch.tensor, image)) for image in values["maskformer_v1"]["matching"]]
    rows = []
    for kind in ("maskformer", "mask2former"):
        for mask_dtype in (torch.float32, torch.bool):  # bool: as our own label preparation gives them
            masks, classes = mask_targets(tensors, mask_dtype)
            rows += compare_mask_losses(kind, tensors, values, pairs, masks, classes)
    matched = mask_criterion("maskformer", tensors).match(
        tensors["pred_masks"], tensors["pred_logits"], *mask_targets(tensors, torch.float32), None
    )
    for image, (ours, fixed) in enumerate(zip(matched, pairs, strict=True)):
        rows.append(compare_exactly(f"matching of image {image}", torch.stack(ours), torch.stack(fixed)))
    return rows + compare_mask_scores(tensors)


def mask_targets(
    tensors: dict[str, torch.Tensor], mask_dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks and classes of all images."""
    images = range(len(tensors["pred_logits"]))
    return (
        [tensors[f"target{i}_masks"].to(mask_dtype) for i in images],
        [tensors[f"target{i}_labels"] for i in images],
    )


def mask_criterion(kind: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Our criterion with the original's weights; Mask2Former's takes the fixture's points."""
    num_labels = tensors["pred_logits"].shape[-1] - 1
    if kind == "maskformer":
        weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
        matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
        return MaskFormerCriterion(num_labels, matcher, weights, eos_coef=0.1).eval()
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    loss = Mask2FormerCriterion(Mask2FormerConfig(num_labels=num_labels), weights).eval()
    loss.sample_points_using_uncertainty = lambda *arguments: tensors["mask2former/point_coords"]
    return loss


def compare_mask_losses(
    kind: str,
    tensors: dict[str, torch.Tensor],
    values: dict[str, Any],
    pairs: list[tuple[torch.Tensor, ...]],
    masks: list[torch.Tensor],
    classes: list[torch.Tensor],
) -> list[Row]:
    """The three losses, their weighted sum, and its gradients by the logits."""
    expected = values["maskformer_v1" if kind == "maskformer" else kind]
    kind_of_masks = f"{kind}, {str(masks[0].dtype).removeprefix('torch.')} masks: "
    inputs = {name: tensors[name].clone().requires_grad_() for name in ("pred_logits", "pred_masks")}
    loss = mask_criterion(kind, tensors)
    num_masks = loss.get_num_masks(classes, torch.device("cpu"))
    parts = {
        **loss.loss_masks(inputs["pred_masks"], masks, pairs, num_masks),
        **loss.loss_labels(inputs["pred_logits"], classes, pairs),
    }
    total = sum(weight * parts[name] for name, weight in loss.weight_dict.items())
    total.backward()
    ours = {name: parts[own].item() for name, own in LOSSES.items()} | {"total": total.item()}
    reference = {name: expected["losses"][name] for name in LOSSES} | {"total": expected["total"]}
    rows = [
        compare_numbers(kind_of_masks + name, [ours[name]], [number], LOSS_RTOL * abs(number))
        for name, number in reference.items()
    ]
    return rows + [
        compare_largest(f"{kind_of_masks}grad_{name}", tensor.grad, tensors[f"{kind}/grad_{name}"], GRADIENT)
        for name, tensor in inputs.items()
    ]


def compare_mask_scores(tensors: dict[str, torch.Tensor]) -> list[Row]:
    """Scores at both sizes, and label maps: masks upsampled first (Detectron2), or classes summed first (others)."""
    predictions = tensors["pred_logits"], tensors["pred_masks"]
    small = predictions[1].shape[-2:]
    expected = tensors["semantic/d2_upsampled_first"]
    size = tuple(expected.shape[-2:])
    rows = [
        compare("semantic/d2_upsampled_first", upsampled_mask_scores(*predictions, size), expected),
        compare_exactly("its labels", upsampled_mask_argmax(*predictions, size).long(), expected.argmax(1)),
        compare("semantic/lowres", upsampled_mask_scores(*predictions, tuple(small)), tensors["semantic/lowres"]),
    ]
    for prefix, first in FIRST_SIZES.items():
        for name, labels in part(tensors, f"semantic/{prefix}").items():  # e.g. 97x161
            scores = upsampled_mask_scores(*predictions, first or small)
            resized = F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            rows.append(compare_exactly(f"semantic/{prefix}{name}", resized.argmax(1).int(), labels))
    return rows
