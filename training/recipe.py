"""A training recipe: a YAML file with four sections, and overrides from the command line.

model:         what is trained: an architecture's configuration, a preset, or a folder to start from
data:          what is trained and evaluated on
augmentation:  `vss_hf.data.AugmentationConfig`
training:      `VSSTrainingArguments` (all of transformers' TrainingArguments and ours)

Beside them, `base` names a recipe to inherit from (recipe_files.py), and `stages` lists what is trained one after the
other (stages.py).
"""

import copy
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from vss_hf.data.transforms import AugmentationConfig
from vss_hf.fields import known_or_raise, of_type, shown
from vss_hf.modeling.architectures import MODELS, VIDEO_MODELS, configuration_class, presets
from vss_hf.modeling.configuration_segmenter import SegmenterConfig
from vss_hf.modeling.loading import check_model_type

from .arguments import VSSTrainingArguments
from .data_recipe import DataRecipe
from .recipe_files import merge_fields, read_recipe
from .recipe_yaml import parse_yaml, plain


DEFAULT_MODEL_TYPE = "vss_ocrnet"
FROM_DATA = ("num_labels", "id2label", "label2id")


@dataclass
class ModelRecipe:
    """What is trained.

    Args:
        preset: a published size of any architecture, e.g. `upernet-swin-large`; `config` may change fields of it.
        config: fields of the architecture's configuration (`model_type` names it; default `vss_ocrnet`). Its
            `backbone_config` changes fields of the preset's or of `init_from`'s backbone, unless it names a
            `model_type`: then it is a whole one. A video model's `frame_offsets` and `clip_start` tell which frames
            it is trained with, too.
        backbone_weights: pretrained weights of the backbone: a folder or Hub id, or a timm name for a timm backbone.
        init_from: a model folder or Hub id that the run starts from. A class list of another length gets a new
            classifier; one of the same length keeps it, whatever its names. `config` may change fields, `model_type`
            too: a `vss_bisenet`, `vss_pspnet` or `vss_ocrnet` into a `vss_tbn_vit`, `vss_st_ppm` or `vss_tcb_ocr`.
            A Swin may get more blocks (`config.backbone_config.depths`); see deepening.py.
    """

    preset: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None
    init_from: str | None = None

    def __post_init__(self):
        if self.init_from and (self.preset or self.backbone_weights):
            raise ValueError("model.init_from is a whole model; leave out preset and backbone_weights")
        if not self.init_from:
            self.build_config()

    def build_config(self, **labels: Any) -> PreTrainedConfig:
        """The configuration of the model that `preset` and `config` describe, with the class list in `labels`."""
        fields = dict(self.config)
        if self.preset:
            known_or_raise(self.preset, presets(), "there is no preset")
        of_preset = presets()[self.preset] if self.preset else None
        model_type = fields.pop("model_type", of_preset or DEFAULT_MODEL_TYPE)
        known_or_raise(model_type, {**MODELS, **VIDEO_MODELS}, "model.config.model_type: recipes train no")
        if of_preset not in (None, model_type):
            raise ValueError(
                f"model.preset '{self.preset}' is of {of_preset}, model.config.model_type is {model_type}"
            )
        config_class = configuration_class(model_type)
        if self.preset:
            of_backbone = config_class.PRESETS[self.preset]["backbone_config"]
            fields = merge_fields({"backbone_config": of_backbone}, fields)
        check_config({"model_type": model_type, **fields}, "model.config")
        try:
            if self.preset:
                return config_class.from_preset(self.preset, **fields, **labels)
            return config_class(**fields, **labels)
        except StrictDataclassError as error:
            raise ValueError(f"model.config: {' '.join(str(error).split())}") from error


@dataclass
class Recipe:
    """All settings of one run."""

    model: ModelRecipe
    data: DataRecipe
    augmentation: AugmentationConfig
    training: VSSTrainingArguments
    given: dict[str, dict[str, Any]]  # what file and command line said, before defaults
    stage: str | None = None  # its name, if this is one of several
    earlier_stages: dict[str, Any] = field(default_factory=dict)  # what is told of those before it
    origin: dict[str, Any] = field(default_factory=dict)  # the shipped recipe that it is, for train_results.json

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the result, for `training_recipe.yaml`; loading it again gives the same run."""
        left_out = ("resume_from_checkpoint", "hub_token")  # the file is published with the model
        training = {key: value for key, value in self.given["training"].items() if key not in left_out}
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in ("model", "data", "augmentation")}
        return plain({**sections, "training": training})


SECTIONS = {
    "model": ModelRecipe,
    "data": DataRecipe,
    "augmentation": AugmentationConfig,
    "training": VSSTrainingArguments,
}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: YAML file, or the name of a recipe that the package ships (`camvid-ocrnet`).
        overrides: as typed after the recipe, e.g. `["--learning_rate", "1e-4", "--data.root=videos"]`. A field is
            named with its section, or alone where only one section has it. Values are YAML.

    Raises:
        FileNotFoundError: no such recipe (with the nearest one), or it inherits from one that is not there.
        ValueError: a field that does not exist (with the nearest one), a value outside its range, or a recipe with
            stages.
    """
    given = read_recipe(path, SECTIONS)
    if given.pop("stages"):
        raise ValueError(f"recipe {path} has stages, each with settings of its own; read it with load_stages")
    for key, value in parse_overrides(overrides or []):
        section, *parts = resolve_key(key)
        set_field(given[section], parts, value, key)
    return build_recipe(given)


