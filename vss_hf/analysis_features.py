"""Samples of the features that a model's classifier reads, from the labelled frames of a data set, in one pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vss_hf.data.labels import IGNORE_INDEX
from vss_hf.data.splits import LabelledSplit
from vss_hf.data.workers import end_with_parent
from vss_hf.inference.batches import runs
from vss_hf.inference.scores import align_corners
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.inference.video_memory import VideoMemory
from vss_hf.metrics.confusion import ConfusionMatrix
from vss_hf.modeling.car import labels_of_places
from vss_hf.modeling.classifier_features import classifier_features
from vss_hf.modeling.dense import upsampled_confusion
from vss_hf.scoring.evaluation import FrameReader, flatten


@dataclass
class Subject:
    """A model that is looked at.

    Args:
        name: how pictures and messages call it.
        segmenter: model and processor.
        branch: "output": the features that the logits are made of; "high-level": of an HFGD model with guidance, the
            high-level features, which the classifier reads, too.
    """

    name: str
    segmenter: VideoSegmenter
    branch: str = "output"

    def read(self, images: list[np.ndarray], memory: VideoMemory) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, C, h, w) and logits (B, K, h, w) of the next frames of a video, all of one size."""
        together = 1 if self.segmenter.is_video_model else len(images)
        parts = [self._read(images[i : i + together], memory) for i in range(0, len(images), together)]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(logits)

    def _read(self, images: list[np.ndarray], memory: VideoMemory) -> tuple[torch.Tensor, torch.Tensor]:
        model, size = self.segmenter.model, images[0].shape[:2]
        taking = classifier_features if self.branch == "output" else high_level_features
        with self.segmenter.explaining_memory(len(images), size), taking(model) as features:
            memory.expect(size, len(images))
            logits = memory.outputs(self.segmenter.pixel_values(images)).logits
        (read,) = features  # a classifier reads once
        classifier = model.decode_head.classifier
        if self.branch != "output":
            logits = classifier(read)
        if getattr(classifier, "cosine_scale", None) is not None:
            read = F.normalize(read.float(), dim=1)  # all that a cosine sees of them
        return read, logits


@contextmanager
def high_level_features(model: Any) -> Iterator[list[torch.Tensor]]:
    """As `classifier_features`, of HFGD's guidance branch: what its encoding gives."""
    features: list[torch.Tensor] = []
    handle = model.decode_head.encoding.register_forward_hook(lambda _, inputs, output: features.append(output[0]))
    try:
        yield features
    finally:
        handle.remove()


class PlaceSampler:
    """Keeps the features of places drawn at random, as many of each class, evenly over the class's videos.

    A place is one of a feature map, with the label of the pixel nearest to its middle. With several models, places are
    those of the coarsest map, and of the other maps that place is taken in which the pixel lies.

    Each place gets a random number, which depends on the seed, its video and its frame alone. Of a class those places
    stay that come first when the best of each video stand before the second best of each, and so on. So what stays
    does not depend on batches, and the memory is that of `num_labels * per_class` places.

    Args:
        num_labels: classes.
        per_class: places of a class at most.
        seed: of the random numbers, from 0.
        aligned: of each model, whether the middles of a map's corner places are those of the corner pixels.
    """

    def __init__(self, num_labels: int, per_class: int, seed: int, aligned: Sequence[bool]):
        self.per_class, self.seed, self.aligned = per_class, seed, list(aligned)
        self.priorities = [np.empty(0) for _ in range(num_labels)]
        self.places = [np.empty((0, 4), np.int64) for _ in range(num_labels)]  # video, frame, row, column of the pixel
        self.features: list[list[torch.Tensor]] = [[] for _ in range(num_labels)]  # of each model (n, C)

    def add(self, video: int, frame: int, labels: np.ndarray, maps: Sequence[torch.Tensor]) -> None:
        """Draw from a frame.

        Args:
            video, frame: its numbers.
            labels: uint8 (H, W), with 255 for none.
            maps: of each model, its features (C, h, w).
        """
        coarsest = min(range(len(maps)), key=lambda i: maps[i].shape[1:].numel())
        numbers = torch.arange(labels.size).view(1, *labels.shape)
        pixels = labels_of_places(numbers, maps[coarsest].shape[1:], self.aligned[coarsest]).numpy()
        pixels = np.unique(pixels)  # (h * w,); fewer where a map is finer than its labels
        classes = labels.ravel()[pixels]
        priorities = np.random.default_rng([self.seed, video, frame]).random(len(pixels))
        for k in np.unique(classes[classes != IGNORE_INDEX]):
            own = np.flatnonzero(classes == k)
            own = own[np.argsort(priorities[own], kind="stable")[: self.per_class]]
            rows, columns = np.divmod(pixels[own], labels.shape[1])
            places = np.stack([np.full_like(rows, video), np.full_like(rows, frame), rows, columns], axis=1)
            self._merge(int(k), priorities[own], places, labels.shape, maps)

    def _merge(self, k: int, priorities: np.ndarray, places: np.ndarray, size: Any, maps: Any) -> None:
        """Let a frame's places of class k compete with those that were kept so far."""
        before = len(self.priorities[k])
        priorities = np.concatenate([self.priorities[k], priorities])
        places = np.concatenate([self.places[k], places])
        kept = first_of_each(places[:, 0], priorities, self.per_class)
        old, new = kept[kept < before], kept[kept >= before]
        if not len(new):
            return
        self.priorities[k], self.places[k] = priorities[kept], places[kept]
        rows, columns = places[new, 2], places[new, 3]
        added = []
        for map_, aligned in zip(maps, self.aligned, strict=True):
            row = place_over(rows, size[0], map_.shape[1], aligned)
            column = place_over(columns, size[1], map_.shape[2], aligned)
            added.append(map_[:, row, column].t().to(torch.promote_types(map_.dtype, torch.float32)).cpu())
        earlier = self.features[k] or [features[:0] for features in added]
        self.features[k] = [torch.cat([a[old], b]) for a, b in zip(earlier, added, strict=True)]


