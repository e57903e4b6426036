"""Class probabilities from any segmentation model's output."""

from typing import Any

import torch
from torch.nn import functional as F

from vss_hf.modeling.dense_masks import upsampled_mask_scores


def semantic_scores(model: Any, outputs: Any, size: tuple[int, int]) -> torch.Tensor:
    """Per-pixel class probabilities.

    Args:
        model: the model that gave `outputs`: per-pixel (output with `logits`) or mask classification (output with
            `class_queries_logits` and `masks_queries_logits`), ours or any of transformers.
        outputs: its output for a batch.
        size: (height, width) wanted, in pixels.

    Returns:
        fp32 (batch, num_labels, height, width), summing to 1 over the classes. This is the full-size map: for labels
        alone use `semantic_labels`, which never holds it for a whole batch.

    Raises:
        TypeError: for an output that is neither kind.
    """
    if is_mask_classification(model, outputs):
        scores = upsampled_mask_scores(outputs.class_queries_logits, outputs.masks_queries_logits, size)
        return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)  # (B, K, H, W)
    logits = F.interpolate(outputs.logits.float(), size=size, mode="bilinear", align_corners=align_corners(model))
    return logits.softmax(dim=1)  # (B, K, H, W)


def is_mask_classification(model: Any, outputs: Any) -> bool:
    """Whether `outputs` hold queries and masks instead of one score map."""
    if getattr(outputs, "class_queries_logits", None) is not None:
        return True
    if getattr(outputs, "logits", None) is None:
        raise TypeError(
            f"{type(model).__name__} returned {type(outputs).__name__} with neither 'logits' nor "
            "'class_queries_logits': expected a semantic segmentation model"
        )
    return False


def align_corners(model: Any) -> bool:
    """How this model's logits are upsampled; transformers' own models use the default."""
    return bool(getattr(model.config, "align_corners", False))
