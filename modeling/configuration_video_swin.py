"""Configuration of a Video Swin for segmentation: the head of UperNet or OCRNet on the maps of a clip's last frame.

Papers: Liu et al., "Video Swin Transformer", CVPR 2022; for the heads see configuration_upernet.py and
configuration_ocrnet.py. BetterThing (VSPW challenge 2021) tells that it tried Video Swin on frames of a video, and no
more: the combination is ours.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .configuration_clip import ClipSegmenterConfig
from .configuration_ocrnet import PRESETS as OCRNET_PRESETS
from .configuration_ocrnet import OCRNetConfig
from .configuration_upernet import UperNetConfig


def trunk(size: str, **fields: Any) -> dict[str, Any]:
    """Video Swin for clips of four frames, each with its own patches, in windows that reach over all of them.

    Seven rows and columns as in Swin at 224 pixels and in Video Swin; drop path as in mmsegmentation's Swin recipes.
    """
    name = f"swin3d-{size}"
    return backbone_fields(name, patch_size=[1, 4, 4], window_size=[4, 7, 7], drop_path_rate=0.3, **fields)


def ocr(size: str) -> dict[str, Any]:
    """The head of `ocrnet-swin-*` and the maps that it reads."""
    widths = {field: OCRNET_PRESETS[f"ocrnet-swin-{size}"][field] for field in ("channels", "ocr_channels")}
    maps = trunk(size, out_features=["stage2", "stage3", "stage4"])
    return dict(backbone_config=maps, decode_head="ocr", classifier_dropout=0.0, **widths)


SIZES = ("tiny", "small", "base", "large")
PRESETS = {
    **{f"video-swin-{size}": dict(backbone_config=trunk(size)) for size in SIZES},
    **{f"video-swin-{size}-ocr": ocr(size) for size in SIZES},
}
# The fields that only one of the heads reads
HEAD_FIELDS = {
    "upernet": (
        *("hidden_size", "pool_scales", "use_auxiliary_head", "auxiliary_in_index", "auxiliary_channels"),
        *("auxiliary_num_convs", "auxiliary_concat_input", "auxiliary_in_channels"),
    ),
    "ocr": (
        *("in_indices", "coarse_in_indices", "channels", "ocr_channels"),
        *("coarse_channels", "coarse_kernel_size", "coarse_num_convs"),
    ),
}


@strict
class VideoSwinConfig(ClipSegmenterConfig, UperNetConfig, OCRNetConfig):
    r"""Settings of [`VideoSwinForVideoSemanticSegmentation`]; see also [`ClipSegmenterConfig`], [`Swin3DConfig`].

    A stream runs the whole clip for every frame, since all frames see each other from the first layer on. For the same
    reason `detach_references` and `supervise_references` must stay false.

    Args:
        decode_head: `"upernet"` with the fields of [`UperNetConfig`], or `"ocr"` with those of [`OCRNetConfig`], but
            no neck. The other head's fields must keep their defaults.
    """

    model_type = "vss_video_swin"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "video-swin-tiny"

    decode_head: str = "upernet"

    def validate_decode_head(self):
        """Part of `@strict`: the head is known, and has all the fields that were set."""
        if self.decode_head not in HEAD_FIELDS:
            raise ValueError(f"VideoSwinConfig.decode_head={self.decode_head!r}: expected one of {[*HEAD_FIELDS]}")
        if self.neck is not None:
            raise ValueError(f"VideoSwinConfig.neck={self.neck!r}: expected None; there is no neck for these maps")
        other = "ocr" if self.decode_head == "upernet" else "upernet"
        for field in HEAD_FIELDS[other]:
            if plain(getattr(self, field)) != plain(default_of(field)):
                raise ValueError(
                    f"VideoSwinConfig.{field}={getattr(self, field)}: is a field of decode_head={other!r}, but it is "
                    f"{self.decode_head!r}; leave it out"
                )

    def validate_backbone_input(self):
        """Part of `@strict`: the backbone takes clips."""
        backbone: Any = self.backbone_config  # a configuration since __post_init__
        if not getattr(backbone, "takes_clips", False):
            kind = backbone.model_type
            raise ValueError(f"VideoSwinConfig.backbone_config: {kind!r} takes single images; expected vss_swin3d")

    def validate_references(self):
        """Part of `@strict`: nothing is asked of single frames, which the trunk does not know."""
        for field in ("detach_references", "supervise_references"):
            if getattr(self, field):
                raise ValueError(
                    f"VideoSwinConfig.{field}=True: expected False; a Video Swin encodes the frames of a clip together"
                )

    def validate_indices(self):
        """Part of `@strict`: the OCR head finds its maps."""
        if self.decode_head == "ocr":
            super().validate_indices()

    def validate_auxiliary_head(self):
        """Part of `@strict`: UperNet's auxiliary head can be built."""
        if self.decode_head == "upernet":
            super().validate_auxiliary_head()

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        UperNetConfig.validate_ranges(self)
        OCRNetConfig.validate_ranges(self)


def default_of(field: str) -> Any:
    """The default of one of the heads' fields; `coarse_in_indices` follows `in_indices`."""
    config_class: Any = VideoSwinConfig  # `@strict` makes it a dataclass, which type checkers do not see
    fields = config_class.__dataclass_fields__
    return fields["in_indices" if field == "coarse_in_indices" else field].default


def plain(value: Any) -> Any:
    """Tuples as lists: files have no tuples."""
    return list(value) if isinstance(value, tuple) else value


__all__ = ["VideoSwinConfig"]
