"""Which layer of a backbone a parameter belongs to, counted for learning rates that shrink towards the image.

The stem is layer 0, the first block 1, and so on through all stages; the heads come last. A layer's share of the
learning rate is `rate ** (last - layer)`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


COUNTED_BY = ("block", "stage", "internimage")

# What a parameter's name says about its place. Numbers in names are those of stage and block:
#   stem: before the first block;  block: stage, block;
#   from, to: the downsampling behind this stage, or before it;  norm: the end of this stage;
#   after_block: InternImage's norms behind some blocks of its third stage, numbered on their own;
#   output: norms of the maps that the heads read, which are new in every training and so have the heads' rate.
TIMM = [
    ("stem", r"_backbone\.(stem|stem_\d+|conv\d|bn\d|patch_embed)\."),
    ("block", r"_backbone\.(?:stages_|layers_|layer|stage)(\d+)\.(?:blocks\.)?(\d+)\."),
    ("to", r"_backbone\.(?:stages_|layers_)(\d+)\.downsample\."),
    ("from", r"_backbone\.transition(\d+)\."),
]
SWIN = [
    ("stem", r"\w+\.embeddings\."),
    ("block", r"\w+\.encoder\.layers\.(\d+)\.blocks\.(\d+)\."),
    ("from", r"\w+\.encoder\.layers\.(\d+)\.downsample\."),
    ("output", r"hidden_states_norms\.|\w+\.layernorm\."),
]
CONVNEXT = [
    ("stem", r"embeddings\."),
    ("block", r"encoder\.stages\.(\d+)\.layers\.(\d+)\."),
    ("to", r"encoder\.stages\.(\d+)\.downsampling_layer\."),
    ("output", r"hidden_states_norms\."),
]
PLACES: dict[str, list[tuple[str, str]]] = {
    "swin": SWIN,
    "maskformer-swin": SWIN,
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT,
    "timm_backbone": TIMM,
    "vss_swin3d": [
        ("stem", r"patch_embed\."),
        ("block", r"features\.(\d+)\.(\d+)\."),  # stages have even numbers,
        ("from", r"features\.(\d+)\."),  # and the merging behind them odd ones
        ("output", r"hidden_states_norms\."),
    ],
    "vss_internimage": [
        ("stem", r"stem\."),
        ("block", r"stages\.(\d+)\.blocks\.(\d+)\."),
        ("after_block", r"stages\.(\d+)\.post_norms\.(\d+)\."),
        ("norm", r"stages\.(\d+)\.norm\."),
        ("from", r"downsamples\.(\d+)\."),
    ],
    "vss_mit": [
        ("stem", r"encoder\.stages\.0\.patch_embeddings\."),
        ("to", r"encoder\.stages\.(\d+)\.patch_embeddings\."),
        ("block", r"encoder\.stages\.(\d+)\.blocks\.(\d+)\."),
        ("norm", r"encoder\.stages\.(\d+)\.layer_norm\."),
    ],
    "resnet": [("stem", r"embedder\."), ("block", r"encoder\.stages\.(\d+)\.layers\.(\d+)\.")],
    "vss_resnet": [("stem", r"(conv1|bn1)\."), ("block", r"layer(\d+)\.(\d+)\.")],
    "vss_hrnet": [
        ("stem", r"network\.(conv|bn)[12]\."),
        ("block", r"network\.(?:layer|stage)(\d+)\.(\d+)\."),  # of all branches together
        ("from", r"network\.transition(\d+)\."),
    ],
    "vss_volo": [
        ("stem", r"patch_embed\.|pos_embed$"),  # positions are added later, but every recipe counts them as the stem
        ("block", r"network\.(\d+)\.(\d+)\."),
        ("from", r"network\.(\d+)\."),  # the 2x2 convolution stands among the stages
        ("output", r"norms\."),
    ],
}
# Mask2Former's parts that InternImage's recipes train as slowly as the stem, under the names of this package.
SLOW_HEADS = r"(.*\.)?(mask_embedder|class_predictor|queries_(embedder|features)|transformer_module\.level_embed)\."


@dataclass(frozen=True)
class LayerDecay:
    """How learning rates shrink towards the image.

    Args:
        rate: in (0, 1], a layer's learning rate as a share of the next one's; 1: all are equal.
        by: how layers are counted. The heads and the norms of output maps have the full rate.
            `block`: every block is a layer; downsampling and what ends a stage belong to the block that follows.
            `stage`: every stage is a layer; downsampling belongs to the stem. So mmsegmentation trains ConvNeXt.
            `internimage`: as `block`, and as InternImage's own recipes: the last stage's norm counts as the stage's
            first block, the norms after some blocks of the third stage as the stage's first blocks, and in a mask
            model the queries, their class and mask predictors and the level embedding are layer 0.
        layers: how many layers there are beside stem and heads; None: as many as the backbone has. More of them lower
            all rates of the backbone: with 12 the four stages of a ConvNeXt begin at `rate ** 12`.
    """

    rate: float = 1.0
    by: str = "block"
    layers: int | None = None


def layer_numbers(model: Any, decay: LayerDecay) -> tuple[dict[int, int], int]:
    """The layer of each parameter that is below the last one.

    Args:
        model: a model with a `backbone`.
        decay: how layers are counted.

    Returns:
        {id of the parameter: its layer}, and the number of the last layer, at which the rate is the full one.

    Raises:
        ValueError: layers of this backbone cannot be told, or there are more than `decay.layers`.
    """
    backbone = model.backbone
    kind = backbone.config.model_type
    if decay.by == "internimage" and kind != "vss_internimage":
        raise ValueError(f"--layer_decay_by internimage: the backbone is of type '{kind}'; expected block or stage")
    places = dict(named_places(backbone))
    depths: dict[int, int] = {}
    for part, stage, block in places.values():
        if part == "block":
            depths[stage] = max(depths.get(stage, 0), block + 1)
    most = len(depths) if decay.by == "stage" else sum(depths.values())
    if decay.layers is not None and decay.layers < most:
        raise ValueError(f"--layer_decay_layers {decay.layers}: this backbone has {most}; expected at least as many")
    last = (most if decay.layers is None else decay.layers) + 1
    numbers = {}
    for name, parameter in backbone.named_parameters():
        part, stage, block = places[name]
        if part == "output":
            continue
        if part == "after_block" and decay.by == "block":
            block = backbone.config.level2_post_norm_block_ids[block]
        numbers[id(parameter)] = number_of(part, stage, block, depths, decay.by)
    if decay.by == "internimage":
        slow = (parameter for name, parameter in model.named_parameters() if re.match(SLOW_HEADS, name))
        numbers.update((id(parameter), 0) for parameter in slow)
    return numbers, last


def named_places(backbone: Any) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Of each parameter of a backbone: its name, and its place as (part, stage, block)."""
    kind = backbone.config.model_type
    name_of_timm = f" ({backbone.config.backbone})" if kind == "timm_backbone" else ""
    if kind not in PLACES:
        raise ValueError(f"--layer_decay: the layers of a backbone of type '{kind}' are not known; expected 1.0")
    for name, _ in backbone.named_parameters():
        found = ((part, re.match(pattern, name)) for part, pattern in PLACES[kind])
        part, match = next(((part, match) for part, match in found if match), (None, None))
        if part is None or match is None:
            raise ValueError(
                f"--layer_decay: which layer of the backbone '{kind}'{name_of_timm} holds its parameter '{name}' is "
                "not known; expected 1.0"
            )
        stage, block, *_ = [*(int(number) for number in match.groups() if number and number.isdigit()), 0, 0]
        yield name, (part, stage, block)


def number_of(part: str, stage: int, block: int, depths: dict[int, int], by: str) -> int:
    """The layer of a place in a backbone with `depths` {number of the stage in names: its blocks}."""
    if part == "stem":
        return 0
    if by == "stage":
        # Downsampling has the stem's rate here, also that of the last stage: mmsegmentation's ConvNeXt recipes.
        return 0 if part in ("from", "to") else sum(number <= stage for number in depths)
    before = 1 + sum(depth for number, depth in depths.items() if number < stage)
    if part == "to":
        return before
    if part in ("block", "after_block"):
        return before + block
    if by == "internimage" and part == "norm" and stage == max(depths):
        return before
    return 1 + sum(depth for number, depth in depths.items() if number <= stage)  # "from" and "norm"
