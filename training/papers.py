"""Which row of which paper a shipped recipe is: its section `paper`, which no recipe inherits and no run reads.

    paper:
      name: ustc
      data: VSPW                   # whose mIoU the figures are; VSPW where nothing is said
      rows:
        - {table: 1, row: 3, setting: "Swin, CS=640, OHEM", val: 56.94, test: 49.73}
      uncertain: [what the paper does not tell and the result may hang on]

benchmarks/recipe_table.py makes docs/recipes.md of it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

from vss_hf.fields import known_or_raise, of_type, shown


class Paper(NamedTuple):
    """Where recipes come from.

    Args:
        title: of the paper.
        place: who wrote it, and where they came in.
        link: to the paper, or "".
    """

    title: str
    place: str
    link: str = ""


# `paper.name`, and the folder of its recipes -> the paper
PAPERS = {
    "betterthing": Paper(
        "Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models",
        "Chen et al. (team BetterThing), 3rd in the VSPW challenge 2021",
        "https://arxiv.org/abs/2109.01316",
    ),
    "ustc": Paper(
        "5th Place Solution for VSPW 2021 Challenge",
        "Zhuang et al. (USTC), 5th in the VSPW challenge 2021",
    ),
    "tbn-vit": Paper(
        "Temporal Bilateral Network with Vision Transformer for Video Scene Parsing", "VSPW challenge 2021"
    ),
    "pvuw2023": Paper(
        "3rd Place Solution for PVUW2023 VSS Track: A Large Model for Semantic Segmentation on VSPW",
        "Chang et al. (DUT), 3rd in the PVUW challenge 2023",
        "https://arxiv.org/abs/2306.02291",
    ),
    "hfgd": Paper(
        "High-level Feature Guided Decoding for Semantic Segmentation",
        "Huang et al., IEEE Transactions on Circuits and Systems for Video Technology 2024",
        "https://arxiv.org/abs/2303.08646",
    ),
}
# What the papers' figures are measured on, and the `data.source` of the recipes that train on it.
DATA_SETS = {
    "VSPW": "vspw",
    "Pascal Context": "pascal_context59",
    "Cityscapes": "cityscapes19",
    "COCO-Stuff 164k": "coco_stuff",
    "COCO-Stuff 10k": "coco_stuff10k",
    "ADE20K": "ade20k",
}


@dataclass
class TableRow:
    """A row of a paper's table of results.

    Args:
        table: its number in the paper.
        row: counted from 1.
        setting: how the paper calls it.
        val: the paper's mIoU on the validation set of `data`, in percent; None: it gives none.
        test: the same on the test set.
        data: one of `DATA_SETS`; in a recipe it stands once, for all of its rows.
    """

    table: int
    row: int
    setting: str
    val: float | None = None
    test: float | None = None
    data: str = "VSPW"


@dataclass
class PaperRecipe:
    """The section `paper` of a recipe.

    Args:
        name: one of `PAPERS`.
        rows: whose training this is; empty: a step on the way to a row.
        uncertain: what the paper does not tell, or cannot be done here; a line each.
    """

    name: str
    rows: list[TableRow]
    uncertain: list[str]


def parse_paper(given: Any, place: str) -> PaperRecipe | None:
    """The section from its fields as they stand in a recipe; None where there is none.

    Args:
        given: what YAML read.
        place: how messages call the section.

    Raises:
        ValueError: a field or paper that does not exist (with the nearest one), or a value of another type.
    """
    if given is None:
        return None
    known = {"name": "", "data": "VSPW", "rows": [], "uncertain": []}
    check_fields(given, known, place)
    fields = {**known, **given}
    known_or_raise(fields["name"], PAPERS, f"{place}.name: there is no paper")
    known_or_raise(fields["data"], DATA_SETS, f"{place}.data: no paper has figures on")
    for key in ("rows", "uncertain"):
        if not isinstance(fields[key], list):
            raise ValueError(f"{place}.{key}: expected a list; found {shown(fields[key])}")
    rows = [parse_row(row, f"{place}.rows[{number}]", fields["data"]) for number, row in enumerate(fields["rows"])]
    lines = [of_type(line, str, f"{place}.uncertain[{number}]") for number, line in enumerate(fields["uncertain"])]
    return PaperRecipe(fields["name"], rows, lines)


def parse_row(given: Any, place: str, data: str) -> TableRow:
    """One of the section's rows from its fields; `data` is what the section says."""
    hints = {name: hint for name, hint in get_type_hints(TableRow).items() if name != "data"}
    check_fields(given, hints, place)
    for field in dataclasses.fields(TableRow):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise ValueError(f"{place}: give {field.name}")
    row = TableRow(**{key: of_type(value, hints[key], f"{place}.{key}") for key, value in given.items()}, data=data)
    for name in ("val", "test"):
        value = getattr(row, name)
        if value is not None and not 1 < value < 100:
            raise ValueError(f"{place}.{name}: {value}: expected percent, e.g. 51.59")
    return row


def check_fields(given: Any, known: dict[str, Any], place: str) -> None:
    """Raise unless `given` holds fields, all of them known."""
    if not isinstance(given, dict):
        raise ValueError(f"{place}: expected the fields {', '.join(known)}; found {shown(given)}")
    for key in given:
        known_or_raise(key, known, f"{place} has no field")
