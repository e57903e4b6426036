"""`car` in `training.losses`: class-aware regularisation of what the decode head's classifier reads.

The losses are in modeling/car.py. No model returns these features, so the Trainer listens in while a model computes.
In the paper they are those of a 1x1 convolution of their own; here the model stays as it is.
"""

from typing import Any

import torch

from vss_hf.modeling.car import car_loss
from vss_hf.modeling.losses import share_of_step

from .loss_entries import CAR


def regularisation(
    entry: CAR,
    features: torch.Tensor,
    labels: torch.Tensor,
    config: Any,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The loss of an entry, times its weight and the micro-batch's share of the step's labelled pixels.

    Args:
        entry: of the recipe.
        features: (N, C, h, w), of `classifier_features`.
        labels: integer (N, H, W).
        config: the model's configuration.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks). The centres
            are those of this micro-batch in all processes.

    Returns:
        Scalar, fp32. The sum over all processes is what counts, value and gradient.
    """
    loss = car_loss(
        features,
        labels,
        num_labels=config.num_labels,
        intra=entry.intra,
        inter_c2c=entry.inter_c2c,
        inter_c2p=entry.inter_c2p,
        faithful=entry.faithful,
        ignore_index=config.ignore_index,
        align_corners=config.align_corners,
    )
    # The loss is the same in all processes. Each takes its own share of it, and their shares add up.
    return entry.weight * share_of_step(loss, (labels.long() != config.ignore_index).sum(), num_items_in_batch)
