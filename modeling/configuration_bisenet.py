"""Configuration of BiSeNet: a few convolutions for detail, a backbone for context, and a module that joins both.

Paper: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV 2018; layers and
widths as mmsegmentation's BiSeNetV1 has them. On Swin it is the bilateral network of TBN-ViT's ablation (Table 1; see
configuration_tbn_vit.py), whose spatial path are exactly three convolutions.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one, check_positive_list
from .configuration_segmenter import SegmenterConfig


PRESETS = {
    "bisenet-resnet18": dict(backbone_config=backbone_fields("resnet18", out_features=["stage3", "stage4"])),
    "bisenet-resnet50": dict(
        backbone_config=backbone_fields("resnet50", out_features=["stage3", "stage4"]),
        spatial_channels=[256, 256, 256, 512],
        context_channels=512,
        fusion_channels=1024,
        channels=1024,
        auxiliary_channels=256,
    ),
    **{
        f"bisenet-swin-{size}": dict(
            backbone_config=backbone_fields(f"swin-{size}", out_features=["stage3", "stage4"]),
            spatial_channels=[64, 64, 128],
        )
        for size in ("tiny", "small", "base", "large")
    },
}


@strict
class BiSeNetConfig(SegmenterConfig):
    r"""Settings of [`BiSeNetForSemanticSegmentation`]; see also [`SegmenterConfig`].

    Args:
        in_indices: which two of the backbone's maps the context path reads, the finer one first (strides 16 and 32).
        spatial_channels: widths of the spatial path's three convolutions of stride 2, and maybe of one more that mixes
            channels.
        context_channels: width of the context path.
        fusion_channels: channels after both paths are joined.
        channels: width of the decode head.
        use_auxiliary_heads: whether two more FCN heads learn from the context path's maps.
        auxiliary_channels: their width.
    """

    model_type = "vss_bisenet"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "bisenet-resnet18"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_indices",)

    auxiliary_loss_weight: float = 1.0
    in_indices: list[int] | tuple[int, ...] = (0, 1)
    spatial_channels: list[int] | tuple[int, ...] = (64, 64, 64, 128)
    context_channels: int = 128
    fusion_channels: int = 256
    channels: int = 256
    use_auxiliary_heads: bool = True
    auxiliary_channels: int = 64

    def __post_init__(self, **kwargs: Any):
        self.in_indices, self.spatial_channels = list(self.in_indices), list(self.spatial_channels)
        super().__post_init__(**kwargs)

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("context_channels", "fusion_channels", "channels", "auxiliary_channels"))
        if len(self.in_indices) != 2:
            raise ValueError(f"BiSeNetConfig.in_indices={self.in_indices}: expected two maps, of strides 16 and 32")
        check_positive_list(self, "spatial_channels")
        if len(self.spatial_channels) not in (3, 4):
            raise ValueError(
                f"BiSeNetConfig.spatial_channels={self.spatial_channels}: expected 3 numbers, or 4 with a convolution "
                "that mixes channels"
            )


__all__ = ["BiSeNetConfig"]
