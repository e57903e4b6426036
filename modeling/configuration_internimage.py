"""Configuration of InternImage, a convolutional backbone whose kernels look where they want.

Paper: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
CVPR 2023. The sizes T to H are in its Table 1; G and the segmentation settings are the official repository's.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .config_checks import check_drop_path_rate, check_odd
from .configuration_backbone import choose_maps


# As in the official segmentation recipes. Their layer_scale 1.0 is where a new network starts: checkpoints of S to
# XL bring their own factors, and the classifiers of T have none, which is the same as 1.0.
INTERNIMAGE_SIZES: dict[str, dict[str, Any]] = {
    "internimage-t": dict(
        channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32), layer_scale=1.0, drop_path_rate=0.2
    ),
    "internimage-s": dict(
        channels=80, depths=(4, 4, 21, 4), groups=(5, 10, 20, 40), layer_scale=1.0, drop_path_rate=0.3, post_norm=True
    ),
    "internimage-b": dict(
        channels=112, depths=(4, 4, 21, 4), groups=(7, 14, 28, 56), layer_scale=1.0, drop_path_rate=0.4, post_norm=True
    ),
    "internimage-l": dict(
        channels=160, depths=(5, 5, 22, 5), groups=(10, 20, 40, 80), layer_scale=1.0, drop_path_rate=0.4,
        post_norm=True, offset_scale=2.0,
    ),
    "internimage-xl": dict(
        channels=192, depths=(5, 5, 24, 5), groups=(12, 24, 48, 96), layer_scale=1.0, drop_path_rate=0.4,
        post_norm=True, offset_scale=2.0,
    ),
    "internimage-h": dict(
        channels=320, depths=(6, 6, 32, 6), groups=(10, 20, 40, 80), drop_path_rate=0.5, res_post_norm=True,
        dw_kernel_size=5, center_feature_scale=True, level2_post_norm=True,
        level2_post_norm_block_ids=(5, 11, 17, 23, 29),
    ),
    "internimage-g": dict(
        channels=512, depths=(2, 2, 48, 4), groups=(16, 32, 64, 128), drop_path_rate=0.5, post_norm=True,
        dw_kernel_size=5, center_feature_scale=True, level2_post_norm=True,
        level2_post_norm_block_ids=(5, 11, 17, 23, 29, 35, 41, 47),
    ),
}  # fmt: skip


@strict
class InternImageConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Settings of [`InternImageBackbone`]; the defaults are the classifier InternImage-T's, without drop path.

    Args:
        channels: C, width of the first stage, even; every further stage has twice as many.
        depths: blocks of each stage, at least 1.
        groups: groups of each stage's deformable convolutions, one number per depth; divides the stage's width.
        mlp_ratio: hidden width of the perceptrons as a multiple of their stage's width.
        drop_path_rate: in [0, 1); the probability of skipping a branch grows linearly over the blocks from 0 to this.
        layer_scale: initial value of the learned factor on every branch; `None`: no factors.
        offset_scale: stretches the sampling grid and the learned offsets.
        post_norm: normalise the output of a branch instead of its input.
        res_post_norm: normalise both its input and its output (H).
        dw_kernel_size: side of the depthwise convolution that offsets are predicted from, odd.
        level2_post_norm: normalise after some blocks of the third stage (level 2 counted from 0; H and G).
        level2_post_norm_block_ids: after which of them, counted from 0.
        center_feature_scale: mix the centre's own value into the sampled ones, by a learned share (H and G).
        out_features: stages to return, of `stem`, `stage1`, `stage2`, ...; default: the last one.
        out_indices: the same by number, 0 is the stem.
    """

    model_type = "vss_internimage"

    channels: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 18, 4)
    groups: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.0
    layer_scale: float | int | None = None
    offset_scale: float | int = 1.0
    post_norm: bool = False
    res_post_norm: bool = False
    dw_kernel_size: int | None = None
    level2_post_norm: bool = False
    level2_post_norm_block_ids: list[int] | tuple[int, ...] | None = None
    center_feature_scale: bool = False

    def __post_init__(self, **kwargs: Any):
        self.depths, self.groups = list(self.depths), list(self.groups)
        if self.level2_post_norm_block_ids is not None:
            self.level2_post_norm_block_ids = list(self.level2_post_norm_block_ids)
        if self.dw_kernel_size is None:
            self.dw_kernel_size = 3  # the deformable kernel's own side
        choose_maps(self, len(self.depths), kwargs)
        super().__post_init__(**kwargs)

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.channels * 2**stage for stage in range(len(self.depths))]

    def validate_stages(self):
        """Part of `@strict`: widths, depths and groups fit together."""
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"InternImageConfig.channels={self.channels}: expected an even number, at least 2")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"InternImageConfig.depths={self.depths}: expected at least 1 block in every stage")
        if len(self.groups) != len(self.depths):
            raise ValueError(
                f"InternImageConfig.groups={self.groups}: expected {len(self.depths)} numbers, one for each of "
                f"depths={self.depths}"
            )
        for stage, (width, groups) in enumerate(zip(self.widths, self.groups, strict=True), start=1):
            if groups < 1 or width % groups:
                raise ValueError(
                    f"InternImageConfig.groups={self.groups}: stage{stage} has {width} channels, which "
                    f"{groups} groups cannot share equally"
                )

    def validate_numbers(self):
        """Part of `@strict`: every number is inside its range."""
        check_drop_path_rate(self)
        for field in ("mlp_ratio", "offset_scale"):
            if not 0 < getattr(self, field) < math.inf:  # nan is not above 0 either
                raise ValueError(f"InternImageConfig.{field}={getattr(self, field)}: expected a finite number above 0")
        if self.layer_scale is not None and not math.isfinite(self.layer_scale):
            raise ValueError(f"InternImageConfig.layer_scale={self.layer_scale}: expected a finite number or None")
        check_odd(self, "dw_kernel_size")

    def validate_norms(self):
        """Part of `@strict`: no norm that the original would create and never apply."""
        if self.res_post_norm and self.post_norm:
            raise ValueError(
                "InternImageConfig.res_post_norm=True with post_norm=True: the original ignores res_post_norm then; "
                "choose one"
            )
        if self.res_post_norm and self.layer_scale is not None:
            raise ValueError(
                f"InternImageConfig.res_post_norm=True with layer_scale={self.layer_scale}: the original ignores "
                "res_post_norm then; set layer_scale to None or res_post_norm to False"
            )
        ids = self.level2_post_norm_block_ids
        if self.level2_post_norm != bool(ids):
            raise ValueError(
                f"InternImageConfig.level2_post_norm={self.level2_post_norm} with level2_post_norm_block_ids={ids}: "
                "expected True with the blocks, or False and None"
            )
        depth = self.depths[2] if len(self.depths) > 2 else 0
        if ids and (len(set(ids)) < len(ids) or not all(0 <= index < depth for index in ids)):
            raise ValueError(
                f"InternImageConfig.level2_post_norm_block_ids={ids}: expected different numbers from 0 to "
                f"{depth - 1}, since the third stage has {depth} blocks"
            )


__all__ = ["InternImageConfig"]
