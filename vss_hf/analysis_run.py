"""One analysis from models and data to pictures and numbers: what `vss-hf analyze` does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vss_hf.data.splits import LabelledSplit, open_split
from vss_hf.fields import known_or_raise
from vss_hf.files import write_json
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.scoring.ground_truth import check_classes

from .analysis import (
    FEWEST,
    check_analysable,
    class_tokens,
    embedding_method,
    matrix_numbers,
    most_confused,
    separation,
)
from .analysis_features import Sampled, Subject, sample_features
from .analysis_plots import plot_dependencies, plot_features


@dataclass
class Features:
    """Whose features are looked at, and how.

    Args:
        split: with masks, of the models' classes.
        dataset: how results call the data.
        classes: that are drawn; None: `most_confused` by the first model, of those with enough places.
        method: "tsne" or "umap".
        samples: places of a class at most.
        max_frames: so many of each video, its first.
        seed: of the choice of places, and of the method.
        batch_size: frames per forward pass of an image model.
        num_workers: processes that decode.
    """

    split: LabelledSplit
    dataset: str
    classes: list[int] | None = None
    method: str = "tsne"
    samples: int = 300
    max_frames: int | None = None
    seed: int = 0
    batch_size: int = 4
    num_workers: int = 0


def open_subjects(given: Sequence[tuple[str, str]], device: torch.device | None = None) -> list[Subject]:
    """Load models and check that they can be looked at, and compared.

    Args:
        given: of each the folder or Hub id, and the branch.
        device: where to run.

    Raises:
        ValueError: a model has no class tokens, or not the branch, or other classes than the first.
    """
    subjects = []
    for (source, branch), name in zip(given, distinct_names(given), strict=True):
        segmenter = VideoSegmenter.from_pretrained(source, device)
        check_analysable(segmenter.model, source, branch)
        subjects.append(Subject(name, segmenter, branch))
        if segmenter.names != subjects[0].segmenter.names:
            raise ValueError(f"{source} has other classes than {given[0][0]}: there is nothing to compare")
    return subjects


def distinct_names(given: Sequence[tuple[str, str]]) -> list[str]:
    """What models are called: their folder's name, or of `.../NAME/model` NAME; with the branch where that differs."""
    names = []
    for source, branch in given:
        parts = [part for part in Path(source).parts if part not in (".", "..", "/")]
        short = parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1] if parts else source
        names.append(short if branch == "output" else f"{short} ({branch})")
    return names if len(set(names)) == len(names) else [f"{n + 1}: {name}" for n, name in enumerate(names)]


def open_labelled(
    root: str | Path, split: str, source: str, table: str | Path | None, names: list[str]
) -> LabelledSplit:
    """A split with masks of a model's classes; arguments and errors as `open_split`."""
    opened = open_split(root, split, source=source, table=table)
    if not opened.has_masks:
        raise ValueError(f"split '{split}' of {root} has no masks, so it does not tell which class a feature is of")
    check_classes(names, opened.classes, root)
    return opened


def chosen_classes(text: str, names: list[str]) -> list[int]:
    """The classes that `--classes NAME,NAME,...` names, two or more."""
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    for name in chosen:
        known_or_raise(name, names, "--classes: there is no class")
    if len(set(chosen)) < max(2, len(chosen)):
        raise ValueError(f"--classes {text}: expected two or more names, each once")
    return [names.index(name) for name in chosen]


