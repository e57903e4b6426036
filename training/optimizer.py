"""Parameter groups: slower backbones, learning rates by layer, and no weight decay where it does harm."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .layer_decay import LayerDecay, layer_numbers


# What has no weight decay by default. `1d` stands for all parameters of one axis: weights of norms, biases, factors of
# branches. The rest are parts of names, of matrices of positions, not features (mmsegmentation's Swin recipes), and of
# the embeddings of queries and levels (Detectron2's WEIGHT_DECAY_EMBED of 0).
ONE_AXIS = "1d"
NO_DECAY = (
    ONE_AXIS,
    *("relative_position_bias_table", "position_embeddings", "pos_embed", "absolute_pos_embed"),
    *("queries_embedder", "queries_features", "level_embed"),
)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    backbone_learning_rate: float | None,
    weight_decay: float,
    backbone_modules: Sequence[str] = ("backbone",),
    no_decay: Sequence[str] = NO_DECAY,
    layer_decay: LayerDecay | None = None,
) -> list[dict]:
    """Groups of parameters that share learning rate and weight decay: heads and backbone, and the backbone's layers.

    Args:
        model: the model.
        learning_rate: peak rate of the heads.
        backbone_learning_rate: peak rate of the backbone; None: as the heads; 0 freezes it.
        weight_decay: of the groups that have one.
        backbone_modules: attributes of the model that are the backbone; everything else is heads.
        no_decay: parts of names whose parameters have no weight decay; `1d`: all parameters of one axis.
        layer_decay: how the rate shrinks towards the image; None: it does not.

    Returns:
        Groups for a torch optimizer, each with a `name` such as `heads`, `backbone_no_decay` or
        `backbone_layer_07_no_decay`; parameters that need no gradient are left out.

    Raises:
        ValueError: the model has no such module, or layers that cannot be told.
    """
    check_modules(model, backbone_modules)
    slow = {id(parameter) for name in backbone_modules for parameter in getattr(model, name).parameters()}
    peaks = {
        "heads": learning_rate,
        "backbone": learning_rate if backbone_learning_rate is None else backbone_learning_rate,
    }
    shrinks = layer_decay is not None and layer_decay.rate != 1
    numbers, last = layer_numbers(model, layer_decay) if layer_decay and shrinks else ({}, 0)
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "backbone" if id(parameter) in slow else "heads"
        layer = numbers.get(id(parameter), last)
        decays = not (
            (parameter.ndim <= 1 and ONE_AXIS in no_decay)
            or any(word in name for word in no_decay if word != ONE_AXIS)
        )
        # The heads first: the Trainer logs the rate of the first group. Then towards the image.
        key = (part == "backbone", layer != last, -layer, not decays)
        if key not in groups:
            scale = layer_decay.rate ** (last - layer) if layer_decay and shrinks else 1.0
            groups[key] = {
                "name": part + (f"_layer_{layer:02d}" if layer != last else "") + ("" if decays else "_no_decay"),
                "params": [],
                "lr": peaks[part] * scale,
                "weight_decay": weight_decay if decays else 0.0,
            }
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def groups_of_run(model: nn.Module, args: Any) -> list[dict]:
    """`parameter_groups` with the settings of a run, a `VSSTrainingArguments`."""
    return parameter_groups(
        model,
        args.learning_rate,
        args.backbone_learning_rate,
        args.weight_decay,
        args.backbone_modules,
        args.no_decay,
        LayerDecay(args.layer_decay, args.layer_decay_by, args.layer_decay_layers),
    )


def check_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Raise unless the model has these modules."""
    for name in names:
        if not isinstance(getattr(model, str(name), None), nn.Module):
            parts = ", ".join(dict.fromkeys(["backbone", *(part for part, _ in model.named_children())]))
            raise ValueError(f"--backbone_modules: {type(model).__name__} has no part '{name}'; it has {parts}")


def describe_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `parameter_groups` made, as rows of a table: name, tensors, parameters, learning_rate and weight_decay."""
    return [
        {
            "name": group["name"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "learning_rate": group["lr"],
            "weight_decay": group["weight_decay"],
        }
        for group in groups
    ]
