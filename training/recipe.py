"""A training recipe: one YAML file with four sections, and overrides from the command line.

model:         what is trained: an architecture's configuration, a preset, or a folder to start from
data:          what is trained and evaluated on
augmentation:  `vss_hf.data.AugmentationConfig`
training:      `VSSTrainingArguments` (all of transformers' TrainingArguments and ours)
"""

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from yaml.constructor import ConstructorError

from vss_hf.data.transforms import AugmentationConfig
from vss_hf.modeling.architectures import MODELS, VIDEO_MODELS, configuration_class, presets
from vss_hf.modeling.loading import check_model_type

from .arguments import VSSTrainingArguments
from .data_recipe import DataRecipe
from .fields import known_or_raise, of_type, shown


RECIPES = Path(__file__).parent / "recipes"
DEFAULT_MODEL_TYPE = "vss_ocrnet"
FROM_DATA = ("num_labels", "id2label", "label2id")
MOST_VALUES = 10_000


class RecipeLoader(yaml.SafeLoader):
    """YAML with the numbers of its version 1.2: to version 1.1 (PyYAML) 1e-4 is text, because it has no dot.

    As in version 1.2, a key may stand only once in a mapping (PyYAML silently takes the last), and `<<` is no merging.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merging with << is not offered; write it out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportArgumentType]
            if isinstance(key, Hashable):  # PyYAML itself refuses the others
                if key in seen:
                    raise ConstructorError(None, None, f"the mapping has {key!r} twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads back as the same: '1e5' needs quotes, and rare line ends an escape."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


RecipeDumper.add_representer(str, RecipeDumper.represent_str)

for side in (RecipeLoader, RecipeDumper):
    side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


@dataclass
class ModelRecipe:
    """What is trained.

    Args:
        preset: a published size of any architecture, e.g. `upernet-swin-large`; `config` may change fields of it.
        config: fields of the architecture's configuration (`model_type` names it; default `vss_ocrnet`). A video
            model's `frame_offsets` and `clip_start` tell which frames it is trained with, too.
        backbone_weights: pretrained weights of the backbone: a folder or Hub id, or a timm name for a timm backbone.
        init_from: a model folder or Hub id that the run starts from. A class list of another length gets a new
            classifier; one of the same length keeps it, whatever its names. `config` may change fields, `model_type`
            too: a `vss_bisenet`, `vss_pspnet` or `vss_ocrnet` into a `vss_tbn_vit`, `vss_st_ppm` or `vss_tcb_ocr`.
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
        check_config({"model_type": model_type, **fields}, "model.config")
        config_class = configuration_class(model_type)
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
        FileNotFoundError: no such recipe.
        ValueError: a field that does not exist (with the nearest one), or a value outside its range.
    """
    try:
        text = find_recipe(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {path} is not UTF-8 text: {error}") from error
    given = parse_yaml(text, f"recipe {path}") or {}
    if not isinstance(given, dict):
        raise ValueError(f"recipe {path}: expected the sections {', '.join(SECTIONS)}; found a {type(given).__name__}")
    for name, fields in given.items():
        known_or_raise(name, SECTIONS, f"recipe {path} has no section")
        if not isinstance(fields, dict | None):
            raise ValueError(f"recipe {path}: section '{name}' must hold fields; found {shown(fields)}")
    given = {name: dict(given.get(name) or {}) for name in SECTIONS}
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


def find_recipe(path: str | Path) -> Path:
    """The file that `path` names, or the shipped recipe of that name."""
    for candidate in (Path(path), RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    raise FileNotFoundError(f"no recipe '{path}': neither a file nor one of {', '.join(shipped)}")


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


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text, of plain values only and sharing none of them; `place` is named in the error."""
    try:
        value = yaml.load(text, RecipeLoader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML checks little before it converts: `!!int ''`, `!!bool maybe`, 2001-99-99
        raise ValueError(f"{place} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return unshared(value, place, itertools.count())
    except RecursionError:
        raise ValueError(f"{place}: an anchored value contains itself") from None


def to_yaml(value: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back as the same."""
    return yaml.dump(value, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)


def unshared(value: Any, place: str, counter: Iterator[int]) -> Any:
    """A copy in which anchored values stand as often as they are named; raises for what a recipe cannot hold."""
    if next(counter) > MOST_VALUES:
        raise ValueError(f"{place}: more than {MOST_VALUES:,} values; aliases repeat them too often")
    if isinstance(value, dict):
        return {unshared(key, place, counter): unshared(item, place, counter) for key, item in value.items()}
    if isinstance(value, list):
        return [unshared(item, place, counter) for item in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{place}: .nan is no value for a field")
    if not isinstance(value, (int, float, str, NoneType)):
        raise ValueError(f"{place}: a {type(value).__name__} ({shown(value)}) is no value for a field; quote text")
    return value


def check_config(fields: dict[str, Any], place: str) -> None:
    """Raise for a field that a model's or backbone's configuration does not have: transformers ignores it silently."""
    model_type = check_model_type({"model_type": fields.get("model_type")}, f"{place}.model_type")
    config_class = CONFIG_MAPPING[model_type]
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    known |= {"model_type", "out_features", "out_indices"}
    for key in fields:
        if key in FROM_DATA:
            raise ValueError(f"{place}.{key} comes from the data set's label_num_dic_final.json; leave it out")
        known_or_raise(key, sorted(known), f"{place} has no field")
    if isinstance(fields.get("backbone_config"), dict):
        check_config(fields["backbone_config"], f"{place}.backbone_config")


def plain(value: Any) -> Any:
    """Tuples as lists, paths and enums as text: what YAML and JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
