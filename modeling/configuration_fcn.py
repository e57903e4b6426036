"""Configuration of FCN: convolutions and a classifier on any backbone.

Paper: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015; widths and
dilated ResNets as in mmsegmentation.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import MOST_BLOCKS, check_at_least_one, check_at_most, check_odd
from .configuration_auxiliary import AuxiliarySegmenterConfig


PRESETS = {
    f"fcn-{name}": dict(backbone_config=backbone_fields(f"{name}c", output_stride=8))
    for name in ("resnet50", "resnet101")
}


@strict
class FCNConfig(AuxiliarySegmenterConfig):
    r"""Settings of [`FCNForSemanticSegmentation`]; see also [`AuxiliarySegmenterConfig`] and [`SegmenterConfig`].

    Args:
        in_indices: which of the backbone's maps the decode head reads. One index: that map alone. Several: all are
            resized (bilinear) to the size of the first one and concatenated, as on HRNet.
        channels: width of the decode head, at least 1.
        num_convs: its convolutions before the classifier, at least 1.
        kernel_size: of its convolutions, odd.
        concat_input: whether one more convolution reads its input beside their output.
    """

    model_type = "vss_fcn"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "fcn-resnet50"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_indices",)

    in_indices: list[int] | tuple[int, ...] = (3,)
    channels: int = 512
    num_convs: int = 2
    kernel_size: int = 3
    concat_input: bool = True

    def __post_init__(self, **kwargs: Any):
        self.in_indices = list(self.in_indices)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels", "num_convs"))
        check_at_most(self, "num_convs", MOST_BLOCKS)
        check_odd(self, "kernel_size")


__all__ = ["FCNConfig"]
