"""Which shipped recipe a run follows, so that its model's card can tell of it."""

from pathlib import Path
from typing import Any

from .recipe import parse_overrides
from .recipe_files import RECIPES, find_recipe
from .stages import WITHOUT_EFFECT


PLACES = ("root", "cache", "restart")  # where data lie, and what is trained again: no settings of a recipe


def origin_of(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """What `train_results.json` tells of the recipe's origin.

    Args:
        path: of the recipe, as for `find_recipe`.
        overrides: as for `load_recipe`.

    Returns:
        `recipe`, the name of the shipped recipe, and `recipe_changes`, what the command line changed in it by the
        fields as they were typed; empty for a recipe of somebody's own.
    """
    file, shipped = find_recipe(path).resolve(), RECIPES.resolve()
    if not file.is_relative_to(shipped):
        return {}
    changes = {
        key.replace("-", "_"): value
        for key, value in parse_overrides(overrides)
        if key.replace("-", "_").split(".")[-1] not in (*WITHOUT_EFFECT, *PLACES)
    }
    return {"recipe": file.relative_to(shipped).with_suffix("").as_posix(), "recipe_changes": changes}
