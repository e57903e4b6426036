"""The loss that per-pixel models compute themselves: cross entropy of the heads, from low-resolution logits."""

from collections.abc import Callable
from typing import Any

import torch

from .dense import upsampled_cross_entropy


# (logits (N, K, h, w), labels (N, H, W), *, ignore_index, align_corners, num_items_in_batch) -> scalar
PixelLoss = Callable[..., torch.Tensor]


def mean_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy of one head, the mean over labelled pixels.

    Args:
        logits: (batch, num_labels, h, w), at any stride.
        labels: integer (batch, height, width).
        ignore_index: label value that does not count.
        align_corners: how logits are upsampled to the labels.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks). When given
            the loss is sum / num_items_in_batch, so that gradient accumulation and several processes give the gradient
            of one big batch; otherwise the mean over this batch.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.
    """
    settings: Any = dict(ignore_index=ignore_index, align_corners=align_corners)
    if num_items_in_batch is None:
        return upsampled_cross_entropy(logits, labels, **settings)
    total = upsampled_cross_entropy(logits, labels, **settings, reduction="sum")
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)


def dense_segmentation_loss(
    logits: torch.Tensor,
    auxiliary_logits: tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    reference_labels: torch.Tensor | None = None,
    *,
    auxiliary_loss_weight: float,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
    pixel_loss: PixelLoss = mean_cross_entropy,
) -> torch.Tensor:
    """Main loss plus the weighted losses of the auxiliary heads.

    Args:
        logits: (batch, num_labels, h, w), at any stride.
        auxiliary_logits: tensors like `logits`, possibly of other sizes; of video models (batch, t, num_labels, h, w)
            for the last t frames of the clips.
        labels: integer (batch, height, width), of the last frames.
        reference_labels: (batch, t - 1, height, width), labels of the frames before: the auxiliary losses are then
            means over all t frames (deep supervision), without over the last ones.
        auxiliary_loss_weight: factor of every auxiliary loss.
        ignore_index: label value that does not count.
        align_corners: how logits are upsampled to the labels.
        num_items_in_batch: labelled pixels in `labels` of the whole optimisation step (all micro-batches and ranks),
            see `mean_cross_entropy`. Every other frame counts as many.
        pixel_loss: the loss of each head; it takes what `mean_cross_entropy` takes.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.

    Raises:
        ValueError: there are reference labels for another number of frames.
    """
    shared: Any = dict(ignore_index=ignore_index, align_corners=align_corners)
    loss = pixel_loss(logits, labels, num_items_in_batch=num_items_in_batch, **shared)
    if auxiliary_loss_weight == 0:
        return loss
    for head_logits in auxiliary_logits:
        head_labels, items = labels, num_items_in_batch
        if reference_labels is not None:
            head_labels = labels_of_all_frames(head_logits, labels, reference_labels)
            items = None if items is None else items * head_logits.shape[1]
            head_logits = head_logits.flatten(0, 1)
        elif head_logits.ndim == 5:
            head_logits = head_logits[:, -1]
        loss = loss + auxiliary_loss_weight * pixel_loss(head_logits, head_labels, num_items_in_batch=items, **shared)
    return loss


def labels_of_all_frames(
    clip_logits: torch.Tensor, labels: torch.Tensor, reference_labels: torch.Tensor
) -> torch.Tensor:
    """Labels (batch * t, height, width) for the logits (batch, t, num_labels, h, w) of whole clips."""
    frames = clip_logits.shape[1]
    if reference_labels.shape[1] != frames - 1:
        raise ValueError(
            f"reference_labels is {tuple(reference_labels.shape)}: expected (batch, num_frames - 1 = {frames - 1}, "
            "height, width), the labels of all frames but the last"
        )
    return torch.cat([reference_labels, labels.unsqueeze(1)], dim=1).flatten(0, 1)


def share_of_step(
    loss: torch.Tensor, num_labelled: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """A loss of this micro-batch alone, times its share of the step's labelled pixels (None: it is the whole step)."""
    if num_items_in_batch is None:
        return loss
    return loss * num_labelled / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)


__all__ = ["dense_segmentation_loss", "mean_cross_entropy", "share_of_step"]
