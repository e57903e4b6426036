"""The data sets of a recipe, opened: what is evaluated on, what is trained on, and the samples that are drawn."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vss_hf.data.clips import load_split
from vss_hf.data.labels import VSPW
from vss_hf.data.order import ClassBalanced, EveryFrame, EveryNth, OnePerVideo, Order, VideoWindows
from vss_hf.data.packed import fitting_window
from vss_hf.data.parquet import download_split, hub_id
from vss_hf.data.scan import filter_labelled, scan_labels
from vss_hf.data.splits import LabelledSplit, open_split
from vss_hf.data.statistics import frame_weights
from vss_hf.data.transforms import TrainTransform
from vss_hf.inference.processes import first_process_first, is_first
from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.scoring.ground_truth import data_set_name, open_ground_truth, pinned_everywhere

from .data_recipe import DataRecipe, SourceRecipe
from .draws import Source, TrainingDraws, TrainingStream
from .recipe import Recipe


class EvalData(NamedTuple):
    """What a run evaluates on: arguments of `evaluate_model`."""

    root: str | Path
    split: str
    source: str = "vspw"
    table: str | None = None


@dataclass
class OpenedSource:
    """One data set that is trained on.

    Args:
        name: for messages and counters; different for all sources of a run.
        place: where it stands in the recipe.
        recipe: what the recipe says of it.
        split: its files.
    """

    name: str
    place: str
    recipe: SourceRecipe
    split: LabelledSplit

    @property
    def still_images(self) -> bool:
        """Whether no video has more than one frame."""
        return all(len(video.frames) == 1 for video in self.split.videos)

    @property
    def streamed(self) -> bool:
        """Whether it is fetched from the Hub while it is read, a video at a time."""
        return self.split.packed and str(self.split.root).startswith("hf:")


# --- opening


def with_commits(data: DataRecipe) -> DataRecipe:
    """The same section; data sets on the Hub with the commit that they are at now, for all processes and for later.

    Raises:
        FileNotFoundError, ValueError, OSError: one of them cannot be found.
    """
    ids = pinned_everywhere([data.root, *(str(recipe.root) for recipe in data.training_sources())])
    sources = [
        {**source, "root": ids[source["root"]]} if source.get("root") in ids else source for source in data.sources
    ]
    return replace(data, root=ids.get(data.root, data.root), sources=sources)


def open_evaluation(data: DataRecipe) -> tuple[EvalData, LabelledSplit]:
    """What is evaluated on. From the Hub it is downloaded: it is read many times.

    Raises:
        FileNotFoundError, ValueError, OSError: as `open_ground_truth` and `download_split`.
    """
    with first_process_first():
        root = download_split(data.root, data.eval_split) if hub_id(data.root) else data.root
    evaluated = EvalData(root, data.eval_split, data.source, data.table)
    return evaluated, open_ground_truth(*evaluated).split


def open_sources(data: DataRecipe) -> list[OpenedSource]:
    """What is trained on; the first process downloads and counts, the others find what it kept.

    Raises:
        FileNotFoundError, ValueError, OSError: as `open_split`, or a split has no masks.
    """
    recipes = data.training_sources()
    kinds = Counter(str(recipe.source) for recipe in recipes)
    opened = []
    for number, recipe in enumerate(recipes):
        name = str(recipe.source) if kinds[str(recipe.source)] == 1 else f"{recipe.source}_{number}"
        with first_process_first():
            split = open_source(recipe, data)
        opened.append(OpenedSource(name, f"data.sources[{number}]", recipe, split))
    return opened


def open_source(recipe: SourceRecipe, data: DataRecipe) -> LabelledSplit:
    """The files of one source."""
    assert recipe.root and recipe.split and recipe.source  # `training_sources` filled them in
    root: str | Path = recipe.root
    if not data.streaming and hub_id(root):
        root = download_split(root, recipe.split)
    split = open_split(root, recipe.split, source=recipe.source, table=recipe.table)
    if not split.has_masks:
        raise ValueError(f"{split} has no masks: it can be predicted, not trained on")
    return filter_labelled(split, recipe.min_labelled, on_bad_sample=data.on_bad_sample, progress=is_first())


def check_classes(sources: list[OpenedSource], evaluated: LabelledSplit) -> None:
    """Raise for a source whose classes are not, in order, those of the data set that is evaluated on."""
    expected = evaluated.classes.names
    for source in sources:
        names = source.split.classes.names
        if names == expected:
            continue
        differing = (i for i, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1])
        first = next(differing, None)
        difference = f"{len(names)} classes, expected {len(expected)}"
        if first is not None:
            difference = f"class {first} is {names[first]!r}, expected {expected[first]!r}"
        advice = (
            "one class list is needed for all, and tables lead to VSPW's classes only; for others write masks in them "
            "and open those with source: folder"
        )
        if source.recipe.table is None and expected == VSPW.names:
            advice = f"table: default turns {source.recipe.source} into VSPW's classes"
        elif evaluated.table is None and names == VSPW.names:
            advice = "data.table: default turns the data set that is evaluated on into VSPW's classes"
        raise ValueError(f"{source.place}: {source.split} has other classes than {evaluated}: {difference}; {advice}")


def check_clips(recipe: Recipe, config: Any, sources: list[OpenedSource]) -> None:
    """Raise for clips that the data cannot give. A still image stands for a video in which nothing moves.

    Args:
        recipe: the recipe.
        config: of the model.
        sources: what is trained on.
    """
    offsets = list(getattr(config, "frame_offsets", ()))
    reversal = recipe.augmentation.time_reversal_prob
    only_images = all(source.still_images for source in sources)
    for source in sources:
        longest = max(len(video.frames) for video in source.split.videos)
        if offsets and -offsets[0] >= longest and (only_images or not source.still_images):
            raise ValueError(
                f"model.config.frame_offsets={offsets}: no video of {source.split} is that long; the longest has "
                f"{longest} frames, so offsets from {1 - longest} up would find a frame"
            )
    if not reversal:
        return
    if not offsets:
        raise ValueError(
            f"augmentation.time_reversal_prob={reversal}: {config.model_type} is trained on single frames, which have "
            "no order; leave it out, or take a video model with frame_offsets"
        )
    if [offsets[0] - offset for offset in reversed([*offsets, 0])] != [*offsets, 0]:
        raise ValueError(
            f"augmentation.time_reversal_prob={reversal}: model.config.frame_offsets={offsets} are other distances "
            "when played backwards; space them evenly, e.g. [-9, -6, -3], or leave time_reversal_prob out"
        )


# --- samples


def training_data(recipe: Recipe, config: Any, sources: list[OpenedSource]) -> TrainingDraws | TrainingStream:
    """The augmented training samples by random access or as a stream: frames, or the clips that `config` asks for."""
    data, offsets = recipe.data, tuple(getattr(config, "frame_offsets", ()))
    supervised = bool(offsets) and config.wants_reference_labels
    streams = sum(source.streamed for source in sources)
    mixed = []
    for source in sources:
        clip_start: Any = getattr(config, "clip_start", "repeat")
        if source.still_images and offsets:
            clip_start = "repeat"  # the image at all times; there is no frame before it that could exist
        elif clip_start == "existing":
            clip_start = "drop"  # clips of a batch must have one length
        samples = load_split(
            source.split,
            frame_offsets=offsets,
            clip_start=clip_start,
            reference_labels=supervised or recipe.augmentation.time_reversal_prob > 0,
            cache=data.cache,
        )
        order = sample_order(source, offsets if clip_start == "drop" else (), streams, data.on_bad_sample)
        weight = mixing_weight(source, order, data)
        mixed.append(Source(samples, order, weight, source.name, source.streamed, source.split.fingerprint))
    transform = TrainTransform(
        recipe.augmentation, for_video_model=config.model_type in VIDEO_MODELS, reference_labels=supervised
    )
    kind = TrainingStream if data.streaming else TrainingDraws
    return kind(mixed, transform, recipe.training.draw_seed, on_bad_sample=data.on_bad_sample)


def sample_order(source: OpenedSource, dropped: tuple[int, ...], streams: int, on_bad_sample: str) -> Order:
    """The order of a source's samples.

    Args:
        source: what is drawn from.
        dropped: frame offsets, if frames without all of theirs are no samples.
        streams: sources that share the memory for videos from the Hub.
        on_bad_sample: of masks that are counted for `class_balanced`.
    """
    recipe = source.recipe
    missing = -dropped[0] if dropped else 0  # frames at the start of each video that are no samples
    frames = [len(video.frames) for video in source.split.videos]
    lengths = [max(0, length - missing) for length in frames]
    if source.streamed:
        if recipe.sampling not in ("every_frame", "every_nth"):
            name = data_set_name(str(recipe.root))
            raise ValueError(
                f"{source.place}: sampling: {recipe.sampling} of {name} with data.streaming would fetch a whole video "
                "from the Hub for every sample; leave out data.streaming to download it before"
            )
        window = max(1, fitting_window(source.split.videos) // streams)
        return VideoWindows(lengths, window, recipe.every_nth or 1)
    if recipe.sampling == "every_nth":
        return EveryNth(lengths, recipe.every_nth or 1)
    if recipe.sampling == "one_per_video":
        return OnePerVideo(lengths)
    if recipe.sampling == "class_balanced":
        with first_process_first():
            scan = scan_labels(source.split, on_bad_sample=on_bad_sample, progress=is_first())
        by: Any = recipe.balance_by or "videos"
        kept = np.concatenate([np.arange(length) >= missing for length in frames])
        return ClassBalanced(frame_weights(scan, by=by)[kept])
    return EveryFrame(sum(lengths))


def mixing_weight(source: OpenedSource, order: Order, data: DataRecipe) -> float:
    """What a source's share of the draws is in proportion to; see `DataRecipe.mix_by`."""
    sizes = {"frames": order.num_samples, "videos": len(source.split.videos), "weights": 1}
    return source.recipe.weight * sizes[data.mix_by] ** (1 / data.mix_temperature)


def trained_on(sources: list[OpenedSource], data: TrainingDraws | TrainingStream) -> list[dict[str, Any]]:
    """What a model folder tells of its training data; `frames` are those that are samples, `share` is of the draws."""
    told = []
    for source, drawn, share in zip(sources, data.sources, data.mixture.shares.tolist(), strict=True):
        recipe = source.recipe
        told.append(
            {
                "dataset": data_set_name(str(recipe.root)),
                "split": source.split.name,
                "source": recipe.source,
                "table": source.split.table,
                **({"min_labelled": recipe.min_labelled} if recipe.min_labelled else {}),
                "frames": len(drawn.samples),
                "share": share,
            }
        )
    return told
