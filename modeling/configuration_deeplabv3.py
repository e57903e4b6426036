"""Configuration of DeepLabV3: atrous spatial pyramid pooling (ASPP) on any backbone.

Paper: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; widths, dilations and
dilated ResNets as in mmsegmentation.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one, check_positive_list
from .configuration_auxiliary import AuxiliarySegmenterConfig


PRESETS = {
    f"deeplabv3-{name}": dict(backbone_config=backbone_fields(f"{name}c", output_stride=8))
    for name in ("resnet50", "resnet101")
}


@strict
class DeepLabV3Config(AuxiliarySegmenterConfig):
    r"""Settings of [`DeepLabV3ForSemanticSegmentation`]; see also [`AuxiliarySegmenterConfig`], [`SegmenterConfig`].

    Args:
        in_index: which of the backbone's maps the decode head reads.
        channels: width of the decode head, at least 1.
        dilations: one branch each; 1 stands for a 1x1 convolution, the others for 3x3 convolutions.
    """

    model_type = "vss_deeplabv3"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "deeplabv3-resnet50"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_index",)

    in_index: int = 3
    channels: int = 512
    dilations: list[int] | tuple[int, ...] = (1, 12, 24, 36)

    def __post_init__(self, **kwargs: Any):
        self.dilations = list(self.dilations)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels",))
        check_positive_list(self, "dilations")


__all__ = ["DeepLabV3Config"]
