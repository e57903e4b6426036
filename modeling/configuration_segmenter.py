"""What the configurations of all models share: a backbone, classes, presets; and of per-pixel models the loss."""

import copy
import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .config_checks import MOST_BLOCKS, refuse_misspelt
from .loading import check_model_type


MOST_LABELS = 2**16  # transformers makes a name for each, whatever the number


class SegmentationConfigMixin:
    """Published sizes by name, one list of classes, and checks; for the configuration of a model with a backbone."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    backbone_config: Any  # a field of the configurations

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Any:
        """A published size by name, e.g. `ocrnet-swin-large`.

        Args:
            name: a key of `PRESETS`.
            overrides: fields to change, e.g. `id2label=...`.

        Raises:
            ValueError: for an unknown name, with the known ones.
        """
        return cls(**preset_fields(cls, name, overrides))

    def __setattr__(self, name: str, value: Any):
        """`label2id` follows `id2label`, also in `from_pretrained(folder, id2label=...)`."""
        super().__setattr__(name, value)
        if name == "id2label" and value is not None:
            check_class_names(value)
            self.label2id = {label: int(index) for index, label in value.items()}

    def validate_backbone_input(self):
        """Part of `@strict`: the backbone takes images, as it does in all models but one."""
        if getattr(self.backbone_config, "takes_clips", False):
            raise ValueError(
                f"{type(self).__name__}.backbone_config: {self.backbone_config.model_type!r} takes whole clips, as "
                "vss_video_swin has them; expected a backbone for images, e.g. swin or resnet"
            )

    def validate_shared_fields(self):
        """Part of `@strict`: the fields that every model has."""
        check_backbone_depth(self)
        check_ignore_index(self)
        check_switches(self)


@strict
class SegmenterConfig(SegmentationConfigMixin, PreTrainedConfig):
    r"""Settings that every per-pixel model of this package has.

    Args:
        backbone_config: configuration of any backbone of transformers or of this package, or of a timm one
            (`{"model_type": "timm_backbone", "backbone": "resnet18d", "out_indices": [2, 3, 4]}`).
        classifier_dropout: probability in [0, 1) of dropping whole channels before every classifier.
        cosine_scale: None: a plain classifier. A number above 0: the decode head's logits are this times the cosine
            between features and class weights. With 1, as in VSPW 2021's 5th place, no probability can exceed 6 %
            (124 classes); 10 to 30 is usual. Auxiliary heads stay plain.
        auxiliary_loss_weight: weight of the auxiliary head's loss beside the main head's weight of 1.
        align_corners: how the feature maps and the logits are resized.
        ignore_index: label value without a class; 0..255.
        initializer_range: standard deviation of the classifiers' initial weights.
    """

    sub_configs: ClassVar[Any] = {"backbone_config": AutoConfig}
    DEFAULT_PRESET: ClassVar[str] = ""  # whose backbone stands in for a missing backbone_config
    INDEX_FIELDS: ClassVar[tuple[str, ...]] = ()  # fields that choose among the backbone's maps

    backbone_config: dict | PreTrainedConfig | None = None
    classifier_dropout: float = 0.1
    cosine_scale: float | None = None
    auxiliary_loss_weight: float = 0.4
    align_corners: bool = False
    ignore_index: int = 255
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs: Any):
        refuse_misspelt(type(self), kwargs)
        check_num_labels(type(self), kwargs)
        if self.backbone_config is None:
            self.backbone_config = preset_fields(type(self), self.DEFAULT_PRESET, {})["backbone_config"]
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        super().__post_init__(**kwargs)

    def validate_indices(self):
        """Part of `@strict`: the heads can only read maps that the backbone returns."""
        for field in self.INDEX_FIELDS:
            check_indices(self, field)

    def validate_loss_and_classifiers(self):
        """Part of `@strict`: every number is inside its range."""
        name = type(self).__name__
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"{name}.classifier_dropout={self.classifier_dropout}: expected 0 <= value < 1")
        if self.cosine_scale is not None and not 0 < self.cosine_scale < math.inf:
            raise ValueError(f"{name}.cosine_scale={self.cosine_scale}: expected a finite number above 0, or None")
        for field in ("auxiliary_loss_weight", "initializer_range"):
            if not 0 <= getattr(self, field) < math.inf:  # nan is not at least 0 either
                raise ValueError(f"{name}.{field}={getattr(self, field)}: expected a finite number, at least 0")


def preset_fields(config_class: Any, name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields of a preset of `config_class` with `overrides` in their place."""
    if name not in config_class.PRESETS:
        raise ValueError(f"preset '{name}' is not known; one of: {', '.join(config_class.PRESETS)}")
    return {**copy.deepcopy(config_class.PRESETS[name]), **overrides}


