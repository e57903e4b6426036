"""Configuration of OCRNet: an FCN coarse head and object-contextual representations on any backbone.

Paper: Yuan, Chen, Wang, "Object-Contextual Representations for Semantic Segmentation", ECCV 2020; as used on VSPW by
BetterThing (Chen et al., "Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models", 2021).
"""

import math
from difflib import get_close_matches
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


MOST_BLOCKS = 1000  # a damaged number here would build modules until the memory is full
MOST_LABELS = 2**16  # transformers makes a name for each, whatever the number

# Swin sizes: Liu et al. 2021, Table 7. Head widths: L is BetterThing's (they give 540 GFLOPs at 480x853: the 1x1
# coarse head and OCR 1024/512); T, S, B have no published counterpart and take the usual 512/256.
SWIN_PRESETS = {
    "ocrnet-swin-tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), channels=512),
    "ocrnet-swin-small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), channels=512),
    "ocrnet-swin-base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), channels=512),
    "ocrnet-swin-large": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), channels=1024),
}


@strict
class OCRNetConfig(PreTrainedConfig):
    r"""Settings of [`OCRNetForSemanticSegmentation`].

    Args:
        backbone_config: configuration of any transformers backbone, or of a timm one
            (`{"model_type": "timm_backbone", "backbone": "resnet18d", "out_indices": [2, 3, 4]}`).
        in_indices: which of the backbone's feature maps the OCR head reads. One index: that map alone. Several: all
            are resized (bilinear) to the size of the first one and concatenated. BetterThing: strides 8, 16, 32.
        coarse_in_indices: the same for the coarse head; the first map must have the stride of the OCR head's first.
            `None`: as `in_indices`.
        channels: width of the pixel and region representations, at least 1.
        ocr_channels: width of the attention between pixels and regions, at least 1.
        coarse_channels: width of the coarse head; `None`: as many as it reads (mmsegmentation's OCRNet-HRNet
            convention, and what BetterThing's GFLOPs imply).
        coarse_kernel_size: kernel of the coarse head's convolutions, odd.
        coarse_num_convs: number of convolutions before the coarse classifier, at least 1.
        classifier_dropout: probability in [0, 1) of dropping whole channels before either classifier.
        auxiliary_loss_weight: weight of the coarse head's loss beside the OCR head's weight of 1.
        align_corners: how the feature maps and the logits are resized.
        ignore_index: label value without a class; 0..255.
        initializer_range: standard deviation of the classifiers' initial weights.
    """

    model_type = "vss_ocrnet"
    sub_configs: ClassVar[Any] = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    in_indices: list[int] | tuple[int, ...] = (0, 1, 2)
    coarse_in_indices: list[int] | tuple[int, ...] | None = None
    channels: int = 512
    ocr_channels: int = 256
    coarse_channels: int | None = None
    coarse_kernel_size: int = 1
    coarse_num_convs: int = 1
    classifier_dropout: float = 0.0
    auxiliary_loss_weight: float = 0.4
    align_corners: bool = False
    ignore_index: int = 255
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs: Any):
        refuse_misspelt(type(self), kwargs)
        count = kwargs.get("num_labels", 1)
        if type(count) is not int or not 1 <= count <= MOST_LABELS:
            raise ValueError(f"OCRNetConfig.num_labels={count!r}: expected a whole number from 1 to {MOST_LABELS}")
        if self.backbone_config is None:
            self.backbone_config = swin_backbone_config("ocrnet-swin-tiny")
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        self.in_indices = list(self.in_indices)
        self.coarse_in_indices = list(self.in_indices if self.coarse_in_indices is None else self.coarse_in_indices)
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any):
        """`label2id` follows `id2label`, also in `from_pretrained(folder, id2label=...)`."""
        super().__setattr__(name, value)
        if name == "id2label" and value is not None:
            check_class_names(value)
            self.label2id = {label: int(index) for index, label in value.items()}

    def validate_indices(self):
        """Part of `@strict`: the heads can only read maps that the backbone returns."""
        assert isinstance(self.backbone_config, PreTrainedConfig)  # since __post_init__
        count = len(getattr(self.backbone_config, "out_indices", None) or ())
        if not count:
            kind = self.backbone_config.model_type
            raise ValueError(f"OCRNetConfig.backbone_config: {kind!r} is no backbone; expected e.g. swin or resnet")
        for field in ("in_indices", "coarse_in_indices"):
            indices = getattr(self, field)
            bad = [index for index in indices or [] if not 0 <= index < count]
            if not indices or bad:
                raise ValueError(
                    f"OCRNetConfig.{field}={list(indices)}: expected indices from 0 to {count - 1}, since the "
                    f"backbone returns {count} maps (backbone_config.out_indices={self.backbone_config.out_indices})"
                )

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        for field in ("channels", "ocr_channels", "coarse_num_convs", "coarse_channels"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"OCRNetConfig.{field}={value}: expected at least 1")
        if self.coarse_num_convs > MOST_BLOCKS:
            raise ValueError(f"OCRNetConfig.coarse_num_convs={self.coarse_num_convs}: expected at most {MOST_BLOCKS}")
        for field in ("depths", "num_hidden_layers"):
            blocks = getattr(self.backbone_config, field, None)
            counts = list(blocks) if isinstance(blocks, (list, tuple)) else [blocks]
            if sum(count for count in counts if isinstance(count, int)) > MOST_BLOCKS:
                raise ValueError(f"OCRNetConfig.backbone_config.{field}={blocks}: more than {MOST_BLOCKS} blocks")
        if self.coarse_kernel_size % 2 != 1 or self.coarse_kernel_size < 1:
            raise ValueError(f"OCRNetConfig.coarse_kernel_size={self.coarse_kernel_size}: expected an odd number")
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"OCRNetConfig.classifier_dropout={self.classifier_dropout}: expected 0 <= value < 1")
        for field in ("auxiliary_loss_weight", "initializer_range"):
            if not 0 <= getattr(self, field) < math.inf:  # nan is not at least 0 either
                raise ValueError(f"OCRNetConfig.{field}={getattr(self, field)}: expected a finite number, at least 0")
        if not 0 <= self.ignore_index <= 255:
            raise ValueError(f"OCRNetConfig.ignore_index={self.ignore_index}: expected 0..255")

    def validate_switches(self):
        """Part of `@strict`: transformers takes anything here, and stumbles over it at the first image."""
        for place, config in (("", self), ("backbone_config.", self.backbone_config)):
            for field in ("output_hidden_states", "output_attentions", "return_dict"):
                value = getattr(config, field, None)
                if not isinstance(value, bool | None):
                    raise ValueError(f"OCRNetConfig.{place}{field}={value!r}: expected true or false")
        if not getattr(self.backbone_config, "return_dict", True):
            raise ValueError("OCRNetConfig.backbone_config.return_dict must be true: the heads ask for maps by name")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "OCRNetConfig":
        """A published size by name, e.g. `ocrnet-swin-large`.

        Args:
            name: a key of `SWIN_PRESETS`.
            overrides: fields to change, e.g. `id2label=...`.

        Raises:
            ValueError: for an unknown name, with the known ones.
        """
        if name not in SWIN_PRESETS:
            raise ValueError(f"preset '{name}' is not known; one of: {', '.join(SWIN_PRESETS)}")
        channels = SWIN_PRESETS[name]["channels"]
        fields = dict(backbone_config=swin_backbone_config(name), channels=channels, ocr_channels=channels // 2)
        return cls(**{**fields, **overrides})


def swin_backbone_config(preset: str) -> PreTrainedConfig:
    """Swin with the maps at strides 8, 16 and 32; drop path 0.3 as in mmsegmentation's Swin recipes."""
    size = {key: value for key, value in SWIN_PRESETS[preset].items() if key != "channels"}
    out_features = ["stage2", "stage3", "stage4"]
    return AutoConfig.for_model("swin", **size, window_size=7, drop_path_rate=0.3, out_features=out_features)


def backbone_config_from_dict(fields: dict[str, Any]) -> PreTrainedConfig:
    """The backbone configuration named by `model_type` in `fields`."""
    fields = dict(fields)
    if "model_type" not in fields:
        raise ValueError(
            "backbone_config has no 'model_type'; expected a backbone of transformers such as 'swin', or "
            f"'timm_backbone' with 'backbone': <timm name>; found the fields {sorted(fields)}"
        )
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def check_class_names(id2label: Any) -> None:
    """Raise unless `id2label` maps whole numbers to names."""
    if not isinstance(id2label, dict):
        raise ValueError(f"id2label is a {type(id2label).__name__}; expected class numbers with their names")
    for index, label in id2label.items():
        if not str(index).isdecimal() or not isinstance(label, str):
            raise ValueError(f"id2label holds {index!r}: {label!r}; expected a class number with its name")


def refuse_misspelt(config_class: type[PreTrainedConfig], unknown: dict[str, Any]) -> None:
    """Raise for an unknown key that is nearly a field: transformers itself accepts it silently.

    Keys that resemble no field pass, because configs on the Hub may carry more than this version knows.
    """
    fields = list(config_class.__dataclass_fields__) + ["num_labels", "id2label", "label2id"]
    for key in unknown:
        if key not in fields and (near := get_close_matches(key, fields, n=1, cutoff=0.8)):
            raise ValueError(f"{config_class.__name__} has no field '{key}'; did you mean '{near[0]}'?")


__all__ = ["OCRNetConfig", "SWIN_PRESETS"]
