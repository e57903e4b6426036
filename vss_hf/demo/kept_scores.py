"""The scores of a frame in a small file, of which any pixel can be asked later: what the model gave, at its own
resolution, and how it is interpolated. Nothing is pickled.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vss_hf.inference.interpolation import Interpolation
from vss_hf.inference.score_maps import LogitScores, MaskScores, ScoreMap, WeightedScores


LOWEST = -6e4  # what half precision holds
Arrays = dict[str, np.ndarray]


def kept_scores(scores: ScoreMap) -> Arrays | None:
    """The arrays of a frame's scores, for `scores_at` and `np.savez`; None: this kind of map cannot be kept.

    The scores of several views of a frame cannot: they are too many.
    """
    arrays: Arrays = {}
    for number, (weight, one) in enumerate(summands(scores)):
        if isinstance(one, LogitScores):
            # Softmax does not see the shift, which is the same for all classes in the interpolated pixel, too. And
            # half precision is finest near 0, where the best classes are now.
            maps = one.image - one.image.amax(dim=1, keepdim=True)  # (h, K, w)
        elif isinstance(one, MaskScores):
            maps = one.masks  # (h, Q, w)
            arrays[f"classes{number}"] = one.classes.float().cpu().numpy()  # (K, Q)
            arrays[f"normalised{number}"] = np.array(one.normalised)
        else:
            return None
        arrays[f"maps{number}"] = maps.clamp(LOWEST, -LOWEST).half().cpu().numpy()
        arrays[f"weight{number}"] = np.array(weight)
        arrays |= {f"{name}{number}": array for name, array in supports(one.interpolation).items()}
    return arrays


def summands(scores: ScoreMap, weight: float = 1.0) -> list[tuple[float, ScoreMap]]:
    """The weighted maps that a map is the sum of."""
    if not isinstance(scores, WeightedScores):
        return [(weight, scores)]
    return [pair for of_one, one in scores.members for pair in summands(one, weight * of_one)]


def supports(interpolation: Interpolation) -> Arrays:
    """Which positions of the small map each row and column of the frame is made of, and what they count."""
    rows, columns = interpolation.vertical, interpolation.horizontal
    named = {"row": rows.index, "row_weight": rows.weight, "column": columns.index, "column_weight": columns.weight}
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def save_scores(arrays: Arrays, path: Path) -> None:
    """Write what `kept_scores` gave."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_scores(path: Path) -> Arrays:
    """What `save_scores` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def scores_at(arrays: Mapping[str, np.ndarray], y: int, x: int) -> np.ndarray:
    """The scores of all classes at one pixel: float64 (num_labels,), summing to 1."""
    count = sum(name.startswith("maps") for name in arrays)
    total = sum(float(arrays[f"weight{number}"]) * of_summand(arrays, number, y, x) for number in range(count))
    return np.asarray(total / max(np.sum(total), 1e-12))


def of_summand(arrays: Mapping[str, np.ndarray], number: int, y: int, x: int) -> np.ndarray:
    """The scores (num_labels,) of one map at one pixel."""
    rows, columns = arrays[f"row{number}"][y], arrays[f"column{number}"][x]
    support = arrays[f"maps{number}"][rows][..., columns].astype(np.float64)  # (n, C, n)
    weights = (arrays[f"row_weight{number}"][y], arrays[f"column_weight{number}"][x])
    values = torch.from_numpy(np.einsum("rck,r,k->c", support, *weights))
    if f"classes{number}" not in arrays:
        return values.softmax(dim=0).numpy()
    scores = arrays[f"classes{number}"] @ values.sigmoid().numpy()
    return scores / max(scores.sum(), 1e-12) if arrays[f"normalised{number}"] else scores
