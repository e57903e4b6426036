"""A deeper Swin as the start of a run: `model.init_from` with more `depths` in `model.config.backbone_config`.

BetterThing's second part trains depths (4, 6, 20, 4) from the weights of the first part's Swin-L (2, 2, 18, 2), and
does not say what the new blocks hold. Here they add 0 to what they read, so that the run begins with the logits of the
model that it starts from (`vss_hf.modeling.deepen`, fill "identity").
"""

from typing import Any

from vss_hf.modeling.deepen import check_depths


def put_off_depths(config: Any, stored: dict[str, Any], source: str) -> list[int] | None:
    """Take back a change of the backbone's depths, for loading the weights first.

    Args:
        config: the wanted configuration; its backbone gets the depths that are stored.
        stored: the fields in the config.json of `source`.
        source: the model folder or Hub id, for messages.

    Returns:
        The wanted depths; None where they are the stored ones.

    Raises:
        ValueError: another backbone than a Swin, or depths that its blocks do not fit.
    """
    wanted, backbone = getattr(config, "backbone_config", None), stored.get("backbone_config") or {}
    new, old = getattr(wanted, "depths", None), backbone.get("depths")
    if wanted is None or new is None or old is None or wanted.model_type != backbone.get("model_type"):
        return None  # other weights, which fit or not as a whole
    if list(new) == list(old):
        return None
    place = f"model.config.backbone_config: {source} holds a {wanted.model_type} with depths {list(old)}"
    if wanted.model_type != "swin":
        raise ValueError(f"{place}, and only swin takes more blocks than it was trained with; leave out depths")
    try:
        check_depths(list(old), list(new))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    wanted.depths = list(old)
    return list(new)
