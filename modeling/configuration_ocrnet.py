"""Configuration of OCRNet: an FCN coarse head and object-contextual representations on any backbone.

Paper: Yuan, Chen, Wang, "Object-Contextual Representations for Semantic Segmentation", ECCV 2020; as used on VSPW by
BetterThing (Chen et al., "Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models", 2021).
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import MOST_BLOCKS, check_at_least_one, check_at_most, check_odd, check_positive_list
from .configuration_segmenter import SegmenterConfig, check_indices


def swin(name: str) -> dict[str, Any]:
    """Swin with the maps at strides 8, 16 and 32, as BetterThing reads them."""
    return backbone_fields(name, out_features=["stage2", "stage3", "stage4"])


def dilated_resnet(name: str) -> dict[str, Any]:
    """mmsegmentation's `ocrnet_r101-d8`: stride 8; the OCR head reads the last map, the coarse head the one before."""
    return dict(
        backbone_config=backbone_fields(name, output_stride=8, out_features=["stage3", "stage4"]),
        in_indices=(1,),
        coarse_in_indices=(0,),
        coarse_channels=256,
        coarse_kernel_size=3,
        classifier_dropout=0.1,
    )


def hrnet(name: str) -> dict[str, Any]:
    """mmsegmentation's `ocrnet_hr48`: all four maps, at stride 4."""
    return dict(backbone_config=backbone_fields(name), in_indices=(0, 1, 2, 3))


def vspw_resnet(name: str) -> dict[str, Any]:
    """VSPW_baseline's OCRNet (Miao et al., CVPR 2021), whose ResNet has a wider stem; less dropout, as in its code."""
    fields = dilated_resnet(name)
    backbone = {**fields["backbone_config"], "stem_channels": 128}
    return {**fields, "backbone_config": backbone, "coarse_channels": 512, "classifier_dropout": 0.05}


def volo(name: str, *out_features: str) -> dict[str, Any]:
    """VOLO with the named maps."""
    return backbone_fields(name, out_features=list(out_features))


# Head widths: L is BetterThing's (they give 540 GFLOPs at 480x853: the 1x1 coarse head and OCR 1024/512); T, S, B have
# no published counterpart and take the usual 512/256.
PRESETS = {
    "ocrnet-swin-tiny": dict(backbone_config=swin("swin-tiny"), channels=512, ocr_channels=256),
    "ocrnet-swin-small": dict(backbone_config=swin("swin-small"), channels=512, ocr_channels=256),
    "ocrnet-swin-base": dict(backbone_config=swin("swin-base"), channels=512, ocr_channels=256),
    "ocrnet-swin-large": dict(backbone_config=swin("swin-large"), channels=1024, ocr_channels=512),
    "ocrnet-resnet50": dilated_resnet("resnet50c"),
    "ocrnet-resnet101": dilated_resnet("resnet101c"),
    "ocrnet-resnet50-vspw": vspw_resnet("resnet50c"),
    "ocrnet-resnet101-vspw": vspw_resnet("resnet101c"),
    "ocrnet-hrnet-w18": hrnet("hrnet-w18"),
    "ocrnet-hrnet-w48": hrnet("hrnet-w48"),
    # BetterThing gives VOLO "almost the same" 1024/512. On a U-Net's map at stride 2 they cost four times the 512/256
    # here, which take 200 GMAC at 480x720 already.
    "ocrnet-volo-d1": dict(backbone_config=volo("volo-d1", "stage1", "stage4"), in_indices=(0, 1)),
    "ocrnet-volo-d1-unet": dict(backbone_config=volo("volo-d1", "stem", "stage1", "stage4"), neck="unet"),
    "ocrnet-volo-d5": dict(backbone_config=volo("volo-d5", "stage1", "stage4"), in_indices=(0, 1)),
    "ocrnet-volo-d5-unet": dict(backbone_config=volo("volo-d5", "stem", "stage1", "stage4"), neck="unet"),
}


@strict
class OCRNetConfig(SegmenterConfig):
    r"""Settings of [`OCRNetForSemanticSegmentation`]; those of the backbone and the loss are in [`SegmenterConfig`].

    Args:
        in_indices: which of the backbone's feature maps the OCR head reads. One index: that map alone. Several: all
            are resized (bilinear) to the size of the first one and concatenated. BetterThing: strides 8, 16, 32.
            With a neck: the maps that it reads, and both heads read its result.
        coarse_in_indices: the same for the coarse head; the first map must have the stride of the OCR head's first.
            `None`: as `in_indices`.
        channels: width of the pixel and region representations, at least 1.
        ocr_channels: width of the attention between pixels and regions, at least 1.
        coarse_channels: width of the coarse head; `None`: as many as it reads (mmsegmentation's OCRNet-HRNet
            convention, and what BetterThing's GFLOPs imply).
        coarse_kernel_size: kernel of the coarse head's convolutions, odd.
        coarse_num_convs: number of convolutions before the coarse classifier, at least 1.
        neck: `None`, or `"unet"` (BetterThing's VOLO): a [`UNetNeck`] between the backbone and the heads, for which
            in_indices choose three maps, at strides 2, 8 and 16.
        neck_channels: widths of the neck at strides 8, 4 and 2.
        neck_out_stride: 2 or 4, stride of the neck's result and of the logits; at 4 its last width is not used.
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
    neck: str | None = None
    neck_channels: list[int] | tuple[int, ...] = (512, 256, 256)
    neck_out_stride: int = 2

    def __post_init__(self, **kwargs: Any):
        self.neck_channels = list(self.neck_channels)
        self.in_indices = list(self.in_indices)
        self.coarse_in_indices = list(self.in_indices if self.coarse_in_indices is None else self.coarse_in_indices)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels", "ocr_channels", "coarse_num_convs", "coarse_channels"))
        check_at_most(self, "coarse_num_convs", MOST_BLOCKS)
        check_odd(self, "coarse_kernel_size")

    def validate_neck(self):
        """Part of `@strict`: the neck is known, and finds the maps that it reads."""
        if self.neck not in (None, "unet"):
            raise ValueError(f"OCRNetConfig.neck={self.neck!r}: expected None or 'unet'")
        check_positive_list(self, "neck_channels", 3)
        if self.neck_out_stride not in (2, 4):
            raise ValueError(f"OCRNetConfig.neck_out_stride={self.neck_out_stride}: expected 2 or 4")
        if self.neck is None:
            return
        check_indices(self, "in_indices")
        backbone: Any = self.backbone_config
        strides = getattr(backbone, "out_strides", None)  # only vss_volo tells, and has a map at stride 2
        read = [strides[index] for index in self.in_indices] if strides else "unknown"
        if read != [2, 8, 16]:
            raise ValueError(
                f"OCRNetConfig.neck='unet' reads three maps, at strides 2, 8 and 16; in_indices={self.in_indices} of "
                f"{backbone.model_type} are at strides {read}; expected in_indices=[0, 1, 2] of vss_volo "
                "with out_features=['stem', 'stage1', 'stage4']"
            )
        if self.coarse_in_indices != self.in_indices:
            raise ValueError(
                f"OCRNetConfig.coarse_in_indices={self.coarse_in_indices}: with a neck both heads read its result; "
                f"expected None or in_indices={self.in_indices}"
            )


__all__ = ["OCRNetConfig"]
