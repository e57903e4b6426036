"""Configuration of TCB-OCR: object-contextual representations over space and time on any backbone.

Paper: Miao et al., "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild", CVPR 2021 (TCB with spatial-
temporal OCR); widths as in its code, VSPW_baseline (ClipOCRNet).
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .configuration_clip import ClipSegmenterConfig
from .configuration_ocrnet import OCRNetConfig


def dilated_resnet(name: str) -> dict[str, Any]:
    """VSPW_baseline's: stride 8; the OCR head reads the last map, the coarse head the one before."""
    fields = backbone_fields(name, output_stride=8, stem_channels=128, out_features=["stage3", "stage4"])
    return dict(
        backbone_config=fields,
        in_indices=(1,),
        coarse_in_indices=(0,),
        coarse_channels=512,
        coarse_kernel_size=3,
        classifier_dropout=0.05,
    )


PRESETS = {f"tcb-ocr-{name}": dilated_resnet(f"{name}c") for name in ("resnet50", "resnet101")}


@strict
class TCBOCRConfig(ClipSegmenterConfig, OCRNetConfig):
    r"""Settings of [`TCBOCRForVideoSemanticSegmentation`]: those of [`ClipSegmenterConfig`] and [`OCRNetConfig`].

    The memory of the paper's evaluation, the regions of the 8 frames before, is `frame_offsets=list(range(-8, 0))`: a
    stream keeps regions only, so that more frames cost next to nothing. (VSPW_baseline's code has a slip there: from
    the second clip of a video on, its memory is always the first clip's. `decode_clip` takes any regions.)
    """

    model_type = "vss_tcb_ocr"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "tcb-ocr-resnet50"

    supervise_references: bool = True


__all__ = ["TCBOCRConfig"]
