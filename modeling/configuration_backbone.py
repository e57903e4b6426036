"""What the configurations of this package's backbones share: the names of their maps, and which are returned."""

from typing import Any

from .config_checks import refuse_misspelt


CHOICES = ("out_features", "out_indices")


def choose_maps(config: Any, stages: int, unknown: dict[str, Any], *, stem: bool = True, all_stages: bool = False):
    """Name a backbone's maps and choose those that it returns; a part of its configuration's `__post_init__`.

    Args:
        config: the configuration, a BackboneConfigMixin.
        stages: how many there are.
        unknown: what the configuration was given beside its fields. `out_features` and `out_indices` are taken out.
        stem: whether there is a map before the first stage's.
        all_stages: whether to return every stage's map, instead of the last one alone, where nothing is chosen.

    Raises:
        ValueError: a name that is nearly a field's, or a map that there is not.
    """
    out_features, out_indices = (unknown.pop(name, None) for name in CHOICES)
    unknown.pop("stage_names", None)  # from a saved file: they follow from the other fields
    refuse_misspelt(type(config), unknown, known=CHOICES)
    names = [f"stage{index}" for index in range(1, stages + 1)]
    if all_stages and out_features is None and out_indices is None:
        out_features = names
    config.stage_names = ["stem", *names] if stem else names
    config.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
