"""Losses of per-pixel models beside the cross entropy that the models compute themselves."""

import math
from functools import partial
from typing import Any

import torch

from vss_hf.modeling.dense import upsampled_cross_entropy
from vss_hf.modeling.losses import PixelLoss, mean_cross_entropy

from .arguments import OHEM_REDUCTIONS, VSSTrainingArguments


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
    if num_items_in_batch is None:
        return loss
    return loss * num_labelled / torch.as_tensor(num_items_in_batch, device=losses.device).clamp(min=1)


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


def pixel_loss(args: VSSTrainingArguments, config: Any, class_weights: torch.Tensor | None = None) -> PixelLoss | None:
    """The loss that a run asks for, of one head.

    Args:
        args: the run's settings.
        config: the model's configuration.
        class_weights: (num_labels,), or None.

    Returns:
        None for the one that models compute themselves.

    Raises:
        ValueError: the model classifies masks and not pixels.
    """
    if args.loss == "cross_entropy":
        return None if class_weights is None else partial(mean_cross_entropy, class_weights=class_weights)
    if not hasattr(config, "auxiliary_loss_weight"):  # only per-pixel models have it
        raise ValueError(
            f"--loss {args.loss}: {config.model_type} classifies masks, not pixels, and has a loss of its own; leave "
            "it out"
        )
    return partial(
        ohem_cross_entropy,
        threshold=args.ohem_threshold,
        min_kept=args.ohem_min_kept,
        reduction=args.ohem_reduction,
        class_weights=class_weights,
    )
