"""Losses beside the cross entropy on low-resolution logits: sigmoid focal, Dice and Lovász-Softmax.

Like dense.py they never hold a (batch, num_labels, height, width) tensor. Value and gradient are found together,
without autograd: sums over pixels in blocks of rows; Lovász-Softmax, which sorts all pixels of a class, by one class
after the other, with a few (batch, height, width) maps at a time.

Letters: B images, K classes (num_labels), h x w size of the logits, H x W size of the labels, p = softmax.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .dense import (
    _Block,
    _checked_labels,
    _refuse_second_derivative,
    _upsampled_blocks,
    bilinear_weights,
    full_precision,
    rows_first,
)


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradient (B, K, h, w) is known already."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.logits_dtype = logits.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        return (gradient * output_gradient).to(ctx.logits_dtype), None, None


def _empty_gradient(logits: Tensor) -> Tensor | None:
    """Zeros of the logits' shape in the precision of the computation, if a gradient is wanted."""
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return None
    return torch.zeros_like(logits, dtype=_dtype(logits), memory_format=torch.contiguous_format).detach()


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _blocks(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
) -> Iterator[tuple[int, _Block, Tensor, Tensor]]:
    """(image, block of its upsampled logits, label (rows, W), valid (rows, W)); labels are 0 where not valid."""
    for index in range(len(logits)):
        for block in _upsampled_blocks(rows_first(logits[index]), (labels.shape[1], labels.shape[2]), align_corners):
            label = labels[index, block.rows]
            valid = label != ignore_index
            yield index, block, label * valid, valid


