"""Configuration of UperNet: a pyramid pooling module and a feature pyramid on any backbone.

Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018. The fields are those of
transformers' UperNetConfig, so that its configurations and weights load unchanged.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one, check_positive_list
from .configuration_auxiliary import AuxiliarySegmenterConfig


def preset(backbone: str, **fields: Any) -> dict[str, Any]:
    """A published UperNet: all of them have the widths that are the defaults here."""
    return dict(backbone_config=backbone_fields(backbone, **fields))


# Windows: mmsegmentation's recipes start tiny and small from ImageNet-1k at 224 pixels, base and large from
# ImageNet-22k at 384.
PRESETS = {
    "upernet-swin-tiny": preset("swin-tiny"),
    "upernet-swin-small": preset("swin-small"),
    "upernet-swin-base": preset("swin-base", window_size=12),
    "upernet-swin-large": preset("swin-large", window_size=12),
    "upernet-convnext-tiny": preset("convnext-tiny"),
    "upernet-convnext-base": preset("convnext-base"),
    "upernet-convnext-large": preset("convnext-large"),
    "upernet-convnext-xlarge": preset("convnext-xlarge"),
    "upernet-internimage-t": preset("internimage-t"),
    "upernet-internimage-s": preset("internimage-s"),
    "upernet-internimage-b": preset("internimage-b"),
    "upernet-internimage-l": preset("internimage-l"),
    "upernet-internimage-xl": preset("internimage-xl"),
    "upernet-internimage-h": preset("internimage-h"),
    "upernet-internimage-g": preset("internimage-g"),
    "upernet-resnet50": preset("resnet50c"),
    "upernet-resnet101": preset("resnet101c"),
}


@strict
class UperNetConfig(AuxiliarySegmenterConfig):
    r"""Settings of [`UperNetForSemanticSegmentation`]; see also [`AuxiliarySegmenterConfig`], [`SegmenterConfig`].

    Args:
        hidden_size: width of the decode head, at least 1.
        pool_scales: sizes of the grids that the last map is averaged to.
        auxiliary_in_channels: channels that the auxiliary head reads; `None`: those of its map. transformers stores
            it; it must agree with the backbone.
        loss_ignore_index: transformers' name of `ignore_index`.
    """

    model_type = "vss_upernet"
    attribute_map: ClassVar[Any] = {"loss_ignore_index": "ignore_index"}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "upernet-resnet50"

    hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_in_channels: int | None = None

    def __post_init__(self, **kwargs: Any):
        kwargs.pop("model_type", None)  # of a configuration of transformers, `upernet`
        self.ignore_index = kwargs.pop("loss_ignore_index", self.ignore_index)
        self.pool_scales = list(self.pool_scales)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("hidden_size", "auxiliary_in_channels"))
        check_positive_list(self, "pool_scales")


__all__ = ["UperNetConfig"]
