"""Configuration of PSPNet: a pyramid pooling module on any backbone.

Paper: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017; widths and dilated ResNets as in mmsegmentation.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one, check_positive_list
from .configuration_auxiliary import AuxiliarySegmenterConfig


PRESETS = {
    f"pspnet-{name}": dict(backbone_config=backbone_fields(f"{name}c", output_stride=8))
    for name in ("resnet50", "resnet101")
}
# VSPW_baseline's ResNets have a wider stem, its auxiliary head half the channels of the map that it reads.
PRESETS |= {
    f"pspnet-{name}-vspw": dict(
        backbone_config=backbone_fields(f"{name}c", output_stride=8, stem_channels=128), auxiliary_channels=512
    )
    for name in ("resnet50", "resnet101")
}


@strict
class PSPNetConfig(AuxiliarySegmenterConfig):
    r"""Settings of [`PSPNetForSemanticSegmentation`]; see also [`AuxiliarySegmenterConfig`] and [`SegmenterConfig`].

    Args:
        in_index: which of the backbone's maps the decode head reads.
        channels: width of the decode head, at least 1.
        pool_scales: sizes of the grids that the map is averaged to.
    """

    model_type = "vss_pspnet"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "pspnet-resnet50"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_index",)

    in_index: int = 3
    channels: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)

    def __post_init__(self, **kwargs: Any):
        self.pool_scales = list(self.pool_scales)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels",))
        check_positive_list(self, "pool_scales")


__all__ = ["PSPNetConfig"]
