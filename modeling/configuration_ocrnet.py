"""Configuration of OCRNet: an FCN coarse head and object-contextual representations on any backbone.

Paper: Yuan, Chen, Wang, "Object-Contextual Representations for Semantic Segmentation", ECCV 2020; as used on VSPW by
BetterThing (Chen et al., "Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models", 2021).
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .configuration_segmenter import MOST_BLOCKS, SegmenterConfig, check_at_least_one


def swin(name: str) -> dict[str, Any]:
    """Swin with the maps at strides 8, 16 and 32, as BetterThing reads them."""
    return backbone_fields(name, out_features=["stage2", "stage3", "stage4"])


# Head widths: L is BetterThing's (they give 540 GFLOPs at 480x853: the 1x1 coarse head and OCR 1024/512); T, S, B have
# no published counterpart and take the usual 512/256.
PRESETS = {
    "ocrnet-swin-tiny": dict(backbone_config=swin("swin-tiny"), channels=512, ocr_channels=256),
    "ocrnet-swin-small": dict(backbone_config=swin("swin-small"), channels=512, ocr_channels=256),
    "ocrnet-swin-base": dict(backbone_config=swin("swin-base"), channels=512, ocr_channels=256),
    "ocrnet-swin-large": dict(backbone_config=swin("swin-large"), channels=1024, ocr_channels=512),
}


@strict
class OCRNetConfig(SegmenterConfig):
    r"""Settings of [`OCRNetForSemanticSegmentation`]; those of the backbone and the loss are in [`SegmenterConfig`].

    Args:
        in_indices: which of the backbone's feature maps the OCR head reads. One index: that map alone. Several: all
            are resized (bilinear) to the size of the first one and concatenated. BetterThing: strides 8, 16, 32.
        coarse_in_indices: the same for the coarse head; the first map must have the stride of the OCR head's first.
            `None`: as `in_indices`.
        channels: width of the pixel and region representations, at least 1.
        ocr_channels: width of the attention between pixels and regions, at least 1.
        coarse_channels: width of the coarse head; `None`: as many as it reads (mmsegmentation's OCRNet-HRNet
            convention, and what BetterThing's GFLOPs imply).
        coarse_kernel_size: kernel of the coarse head's convolutions, odd.
        coarse_num_convs: number of convolutions before the coarse classifier, at least 1.
    """

    model_type = "vss_ocrnet"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "ocrnet-swin-tiny"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_indices", "coarse_in_indices")

    classifier_dropout: float = 0.0
    in_indices: list[int] | tuple[int, ...] = (0, 1, 2)
    coarse_in_indices: list[int] | tuple[int, ...] | None = None
    channels: int = 512
    ocr_channels: int = 256
    coarse_channels: int | None = None
    coarse_kernel_size: int = 1
    coarse_num_convs: int = 1

    def __post_init__(self, **kwargs: Any):
        self.in_indices = list(self.in_indices)
        self.coarse_in_indices = list(self.in_indices if self.coarse_in_indices is None else self.coarse_in_indices)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels", "ocr_channels", "coarse_num_convs", "coarse_channels"))
        if self.coarse_num_convs > MOST_BLOCKS:
            raise ValueError(f"OCRNetConfig.coarse_num_convs={self.coarse_num_convs}: expected at most {MOST_BLOCKS}")
        if self.coarse_kernel_size % 2 != 1 or self.coarse_kernel_size < 1:
            raise ValueError(f"OCRNetConfig.coarse_kernel_size={self.coarse_kernel_size}: expected an odd number")


__all__ = ["OCRNetConfig"]