def backbone_config_from_dict(fields: dict[str, Any]) -> PreTrainedConfig:
    """The backbone configuration named by `model_type` in `fields`."""
    fields = dict(fields)
    if "model_type" not in fields:
        raise ValueError(
            "backbone_config has no 'model_type'; expected a backbone of transformers such as 'swin', or "
            f"'timm_backbone' with 'backbone': <timm name>; found the fields {sorted(fields)}"
        )
    check_model_type({"model_type": fields["model_type"]}, "backbone_config.model_type")
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def count_maps(config: Any) -> int:
    """How many feature maps the configured backbone returns; raises for a model that is no backbone."""
    count = len(getattr(config.backbone_config, "out_indices", None) or ())
    if not count:
        kind = config.backbone_config.model_type
        raise ValueError(
            f"{type(config).__name__}.backbone_config: {kind!r} is no backbone; expected e.g. swin or resnet"
        )
    return count


def check_indices(config: Any, field: str) -> None:
    """Raise unless a field, one index or several, chooses among the maps that the backbone returns."""
    count = count_maps(config)
    value = getattr(config, field)
    indices = value if isinstance(value, (list, tuple)) else [value]
    if not indices or any(not 0 <= index < count for index in indices):
        out_indices = getattr(config.backbone_config, "out_indices", None)
        raise ValueError(
            f"{type(config).__name__}.{field}={value}: expected indices from 0 to {count - 1}, since the "
            f"backbone returns {count} maps (backbone_config.out_indices={out_indices})"
        )


def check_backbone_depth(config: Any) -> None:
    """Raise for a backbone of absurdly many blocks."""
    for field in ("depths", "num_hidden_layers"):
        blocks = getattr(config.backbone_config, field, None)
        counts = list(blocks) if isinstance(blocks, (list, tuple)) else [blocks]
        if sum(count for count in counts if isinstance(count, int)) > MOST_BLOCKS:
            name = type(config).__name__
            raise ValueError(f"{name}.backbone_config.{field}={blocks}: more than {MOST_BLOCKS} blocks")


def check_ignore_index(config: Any) -> None:
    """Raise unless the ignored label value fits in a byte."""
    if not 0 <= config.ignore_index <= 255:
        raise ValueError(f"{type(config).__name__}.ignore_index={config.ignore_index}: expected 0..255")


def check_switches(config: Any) -> None:
    """Raise for switches that are none: transformers takes anything here, and stumbles over it at the first image."""
    name = type(config).__name__
    for place, part in (("", config), ("backbone_config.", config.backbone_config)):
        for field in ("output_hidden_states", "output_attentions", "return_dict"):
            value = getattr(part, field, None)
            if not isinstance(value, bool | None):
                raise ValueError(f"{name}.{place}{field}={value!r}: expected true or false")
    if not getattr(config.backbone_config, "return_dict", True):
        raise ValueError(f"{name}.backbone_config.return_dict must be true: the heads ask for maps by name")


def check_num_labels(config_class: type, unknown: dict[str, Any]) -> None:
    """Raise for a number of labels that transformers would make names for until the memory is full."""
    count = unknown.get("num_labels", 1)
    if type(count) is not int or not 1 <= count <= MOST_LABELS:
        name = config_class.__name__
        raise ValueError(f"{name}.num_labels={count!r}: expected a whole number from 1 to {MOST_LABELS}")


def check_class_names(id2label: Any) -> None:
    """Raise unless `id2label` maps whole numbers to names."""
    if not isinstance(id2label, dict):
        raise ValueError(f"id2label is a {type(id2label).__name__}; expected class numbers with their names")
    for index, label in id2label.items():
        if not str(index).isdecimal() or not isinstance(label, str):
            raise ValueError(f"id2label holds {index!r}: {label!r}; expected a class number with its name")


__all__ = ["SegmentationConfigMixin", "SegmenterConfig"]