def first_of_each(groups: np.ndarray, priorities: np.ndarray, number: int) -> np.ndarray:
    """The positions, ascending, of the `number` items that come first, taking the first of each group, the second of
    each, and so on; within a group and within a round in the order of their priorities.

    Args:
        groups: (n,), what each item belongs to.
        priorities: (n,), lowest first.
        number: of items at most.
    """
    order = np.lexsort((priorities, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    rounds = np.empty(len(order), np.int64)
    rounds[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return np.sort(np.lexsort((priorities, rounds))[:number])


def place_over(pixels: np.ndarray, in_size: int, out_size: int, aligned: bool) -> np.ndarray:
    """Of each pixel along one side, the place of a map in which it lies.

    Args:
        pixels: 0..in_size-1.
        in_size: pixels of the side.
        out_size: places of the side.
        aligned: as for `PlaceSampler`.
    """
    if aligned:
        return np.floor(pixels * ((out_size - 1) / max(1, in_size - 1)) + 0.5).astype(np.int64)
    return ((2 * pixels + 1) * out_size) // (2 * in_size)


class CenterSums:
    """Adds up the features of all labelled places by class, for the class centres (K, C)."""

    def __init__(self, num_labels: int):
        self.sums: Any = 0.0
        self.counts = torch.zeros(num_labels, dtype=torch.float64)

    def add(self, features: torch.Tensor, labels: torch.Tensor, aligned: bool) -> None:
        """Add those of a batch: (B, C, h, w) and integer (B, H, W)."""
        places = labels_of_places(labels, features.shape[2:], aligned).flatten(1)  # (B, h * w)
        for of_place, classes in zip(features.flatten(2), places, strict=True):  # (C, h * w), (h * w,)
            counted = (classes != IGNORE_INDEX).to(of_place.device)
            own = F.one_hot(classes.to(of_place.device)[counted], len(self.counts)).double()
            self.sums = self.sums + (of_place[:, counted].double() @ own).t().cpu()
            self.counts += own.sum(dim=0).cpu()

    def centers(self) -> torch.Tensor:
        """(K, C), zeros for classes that do not occur."""
        return self.sums / self.counts.clamp(min=1)[:, None]


@dataclass
class Sampled:
    """What one pass over a data set gives; the lists are by model.

    Args:
        confusions: of each.
        centers: the mean features of the classes (K, C), over all labelled places of each one's own maps.
        occurs: bool (K,), the classes that have a labelled place in all of them.
        sampler: with `places` and `features` of each class.
    """

    confusions: list[ConfusionMatrix]
    centers: list[torch.Tensor]
    occurs: torch.Tensor
    sampler: PlaceSampler


def sample_features(
    subjects: Sequence[Subject],
    split: LabelledSplit,
    *,
    per_class: int,
    seed: int = 0,
    max_frames: int | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> Sampled:
    """Run models over the frames of a split and keep samples of what their classifiers read.

    Args:
        subjects: the models, of the split's classes.
        split: with masks.
        per_class: places of a class at most.
        seed: of the choice of places.
        max_frames: so many of each video, its first.
        batch_size: frames per forward pass of an image model.
        num_workers: processes that decode.
        progress: wraps the iterator of frames, given with their number.
    """
    if max_frames is not None:
        split = replace(split, videos=tuple(replace(v, frames=v.frames[:max_frames]) for v in split.videos))
    models = [subject.segmenter.model for subject in subjects]
    aligned = [align_corners(model) for model in models]
    number = split.classes.num_labels
    sampler = PlaceSampler(number, per_class, seed, aligned)
    confusions = [ConfusionMatrix(number) for _ in subjects]
    centers = [CenterSums(number) for _ in subjects]

    reader = FrameReader(split, range(len(split.videos)))
    batches = DataLoader(reader, batch_size, num_workers=num_workers, collate_fn=list, worker_init_fn=end_with_parent)
    frames = flatten(batches)
    if progress is not None:
        frames = progress(frames, len(reader))
    video, memories = None, []
    for group in runs(frames, batch_size, key=lambda frame: (frame.video, frame.values.shape)):
        if group[0].video != video:
            video, memories = group[0].video, [VideoMemory(model) for model in models]
        labels = torch.from_numpy(np.stack([split.reader.lookup[frame.values] for frame in group]))
        images: list[Any] = [frame.image for frame in group]
        with torch.inference_mode():
            maps = []
            for i, subject in enumerate(subjects):
                features, logits = subject.read(images, memories[i])
                confusions[i].add_counts(
                    upsampled_confusion(logits, labels.to(logits.device), align_corners=aligned[i])
                )
                centers[i].add(features, labels, aligned[i])
                maps.append(features)
            for frame, of_frame, *own in zip(group, labels.numpy(), *maps, strict=True):
                sampler.add(frame.video, frame.number, of_frame, own)
    occurs = torch.stack([sums.counts > 0 for sums in centers]).all(dim=0)
    return Sampled(confusions, [sums.centers() for sums in centers], occurs, sampler)
