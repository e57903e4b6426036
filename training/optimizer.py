"""Parameter groups: the backbone's own learning rate, and no weight decay where it does harm."""

from torch import nn


# Norms and biases are found by shape; these are matrices of positions, not features (mmsegmentation's Swin recipes),
# and the embeddings of queries and levels (Detectron2's WEIGHT_DECAY_EMBED of 0).
NO_DECAY_NAMES = (
    *("relative_position_bias_table", "position_embeddings", "pos_embed", "absolute_pos_embed"),
    *("queries_embedder", "queries_features", "level_embed"),
)


def parameter_groups(
    model: nn.Module, learning_rate: float, backbone_learning_rate: float | None, weight_decay: float
) -> list[dict]:
    """Four groups at most: heads and backbone, each with and without weight decay.

    Args:
        model: a model with a `backbone` attribute.
        learning_rate: peak rate of the heads.
        backbone_learning_rate: peak rate of the backbone; None: as the heads; 0 freezes it.
        weight_decay: of the groups that have one.

    Returns:
        Groups for a torch optimizer, each with a `name`; parameters that need no gradient are left out.
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
    of_backbone = {id(parameter) for parameter in getattr(model, "backbone").parameters()}  # noqa: B009  (any Module)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if id(parameter) in of_backbone else "heads"
            decays = parameter.ndim > 1 and not any(word in name for word in NO_DECAY_NAMES)
            groups[part, decays]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
