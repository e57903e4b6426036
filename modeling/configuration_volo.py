"""Configuration of VOLO, the Vision Outlooker, as a backbone for segmentation.

Paper: Yuan, Hou, Jiang, Feng, Yan, "VOLO: Vision Outlooker for Visual Recognition", 2021 (sizes: Table 2); as used on
VSPW by BetterThing (Chen et al., "Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models",
2021).
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .config_checks import MOST_BLOCKS, MOST_CHANNELS, check_at_least_one, check_drop_path_rate
from .configuration_backbone import choose_maps


LARGEST_IMAGE = 2**13
SMALLEST_IMAGE = 32
GRID_STRIDE = 16  # pixels per cell of the position embedding

# image_size is that of the largest official checkpoint of each size; 224 is the other one.
VOLO_SIZES = {
    "volo-d1": dict(depths=(4, 4, 8, 2), hidden_sizes=(192, 384, 384, 384), num_heads=(6, 12, 12, 12), image_size=384),
    "volo-d2": dict(
        depths=(6, 4, 10, 4), hidden_sizes=(256, 512, 512, 512), num_heads=(8, 16, 16, 16), image_size=384
    ),
    "volo-d3": dict(
        depths=(8, 8, 16, 4), hidden_sizes=(256, 512, 512, 512), num_heads=(8, 16, 16, 16), image_size=448
    ),
    "volo-d4": dict(
        depths=(8, 8, 16, 4), hidden_sizes=(384, 768, 768, 768), num_heads=(12, 16, 16, 16), image_size=448
    ),
    "volo-d5": dict(
        depths=(12, 12, 20, 4),
        hidden_sizes=(384, 768, 768, 768),
        num_heads=(12, 16, 16, 16),
        mlp_ratios=(4, 4, 4, 4),
        stem_channels=128,
        image_size=512,
    ),
}


@strict
class VOLOConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Settings of [`VOLOBackbone`].

    Args:
        num_channels: channels of the image.
        stem_channels: channels of the stem's three convolutions.
        depths: blocks of each stage: outlookers in the first, transformer blocks in the others; two stages at least.
        hidden_sizes: channels of each stage; all transformer stages have the same width.
        num_heads: attention heads of each stage; a divisor of its width.
        mlp_ratios: hidden width of the MLPs of each stage, as a multiple of the stage's width.
        qkv_bias: the projections to queries, keys and values (to values, in outlookers) have a bias.
        image_size: the size in pixels, one number or (height, width), whose grid of `image_size // 16` cells the
            learned position embedding has. An image of any other size gets it resized (bicubic).
        drop_path_rate: probability in [0, 1) of skipping the last block's branches. It grows linearly over all blocks,
            but outlookers never skip: so it is in both public implementations.
        pad_input: pad images with zeros at the bottom and right to multiples of 16, and cut from the maps what lies
            entirely in the padding, so that every pixel has its position: a map's size is the image's divided by its
            stride, rounded up, as with other backbones. `False`: as the original, whose maps of an image of another
            size end up to 14 pixels before its bottom and right.
        tap_norm: put a LayerNorm after every returned map but the stem's. The paper is silent; without it (the
            default) the maps are the network's own, unnormalised sums of residual branches, and the decode heads'
            BatchNorm scales them. The last stage's norm can start from the classifier's, which was trained on
            these very tokens.
        out_features: names of the maps to return, of `stem` (stride 2), `stage1` (outlookers, stride 8), `stage2`,
            ... (transformers, stride 16); by default the last stage's.
        out_indices: the same by position.
    """

    model_type = "vss_volo"

    num_channels: int = 3
    stem_channels: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 8, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (192, 384, 384, 384)
    num_heads: list[int] | tuple[int, ...] = (6, 12, 12, 12)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (3, 3, 3, 3)
    qkv_bias: bool = False
    image_size: int | list[int] | tuple[int, int] = 224
    drop_path_rate: float | int = 0.0
    pad_input: bool = True
    tap_norm: bool = False

    def __post_init__(self, **kwargs: Any):
        for field in ("depths", "hidden_sizes", "num_heads", "mlp_ratios"):
            setattr(self, field, list(getattr(self, field)))
        if not isinstance(self.image_size, int):
            self.image_size = list(self.image_size)
        choose_maps(self, len(self.depths), kwargs)
        super().__post_init__(**kwargs)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position embedding."""
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        return sides[0] // GRID_STRIDE, sides[1] // GRID_STRIDE

    @property
    def out_strides(self) -> list[int]:
        """Pixels per position of each returned map."""
        return [{0: 2, 1: 8}.get(self.stage_names.index(name), 16) for name in self.out_features or ()]

    def validate_stages(self):
        """Part of `@strict`: the stages can be built, and follow on each other."""
        check_at_least_one(self, ("num_channels", "stem_channels"))
        if len(self.depths) < 2 or min(self.depths) < 1 or sum(self.depths) > MOST_BLOCKS:
            raise ValueError(
                f"VOLOConfig.depths={self.depths}: expected at least two stages, of 1 to {MOST_BLOCKS} blocks in all"
            )
        for field in ("hidden_sizes", "num_heads", "mlp_ratios"):
            values = getattr(self, field)
            if len(values) != len(self.depths) or not all(0 < value < math.inf for value in values):
                count = len(self.depths)
                raise ValueError(f"VOLOConfig.{field}={values}: expected {count} positive numbers, as depths")
        if any(width % heads for width, heads in zip(self.hidden_sizes, self.num_heads, strict=True)):
            raise ValueError(f"VOLOConfig.num_heads={self.num_heads}: expected divisors of {self.hidden_sizes}")
        if len(set(self.hidden_sizes[1:])) > 1:
            raise ValueError(
                f"VOLOConfig.hidden_sizes={self.hidden_sizes}: expected one width for all stages after the first"
            )

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        widest = max(self.num_channels, self.stem_channels, *self.hidden_sizes)
        widest = max(widest, max(self.mlp_ratios) * max(self.hidden_sizes))
        if widest > MOST_CHANNELS:
            raise ValueError(
                f"VOLOConfig: {widest} channels; expected at most {MOST_CHANNELS} in num_channels, stem_channels, "
                "hidden_sizes, and hidden_sizes x mlp_ratios"
            )
        sides = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if not 1 <= len(sides) <= 2 or not all(SMALLEST_IMAGE <= side <= LARGEST_IMAGE for side in sides):
            raise ValueError(
                f"VOLOConfig.image_size={self.image_size}: expected one number or (height, width), each from "
                f"{SMALLEST_IMAGE} to {LARGEST_IMAGE}"
            )
        check_drop_path_rate(self)


__all__ = ["VOLOConfig", "VOLO_SIZES"]
