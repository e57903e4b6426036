"""How well a model keeps its classes apart: its class tokens, and the features that its classifier reads.

    image -> backbone -> decode head -> features (C, h, w) --> classifier (K, C): its K rows are the class tokens
                                                          `--> logits of a place: its features · each token

The pictures of these numbers are made in analysis_plots.py, the features are gathered in analysis_features.py.

Paper: Huang et al., "High-level Feature Guided Decoder for Semantic Segmentation", Fig. 4 (features), and Fig. 6 with
appendix C.1 (tokens), which follows Huang et al., "CAR: Class-aware Regularizations", ECCV 2022.

Letters: K classes, C channels, N samples.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .install import install_advice


BRANCHES = ("output", "high-level")
METHODS = {"tsne": ("sklearn.manifold", "scikit-learn"), "umap": ("umap", "umap-learn")}  # its module, its package
PAIRS = 10  # that are named of a matrix
FEWEST = 10  # samples of a class at least, to say something about it
MOST_CONFUSED = 8  # classes that are shown unless others are asked for, as in the paper


# --- models


def check_analysable(model: Any, place: str, branch: str = "output") -> None:
    """Raise unless a model has class tokens, and features that they are multiplied with.

    Args:
        model: the model.
        place: how messages call it.
        branch: of `BRANCHES`, whose features are wanted.

    Raises:
        ValueError: with the reason.
    """
    kind = type(model).__name__
    if hasattr(model, "segmenters"):
        raise ValueError(f"{place}: an ensemble has no class tokens of its own; analyse its members one by one")
    head = getattr(model, "decode_head", None)
    weight = getattr(getattr(head, "classifier", None), "weight", None)
    if weight is None or weight.shape != (model.config.num_labels, weight.shape[1], 1, 1):
        reason = "expected a per-pixel model, whose last layer is a 1x1 convolution decode_head.classifier"
        if hasattr(model, "class_predictor"):
            reason = "it classifies queries, whose masks it adds up, so no token of a class meets features of pixels"
        raise ValueError(f"{place}: {kind} has no class tokens: {reason}")
    broken = (~weight.isfinite()).flatten(1).any(dim=1).sum().item()
    if broken:
        raise ValueError(f"{place}: its class tokens are infinite or no numbers in {broken} of {len(weight)} classes")
    if branch == "high-level" and not getattr(head, "guidance", False):
        raise ValueError(
            f"{place}: branch 'high-level' is that of HFGD models with guidance, where the classifier reads the "
            f"high-level features, too; {kind} "
            + ("has guidance=False" if hasattr(head, "guidance") else "has the branch 'output' alone")
        )


def class_tokens(model: Any) -> torch.Tensor:
    """The class tokens (K, C), float64: the rows of the decode head's classifier."""
    return model.decode_head.classifier.weight.detach()[:, :, 0, 0].double().cpu()


# --- matrices


def dependency(vectors: torch.Tensor, cosine_scale: float | None = None) -> torch.Tensor:
    """How much each class depends on the others: the class dependency matrix.

        A = softmax over j of v_i · v_j / sqrt(C)

    with v_i the token (HFGD, Fig. 6) or the centre of the features (CAR) of class i. HFGD's paper gives no formula and
    refers to CAR, which compares classes in this way (`get_inter_class_relations` of its code, and its loss
    `inter_c2c`). A row sums to 1; the more of it lies on the diagonal, the less a class depends on others. Short
    vectors give 1/K everywhere.

    Args:
        vectors: (K, C).
        cosine_scale: of a classifier that takes the cosine. Lengths do not count in it: the softmax is that of its
            own logits, cosine_scale * cosine of v_i and v_j.

    Returns:
        (K, K), float64.
    """
    vectors = vectors.double()
    if cosine_scale is not None:
        vectors = F.normalize(vectors, dim=1)
        return (cosine_scale * vectors @ vectors.t()).softmax(dim=1)
    return (vectors @ vectors.t() / vectors.shape[1] ** 0.5).softmax(dim=1)


