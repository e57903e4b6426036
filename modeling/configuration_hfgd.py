"""Configuration of HFGD: an upsampler that the backbone's high-level features guide.

Paper: Huang et al., "High-level Feature Guided Decoding for Semantic Segmentation", 2023 (HFGD). No code of it is
public: what the paper leaves open is named where it is decided.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .config_checks import MOST_CHANNELS, check_at_least_one, check_at_most
from .configuration_segmenter import SegmenterConfig, count_maps


UPSAMPLERS = ("none", "semantic_fpn", "usfpn", "fapn", "upernet", "deeplabv3plus")
ENCODINGS = ("identity", "aspp", "ocr", "sa", "sa_car", "cae", "ppm")
REGULARISED = ("sa_car", "cae")  # encodings whose features CAR pulls together
ATTENDING = ("sa", *REGULARISED)  # encodings with queries and keys
OWN_WIDTH = ("ocr", "sa", "sa_car")  # encodings that a classifier reads at `encoding_channels` where nothing follows
PYRAMIDS = ("semantic_fpn", "usfpn", "fapn", "upernet")  # read all maps, each at half the size of the one before
# Backbones whose `stage1` to `stage4` have strides 4 to 32, and the stride of their `stem`.
STEM_STRIDES = {
    **{"swin": 4, "maskformer-swin": 4, "convnext": 4, "convnextv2": 4, "resnet": 4, "vss_internimage": 4},
    **{"vss_resnet": 2, "vss_hrnet": 2, "vss_mit": 4},
}

# Sections 3 and 5: the plain settings have ResNet-50, those of Tables 10 to 16 ConvNeXt-L.
SEMANTIC_FPN = dict(upsampler="semantic_fpn", extra_encoding="identity", guidance=False, axial_attention=False)
PRESETS = {
    "hfgd-resnet50": dict(backbone_config=backbone_fields("resnet50")),
    "hfgd-resnet50-os2": dict(backbone_config=backbone_fields("resnet50"), output_stride=2),
    "hfgd-swin-large": dict(backbone_config=backbone_fields("swin-large", window_size=12)),
    "hfgd-convnext-large": dict(backbone_config=backbone_fields("convnext-large")),
    "hfgd-convnext-large-os2": dict(backbone_config=backbone_fields("convnext-large"), output_stride=2),
    # What Table 9 compares them with.
    "hfgd-semantic-fpn-resnet50": dict(backbone_config=backbone_fields("resnet50"), **SEMANTIC_FPN),
    "hfgd-sa-car-resnet50-d8": dict(
        backbone_config=backbone_fields("resnet50", output_stride=8, out_features=["stage4"]),
        upsampler="none",
        extra_encoding="sa_car",
    ),
}


@strict
class HFGDConfig(SegmenterConfig):
    r"""Settings of [`HFGDForSemanticSegmentation`]; see also [`SegmenterConfig`].

    The defaults are the whole HFGD; the other values are the rows of the paper's ablations.

    Args:
        upsampler: what brings the high-level features to a finer map: `"none"` (they are classified as they are),
            `"semantic_fpn"`, `"usfpn"` (the paper's), `"fapn"`, `"upernet"`, `"deeplabv3plus"`.
        extra_encoding: what the backbone's last map passes first: `"identity"`, `"aspp"`, `"ocr"`, `"sa"`, `"sa_car"`,
            `"cae"` (the paper's), `"ppm"` (UperNet's).
        guidance: whether the class tokens (the classifier's weights) learn from the high-level features alone, and
            classify the upsampler's features as they are. `None`: with an upsampler.
        stop_gradient: whether nothing but its own layers learns from the upsampler's loss. `None`: with guidance.
        axial_attention: whether an axial attention follows the upsampler. `None`: with an upsampler.
        output_stride: of the logits, 4 or 2. `None`: 4 with an upsampler; without, the backbone's.
        channels: width of the upsampler and of the class tokens, at least 1.
        encoding_channels: width inside the encodings, at least 1.
        wide_channels: width of the CAE's wide linear layer, at least 1.
        linear_activation: whether BatchNorm and ReLU follow the CAE's two linear layers. The paper does not say.
        key_channels: width of queries and keys of all attentions, at least 1.
        axial_heads: heads of the axial attention; `channels` and `key_channels` are multiples of it.
        low_level_channels: width that DeepLabV3+ brings its early map to, at least 1.
        car_loss_weight: weight of class-aware regularisation (CAR), which the encodings `"sa_car"` and `"cae"` have.
        car_faithful: its quirks as in the authors' code, see `car_loss`.
        auxiliary_loss_weight: weight of the high-level features' own cross entropy (guidance), and of OCR's coarse
            logits. `None`: 1 with guidance, else 0.4. The paper tells neither it nor the weight of CAR.
    """

    model_type = "vss_hfgd"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "hfgd-resnet50"

    upsampler: str = "usfpn"
    extra_encoding: str = "cae"
    guidance: bool | None = None
    stop_gradient: bool | None = None
    axial_attention: bool | None = None
    output_stride: int | None = None
    channels: int = 256
    encoding_channels: int = 512
    wide_channels: int = 2048
    linear_activation: bool = True
    key_channels: int = 64
    axial_heads: int = 4
    low_level_channels: int = 48
    car_loss_weight: float = 1.0
    car_faithful: bool = False
    auxiliary_loss_weight: float | None = None
    classifier_dropout: float = 0.0  # the paper tells of none
    align_corners: bool = True  # in the authors' library, and why its crops have 513 pixels

    def __post_init__(self, **kwargs: Any):
        upsampled = self.upsampler != "none"
        self.guidance = upsampled if self.guidance is None else self.guidance
        self.stop_gradient = self.guidance if self.stop_gradient is None else self.stop_gradient
        self.axial_attention = upsampled if self.axial_attention is None else self.axial_attention
        if self.output_stride is None and upsampled:
            self.output_stride = 4
        if self.auxiliary_loss_weight is None:
            self.auxiliary_loss_weight = 1.0 if self.guidance else 0.4
        super().__post_init__(**kwargs)

    @property
    def high_level_channels(self) -> int:
        """Width of the high-level features: what the encoding ends with."""
        own = self.upsampler == "none" and self.extra_encoding in OWN_WIDTH
        return self.encoding_channels if own else self.channels

    def validate_choices(self):
        """Part of `@strict`: every name is known."""
        for field, known in (("upsampler", UPSAMPLERS), ("extra_encoding", ENCODINGS)):
            if getattr(self, field) not in known:
                raise ValueError(f"HFGDConfig.{field}={getattr(self, field)!r}: expected one of {', '.join(known)}")
        if self.output_stride not in (None, 2, 4):
            raise ValueError(f"HFGDConfig.output_stride={self.output_stride}: expected 4 or 2")

    def validate_combination(self):
        """Part of `@strict`: what is asked for together fits together."""
        if self.upsampler == "none":
            for field in ("guidance", "stop_gradient", "axial_attention", "output_stride"):
                if getattr(self, field):
                    raise ValueError(
                        f"HFGDConfig.{field}={getattr(self, field)} with upsampler='none': there is no upsampler to "
                        "guide, to stop at, to attend after, or to reach a stride with; choose an upsampler, or leave "
                        "it out; on top of a saved model's fields, None leaves it out"
                    )
        if self.stop_gradient and not self.guidance:
            raise ValueError(
                "HFGDConfig.stop_gradient=True with guidance=False: without guidance the upsampler's loss is the only "
                "one, and nothing before the upsampler would learn; leave stop_gradient out; on top of a saved "
                "model's fields, None leaves it out"
            )
        unsaid = (0, 0.4, 1.0)  # or left by the fields of a saved model, with guidance or without
        if not self.guidance and self.extra_encoding != "ocr" and self.auxiliary_loss_weight not in unsaid:
            raise ValueError(
                f"HFGDConfig.auxiliary_loss_weight={self.auxiliary_loss_weight} with guidance={self.guidance} and "
                f"extra_encoding={self.extra_encoding!r}: there is no auxiliary loss to weigh; expected guidance or "
                "'ocr', or leave it out; on top of a saved model's fields, None leaves it out"
            )
        if self.stop_gradient and self.auxiliary_loss_weight == 0:
            raise ValueError(
                "HFGDConfig.auxiliary_loss_weight=0 with stop_gradient=True: nothing before the upsampler would "
                "learn; expected a number above 0"
            )
        if self.output_stride == 2 and self.upsampler in ("upernet", "deeplabv3plus"):
            raise ValueError(
                f"HFGDConfig.output_stride=2 with upsampler={self.upsampler!r}: it ends at the backbone's first map, "
                "of stride 4; expected usfpn, semantic_fpn or fapn, whose branches go on upsampling"
            )

    def validate_backbone_maps(self):
        """Part of `@strict`: the backbone has the maps that the upsampler reads."""
        check_strides(self, map_strides(self.backbone_config) or [0] * count_maps(self))

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        widths = ("channels", "encoding_channels", "wide_channels", "key_channels", "low_level_channels")
        check_at_least_one(self, (*widths, "axial_heads"))
        for field in widths:
            check_at_most(self, field, MOST_CHANNELS)
        for field in ("channels", "key_channels"):
            if self.axial_attention and getattr(self, field) % self.axial_heads:
                raise ValueError(
                    f"HFGDConfig.{field}={getattr(self, field)}: expected a multiple of axial_heads={self.axial_heads}"
                )
        attending = {"channels": self.axial_attention, "encoding_channels": self.extra_encoding in ATTENDING}
        for field in (field for field, attends in attending.items() if attends):
            if self.key_channels > getattr(self, field):
                raise ValueError(
                    f"HFGDConfig.key_channels={self.key_channels}: expected at most {field}={getattr(self, field)}, "
                    "the width of the values"
                )

    def validate_car(self):
        """Part of `@strict`: what is said of class-aware regularisation is said of an encoding that has it."""
        if not 0 <= self.car_loss_weight < float("inf"):
            raise ValueError(
                f"HFGDConfig.car_loss_weight={self.car_loss_weight}: expected a finite number, at least 0"
            )
        for field, default in (("car_loss_weight", 1.0), ("car_faithful", False)):
            if self.extra_encoding not in REGULARISED and getattr(self, field) != default:
                raise ValueError(
                    f"HFGDConfig.{field}={getattr(self, field)} with extra_encoding={self.extra_encoding!r}: it has "
                    f"no features that are regularised; expected {' or '.join(REGULARISED)}, or leave it out"
                )


def map_strides(backbone_config: Any) -> list[int] | None:
    """Pixels per place of each map that a backbone returns; None if its configuration does not tell."""
    if hasattr(backbone_config, "out_strides"):  # VOLO
        return backbone_config.out_strides
    stem = STEM_STRIDES.get(backbone_config.model_type)
    if stem is None:
        return None
    largest = getattr(backbone_config, "output_stride", 32)  # of a dilated backbone
    strides = {"stem": stem, **{f"stage{stage}": min(2 ** (stage + 1), largest) for stage in range(1, 5)}}
    return [strides[name] for name in backbone_config.out_features]


def check_strides(config: HFGDConfig, strides: list[int]) -> None:
    """Raise unless the upsampler can read maps of these strides.

    Args:
        config: the model's configuration.
        strides: of each map that the backbone returns; 0 stands for one that is not known.
    """
    found = f"with a backbone of {len(strides)} maps" + (f", of strides {strides}" if any(strides) else "")
    if config.upsampler in PYRAMIDS and (len(strides) != 4 or any(strides) and strides != [4, 8, 16, 32]):
        raise ValueError(
            f"HFGDConfig.upsampler={config.upsampler!r} {found}: expected four maps of strides 4, 8, 16, 32; see "
            "backbone_config.out_features. A dilated backbone takes 'none' or 'deeplabv3plus'"
        )
    if config.upsampler == "deeplabv3plus" and (len(strides) < 2 or strides[0] not in (0, 4)):
        raise ValueError(
            f"HFGDConfig.upsampler='deeplabv3plus' {found}: expected two or more, the first of stride 4; see "
            "backbone_config.out_features"
        )


__all__ = ["HFGDConfig", "check_strides", "map_strides"]
