"""Which released recipe a model folder comes from, for its card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .card_sources import CardSource, card_source, released_recipes
from .card_text import cell


# Changed settings after which a model has seen, itself or through the weights that it started from, other data.
OTHER_START = ("model.init_from", "model.backbone_weights", "model.weights", "data.sources", "base", "stages")


@dataclass(frozen=True)
class Origin:
    """What a card says of the recipe.

    Args:
        source: of the card.
        changes: in words, which settings were others than the recipe's; "" for none.
        is_its_data: the model was trained on the data set that the recipe is for, as far as is known. Otherwise
            nothing that the source says of data holds.
        licence_holds: whether the source's licence does. A free one does not if other data were seen too, or the model
            started from other weights than the recipe's.
    """

    source: CardSource
    changes: str
    is_its_data: bool
    licence_holds: bool

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The paper's figures: table and row, setting, validation and test mIoU."""
        return [
            (f"{row['table']}, {row['row']}", row["setting"], percent(row.get("val")), percent(row.get("test")))
            for row in self.source.rows
        ]


def origin_of(
    recipe: str | None, trained: Mapping[str, Any], data: Sequence[Mapping[str, Any]], path: Path
) -> Origin | None:
    """The origin of a model folder; None where it is not a released recipe's, or not recorded.

    Args:
        recipe: the name of a released recipe, where somebody says it; that counts before what is recorded, of the
            data, too.
        trained: the folder's `train_results.json`, where a run leaves `recipe` and `recipe_changes`.
        data: recorded sources of training data (`card_data.recorded_sources`).
        path: of `train_results.json`, for messages.

    Raises:
        ValueError: `recipe` is no released recipe, or the file holds something else than a run leaves there.
    """
    recorded, changes = trained.get("recipe"), trained.get("recipe_changes") or {}
    if not isinstance(recorded, str | None) or not isinstance(changes, Mapping):
        raise ValueError(f"{path}: recipe is {str(recorded)[:80]!r} with changes {str(changes)[:80]!r}, expected text")
    if recipe is None and recorded not in released_recipes():
        return None  # a recipe of somebody's own, or of another version of this package
    source = card_source(recipe or str(recorded))
    told = ", ".join(f"`{cell(key)}: {cell(value)}`" for key, value in changes.items()) if recorded else ""
    fits = [source.is_of(item["dataset"]) for item in data]
    is_its_data = recipe is not None or not data or any(fits)
    is_free = source.licence()["license"] != "other"
    saw_more = not all(fits) or any(key.startswith(OTHER_START) for key in changes)
    return Origin(source, told, is_its_data, is_its_data and not (is_free and saw_more))


def percent(value: float | None) -> str:
    """A figure of a paper, or a dash."""
    return "–" if value is None else f"{value:.2f}"
