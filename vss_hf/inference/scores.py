"""Class probabilities and label maps from any segmentation model's output: the one door for everything downstream."""

from typing import Any

import torch
from torch.nn import functional as F

from vss_hf.modeling.dense import upsampled_argmax


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
        scores = mask_scores(outputs.class_queries_logits, outputs.masks_queries_logits, size)
        return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)  # (B, K, H, W)
    logits = F.interpolate(outputs.logits.float(), size=size, mode="bilinear", align_corners=align_corners(model))
    return logits.softmax(dim=1)  # (B, K, H, W)


def semantic_labels(model: Any, outputs: Any, size: tuple[int, int]) -> torch.Tensor:
    """The most probable class of every pixel, without holding all scores at full size.

    Args:
        model: as for `semantic_scores`.
        outputs: as for `semantic_scores`.
        size: (height, width) wanted, in pixels.

    Returns:
        (batch, height, width), uint8 (int64 for more than 255 classes); equal to `semantic_scores(...).argmax(1)`.
    """
    if is_mask_classification(model, outputs):
        per_image = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        labels = torch.cat([mask_scores(c[None], m[None], size).argmax(dim=1) for c, m in per_image])
        num_labels = outputs.class_queries_logits.shape[-1] - 1
        return labels.to(torch.uint8) if num_labels <= 255 else labels
    return upsampled_argmax(outputs.logits, size, align_corners=align_corners(model))


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


def mask_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Semantic scores of a mask classification model: masks are upsampled first, as Detectron2's code does.

    Args:
        class_logits: (batch, queries, num_labels + 1), the last being "no object".
        mask_logits: (batch, queries, h, w).
        size: (height, width).

    Returns:
        fp32 (batch, num_labels, height, width), not normalised.
    """
    classes = class_logits.float().softmax(dim=-1)[..., :-1]  # (B, Q, K)
    masks = F.interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)  # (B, Q, H, W)
    return torch.einsum("bqk,bqhw->bkhw", classes, masks.sigmoid())


def align_corners(model: Any) -> bool:
    """How this model's logits are upsampled; transformers' own models use the default."""
    return bool(getattr(model.config, "align_corners", False))