def matrix_numbers(vectors: torch.Tensor, names: Sequence[str], cosine_scale: float | None = None) -> dict[str, Any]:
    """The dependency matrix of classes and what can be read from it, for JSON.

    Args:
        vectors: (K, C), tokens or centres.
        names: of the K classes.
        cosine_scale: as for `dependency`.

    Returns:
        classes; mean_diagonal and mean_off_diagonal of the matrix; chance, 1/K; mean_cosine, between different
        classes' vectors, which does not depend on their lengths; most_dependent, the largest entries beside the
        diagonal (class, on, score); matrix.
    """
    matrix = dependency(vectors, cosine_scale)
    number = len(names)
    others = ~torch.eye(number, dtype=torch.bool)
    normalised = F.normalize(vectors.double(), dim=1)
    order = matrix.where(others, -1).flatten().argsort(descending=True, stable=True).tolist()
    pairs = [divmod(index, number) for index in order[: min(PAIRS, number * (number - 1))]]
    return {
        "classes": list(names),
        "mean_diagonal": matrix.diagonal().mean().item(),
        "mean_off_diagonal": mean_or_none(matrix[others]),
        "chance": 1 / number,
        "mean_cosine": mean_or_none((normalised @ normalised.t())[others]),
        "most_dependent": [{"class": names[i], "on": names[j], "score": matrix[i, j].item()} for i, j in pairs],
        "matrix": matrix.tolist(),
    }


def mean_or_none(values: torch.Tensor) -> float | None:
    """None for no values: JSON has no NaN."""
    return values.mean().item() if values.numel() else None


# --- classes


def most_confused(counts: torch.Tensor, candidates: Sequence[int], number: int = MOST_CONFUSED) -> list[int]:
    """The classes that a model confuses most with each other.

    Of two classes that is the share of each one's pixels that are predicted as the other, added up. The first two are
    the pair with the largest sum; then, again and again, the class follows whose sums with those chosen are largest
    together.

    Args:
        counts: (K, K) pixels; rows are the ground truth, columns the prediction.
        candidates: classes to choose from.
        number: how many to choose; fewer if there are not so many candidates.

    Returns:
        The classes, in the order in which they were chosen.
    """
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    confusion = (shares + shares.t()).fill_diagonal_(-1)[list(candidates)][:, list(candidates)]
    if len(candidates) <= 2:
        return list(candidates)
    chosen = list(divmod(int(confusion.argmax()), len(candidates)))
    while len(chosen) < min(number, len(candidates)):
        sums = confusion[:, chosen].sum(dim=1)
        sums[chosen] = -1
        chosen.append(int(sums.argmax()))
    return [candidates[i] for i in chosen]


# --- features


def separation(features: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How far classes lie apart in the space of their features, by Euclidean distances.

    Args:
        features: (N, C).
        classes: (N,), the position in `names` of each sample's class; each occurs.
        names: of at least two classes.

    Returns:
        silhouette (Rousseeuw 1987), from -1 to 1, the mean over classes; inter_to_intra, the mean over classes of
        theirs; and per_class: silhouette, the mean of its samples'; intra, the mean distance of its samples to its
        centre; inter, the distance of its centre to the nearest other one; nearest, that class; inter_to_intra, their
        ratio (None where all samples are one), samples.
    """
    from sklearn.metrics import silhouette_samples

    features = features.astype(np.float64)
    silhouettes = np.asarray(silhouette_samples(features, classes))
    centers = np.stack([features[classes == k].mean(axis=0) for k in range(len(names))])  # (K, C)
    between = np.linalg.norm(centers[:, None] - centers[None], axis=2)  # (K, K)
    np.fill_diagonal(between, np.inf)
    per_class = {}
    for k, name in enumerate(names):
        intra = float(np.linalg.norm(features[classes == k] - centers[k], axis=1).mean())
        inter = float(between[k].min())
        per_class[name] = {
            "samples": int((classes == k).sum()),
            "silhouette": float(np.mean(silhouettes[classes == k])),
            "intra": intra,
            "inter": inter,
            "nearest": names[int(between[k].argmin())],
            "inter_to_intra": inter / intra if intra else None,
        }
    ratios = [of_class["inter_to_intra"] for of_class in per_class.values()]
    return {
        "silhouette": float(np.mean([of_class["silhouette"] for of_class in per_class.values()])),
        "inter_to_intra": None if None in ratios else float(np.mean(ratios)),
        "per_class": per_class,
    }


def embedding_method(method: str, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """What lays features (N, C) out in the plane, (N, 2): neighbours stay neighbours, far distances mean little.

    Args:
        method: "tsne" (van der Maaten and Hinton 2008) or "umap" (McInnes et al. 2018), which the paper uses; with
            the usual settings of scikit-learn and umap-learn.
        seed: of its random numbers.

    Raises:
        ValueError: there is no such method, or its package is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method}: expected {' or '.join(METHODS)}")
    module, package = METHODS[method]
    try:
        library = import_module(module)
    except ImportError as error:
        raise ValueError(f"--method {method} needs {package} ({error}): {install_advice('analysis')}") from error
    if method == "tsne":
        # A perplexity counts neighbours: more than a third of the samples is refused as meaningless.
        return lambda x: library.TSNE(perplexity=min(30, (len(x) - 1) / 3), random_state=seed).fit_transform(x)
    return lambda x: library.UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)
