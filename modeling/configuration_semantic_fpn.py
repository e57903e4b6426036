"""Configuration of Semantic FPN: a feature pyramid whose levels are brought to one size and added.

Paper: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, section 3.2 (the semantic branch); widths as
in mmsegmentation.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one
from .configuration_auxiliary import AuxiliarySegmenterConfig
from .configuration_segmenter import count_maps


PRESETS = {
    f"semantic-fpn-{name}": dict(backbone_config=backbone_fields(f"{name}c")) for name in ("resnet50", "resnet101")
}


@strict
class SemanticFPNConfig(AuxiliarySegmenterConfig):
    r"""Settings of [`SemanticFPNForSemanticSegmentation`]; see also [`AuxiliarySegmenterConfig`].

    The pyramid has a level for each of the backbone's maps.

    Args:
        pyramid_channels: width of the pyramid, at least 1.
        channels: width of the decode head, at least 1.
        feature_strides: stride of each of the backbone's maps, the smallest first; each is the first one times a
            power of two.
    """

    model_type = "vss_semantic_fpn"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "semantic-fpn-resnet50"

    use_auxiliary_head: bool = False  # none in mmsegmentation
    pyramid_channels: int = 256
    channels: int = 128
    feature_strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)

    def __post_init__(self, **kwargs: Any):
        self.feature_strides = list(self.feature_strides)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels", "pyramid_channels"))

    def validate_strides(self):
        """Part of `@strict`: one stride for each map."""
        maps, strides = count_maps(self), self.feature_strides
        # Of the powers of two up to 2 ** 16, which is more than any image has pixels on one side.
        powers = [2**doublings for doublings in range(17)]
        if len(strides) != maps or any(stride not in [strides[0] * power for power in powers] for stride in strides):
            raise ValueError(
                f"SemanticFPNConfig.feature_strides={strides}: expected {maps} strides, one for each map of the "
                "backbone, such as 4, 8, 16, 32"
            )


__all__ = ["SemanticFPNConfig"]
