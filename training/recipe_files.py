"""Recipe files: where they are found, and what they inherit from one another with `base:`.

A recipe that says `base: NAME` holds only what is different. Its own fields come over those of the base:

- fields within fields (`model.config`, `lr_scheduler_kwargs`) one by one; everything else, lists too, as a whole;
- `null` takes an inherited value away: the field has its default again (or null, where null is one of its values);
- a `backbone_config` with a `model_type` is a whole one and takes the place of the inherited one;
- `init_from` over a model that is described (`preset`, `config`), and `preset` over an `init_from`, take the place of
  the whole section `model`.

The section `paper` (papers.py) is each file's own.
"""

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from vss_hf.fields import fits, kinds_of, known_or_raise, shown

from .papers import PaperRecipe, parse_paper
from .recipe_yaml import parse_yaml


RECIPES = Path(__file__).parent / "recipes"


def find_recipe(path: str | Path, beside: Path | None = None) -> Path:
    """The file that `path` names, or the shipped recipe of that name: `camvid-ocrnet`, in a sub-folder `FOLDER/NAME`.

    Args:
        path: as typed, or as a `base` says.
        beside: a relative path begins in this folder; default the working directory.

    Raises:
        FileNotFoundError: there is none; with the nearest shipped name.
    """
    for candidate in (Path(beside or "", path), RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = shipped_recipes()
    near = get_close_matches(str(path)[:100], shipped, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(shipped)}"
    where = f" in {beside}" if beside else ""
    raise FileNotFoundError(f"no recipe '{path}': neither a file{where} nor a shipped recipe; {hint}")


def shipped_recipes() -> list[str]:
    """The names that the package ships, as they are typed: `betterthing/swin-large-480`."""
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml"))


def paper_of(path: str | Path) -> PaperRecipe | None:
    """Which rows of a paper the recipe is; None where its file says nothing about it."""
    given, place = read_yaml(find_recipe(path), f"recipe {path}"), f"recipe {path}: paper"
    return parse_paper(given.get("paper"), place) if isinstance(given, dict) else None


def read_recipe(path: str | Path, sections: Mapping[str, type]) -> dict[str, dict[str, Any]]:
    """The fields of a recipe file and of those that it inherits from.

    Args:
        path: as for `find_recipe`.
        sections: name -> dataclass of the sections that a recipe can have.

    Returns:
        {section: fields} with all sections, and `stages`: {name: {section: fields}}, empty for a plain recipe.

    Raises:
        FileNotFoundError: the recipe or a base is not there.
        ValueError: a file that is no recipe, or bases that go round in a circle.
    """
    file = find_recipe(path)
    chain, layers = [file], [read_file(file, f"recipe {path}", sections)]
    while (base := layers[-1].pop("base", None)) is not None:
        place = f"recipe {chain[-1]}: base"
        if not isinstance(base, str):
            raise ValueError(f"{place} must name one recipe; found {shown(base)}")
        try:
            file = find_recipe(base, chain[-1].parent)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place}: {error}") from None
        if any(file.samefile(seen) for seen in chain):
            raise ValueError(f"{place} goes round in a circle: {' -> '.join(map(str, [*chain, file]))}")
        chain.append(file)
        layers.append(read_file(file, f"recipe {file}", sections))
    merged = layers.pop()
    while layers:
        merged = merge_recipes(merged, layers.pop(), sections)
    return merged


def read_file(file: Path, place: str, sections: Mapping[str, type]) -> dict[str, Any]:
    """What one file says: `base` as it stands, all sections, and the stages by their names; `place` for errors."""
    given = read_yaml(file, place)
    if not isinstance(given, dict):
        raise ValueError(f"{place}: expected the sections {', '.join(sections)}; found a {type(given).__name__}")
    base, stages = given.pop("base", None), given.pop("stages", None)
    parse_paper(given.pop("paper", None), f"{place}: paper")  # raises for what is wrong in it
    for name, fields in given.items():
        known_or_raise(name, [*sections, "base", "stages", "paper"], f"{place} has no section")
        check_fields(fields, f"{place}: section '{name}'")
    return {
        "base": base,
        **{name: given.get(name) or {} for name in sections},
        "stages": read_stages(stages, f"{place}: stages", sections),
    }


def read_yaml(file: Path, place: str) -> Any:
    """The value of a YAML file; empty fields for an empty one."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 text: {error}") from error
    return parse_yaml(text, place) or {}


def read_stages(stages: Any, place: str, sections: Mapping[str, type]) -> dict[str, dict[str, Any]]:
    """The list `stages` as {name: {section: fields}}, in its order."""
    if not isinstance(stages, list | None):
        raise ValueError(f"{place} must be a list such as [{{name: part1}}, {{name: part2}}]; found {shown(stages)}")
    found = {}
    for number, stage in enumerate(stages or []):
        if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
            raise ValueError(f"{place}[{number}] must have a name and sections, {{name: part1}}; found {shown(stage)}")
        name = stage.pop("name")
        if name in found:
            raise ValueError(f"{place}[{number}]: there are two stages with the name '{name}'")
        for section, fields in stage.items():
            known_or_raise(section, sections, f"{place}[{number}] ('{name}') has no section")
            check_fields(fields, f"{place}[{number}] ('{name}'): section '{section}'")
        found[name] = {section: fields or {} for section, fields in stage.items()}
    return found


def check_fields(fields: Any, place: str) -> None:
    """Raise for a section that holds something else than fields."""
    if not isinstance(fields, dict | None):
        raise ValueError(f"{place} must hold fields; found {shown(fields)}")


# --- one over the other


def merge_recipes(below: dict[str, Any], above: dict[str, Any], sections: Mapping[str, type]) -> dict[str, Any]:
    """A recipe with what another one says over it; stages of the same name are merged, others come after them."""
    merged = merge_sections(below, above, sections)
    stages = dict(below["stages"])
    for name, stage in above["stages"].items():
        stages[name] = merge_sections(stages[name], stage, sections) if name in stages else stage
    return {**merged, "stages": stages}


def merge_sections(below: dict[str, Any], above: dict[str, Any], sections: Mapping[str, type]) -> dict[str, Any]:
    """{section: fields} with the fields of another one over it; neither is changed."""
    merged = {}
    for name, section in sections.items():
        if name not in below and name not in above:
            continue  # a stage has only the sections that it names
        under, over = dict(below.get(name, {})), above.get(name, {})
        if name == "model":
            under = unless_replaced(under, over)
        hints = get_type_hints(section)
        cleared = {key for key in over.keys() & under.keys() & hints.keys() if over[key] is None}
        cleared = {key for key in cleared if not any(fits(None, kind) for kind in kinds_of(hints[key]))}
        fields = merge_fields(under, over)
        merged[name] = {key: value for key, value in fields.items() if key not in cleared}
    return merged


def unless_replaced(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`; none where a model to start from comes over one that is described, or the other way."""
    starts_from_model = below.get("init_from") is not None
    replaced = above.get("preset" if starts_from_model else "init_from") is not None
    return {} if replaced else below


def merge_fields(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Fields with others over them, one by one where both hold fields again."""
    merged = copy.deepcopy(below)
    for key, value in above.items():
        inherited = merged.get(key)
        whole = key == "backbone_config" and isinstance(value, dict) and "model_type" in value
        if isinstance(inherited, dict) and isinstance(value, dict) and not whole:
            merged[key] = merge_fields(inherited, value)
        elif value is None and isinstance(inherited, (dict, list)):
            del merged[key]
        else:
            merged[key] = copy.deepcopy(value)
    return merged
