"""Every architecture of the package, by what it takes: its model type, and where its classes are."""

import importlib
from typing import Any


# model_type -> (file suffix, configuration class, model class); these models take images.
MODELS = {
    "vss_ocrnet": ("ocrnet", "OCRNetConfig", "OCRNetForSemanticSegmentation"),
    "vss_upernet": ("upernet", "UperNetConfig", "UperNetForSemanticSegmentation"),
    "vss_maskformer": ("maskformer", "VSSMaskFormerConfig", "MaskFormerForSemanticSegmentation"),
    "vss_mask2former": ("mask2former", "VSSMask2FormerConfig", "Mask2FormerForSemanticSegmentation"),
    "vss_fcn": ("fcn", "FCNConfig", "FCNForSemanticSegmentation"),
    "vss_pspnet": ("pspnet", "PSPNetConfig", "PSPNetForSemanticSegmentation"),
    "vss_deeplabv3": ("deeplabv3", "DeepLabV3Config", "DeepLabV3ForSemanticSegmentation"),
    "vss_deeplabv3plus": ("deeplabv3plus", "DeepLabV3PlusConfig", "DeepLabV3PlusForSemanticSegmentation"),
    "vss_segformer": ("segformer", "SegFormerConfig", "SegFormerForSemanticSegmentation"),
    "vss_semantic_fpn": ("semantic_fpn", "SemanticFPNConfig", "SemanticFPNForSemanticSegmentation"),
    "vss_hfgd": ("hfgd", "HFGDConfig", "HFGDForSemanticSegmentation"),
    "vss_bisenet": ("bisenet", "BiSeNetConfig", "BiSeNetForSemanticSegmentation"),
}
# They take clips, and streams of frames.
VIDEO_MODELS: dict[str, tuple[str, str, str]] = {
    "vss_st_ppm": ("st_ppm", "STPPMConfig", "STPPMForVideoSemanticSegmentation"),
    "vss_tcb_ocr": ("tcb_ocr", "TCBOCRConfig", "TCBOCRForVideoSemanticSegmentation"),
    "vss_tbn_vit": ("tbn_vit", "TBNViTConfig", "TBNViTForVideoSemanticSegmentation"),
    "vss_tmanet": ("tmanet", "TMANetConfig", "TMANetForVideoSemanticSegmentation"),
    "vss_video_swin": ("video_swin", "VideoSwinConfig", "VideoSwinForVideoSemanticSegmentation"),
}
# They take images, and return feature maps for any of our models.
BACKBONES: dict[str, tuple[str, str, str]] = {
    "vss_resnet": ("resnet", "DilatedResNetConfig", "DilatedResNetBackbone"),
    "vss_hrnet": ("hrnet", "HRNetConfig", "HRNetBackbone"),
    "vss_internimage": ("internimage", "InternImageConfig", "InternImageBackbone"),
    "vss_mit": ("segformer", "MiTConfig", "MiTBackbone"),
    "vss_volo": ("volo", "VOLOConfig", "VOLOBackbone"),
}
# They take clips, and return feature maps of the last frame for models that leave time to the backbone.
CLIP_BACKBONES: dict[str, tuple[str, str, str]] = {"vss_swin3d": ("swin3d", "Swin3DConfig", "Swin3DBackbone")}
# They take an image and masks of it.
REFINERS: dict[str, tuple[str, str, str]] = {"vss_cascade_psp": ("cascade_psp", "CascadePSPConfig", "CascadePSPModel")}
ALL = {**MODELS, **VIDEO_MODELS, **BACKBONES, **CLIP_BACKBONES, **REFINERS}


def configuration_class(model_type: str) -> Any:
    """The configuration class of one of our model types."""
    file, configuration, _ = ALL[model_type]
    return getattr(importlib.import_module(f".configuration_{file}", __package__), configuration)


def model_class(model_type: str) -> Any:
    """The class of one of our model types."""
    file, _, model = ALL[model_type]
    return getattr(importlib.import_module(f".modeling_{file}", __package__), model)


def presets() -> dict[str, str]:
    """Every preset's name -> the model type that it belongs to."""
    models = {**MODELS, **VIDEO_MODELS}
    return {name: model_type for model_type in models for name in configuration_class(model_type).PRESETS}


def config_from_preset(name: str, **overrides: Any) -> Any:
    """The configuration of a published size of any architecture, e.g. `upernet-swin-large`.

    Args:
        name: a name that `presets()` lists.
        overrides: fields to change, e.g. `id2label=...`.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    known = presets()
    if name not in known:
        raise ValueError(f"preset '{name}' is not known; one of: {', '.join(known)}")
    return configuration_class(known[name]).from_preset(name, **overrides)
