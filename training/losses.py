"""The losses of per-pixel models that a recipe can ask for: the list `training.losses`.

    losses:                       # of every head, each times its weight, summed; empty: the model's own cross entropy
      - {name: cross_entropy, class_weights: inverse_sqrt, max_with_predicted: true}
      - {name: lovasz, weight: 0.5}

Names and fields are in loss_entries.py. Here the list is read, and becomes one loss, once per run.

Means over pixels are means over the labelled pixels of the whole optimisation step, so that micro-batches and
processes together are one big batch. What is no such mean (OHEM, Dice, Lovász, `reduction: weights`) is taken of each
micro-batch by itself, and weighs as much as the micro-batch has labelled pixels of the step's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch.nn import functional as F

from vss_hf.fields import known_or_raise, of_type, shown
from vss_hf.modeling.losses import PixelLoss

from .confusion_focal import ConfusionFocalLoss
from .loss_entries import CAR, LOSSES, LogitAdjustment, Loss, LossData, SelfDistillation


def parse_losses(given: Sequence[Any], place: str = "training.losses") -> list[Loss]:
    """The entries from their fields as they stand in a recipe.

    Args:
        given: e.g. `[{"name": "ohem", "threshold": 0.7}]`.
        place: how messages call the list.

    Raises:
        ValueError: a name or field that does not exist (with the nearest one), or a value outside its range.
    """
    return [parse_loss(entry, f"{place}[{index}]") for index, entry in enumerate(given)]


def parse_loss(given: Any, place: str) -> Loss:
    """One entry of the list; see `parse_losses`."""
    if not isinstance(given, dict) or "name" not in given:
        raise ValueError(f"{place}: expected fields such as {{name: cross_entropy, weight: 1}}; found {shown(given)}")
    fields = {key: value for key, value in given.items() if key != "name"}
    known_or_raise(given["name"], list(LOSSES), f"{place}.name: there is no loss")
    kind = LOSSES[given["name"]]
    hints = get_type_hints(kind)
    for key in fields:
        known_or_raise(key, [field.name for field in dataclasses.fields(kind)], f"{place} has no field")
    loss = kind(**{key: of_type(value, hints[key], f"{place}.{key}") for key, value in fields.items()})
    loss.check(place)
    return loss


def check_model_takes(losses: Sequence[Loss], config: Any) -> None:
    """Raise ValueError if there are losses of pixels and the model classifies masks."""
    if is_per_pixel(config):
        return
    for index, loss in enumerate(losses):
        if not loss.takes_mask_models:
            raise ValueError(
                f"training.losses[{index}]: {config.model_type} classifies masks, not pixels, has a loss of its own, "
                "and balances classes by no_object_weight; leave it out"
            )
        if isinstance(loss, LogitAdjustment) and loss.weight != 1:
            raise ValueError(
                f"training.losses[{index}].weight: logit_adjustment changes {config.model_type}'s own loss, whose "
                "weights are in model.config; expected 1"
            )


def is_per_pixel(config: Any) -> bool:
    """Whether a model, given its configuration, has a score for each pixel, and not masks and their classes."""
    return hasattr(config, "auxiliary_loss_weight")


class SummedLoss:
    """The weighted sum of losses of one head: a `PixelLoss`.

    Args:
        terms: (weight, loss) of each.
    """

    def __init__(self, terms: Sequence[tuple[float, PixelLoss]]):
        self.terms = list(terms)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, **settings: Any) -> torch.Tensor:
        return torch.stack([weight * loss(logits, labels, **settings) for weight, loss in self.terms]).sum()

    # --- for losses that count as they go; so far one kind

    def end_step(self, sum_over_processes: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """To be called after every optimisation step, by all processes."""
        for _, loss in self.terms:
            if isinstance(loss, ConfusionFocalLoss):
                loss.end_step(sum_over_processes)

    def state(self) -> dict[str, torch.Tensor]:
        """What has been counted, for a checkpoint; empty if nothing is."""
        running = [(i, loss) for i, (_, loss) in enumerate(self.terms) if isinstance(loss, ConfusionFocalLoss)]
        return {f"{i}.matrix": loss.matrix for i, loss in running if loss.running}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        for i, (_, loss) in enumerate(self.terms):
            if isinstance(loss, ConfusionFocalLoss) and f"{i}.matrix" in state:
                loss.go_on_from(state[f"{i}.matrix"])


def build_losses(losses: Sequence[Loss], config: Any, data: LossData) -> SummedLoss | None:
    """What a run computes of every head: a loss for `vss_hf.modeling.losses.dense_segmentation_loss`.

    Args:
        losses: the entries.
        config: the model's configuration.
        data: what the losses may need.

    Returns:
        None: the model computes its loss itself, because nothing else is asked for, or because it classifies masks.

    Raises:
        ValueError: the model does not take one of the losses, or a file does not fit.
        OSError: a file cannot be read.
    """
    check_model_takes(losses, config)
    if not is_per_pixel(config):
        return None
    terms = [
        (loss.weight, loss.build(data, f"training.losses[{i}]"))
        for i, loss in enumerate(losses)
        if not isinstance(loss, (SelfDistillation, CAR))  # the Trainer's: they need more than the logits
    ]
    return SummedLoss(terms) if terms else None


def query_class_bias(losses: Sequence[Loss], data: LossData) -> torch.Tensor | None:
    """What logit adjustment adds to the class logits of a mask model's queries in training: fp32 (num_labels + 1,)."""
    biases = [
        loss.class_bias(data, f"training.losses[{i}]")
        for i, loss in enumerate(losses)
        if isinstance(loss, LogitAdjustment)
    ]
    return F.pad(torch.stack(biases).sum(dim=0), (0, 1)) if biases else None  # "no object" has no prior
