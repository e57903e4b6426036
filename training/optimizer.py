"""Parameter groups: the backbone's own learning rate, and no weight decay where it does harm."""

from collections.abc import Sequence

from torch import nn


# Norms and biases are found by shape; these are matrices of positions, not features (mmsegmentation's Swin recipes),
# and the embeddings of queries and levels (Detectron2's WEIGHT_DECAY_EMBED of 0).
NO_DECAY_NAMES = (
    *("relative_position_bias_table", "position_embeddings", "pos_embed", "absolute_pos_embed"),
    *("queries_embedder", "queries_features", "level_embed"),
)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    backbone_learning_rate: float | None,
    weight_decay: float,
    backbone_modules: Sequence[str] = ("backbone",),
) -> list[dict]:
    """Four groups at most: heads and backbone, each with and without weight decay.

    Args:
        model: the model.
        learning_rate: peak rate of the heads.
        backbone_learning_rate: peak rate of the backbone; None: as the heads; 0 freezes it.
        weight_decay: of the groups that have one.
        backbone_modules: attributes of the model that are the backbone; everything else is heads.

    Returns:
        Groups for a torch optimizer, each with a `name`; parameters that need no gradient are left out.

    Raises:
        ValueError: the model has no such module.
    """
    # The heads first: the Trainer logs the rate of the first group.
    rates = {
        "heads": learning_rate,
        "backbone": learning_rate if backbone_learning_rate is None else backbone_learning_rate,
    }
    groups = {
        (part, decays): {
            "name": f"{part}{'' if decays else '_no_decay'}",
            "params": [],
            "lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for part, rate in rates.items()
        for decays in (True, False)
    }
    for name in backbone_modules:
        if not isinstance(getattr(model, name, None), nn.Module):
            parts = ", ".join(dict.fromkeys(["backbone", *(part for part, _ in model.named_children())]))
            raise ValueError(f"--backbone_modules: {type(model).__name__} has no part '{name}'; it has {parts}")
    of_backbone = {id(parameter) for name in backbone_modules for parameter in getattr(model, name).parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if id(parameter) in of_backbone else "heads"
            decays = parameter.ndim > 1 and not any(word in name for word in NO_DECAY_NAMES)
            groups[part, decays]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
