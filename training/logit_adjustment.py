"""Logit adjustment: in training rare classes start with a handicap in proportion to how rare they are.

    training:   cross entropy of  logits_y + scale * tau * log(prior_y)
    prediction: logits_y

A model that has to win against the handicap has learnt what speaks for a class beside its frequency. `scale` is the
cosine classifier's (`config.cosine_scale`), or 1.

Sources: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10: tau 1 and plain logits. Zhuang et
al., "5th Place Solution for VSPW 2021", eq. 2: tau 0.03 and cosines with scale 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vss_hf.modeling.losses import mean_cross_entropy


def logit_adjusted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor,
    ignore_index: int = 255,
    align_corners: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy of `logits + bias`, the mean over labelled pixels.

    The bias is the same everywhere, and the weights of an interpolation add up to 1: so it is added to the logits at
    their own size.

    Args:
        logits: (N, K, h, w), at any stride.
        labels: integer (N, H, W).
        bias: (K,), see `class_bias`.
        ignore_index: label value that does not count.
        align_corners: how logits are upsampled to the labels.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks), see
            `mean_cross_entropy`.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.
    """
    settings: Any = dict(ignore_index=ignore_index, align_corners=align_corners)
    adjusted = logits + bias[:, None, None]  # fp32 also of logits in half precision
    return mean_cross_entropy(adjusted, labels, num_items_in_batch=num_items_in_batch, **settings)


def class_bias(prior: Sequence[float] | np.ndarray, tau: float, scale: float = 1.0) -> torch.Tensor:
    """What is added to the logits of each class in training.

    Args:
        prior: (K,) share of each class in the labelled pixels, above 0; or numbers in proportion to them.
        tau: strength, from 0.
        scale: of the cosine classifier, if there is one.

    Returns:
        scale * tau * log(prior), float32 (K,).
    """
    shares = np.asarray(prior, dtype=np.float64)
    return torch.from_numpy(scale * tau * np.log(shares / shares.sum())).float()


def prior_of(class_pixels: np.ndarray) -> np.ndarray:
    """The share of each class, float64 (K,), from its pixels; a class without any counts as if it had one pixel."""
    return np.maximum(class_pixels, 1) / class_pixels.sum()
