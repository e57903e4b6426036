"""Configuration of an ensemble: which models it is made of, and what each of them counts.

An ensemble is a folder without weights. Its members are other folders or Hub repos, and its scores are the weighted
mean of their class probabilities. Three published forms, all of them members with weights:

- any weighted set (DUT, PVUW 2023, third: weight 1 each);
- two models, P = gamma * P_first + (1 - gamma) * P_second (BetterThing, VSPW 2021, third, section 4.4): weights gamma
  and 1 - gamma;
- groups, P = P_S + alpha * P_W + beta * P_A, where each P is the mean over a group (USTC, VSPW 2021, fifth, section
  2.3, equation 1): groups S, W and A of weights 1, alpha and beta.

This configuration alone travels to the Hub; the model is `vss_hf.ensembles.ensemble.EnsembleForSemanticSegmentation`.
"""

import math
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_checks import refuse_misspelt


MEMBER_FIELDS = {"name": str, "revision": str, "weight": (int, float), "group": str, "tta": (str, dict)}


@strict
class EnsembleConfig(PreTrainedConfig):
    r"""Settings of an ensemble.

    Args:
        members: dicts of

            - "name": a model's folder, relative to the ensemble's, or Hub id;
            - "revision" (optional): branch, tag or commit of the Hub repo;
            - "weight" (default 1): what it counts, at least 0; one of weight 0 is not loaded;
            - "group": with `groups`, which one it belongs to;
            - "tta" (optional): its test-time augmentation, a name or fields of `vss_hf.inference.TTA`.
        groups: what each group counts, by its name; inside a group members count as their weights, divided by the
            group's sum. None: there are no groups.

    Example:
        >>> from vss_hf import EnsembleConfig
        >>> EnsembleConfig(members=[{"name": "swin", "weight": 0.56}, {"name": "volo", "weight": 0.44}]).weights
        [0.56, 0.44]
        >>> members = [{"name": "a", "group": "S"}, {"name": "b", "group": "S"}, {"name": "c", "group": "W"}]
        >>> EnsembleConfig(members=members, groups={"S": 1.0, "W": 3.0}).weights
        [0.125, 0.125, 0.75]
    """

    model_type = "vss_ensemble"

    members: list | None = None
    groups: dict | None = None

    def __post_init__(self, **kwargs: Any):
        refuse_misspelt(type(self), kwargs)
        self.members = [] if self.members is None else self.members  # transformers makes one without, to compare with
        super().__post_init__(**kwargs)

    @property
    def weights(self) -> list[float]:
        """What each member counts, in their order; the sum is 1."""
        assert self.members is not None
        own = [float(member.get("weight", 1)) for member in self.members]
        if self.groups is not None:
            names = [member["group"] for member in self.members]
            sums = {name: sum(w for w, of in zip(own, names, strict=True) if of == name) for name in self.groups}
            own = [self.groups[of] * w / sums[of] if w else 0.0 for w, of in zip(own, names, strict=True)]
        total = sum(own)
        return [weight / total for weight in own]

    def validate_members(self):
        """Part of `@strict`: members and groups fit together."""
        for i, member in enumerate(self.members or []):
            check_member(member, f"EnsembleConfig.members[{i}]")
            check_group(member, self.groups, f"EnsembleConfig.members[{i}]")
        for name, weight in (self.groups or {}).items():
            check_weight(weight, f"EnsembleConfig.groups.{name}")
            own = [member.get("weight", 1) for member in self.members or [] if member["group"] == name]
            if weight and not any(own):
                found = "members of weight 0 only" if own else "no member"
                raise ValueError(f"EnsembleConfig.groups: group '{name}' has {found}; expected one that counts")
        counted = (self.groups or {}).values() if self.groups else [m.get("weight", 1) for m in self.members or []]
        if self.members and not any(counted):
            raise ValueError("EnsembleConfig: all weights are 0; expected one above 0")


def check_member(member: Any, place: str) -> None:
    """Raise unless a member's fields exist and have values of their kinds."""
    if not isinstance(member, dict):
        raise ValueError(f"{place}: expected fields (name, weight, ...); found {member!r}")
    for key, value in member.items():
        if key not in MEMBER_FIELDS:
            near = get_close_matches(str(key), MEMBER_FIELDS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(MEMBER_FIELDS)}"
            raise ValueError(f"{place} has no field '{key}'; {hint}")
        if key == "weight":
            check_weight(value, f"{place}.weight")
        elif not isinstance(value, MEMBER_FIELDS[key]) or value == "":
            expected = "a name or fields" if key == "tta" else "text"
            raise ValueError(f"{place}.{key}: expected {expected}; found {value!r}")
    if "name" not in member:
        raise ValueError(f"{place}: no name; expected a model's folder or Hub id")


def check_weight(value: Any, place: str) -> None:
    """Raise unless a weight is a number from 0 up."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{place}: expected a number from 0 up; found {value!r}")


def check_group(member: dict[str, Any], groups: dict | None, place: str) -> None:
    """Raise unless a member names one of the groups, where there are any."""
    name = member.get("group")
    if groups is None and name is not None:
        raise ValueError(f"{place}.group is '{name}', but there are no groups; give some, e.g. {{{name}: 1.0}}")
    if groups is not None and name not in groups:
        found = "has no group" if name is None else f"names the group '{name}'"
        near = get_close_matches(str(name), [str(known) for known in groups], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"groups: {', '.join(map(str, groups))}"
        raise ValueError(f"{place} {found}; {hint}")


__all__ = ["EnsembleConfig"]