def analyze_models(
    subjects: Sequence[Subject],
    out: Path,
    features: Features | None = None,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> dict[str, Any]:
    """Draw what one or two models make of their classes, and write the numbers beside: class_tokens.png,
    class_centers.png and features_tsne.png or features_umap.png, and analysis.json.

    Args:
        subjects: of `open_subjects`.
        out: folder, made if it is not there.
        features: None: the class tokens alone.
        progress: wraps the iterator of frames, given with their number.

    Returns:
        models: by name, class_tokens (`matrix_numbers`), and with features class_centers (the same, of the mean
        features of the classes that occur) and features (`separation`, mean_iou over classes that occur, and points,
        those of the picture); with features also features: which data, classes and method, and of each point its place
        (position of the class in classes, video, frame, row and column of the pixel); files.

    Raises:
        ValueError: a class has too few places, features are broken, or the method's package is missing.
    """
    embed = None if features is None else embedding_method(features.method, features.seed)
    out.mkdir(parents=True, exist_ok=True)
    names = subjects[0].segmenter.names
    models: dict[str, dict[str, Any]] = {subject.name: {} for subject in subjects}
    tokens = [class_tokens(subject.segmenter.model) for subject in subjects]
    files = [draw_matrices(subjects, tokens, names, "class tokens", "class_tokens", models, out)]
    results: dict[str, Any] = {"models": models}
    if features is not None and embed is not None:
        sampled = sample_features(
            subjects,
            features.split,
            per_class=features.samples,
            seed=features.seed,
            max_frames=features.max_frames,
            batch_size=features.batch_size,
            num_workers=features.num_workers,
            progress=progress,
        )
        chosen = classes_to_draw(features, sampled)
        check_features(subjects, sampled, chosen)
        present = sampled.occurs.nonzero().flatten().tolist()
        centers = [center[present] for center in sampled.centers]
        there = [names[k] for k in present]
        files.append(
            draw_matrices(subjects, centers, there, "class centres of features", "class_centers", models, out)
        )
        files.append(draw_features(subjects, sampled, chosen, features, embed, models, out))
        results["features"] = {
            "dataset": features.dataset,
            "split": features.split.name,
            "method": features.method,
            "seed": features.seed,
            "max_frames": features.max_frames,
            "classes": [names[k] for k in chosen],
            "chosen": "the most confused" if features.classes is None else "by name",
            "places": places_of(sampled, chosen, features.split),
        }
    results["files"] = [str(path) for path in files]
    write_json(out / "analysis.json", results)
    return results


def draw_matrices(
    subjects: Sequence[Subject],
    vectors: Sequence[torch.Tensor],
    names: list[str],
    what: str,
    key: str,
    models: dict[str, dict[str, Any]],
    out: Path,
) -> Path:
    """Draw the dependency matrix of each model's vectors, and keep its numbers in `models`, under `key`."""
    scales = [getattr(s.segmenter.model.decode_head.classifier, "cosine_scale", None) for s in subjects]
    matrices = [matrix_numbers(own, names, scale) for own, scale in zip(vectors, scales, strict=True)]
    for of_model, matrix in zip(models.values(), matrices, strict=True):
        of_model[key] = matrix
    path = out / f"{key}.png"
    plot_dependencies(matrices, list(models), what, path)
    return path


def check_features(subjects: Sequence[Subject], sampled: Sampled, chosen: list[int]) -> None:
    """Raise unless there is something to see in each model's features of the chosen classes."""
    for i, subject in enumerate(subjects):
        if not sampled.centers[i].isfinite().all():
            raise ValueError(f"{subject.name}: some of its features are infinite or no numbers")
        read = torch.cat([sampled.sampler.features[k][i] for k in chosen])  # (N, C)
        if (read == read[0]).all():  # of such samples scikit-learn's t-SNE does not come back
            raise ValueError(f"{subject.name}: its features are the same at all places")


def classes_to_draw(features: Features, sampled: Sampled) -> list[int]:
    """The classes asked for, or those that the first model confuses most."""
    found = [len(places) for places in sampled.sampler.places]
    names = features.split.classes.names
    for k in features.classes or []:
        if found[k] < FEWEST:
            raise ValueError(
                f"--classes {names[k]}: {features.split} has {found[k]} places of it in the model's feature maps; "
                f"expected at least {FEWEST}"
            )
    if features.classes is not None:
        return features.classes
    enough = [k for k, number in enumerate(found) if number >= FEWEST]
    if len(enough) < 2:
        raise ValueError(f"{features.split}: fewer than two classes have {FEWEST} places in the model's feature maps")
    return most_confused(sampled.confusions[0].counts, enough)


def draw_features(
    subjects: Sequence[Subject],
    sampled: Sampled,
    chosen: list[int],
    features: Features,
    embed: Callable[[np.ndarray], np.ndarray],
    models: dict[str, dict[str, Any]],
    out: Path,
) -> Path:
    """Lay out and draw the samples of the chosen classes, and keep each model's numbers in `models`, by its name."""
    names = [subjects[0].segmenter.names[k] for k in chosen]
    classes = np.repeat(np.arange(len(chosen)), [len(sampled.sampler.places[k]) for k in chosen])  # (N,)
    points, titles = [], []
    for i, (name, of_model) in enumerate(models.items()):
        read = torch.cat([sampled.sampler.features[k][i] for k in chosen]).numpy()  # (N, C)
        numbers = {**separation(read, classes, names), "mean_iou": sampled.confusions[i].compute()["mean_iou"]}
        points.append(np.asarray(embed(read), dtype=np.float64))
        of_model["features"] = {**numbers, "points": points[-1].round(3).tolist()}
        titles.append(f"{name}\nmIoU {numbers['mean_iou']:.3f}, silhouette {numbers['silhouette']:.3f}")
    path = out / f"features_{features.method}.png"
    plot_features(points, classes, names, titles, path)
    return path


def places_of(sampled: Sampled, chosen: list[int], split: LabelledSplit) -> list[list[Any]]:
    """Of each point: position of its class, video, frame, row and column of the pixel."""
    places = []
    for position, k in enumerate(chosen):
        for video, frame, row, column in sampled.sampler.places[k].tolist():
            record = split.videos[video]
            places.append([position, record.name, record.frames[frame].stem, row, column])
    return places
