"""Configuration of DeepLabV3+: separable ASPP, and a decoder that also reads an early map.

Paper: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018;
widths, dilations and dilated ResNets as in mmsegmentation.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one, check_positive_list
from .configuration_auxiliary import AuxiliarySegmenterConfig


PRESETS = {
    f"deeplabv3plus-{name}": dict(backbone_config=backbone_fields(f"{name}c", output_stride=8))
    for name in ("resnet50", "resnet101")
}


@strict
class DeepLabV3PlusConfig(AuxiliarySegmenterConfig):
    r"""Settings of [`DeepLabV3PlusForSemanticSegmentation`]; see also [`AuxiliarySegmenterConfig`].

    Args:
        in_index: which of the backbone's maps the ASPP reads.
        low_level_in_index: the early map that the decoder reads beside it.
        channels: width of the decode head, at least 1.
        low_level_channels: width that the early map is brought to, at least 1.
        dilations: one branch each; 1 stands for a 1x1 convolution, the others for separable 3x3 convolutions.
    """

    model_type = "vss_deeplabv3plus"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "deeplabv3plus-resnet50"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_index", "low_level_in_index")

    in_index: int = 3
    low_level_in_index: int = 0
    channels: int = 512
    low_level_channels: int = 48
    dilations: list[int] | tuple[int, ...] = (1, 12, 24, 36)

    def __post_init__(self, **kwargs: Any):
        self.dilations = list(self.dilations)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels", "low_level_channels"))
        check_positive_list(self, "dilations")


__all__ = ["DeepLabV3PlusConfig"]
