"""Losses of one head that go over pixels: functions of low-resolution logits and labels (see losses.py)."""

import math
from functools import partial
from typing import Any

import torch

from vss_hf.modeling.dense import upsampled_cross_entropy
from vss_hf.modeling.dense_losses import upsampled_dice, upsampled_lovasz_softmax, upsampled_sigmoid_focal
from vss_hf.modeling.losses import share_of_step


OHEM_REDUCTIONS = ("kept", "labelled", "all")


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    max_with_predicted: bool = False,
    reduction: str = "pixels",
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy with class weights; with `max_with_predicted` BetterThing's pixel-distribution loss.

    Args:
        logits: (N, K, h, w), at any stride.
        labels: integer (N, H, W).
        class_weights: (K,) factor w_y of pixels of class y.
        max_with_predicted: the factor is max(w_y, w_y'), y' being the class that is predicted at the moment. Heavy
            classes then cost much where they are missed and where they are predicted wrongly.
        reduction: what the sum is divided by: "pixels", the number of labelled pixels (the paper's 1 / n); "weights",
            the sum of w_y over them (torch's weighted mean), without `max_with_predicted`.
        ignore_index: label value that does not count.
        align_corners: how logits are upsampled to the labels.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks). "pixels"
            divides by it; the mean over "weights" weighs as much as there are labelled pixels here of the step's.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.

    Source: "The 1st Place Solution for the VSPW challenge 2021" (team BetterThing), sec. 4.2.1.
    """
    settings: Any = dict(ignore_index=ignore_index, align_corners=align_corners, reduction="sum")
    if max_with_predicted:
        assert class_weights is not None and reduction == "pixels"
        weights = class_weights
        settings["pixel_weights"] = lambda _, predicted, label: torch.maximum(weights[label], weights[predicted])
    else:
        settings["class_weights"] = class_weights
    total = upsampled_cross_entropy(logits, labels, **settings)
    labels = labels.long()  # uint8 knows no ignore_index of -100
    labelled = labels != ignore_index
    if reduction == "pixels" or class_weights is None:
        return mean_over_pixels(total, labelled.sum(), num_items_in_batch)
    divisor = (class_weights.to(total)[labels * labelled] * labelled).sum()
    return share_of_step(total / torch.where(divisor > 0, divisor, 1), labelled.sum(), num_items_in_batch)


def ohem_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    reduction: str = "kept",
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy over the hard pixels of a batch only: online hard example mining.

    The upsampled logits exist in blocks of rows only (modeling/dense.py); the largest tensors here are (N, H, W).

    Args:
        logits: (N, K, h, w), at any stride.
        labels: integer (N, H, W).
        threshold: a pixel is hard while its true class has a smaller probability than this, 0..1; 0 leaves
            `min_kept` alone to choose.
        min_kept: so many pixels per image are hard anyhow, N * min_kept of the whole batch: those of the smallest
            probabilities. Of fewer labelled pixels all are hard; pixels as hard as the last of them are kept with it.
        reduction: what the sum over hard pixels is divided by: "kept", their number; "labelled", that of all labelled
            pixels; "all", that of all pixels.
        class_weights: (K,) factor of every pixel's loss. Neither the choice nor the divisor knows of it.
        ignore_index: label value that does not count.
        align_corners: how logits are upsampled to the labels.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks). Every
            micro-batch chooses its own hard pixels, because it must be through before the next one comes; this mean
            then weighs as much as the micro-batch has labelled pixels of the step's.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.

    Raises:
        ValueError: the reduction is not known, or for what `upsampled_cross_entropy` refuses.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016.
    For segmentation as in mmsegmentation 1.2.2: OHEMPixelSampler with "all" (its default) or "labelled"
    (avg_non_ignore), OhemCrossEntropy with "kept" (there `min_kept` is of the whole batch). They keep fewer pixels in
    two cases: those as hard as the last of N * min_kept are dropped, and of fewer labelled pixels the easiest is.
    """
    if reduction not in OHEM_REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(OHEM_REDUCTIONS)}; got {reduction!r}")
    shared: Any = dict(ignore_index=ignore_index, align_corners=align_corners)
    labels = labels.long()  # uint8 knows no ignore_index of -100
    losses = upsampled_cross_entropy(logits, labels, reduction="none", **shared)  # (N, H, W)
    labelled = labels != ignore_index
    hard = hard_pixels(losses.detach(), labelled, threshold, min_kept)
    weights = hard.to(losses.dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(weights)[labels * labelled]
    num_labelled = labelled.sum()
    divisor = {"kept": hard.sum(), "labelled": num_labelled, "all": labels.numel()}[reduction]
    loss = (losses * weights).sum() / torch.as_tensor(divisor, device=losses.device).clamp(min=1)
    return share_of_step(loss, num_labelled, num_items_in_batch)


def hard_pixels(losses: torch.Tensor, labelled: torch.Tensor, threshold: float, min_kept: int) -> torch.Tensor:
    """The pixels that `ohem_cross_entropy` keeps.

    Args:
        losses: (N, H, W) cross entropies; -log of the true class's probability.
        labelled: bool (N, H, W).
        threshold: as there.
        min_kept: as there.

    Returns:
        bool (N, H, W).
    """
    # "Easy" and not "hard" is asked for, because NaN is neither: what is wrong stays in the loss, where it is seen.
    easy = losses <= (-math.log(threshold) if threshold else math.inf)
    most = min(len(losses) * min_kept, losses.numel())
    if most:
        ranked = losses.where(labelled, -1).flatten()  # below every cross entropy
        # The whole tensor's size decides how many are taken, so that nothing waits for the number of labelled ones.
        easy &= losses < ranked.topk(most, sorted=False).values.min()
    return labelled & ~easy


def focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Focal loss: the mean over labelled pixels of (1 - p)^gamma · -log p, which passes over what is learnt.

    Args:
        logits, labels, ignore_index, align_corners: as in `weighted_cross_entropy`.
        gamma: at least 0, which is the cross entropy.
        alpha: None: p is the softmax probability of the true class. A number 0..1: every class is a question of its
            own with a sigmoid, the true class weighs alpha and each other 1 - alpha, and the mean is one over
            labelled pixels and classes. That is mmsegmentation's (alpha 0.5), whose mean has the pixels without a
            label in its divisor.
        class_weights: (K,) factor of the pixels of each class; with alpha of each class's term at every pixel.
        num_items_in_batch: labelled pixels of the whole optimisation step; the divisor.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    shared: Any = dict(class_weights=class_weights, ignore_index=ignore_index, align_corners=align_corners)
    if alpha is None:
        weights = partial(focal_weights, gamma=gamma)
        total = upsampled_cross_entropy(logits, labels, pixel_weights=weights, reduction="sum", **shared)
    else:
        total = upsampled_sigmoid_focal(logits, labels, gamma=gamma, alpha=alpha, **shared) / logits.shape[1]
    return mean_over_pixels(total, (labels.long() != ignore_index).sum(), num_items_in_batch)


def focal_weights(
    probability: torch.Tensor, predicted: torch.Tensor, label: torch.Tensor, *, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `upsampled_cross_entropy` makes a focal loss of: (1 - p)^gamma, and the slope of (1 - p)^gamma · -log p.

    The slope by c = -log p, of which p = exp(-c), is (1 - p)^gamma + gamma (1 - p)^(gamma - 1) · p c.
    """
    rest = (1 - probability).clamp(min=1e-12)  # 0 to a negative power is infinite
    power = rest**gamma
    return power, power + gamma * power / rest * torch.special.entr(probability)  # entr: -p log p, and 0 at 0


def dice_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    smooth: float = 1.0,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Dice loss of the classes in a micro-batch; see `vss_hf.modeling.dense_losses.upsampled_dice`.

    No mean over pixels: of several micro-batches each has a loss of its own, times its share of the labelled pixels.
    """
    loss = upsampled_dice(logits, labels, smooth=smooth, ignore_index=ignore_index, align_corners=align_corners)
    return share_of_step(loss, (labels.long() != ignore_index).sum(), num_items_in_batch)


def lovasz_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: str = "present",
    per_image: bool = False,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Lovász-Softmax of a micro-batch; see `vss_hf.modeling.dense_losses.upsampled_lovasz_softmax`.

    No mean over pixels: of several micro-batches each has a loss of its own, times its share of the labelled pixels.
    """
    settings: Any = dict(ignore_index=ignore_index, align_corners=align_corners)
    loss = upsampled_lovasz_softmax(logits, labels, classes=classes, per_image=per_image, **settings)
    return share_of_step(loss, (labels.long() != ignore_index).sum(), num_items_in_batch)


# --- from a sum, or a mean of its own, to the loss of an optimisation step


def mean_over_pixels(
    total: torch.Tensor, num_labelled: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """A sum over labelled pixels, divided by their number in the whole step (None: here)."""
    divisor = num_labelled if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(divisor, device=total.device).clamp(min=1)
