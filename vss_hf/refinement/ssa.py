"""Semantic-Segment-Anything: every mask of SAM takes the class that most of its pixels have.

    ssa = SSA(MaskGenerator.from_pretrained("path/to/sam"), vote="count")
    segmenter = VideoSegmenter.from_pretrained(folder, label_steps=[ssa])

The closed-set voting of Chen et al., Semantic Segment Anything (`scripts/pipeline.py`), as DUT used it for VSPW (PVUW
2023, third). It moves borders to those of the masks; classes come from the model alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vss_hf.fields import known_or_raise, settings_from
from vss_hf.inference.score_maps import ScoreMap
from vss_hf.modeling.dense import full_precision

from .mask_generation import Mask, MaskGenerator, MaskSettings


VOTES = ("count", "probability")


@dataclass(frozen=True, kw_only=True)
class SSASettings(MaskSettings):
    """The fields of `--refine 'ssa:{model: FOLDER, ...}'`: those of `MaskSettings`, and two more.

    Args:
        model: folder or Hub id of SAM, SAM-HQ, SAM 2 or SAM 3.
        vote: what decides the class of a mask. "count": how many of its pixels have it, as published. "probability":
            the sum of the scores that its pixels give it.

    Raises:
        ValueError: a setting is outside its range.
    """

    model: str
    vote: str = "count"

    def __post_init__(self) -> None:
        super().__post_init__()
        known_or_raise(self.vote, VOTES, "vote: there is no")


def parse(given: Any, device: torch.device, place: str) -> "SSA":
    """The step that `--refine ssa:...` asks for.

    Args:
        given: folder or Hub id of the model, or fields of `SSASettings`.
        device: where the model runs.
        place: how messages call the option.

    Raises:
        FileNotFoundError, ValueError: as `settings_from` and `MaskGenerator.from_pretrained`.
    """
    settings: SSASettings = settings_from(SSASettings, {"model": given} if isinstance(given, str) else given, place)
    return SSA(MaskGenerator.from_pretrained(settings.model, settings, device), settings.vote, settings.model)


class SSA:
    """A label step that gives each mask one class; it remembers nothing of a video.

    Args:
        generator: of the masks.
        vote: see `SSASettings`.
        model: what results call the generator's model; None: its class.
    """

    changes = "labels"
    memory_options = ("points_per_batch",)

    def __init__(self, generator: MaskGenerator, vote: str = "count", model: str | None = None):
        known_or_raise(vote, VOTES, "vote: there is no")
        self.generator, self.vote = generator, vote
        self.settings = {"model": model or type(generator.model).__name__, "vote": vote, **vars(generator.settings)}

    def reset(self) -> None:
        """A new video begins."""

    def __call__(self, image: np.ndarray, labels: np.ndarray, scores: ScoreMap) -> np.ndarray:
        """The labels after the vote; see `LabelStep`."""
        masks = largest_first(self.generator(image))
        if self.vote == "count":
            classes = classes_by_count(labels, masks, scores.num_labels)
        else:
            classes = classes_by_probability(scores, masks)
        return with_masks(labels, masks, classes)


def largest_first(masks: Sequence[Mask]) -> list[Mask]:
    """Masks by falling area; those of equal area keep their order."""
    return sorted(masks, key=lambda mask: mask.area, reverse=True)


def classes_by_count(labels: np.ndarray, masks: Sequence[Mask], num_labels: int) -> list[int | None]:
    """The class that most pixels of each mask have; of several the lowest.

    Args:
        labels: integer (H, W); values from num_labels on, such as 255, are void and have no vote.
        masks: of the image.
        num_labels: classes.

    Returns:
        A class for each mask, or None where all pixels are void.
    """
    classes: list[int | None] = []
    for mask in masks:
        left, top, right, bottom = mask.box
        votes = np.bincount(labels[top:bottom, left:right][mask.pixels], minlength=num_labels)[:num_labels]
        classes.append(int(votes.argmax()) if votes.any() else None)
    return classes


def classes_by_probability(scores: ScoreMap, masks: Sequence[Mask]) -> list[int]:
    """The class with the largest sum of scores over the pixels of each mask; of several the lowest.

    Args:
        scores: of the image; a few rows at a time are computed.
        masks: of the image.
    """
    votes = torch.zeros(len(masks), scores.num_labels, dtype=torch.float64)
    for start, stop, block in scores.blocks():
        here = [i for i, mask in enumerate(masks) if mask.box[1] < stop and mask.box[3] > start]
        if here:
            votes[here] += sums_of_rows(block, [masks[i] for i in here], start, stop).double().cpu()
    return votes.argmax(dim=1).tolist()  # the first of equal ones


def sums_of_rows(block: Tensor, masks: Sequence[Mask], start: int, stop: int) -> Tensor:
    """The sums of scores over the pixels that masks have in some rows.

    Args:
        block: scores (stop - start, num_labels, W) of those rows.
        masks: that have pixels there.
        start, stop: which rows.

    Returns:
        (masks, num_labels).
    """
    pixels = np.zeros((len(masks), stop - start, block.shape[2]), bool)
    for mask, own in zip(masks, pixels, strict=True):
        left, top, right, bottom = mask.box
        first, last = max(start, top), min(stop, bottom)
        own[first - start : last - start, left:right] = mask.rows(first, last)
    within = torch.from_numpy(pixels).to(block.device).flatten(1).to(block.dtype)
    with full_precision(block.device):
        return within @ block.transpose(1, 2).flatten(0, 1)


def with_masks(labels: np.ndarray, masks: Sequence[Mask], classes: Sequence[int | None]) -> np.ndarray:
    """Labels in which each mask has its class; later masks cover earlier ones.

    Args:
        labels: (H, W), not changed.
        masks: of the image.
        classes: of the masks; None leaves the labels as they are.
    """
    voted = labels.copy()
    for mask, label in zip(masks, classes, strict=True):
        if label is not None:
            left, top, right, bottom = mask.box
            voted[top:bottom, left:right][mask.pixels] = label
    return voted
