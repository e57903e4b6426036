"""A deeper Swin out of a trained one, e.g. depths (4, 6, 20, 4) out of Swin-L's (2, 2, 18, 2).

BetterThing (Chen et al., "Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models", 2021)
trains such a Swin and does not say how it starts. Widths, heads, window tables and patch merging stay, so every old
tensor has its place; new blocks come last in their stage.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import SwinBackbone

from .backbone import finish_swin


Model = Any  # a SwinBackbone or a model that holds one; nn.Module tells a type checker too little about its parts
FILLS = ("identity", "copy_last_pair", "random")


@torch.no_grad()
def deepen_swin(model: Model, depths: Sequence[int], fill: str = "identity") -> Model:
    """A new model with more blocks at the end of Swin's stages; the given one stays as it is.

    Drop-path rates grow linearly over all blocks, the new ones included.

    Args:
        model: transformers' `SwinBackbone`, or a model that holds one in `.backbone`.
        depths: blocks of each stage, each the old number or an even number more: blocks without and with shifted
            windows alternate, and every stage ends with a shifted one.
        fill: what the new blocks hold.
            `identity`: copies of the last two old blocks, except that the last layer of the attention and of the
            perceptron is 0. A block adds to what it reads, so the new model computes what the old one does, and these
            zeros are the first to learn.
            `copy_last_pair`: copies of the last two old blocks, as they are. The outputs change.
            `random`: new weights. The outputs change.

    Returns:
        A model of the same class, on the same device, in the same precision and mode.

    Raises:
        TypeError: there is no Swin.
        ValueError: depths that do not fit, or an unknown fill.
    """
    old_depths = list(swin_of(model).config.depths)
    check_depths(old_depths, list(depths))
    if fill not in FILLS:
        raise ValueError(f"fill={fill!r}: expected one of {', '.join(FILLS)}")
    config = copy.deepcopy(model.config)
    getattr(config, "backbone_config", config).depths = list(depths)
    with torch.device(model.device):
        deeper = type(model)(config).to(dtype=model.dtype).train(model.training)

    old_swin, new_swin = swin_of(model).swin, swin_of(deeper).swin
    if isinstance(old_swin.layernorm, nn.Identity) and not isinstance(new_swin.layernorm, nn.Identity):
        finish_swin(deeper)  # as `build_backbone` did with the old one
    left = deeper.load_state_dict(model.state_dict(), strict=False)  # what is missing are the new blocks
    assert not left.unexpected_keys
    if fill != "random":
        for stage, depth in zip(new_swin.encoder.layers, old_depths, strict=True):
            for index in range(depth, len(stage.blocks)):
                stage.blocks[index].load_state_dict(stage.blocks[index - 2].state_dict())
                if fill == "identity":
                    silence(stage.blocks[index])
    return deeper


def swin_of(model: Model) -> Model:
    """The Swin that a model is or holds."""
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, SwinBackbone):
        raise TypeError(
            f"deepen_swin takes a SwinBackbone or a model with one in .backbone; {type(model).__name__} "
            + (f"has a {type(backbone).__name__}" if backbone is not model else "is neither")
        )
    return backbone


def check_depths(old: list[int], new: list[int]) -> None:
    """Raise unless every stage keeps its blocks or gets an even number more."""
    if len(new) != len(old):
        raise ValueError(f"depths={new}: this Swin has {len(old)} stages, with {old} blocks")
    for stage, (before, after) in enumerate(zip(old, new, strict=True), start=1):
        if after < before:
            raise ValueError(f"depths={new}: stage{stage} has {before} blocks already, expected at least as many")
        if (after - before) % 2:
            raise ValueError(
                f"depths={new}: stage{stage} has {before} blocks and would end with a block without shifted windows; "
                f"expected {after + 1}"
            )
        if after > before == 1:
            raise ValueError(f"depths={new}: stage{stage} has a single block, no pair to continue")


def silence(block: Any) -> None:
    """Let a Swin block add 0 to what it reads."""
    for layer in (block.attention.o_proj, block.mlp.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


__all__ = ["deepen_swin"]
