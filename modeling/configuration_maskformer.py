"""Configuration of MaskFormer for semantic segmentation, and what Mask2Former's has in common with it.

Paper: Cheng, Schwing, Kirillov, "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import MaskFormerConfig, MaskFormerSwinConfig, PreTrainedConfig

from .backbone_presets import backbone_fields
from .config_checks import MOST_BLOCKS, check_at_least_one, refuse_misspelt
from .configuration_segmenter import SegmentationConfigMixin, backbone_config_from_dict, check_num_labels, count_maps


STAGES = ["stage1", "stage2", "stage3", "stage4"]
NORM_GROUPS = 32  # of every group norm in both pixel decoders
VOID_PIXELS = ("negative", "ignore")

# Facebook's configs/ade20k-150/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640.yaml. There one dropout of 0.1
# also acts inside the attention and between the two layers of the feed-forward part, which transformers keeps apart.
MASKFORMER_PRESETS: dict[str, dict[str, Any]] = {
    "maskformer-swin-large": dict(
        backbone_config=backbone_fields("swin-large", window_size=12, image_size=384, drop_path_rate=0.3),
        decoder_config=dict(model_type="detr", dropout=0.1, attention_dropout=0.1, activation_dropout=0.1),
        use_auxiliary_loss=True,
    ),
}


class MaskClassifierConfig(SegmentationConfigMixin):
    """What the configurations of both mask classification models share; no fields."""

    void_pixels: str  # a field of the subclasses

    def prepare(self, unknown: dict[str, Any]) -> None:
        """What `__post_init__` does before transformers' own."""
        config_class: Any = type(self)  # also a PreTrainedConfig, whose attribute_map has further names of fields
        ours = unknown.get("model_type", config_class.model_type) == config_class.model_type
        for key in unknown.keys() - config_class.attribute_map.keys():
            try:
                refuse_misspelt(config_class, {key: unknown[key]})
            except ValueError:
                if ours:
                    raise
                del unknown[key]  # transformers' files may carry fields of its older versions
        check_num_labels(config_class, unknown)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)

    def validate_backbone(self):
        """Part of `@strict`: both pixel decoders read four maps."""
        if count_maps(self) != 4:
            raise ValueError(
                f"{type(self).__name__}.backbone_config.out_indices={self.backbone_config.out_indices}: expected four "
                "maps, at strides 4, 8, 16 and 32"
            )

    def validate_void_pixels(self):
        """Part of `@strict`: the word is known."""
        if self.void_pixels not in VOID_PIXELS:
            expected = " or ".join(map(repr, VOID_PIXELS))
            raise ValueError(f"{type(self).__name__}.void_pixels={self.void_pixels!r}: expected {expected}")


def check_weights(config: Any, fields: tuple[str, ...]) -> None:
    """Raise for a weight of a loss that is negative or not finite."""
    for field in fields:
        value = getattr(config, field)
        if not 0 <= value < math.inf:  # nan is not at least 0 either
            raise ValueError(f"{type(config).__name__}.{field}={value}: expected a finite number, at least 0")


def check_multiples(config: Any, fields: tuple[str, ...], of: int, why: str) -> None:
    """Raise for a width that a layer cannot divide."""
    for field in fields:
        value = getattr(config, field)
        if value < 1 or value % of:
            raise ValueError(f"{type(config).__name__}.{field}={value}: expected a multiple of {of}, {why}")


@strict
class VSSMaskFormerConfig(MaskClassifierConfig, MaskFormerConfig):
    r"""transformers' [`MaskFormerConfig`] with label maps; its files and field names load unchanged.

    Args:
        ignore_index: label value without a class; 0..255.
        void_pixels: what pixels without a class are to the mask losses and the matching. `negative`: outside every
            mask, as in Detectron2 and mmsegmentation, which published every result. `ignore`: they add nothing (the
            means still run over all pixels).

    Of the inherited fields: `backbone_config` is any backbone with four maps at strides 4, 8, 16, 32;
    `use_auxiliary_loss` supervises every decoder layer (the paper does; transformers' default is off).
    """

    model_type = "vss_maskformer"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = MASKFORMER_PRESETS

    ignore_index: int = 255
    void_pixels: str = "negative"

    def __post_init__(self, **kwargs: Any):
        self.prepare(kwargs)
        decoder = self.decoder_config or {"model_type": "detr"}
        kind = decoder.get("model_type", "detr") if isinstance(decoder, dict) else decoder.model_type
        if kind != "detr":
            raise ValueError(f"VSSMaskFormerConfig.decoder_config: {kind!r} is no decoder; expected 'detr'")
        super().__post_init__(**kwargs)
        if self.backbone_config.model_type in ("swin", "maskformer-swin"):
            # transformers' MaskFormer has its own Swin, and would change this configuration when the model is built.
            fields = self.backbone_config.to_dict()
            for name in ("model_type", "out_features", "out_indices", "stage_names"):
                fields.pop(name, None)
            fields["out_features"] = STAGES
            self.backbone_config = MaskFormerSwinConfig(**fields)

    def validate_architecture(self):
        """Part of `@strict`. transformers' own check warns of every backbone but Swin and ResNet."""
        PreTrainedConfig.validate_architecture(self)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("mask_feature_size",))
        check_multiples(self, ("fpn_feature_size",), NORM_GROUPS, "the groups of its norms")
        check_weights(self, ("no_object_weight", "cross_entropy_weight", "mask_weight", "dice_weight"))
        decoder: Any = self.decoder_config
        if not 1 <= decoder.decoder_layers <= MOST_BLOCKS:
            raise ValueError(
                f"VSSMaskFormerConfig.decoder_config.decoder_layers={decoder.decoder_layers}: "
                f"expected 1 to {MOST_BLOCKS}"
            )
        if decoder.num_queries < 1:
            raise ValueError(f"VSSMaskFormerConfig.decoder_config.num_queries={decoder.num_queries}: at least 1")


__all__ = ["MASKFORMER_PRESETS", "VSSMaskFormerConfig"]