def _pixels_of_classes(labels: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """int64 (B, K)."""
    valid = (labels != ignore_index).flatten(1)
    counts = torch.zeros(len(labels), num_labels, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(1, labels.flatten(1) * valid, valid.long())


# --- focal loss of independent classes


@torch.compiler.disable()
def upsampled_sigmoid_focal(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.5,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """Σ over labelled pixels and classes of the focal loss of "is it this class?", each class by its own sigmoid.

    Args:
        logits: (B, K, h, w), finite, any floating dtype.
        labels: integer (B, H, W), 0..K-1 or `ignore_index`.
        gamma: exponent of (1 - probability of the right answer), at least 0.
        alpha: weight of the true class, 0..1; that of the others is 1 - alpha.
        class_weights: (K,) factor of each class's term, whether it is the true one or not.
        ignore_index: label value that does not count.
        align_corners: as in `F.interpolate`.

    Returns:
        Scalar, fp32 (float64 for such logits); 0 with zero gradient if every pixel is ignored.

    Raises:
        ValueError: shapes or labels do not fit (labels are looked at on the CPU only).

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; for segmentation as mmsegmentation's.
    """
    labels = _checked_labels(logits, labels, ignore_index)
    gradient, total = _empty_gradient(logits), torch.zeros((), dtype=_dtype(logits), device=logits.device)
    weights = torch.ones_like(total) if class_weights is None else class_weights.to(total)[:, None]
    with torch.no_grad(), full_precision(logits.device):
        for index, block, label, valid in _blocks(logits, labels, ignore_index, align_corners):
            z, place = block.logits, label[:, None]
            true_z = z.gather(1, place)
            losses, slopes = _focal_of_wrong_class(z, gamma, gradient is not None)
            # The true class's: that of -z, with the slope's sign changed.
            true_loss, true_slope = _focal_of_wrong_class(-true_z, gamma, gradient is not None)
            losses = losses.mul_(1 - alpha).scatter_(1, place, alpha * true_loss)
            total += (losses.mul_(weights) * valid[:, None]).sum()
            if gradient is not None:
                slopes = slopes.mul_(1 - alpha).scatter_(1, place, -alpha * true_slope)
                slopes = slopes.mul_(weights).mul_(valid[:, None])
                gradient[index, :, block.span] += block.pull_back(slopes).transpose(0, 1)
    return _WithGradient.apply(logits, total, gradient)


def _focal_of_wrong_class(z: Tensor, gamma: float, with_slope: bool) -> tuple[Tensor, Tensor]:
    """q^gamma · softplus(z) with q = sigmoid(z), and its derivative (or the same again)."""
    q, cost = z.sigmoid(), F.softplus(z, threshold=1000)  # no threshold: exact for large z too
    power = q**gamma
    losses = power * cost
    return losses, (gamma * losses * (1 - q) + power * q) if with_slope else losses


# --- Dice


@torch.compiler.disable()
def upsampled_dice(
    logits: Tensor, labels: Tensor, *, smooth: float = 1.0, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """Mean over the classes in the labels of 1 - (2 Σ p·t + smooth) / (Σ p + Σ t + smooth), t being 1 in the class.

    Sums go over the labelled pixels of the whole batch.

    Args:
        logits: (B, K, h, w), finite, any floating dtype.
        labels: integer (B, H, W), 0..K-1 or `ignore_index`.
        smooth: pixels that are added to both sums, above 0; damps classes of a few pixels.
        ignore_index: label value that does not count.
        align_corners: as in `F.interpolate`.

    Returns:
        Scalar in 0..1, fp32 (float64 for such logits); 0 with zero gradient if every pixel is ignored.

    Raises:
        ValueError: shapes or labels do not fit (labels are looked at on the CPU only).

    Source: Milletari et al., "V-Net", 3DV 2016, with the plain sums of Sudre et al., DLMIA 2017, over classes.
    """
    labels = _checked_labels(logits, labels, ignore_index)
    num_labels, gradient = logits.shape[1], _empty_gradient(logits)
    settings = (logits, labels, ignore_index, align_corners)
    predicted = torch.zeros(num_labels, dtype=_dtype(logits), device=logits.device)  # Σ p
    overlap = torch.zeros_like(predicted)  # Σ p·t
    with torch.no_grad(), full_precision(logits.device):
        for _, block, label, valid in _blocks(*settings):
            p = block.logits.softmax(1).mul_(valid[:, None])
            predicted += p.sum((0, 2))
            # Row by row first: a large sum in fp32 forgets parts of what is added to it pixel by pixel.
            of_rows = p.new_zeros(len(p), num_labels).scatter_add_(1, label, p.gather(1, label[:, None])[:, 0])
            overlap += of_rows.sum(0)

        true = _pixels_of_classes(labels, num_labels, ignore_index).sum(0)
        share = (true > 0) / (true > 0).sum().clamp(min=1)  # (K,)
        divisor = predicted + true + smooth
        value = (share * (1 - (2 * overlap + smooth) / divisor)).sum()
        if gradient is not None:
            by_predicted, by_overlap = share * (2 * overlap + smooth) / divisor**2, -2 * share / divisor
            for index, block, label, valid in _blocks(*settings):
                p, place = block.logits.softmax(1), label[:, None]
                slopes = by_predicted[:, None].expand_as(p).clone()  # by p
                slopes.scatter_add_(1, place, by_overlap[label][:, None])
                slopes -= (p * slopes).sum(1, keepdim=True)
                slopes.mul_(p).mul_(valid[:, None])  # by the logits
                gradient[index, :, block.span] += block.pull_back(slopes).transpose(0, 1)
    return _WithGradient.apply(logits, value, gradient)


# --- Lovász


@torch.compiler.disable()
def upsampled_lovasz_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: str = "present",
    per_image: bool = False,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """Lovász-Softmax: a convex extension of 1 - IoU, the mean over classes.

    Args:
        logits: (B, K, h, w), finite, any floating dtype.
        labels: integer (B, H, W), 0..K-1 or `ignore_index`.
        classes: the mean goes over those "present" in the labels, or over "all" K.
        per_image: the mean of every image's loss, instead of one loss over the pixels of all.
        ignore_index: label value that does not count.
        align_corners: as in `F.interpolate`.

    Returns:
        Scalar in 0..1, fp32 (float64 for such logits); 0 with zero gradient if every pixel is ignored. Pixels that
        are equally wrong have one order out of several, on which the gradient depends (the value does not).

    Raises:
        ValueError: `classes` is unknown; shapes or labels do not fit (labels are looked at on the CPU only).

    Source: Berman et al., "The Lovász-Softmax loss", CVPR 2018, eq. 8 to 12.
    """
    if classes not in ("present", "all"):
        raise ValueError(f"classes must be present or all, got {classes!r}")
    labels = _checked_labels(logits, labels, ignore_index)
    gradient = _empty_gradient(logits)
    with torch.no_grad(), full_precision(logits.device):
        counts = _pixels_of_classes(labels, logits.shape[1], ignore_index)
        groups = list(range(len(logits))) if per_image else [slice(None)]
        # The one wait for the device: sorting for 124 classes, of which a crop has 10, would cost more.
        of_groups = counts.tolist() if per_image else [counts.sum(0).tolist()]
        shift = _log2_sums(logits, labels, align_corners)
        wy, wx = _interpolation(logits, labels, align_corners)
        value = torch.zeros((), dtype=shift.dtype, device=shift.device)
        inner = torch.zeros_like(shift)  # Σ over classes of p · slope by p
        for group, pixels in zip(groups, of_groups, strict=True):
            chosen = [c for c, n in enumerate(pixels) if n or classes == "all"]
            for c in chosen:
                share = 1 / (len(chosen) * len(groups))
                z = wy @ logits[group, c].to(wy.dtype) @ wx.t()  # (B, H, W) or (H, W)
                p = (z / math.log(2) - shift[group]).exp2_()
                loss, slopes = _lovasz_of_class(p, labels[group] == c, labels[group] != ignore_index, pixels[c])
                value += share * loss
                if gradient is not None:
                    slopes.mul_(p).mul_(share)
                    inner[group] += slopes
                    gradient[group, c] += wy.t() @ slopes @ wx
        if gradient is not None:
            for index, block, _, _ in _blocks(logits, labels, ignore_index, align_corners):
                slopes = block.logits.softmax(1).mul_(-inner[index, block.rows][:, None])
                gradient[index, :, block.span] += block.pull_back(slopes).transpose(0, 1)
    return _WithGradient.apply(logits, value, gradient)


def _interpolation(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The matrices (H, h) and (W, w) of bilinear interpolation."""
    like = torch.empty(0, dtype=_dtype(logits), device=logits.device)
    height, width = (
        bilinear_weights(logits.shape[axis], labels.shape[axis - 1], align_corners, like) for axis in (2, 3)
    )
    return height, width


def _log2_sums(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """(B, H, W): x such that p = 2^(upsampled logit / ln 2 - x)."""
    sums = torch.empty(labels.shape, dtype=_dtype(logits), device=logits.device)
    for index in range(len(logits)):
        for block in _upsampled_blocks(rows_first(logits[index]), (labels.shape[1], labels.shape[2]), align_corners):
            sums[index, block.rows] = block.logits.logsumexp(1) / math.log(2)
    return sums


def _lovasz_of_class(p: Tensor, inside: Tensor, valid: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """The loss of one class, and its derivative by every pixel's p.

    Args:
        p: probability of the class; all of one shape.
        inside: bool, where the class is.
        valid: bool, where there are labels.
        pixels: number of True in `inside`.
    """
    errors = torch.where(inside, 1 - p, p).where(valid, -1).flatten()  # without a label: behind all others
    errors, order = errors.sort(descending=True)
    inside_sorted = inside.flatten()[order]
    # Jaccard loss 1 - intersection / union when the first i pixels are wrong; each pixel counts by what it adds.
    found = inside_sorted.cumsum(0)
    union = (pixels + torch.arange(1, len(order) + 1, device=p.device) - found).to(p.dtype)
    # A missed pixel takes 1 from the intersection, a false one adds 1 to the union.
    steps = torch.where(inside_sorted, 1 / union, (pixels - found) / (union * (union - 1).clamp(min=1)))
    if pixels == 0:
        steps[:1] = 1  # without a true pixel the first false one makes the loss 1
    slopes = torch.empty_like(steps).scatter_(0, order, steps).view_as(p)
    loss = (errors.clamp_(min=0) * steps).sum()
    return loss, torch.where(inside, -slopes, slopes) * valid


__all__ = ["upsampled_dice", "upsampled_lovasz_softmax", "upsampled_sigmoid_focal"]
