"""Configuration of TMANet: attention from every pixel of a frame to every pixel of the frames before.

Paper: Wang et al., "Temporal Memory Attention for Video Semantic Segmentation", ICIP 2021; what it leaves open as in
its code (github.com/wanghao9610/TMANet), whose settings for CamVid and Cityscapes the presets are.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import MOST_CHANNELS, check_at_least_one, check_at_most
from .configuration_auxiliary import AuxiliarySegmenterConfig
from .configuration_clip import ClipSegmenterConfig


RESNET50 = dict(backbone_config=backbone_fields("resnet50c", output_stride=8))
PRESETS = {
    "tmanet-resnet50": dict(**RESNET50, frame_offsets=[-4, -3, -2, -1]),  # CamVid
    "tmanet-resnet50-cityscapes": dict(**RESNET50, frame_offsets=[-2, -1], align_corners=True),
    # Not in the paper: the maps as in st-ppm-swin-large. Attention on a map of stride 32 costs next to nothing.
    "tmanet-swin-large": dict(
        backbone_config=backbone_fields("swin-large", out_features=["stage3", "stage4"]),
        in_index=1,
        auxiliary_in_index=0,
        auxiliary_channels=384,
        frame_offsets=[-4, -3, -2, -1],
    ),
}


@strict
class TMANetConfig(ClipSegmenterConfig, AuxiliarySegmenterConfig):
    r"""Settings of [`TMANetForVideoSemanticSegmentation`]; see also [`ClipSegmenterConfig`] and
    [`AuxiliarySegmenterConfig`].

    The labelled frame is no part of its own memory, unless a clip has no other frame. With `clip_start="existing"` the
    frames that a clip has are those nearest to the labelled one, and keep their convolutions.

    Args:
        in_index: which of the backbone's maps the decode head reads.
        channels: width of the decode head behind the attention, at least 1.
        key_channels: channels by which pixels are compared, at least 1.
        value_channels: channels that are read from the memory, at least 1.
        share_memory_convs: whether all frames of the memory pass through the same convolutions. `False`, as published:
            each of `frame_offsets` has its own, so that their number is fixed by the weights. `True`: clips of any
            length, and a stream remembers keys and values instead of the whole map.
        scale_attention: whether the products of keys are divided by the root of `key_channels` before the softmax.
            `False`: as published.
    """

    model_type = "vss_tmanet"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "tmanet-resnet50"
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ("in_index",)

    frame_offsets: list[int] | tuple[int, ...] = (-4, -3, -2, -1)
    in_index: int = 3
    channels: int = 512
    key_channels: int = 64
    value_channels: int = 256
    share_memory_convs: bool = False
    scale_attention: bool = False

    def validate_widths(self):
        """Part of `@strict`: the decode head can be built."""
        for field in ("channels", "key_channels", "value_channels"):
            check_at_least_one(self, (field,))
            check_at_most(self, field, MOST_CHANNELS)

    @property
    def num_memory_convs(self) -> int:
        """How many frames of the memory have convolutions of their own; a clip of one frame is its own memory."""
        return 1 if self.share_memory_convs else max(len(self.frame_offsets), 1)


__all__ = ["TMANetConfig"]
