"""Configuration of SegFormer in mmsegmentation's form, and of its backbone, the Mix Transformer (MiT).

Paper: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021.
mmsegmentation's head has BatchNorm and ReLU after each level's projection; transformers' own SegFormer has a plain
linear layer there, as in the original code, so that the two cannot load each other's checkpoints.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import SegformerConfig
from transformers.backbone_utils import BackboneConfigMixin

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one
from .configuration_backbone import choose_maps
from .configuration_segmenter import SegmenterConfig


PRESETS = {
    f"segformer-b{size}": dict(backbone_config=backbone_fields(f"mit-b{size}"), channels=256) for size in range(6)
}


@strict
class MiTConfig(BackboneConfigMixin, SegformerConfig):
    r"""Settings of [`MiTBackbone`]: the encoder's fields of transformers' `SegformerConfig`.

    Args:
        out_features: stages to return, of `stage1` to `stage4` (strides 4, 8, 16, 32).
        out_indices: the same by number, counted from 0.
    """

    model_type = "vss_mit"

    def __post_init__(self, **kwargs: Any):
        stages = len(self.depths)
        for field in ("hidden_sizes", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios"):
            value = list(getattr(self, field))
            if len(value) != stages:
                raise ValueError(f"MiTConfig.{field}={value}: expected {stages} numbers, as many as depths")
            setattr(self, field, value)
        self.depths, self.num_encoder_blocks = list(self.depths), stages
        choose_maps(self, stages, kwargs, stem=False)
        super().__post_init__(**kwargs)


@strict
class SegFormerConfig(SegmenterConfig):
    r"""Settings of [`SegFormerForSemanticSegmentation`]; see also [`SegmenterConfig`].

    Args:
        in_indices: which of the backbone's maps the head reads; all are resized to the first one.
        channels: width of the head, at least 1.
    """

    model_type = "vss_segformer"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "segformer-b2"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_indices",)

    in_indices: list[int] | tuple[int, ...] = (0, 1, 2, 3)
    channels: int = 256

    def __post_init__(self, **kwargs: Any):
        self.in_indices = list(self.in_indices)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels",))


__all__ = ["MiTConfig", "SegFormerConfig"]
