"""Configuration of Mask2Former for semantic segmentation.

Paper: Cheng, Misra, Schwing, Kirillov, Girdhar, "Masked-attention Mask Transformer for Universal Image Segmentation",
CVPR 2022; on InternImage: Wang et al., CVPR 2023.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Mask2FormerConfig, PreTrainedConfig

from .backbone_presets import backbone_fields
from .config_checks import MOST_BLOCKS, check_at_least_one
from .configuration_maskformer import NORM_GROUPS, MaskClassifierConfig, check_multiples, check_weights


# Head widths of the Cityscapes and Mapillary files of InternImage-H, and of the VSPW entry "DUT" (2023).
NARROW = dict(num_queries=100)
# Those of its ADE20K and COCO-Stuff files.
WIDE = dict(
    feature_size=1024,
    mask_feature_size=1024,
    hidden_dim=1024,
    num_queries=200,
    num_attention_heads=32,
    encoder_feedforward_dim=4096,
    dim_feedforward=4096,
)
# Swin-L: Facebook's ade20k/semantic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_160k_res640.yaml.
MASK2FORMER_PRESETS: dict[str, dict[str, Any]] = {
    "mask2former-swin-large": dict(
        backbone_config=backbone_fields("swin-large", window_size=12, image_size=384, drop_path_rate=0.3), **NARROW
    ),
    "mask2former-internimage-h": dict(backbone_config=backbone_fields("internimage-h"), **NARROW),
    "mask2former-internimage-h-wide": dict(backbone_config=backbone_fields("internimage-h"), **WIDE),
}


@strict
class VSSMask2FormerConfig(MaskClassifierConfig, Mask2FormerConfig):
    r"""transformers' [`Mask2FormerConfig`] with label maps; its files and field names load unchanged.

    Args:
        void_pixels: what pixels without a class are to the mask losses and the matching. `negative`: outside every
            mask, as in Detectron2 and mmsegmentation, which published every result. `ignore`: they add nothing (the
            means still run over all points).

    Of the inherited fields: `ignore_value` (also called `ignore_index` here) is the label value without a class;
    `backbone_config` is any backbone with four maps at strides 4, 8, 16, 32; `decoder_layers` counts the supervised
    outputs, one more than there are layers; `dropout` also drops whole decoder layers: the paper has 0;
    `use_auxiliary_loss=False` leaves the loss of the last output only.
    """

    model_type = "vss_mask2former"
    attribute_map = {**Mask2FormerConfig.attribute_map, "ignore_index": "ignore_value"}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = MASK2FORMER_PRESETS

    void_pixels: str = "negative"

    def __post_init__(self, **kwargs: Any):
        self.prepare(kwargs)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict`. transformers' own check warns of every backbone but Swin."""
        PreTrainedConfig.validate_architecture(self)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("mask_feature_size", "num_queries", "train_num_points", "num_attention_heads"))
        check_multiples(self, ("feature_size",), NORM_GROUPS, "the groups of its norms")
        check_multiples(self, ("feature_size", "hidden_dim"), self.num_attention_heads, "num_attention_heads")
        check_weights(self, ("no_object_weight", "class_weight", "mask_weight", "dice_weight"))
        for field, least in (("decoder_layers", 2), ("encoder_layers", 1)):
            if not least <= getattr(self, field) <= MOST_BLOCKS:
                value = getattr(self, field)
                raise ValueError(f"VSSMask2FormerConfig.{field}={value}: expected {least} to {MOST_BLOCKS}")
        if not 0 <= self.importance_sample_ratio <= 1 or self.oversample_ratio < 1:
            raise ValueError(
                f"VSSMask2FormerConfig.importance_sample_ratio={self.importance_sample_ratio} and oversample_ratio="
                f"{self.oversample_ratio}: expected 0..1, and at least 1"
            )
        if self.common_stride != 4 or tuple(self.feature_strides) != (4, 8, 16, 32):
            raise ValueError(
                f"VSSMask2FormerConfig.common_stride={self.common_stride} and feature_strides={self.feature_strides}: "
                "expected 4 and (4, 8, 16, 32)"
            )


__all__ = ["MASK2FORMER_PRESETS", "VSSMask2FormerConfig"]
