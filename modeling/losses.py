"""The loss that image models compute themselves: cross entropy of the heads, from low-resolution logits."""

import torch

from .dense import upsampled_cross_entropy


def dense_segmentation_loss(
    logits: torch.Tensor,
    auxiliary_logits: tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    *,
    auxiliary_loss_weight: float,
    ignore_index: int = 255,
    align_corners: bool = False,
    class_weights: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Main loss plus the weighted losses of the auxiliary heads.

    Args:
        logits: (batch, num_labels, h, w), at any stride.
        auxiliary_logits: tensors like `logits`, possibly of other sizes.
        labels: integer (batch, height, width).
        auxiliary_loss_weight: factor of every auxiliary loss.
        ignore_index: label value that does not count.
        align_corners: how logits are upsampled to the labels.
        class_weights: (num_labels,) weight of each class.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks). When given
            the loss is sum / num_items_in_batch, so that gradient accumulation and several processes give the gradient
            of one big batch; otherwise the mean over this batch.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    for head_logits, weight in ((logits, 1.0), *((a, auxiliary_loss_weight) for a in auxiliary_logits)):
        if weight == 0:
            continue
        loss = upsampled_cross_entropy(
            head_logits,
            labels,
            ignore_index=ignore_index,
            class_weights=class_weights,
            align_corners=align_corners,
            reduction="mean" if num_items_in_batch is None else "sum",
        )
        if num_items_in_batch is not None:
            loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        total = total + weight * loss
    return total
