"""What the card of a released recipe says beside what its model folder holds: title, use, limits, the paper's numbers.

A recipe is released if it ships with the package and is more than a base of others. What the recipes of a paper have
in common stands once, in `collection/<paper>.yaml`; the paper's rows, and what it leaves open, in the section `paper`
of each recipe file, which is read here as data; what a data set means for its models in `collection/data_sets.yaml`.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .dataset_terms import Terms, licence_of, terms_of


COLLECTION = Path(__file__).with_name("collection")
RECIPES = Path(__file__).parents[1] / "training" / "recipes"
# A line of `paper.uncertain` that begins with what other recipes of the paper have there: "as swin-480; and more".
AS_OTHERS = re.compile(r"as ([\w-]+)(?: and ([\w-]+))?(?:; (.+))?")
PAPER_DATA = "VSPW"  # which the papers' figures are measured on, unless a recipe's section `paper` has another `data`


@dataclass(frozen=True)
class CardSource:
    """The source of one card.

    Args:
        recipe: name of the released recipe.
        title: of the card.
        about: a sentence about where the model comes from.
        intended_use: sentences.
        limits: what it cannot do; a sentence or two each.
        data: names of the data sets that it has seen labels of, the one that it is for first; keys of data_sets.yaml.
        citation: of the paper; "" for a recipe of ours.
        link: to the paper, or "".
        rows: of the paper's tables that the recipe trains: table, row, setting and, where the paper gives them, val
            and test, the mIoU in percent on the first of `data`.
        uncertain: what the paper leaves open and the result may hang on.
    """

    recipe: str
    title: str
    about: str
    intended_use: str
    limits: tuple[str, ...]
    data: tuple[str, ...]
    citation: str = ""
    link: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    uncertain: tuple[str, ...] = ()

    @property
    def repository(self) -> str:
        """The name that its repository on the Hub shall have, below an owner."""
        return self.recipe.replace("/", "-")

    def about_data(self) -> list[tuple[str, str]]:
        """The data sets, each with what it is in half a sentence."""
        return [(name, about_data(name)) for name in self.data]

    def terms(self) -> list[Terms]:
        """The terms of the data sets, each once, of those that have any."""
        found = (terms_of_named(name) for name in self.data)
        return list({terms.name: terms for terms in found if terms is not None}.values())

    def licence(self) -> dict[str, str]:
        """What the weights' licence can be at most, by the data that it has seen; arguments of `render_card`."""
        return licence_of(self.terms())

    def is_of(self, dataset: str) -> bool:
        """Whether a recorded data set, by its name, is the one that the model is for."""
        terms = terms_of_named(self.data[0])
        if terms is None:
            return _plain(self.data[0]) == _plain(dataset)
        return terms_of_named(dataset) == terms


def released_recipes() -> list[str]:
    """The names of the recipes that have a card, as `vss-hf train` takes them."""
    names = (file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("bases/"))


def card_source(recipe: str) -> CardSource:
    """The source of a released recipe's card.

    Raises:
        ValueError: no such recipe (with the nearest ones).
    """
    known = released_recipes()
    if recipe not in known:
        near = get_close_matches(recipe, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"recipe {recipe!r} is not released, so it has no card; {hint}")
    shared = _read(COLLECTION / f"{_group(recipe)}.yaml")
    own = (shared.get("recipes") or {}).get(recipe.split("/")[-1]) or {}
    paper = _read(RECIPES / f"{recipe}.yaml").get("paper") or {}
    rows = paper.get("rows") or []
    title = own.get("title") or (rows[0]["setting"] if rows else recipe)
    data = [*(shared.get("data") or [paper.get("data", PAPER_DATA)]), *own.get("data", [])]
    of_data = _read(COLLECTION / "data_sets.yaml")[data[0]]["limits"]
    return CardSource(
        recipe=recipe,
        title=f"{shared['name']}: {title}",
        about=shared["about"],
        intended_use=shared["intended_use"],
        limits=(*own.get("limits", []), *shared.get("limits", []), *of_data),
        data=tuple(data),
        citation=shared.get("citation", ""),
        link=shared.get("link", ""),
        rows=tuple(rows),
        uncertain=tuple(_uncertain(recipe)),
    )


def about_data(name: str) -> str:
    """What a data set of `CardSource.data` is, in half a sentence."""
    return _read(COLLECTION / "data_sets.yaml")[name]["what"]


def terms_of_named(dataset: str) -> Terms | None:
    """The terms of a data set by its name, whether written as a title or as a folder."""
    return terms_of("", _plain(dataset))


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _group(recipe: str) -> str:
    """Which file of the collection a recipe belongs to: that of its folder, or of the first word of its name."""
    return recipe.split("/")[0] if "/" in recipe else recipe.split("-")[0]


def _uncertain(recipe: str) -> list[str]:
    """What the paper leaves open, with the lines of those recipes that a line names in the place of their names."""
    paper = _read(RECIPES / f"{recipe}.yaml").get("paper") or {}
    lines = []
    for line in paper.get("uncertain") or []:
        others = AS_OTHERS.fullmatch(line)
        if others is None:
            lines.append(line)
            continue
        first, second, more = others.groups()
        for name in filter(None, (first, second)):
            lines += _uncertain(f"{_group(recipe)}/{name}")
        lines += [more] if more else []
    return list(dict.fromkeys(lines))


@cache  # PyYAML takes some 10 ms for a page
def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