def build_recipe(given: dict[str, dict[str, Any]]) -> Recipe:
    """A validated recipe from plain sections."""
    for name, section in SECTIONS.items():  # typos first: they explain what seems to be missing elsewhere
        for key in given[name]:
            known_or_raise(key, [f.name for f in dataclasses.fields(section)], f"section '{name}' has no field")
    built = {}
    for name, section in SECTIONS.items():
        hints = get_type_hints(section)
        fields = {f.name: f for f in dataclasses.fields(section) if f.init}
        given[name] = {key: of_type(value, hints[key], f"{name}.{key}") for key, value in given[name].items()}
        for key, field_ in fields.items():
            if key not in given[name] and field_.default is field_.default_factory is dataclasses.MISSING:
                raise ValueError(f"recipe section '{name}': give {key}")
        try:
            built[name] = section(**copy.deepcopy(given[name]))  # transformers takes entries out of dictionaries
        except Exception as error:  # transformers raises anything for a wrong value, from KeyError to ImportError
            said = str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"
            raise ValueError(f"recipe section '{name}': {said}") from error
    return Recipe(**built, given=given)


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`--key value` and `--key=value` pairs with their YAML values; a `--key` alone means true."""
    pairs: list[tuple[str, Any]] = []
    waiting: str | None = None
    for word in words:
        if word.startswith("--") and not re.fullmatch(r"--?[\d.]+", word):
            if waiting is not None:
                pairs.append((waiting, True))
            key, equals, value = word[2:].partition("=")
            waiting = None if equals else key
            if equals:
                pairs.append((key, parse_yaml(value, f"--{key}")))
        elif waiting is None:
            raise ValueError(f"{shown(word)} follows no field; write --field VALUE")
        else:
            pairs.append((waiting, parse_yaml(word, f"--{waiting}")))
            waiting = None
    return pairs + ([(waiting, True)] if waiting is not None else [])


def set_field(fields: dict[str, Any], parts: list[str], value: Any, key: str) -> None:
    """Set a field of nested fields; an entry of a list is named by its number: `sources.1.weight`."""
    target: Any = fields
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        place: Any = part
        if isinstance(target, list):
            if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(target):
                raise ValueError(f"--{key}: '{part}' is no entry of a list of {len(target)}, which count from 0")
            place = int(part)
        if after is None:
            target[place] = value
            return
        if isinstance(target, dict) and target.get(place) is None:
            target[place] = {}
        target = target[place]
        if not isinstance(target, dict | list):
            raise ValueError(f"--{key}: '{part}' holds {shown(target)} and no fields")


def resolve_key(key: str) -> list[str]:
    """The section and path of a field named on the command line."""
    first, *rest = key.replace("-", "_").split(".")
    names = {name: [f.name for f in dataclasses.fields(section)] for name, section in SECTIONS.items()}
    if first in SECTIONS:
        if not rest:
            raise ValueError(f"--{key} is a section; name a field of it, e.g. --{first}.{names[first][0]}")
        known_or_raise(rest[0], names[first], f"section '{first}' has no field")
        return [first, *rest]
    sections = [name for name in SECTIONS if first in names[name]]
    if rest and not sections:
        known_or_raise(first, SECTIONS, "there is no section")
    if len(sections) != 1:
        everything = sorted({field for fields in names.values() for field in fields})
        known_or_raise(first, everything, "no section has the field")
        choices = " or ".join(f"--{section}.{first}" for section in sections)
        raise ValueError(f"--{first} is a field of several sections; write {choices}")
    return [sections[0], first, *rest]


def check_config(fields: dict[str, Any], place: str, of_model: Any = object) -> None:
    """Raise for a field that a model's or backbone's configuration does not have: transformers ignores it silently.

    Args:
        fields: of a configuration, `model_type` among them.
        place: how messages call it.
        of_model: the model's configuration class, where `fields` are the backbone's.
    """
    model_type = check_model_type({"model_type": fields.get("model_type")}, f"{place}.model_type")
    config_class = CONFIG_MAPPING[model_type]
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    known |= {"model_type", "out_features", "out_indices"}
    if model_type == "timm_backbone" and issubclass(of_model, SegmenterConfig):
        known |= {"drop_path_rate"}  # for `build_backbone`, which transformers' mask models do not use
    for key in fields:
        if key in FROM_DATA:
            raise ValueError(f"{place}.{key} comes from the data set's label_num_dic_final.json; leave it out")
        known_or_raise(key, sorted(known), f"{place} has no field")
    if isinstance(fields.get("backbone_config"), dict):
        check_config(fields["backbone_config"], f"{place}.backbone_config", config_class)
