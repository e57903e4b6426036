"""What a search for weights found: the mean IoU on searched and on held-out videos, and how sure the gain is."""

from pathlib import Path
from typing import Any

import numpy as np

from vss_hf.metrics.confusion import class_scores
from vss_hf.metrics.intervals import LEVEL, mean_iou_resampled
from vss_hf.modeling.configuration_ensemble import EnsembleConfig

from .counts import WeightedCounts
from .weights import SearchSettings, method_of, search


def report_of(config: EnsembleConfig, counts: WeightedCounts, settings: SearchSettings) -> dict[str, Any]:
    """Search, and measure on held-out videos.

    Returns:
        - "members", as given, and "weights": found, of "searched" names (members, or groups), and "method";
        - "results": dicts of "name" (each member alone, equal weights, as given if that is something else, searched),
          "weights" of the members, "searched" and "held_out" mean IoU. With folds, "searched" is of all videos, with
          the weights that come from all of them, and "held_out" of all videos, each with the weights of the search
          that did not see it;
        - "gains": of the searched weights over "equal" ones and over the "best_member" (on searched videos), on both
          kinds of videos, with a 95 % "interval" of the held-out gain over draws of videos;
        - "warnings"; "videos", "pixels", and "open_pixels", which depend on the weights.
    """
    assert config.members is not None
    members = short_names([member["name"] for member in config.members])
    names = members if config.groups is None else list(config.groups)
    flat = flat_weights(config)
    splits = settings.splits(counts.videos)
    found = [search(counts, flat, searched, settings) for searched, _ in splits]
    if settings.folds is None:
        weights, searched_videos = found[0], splits[0][0]
    else:
        searched_videos = np.arange(counts.videos)
        weights = search(counts, flat, searched_videos, settings)
    held_out = np.concatenate([videos for _, videos in splits])
    fixed = {f"{name} alone": one for name, one in zip(members, np.eye(len(members)), strict=True)}
    equal = np.full(len(flat), 1 / len(flat)) @ flat
    fixed["equal weights"] = equal
    if not np.allclose(given := np.array(config.weights), equal):
        fixed["as given"] = given
    rows = []
    held: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # counts of the held-out videos
    for name, own in [*fixed.items(), ("searched", weights @ flat)]:
        hits, predicted = counts.counts(own)
        on_searched = summed(hits[searched_videos], counts.in_truth[searched_videos], predicted[searched_videos])
        if name == "searched":
            per_fold = [counts.counts(of_fold @ flat) for of_fold in found]
            parts = [(h[videos], p[videos]) for (h, p), (_, videos) in zip(per_fold, splits, strict=True)]
            held[name] = (np.concatenate([h for h, _ in parts]), np.concatenate([p for _, p in parts]))
        else:
            held[name] = (hits[held_out], predicted[held_out])
        on_held_out = summed(held[name][0], counts.in_truth[held_out], held[name][1])
        rows.append({"name": name, "weights": own.tolist(), "searched": on_searched, "held_out": on_held_out})
    best_member = max(rows[: len(members)], key=lambda row: row["searched"])["name"]
    gains = {
        "equal": gain("equal weights", rows, held, counts.in_truth[held_out]),
        "best_member": gain(best_member, rows, held, counts.in_truth[held_out]),
    }
    return {
        "members": config.members,
        "searched": names,
        "weights": [round(float(weight), 6) for weight in weights],
        "fold_weights": None if settings.folds is None else [[float(w) for w in one] for one in found],
        "method": method_of(len(flat), settings),
        "protocol": "vspw",
        "results": rows,
        "gains": gains,
        "warnings": warnings_of(gains, len(held_out)),
        "videos": {"searched": len(searched_videos), "held_out": len(held_out)},
        "pixels": int(counts.in_truth.sum()),
        "open_pixels": counts.open_pixels,
    }


def short_names(names: list[str]) -> list[str]:
    """Names of folders without the way there, where that still tells them apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) and all(short) else [f"{i}: {name}" for i, name in enumerate(names)]


def summed(hits: np.ndarray, in_truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean IoU of all videos together, of counts (videos, num_labels)."""
    return class_scores(hits.sum(axis=0), in_truth.sum(axis=0), predicted.sum(axis=0))["mean_iou"]


def flat_weights(config: EnsembleConfig) -> np.ndarray:
    """(searched weights, members): the identity, or for groups what each gives its members."""
    assert config.members is not None
    if config.groups is None:
        return np.eye(len(config.members))
    flat = np.zeros((len(config.groups), len(config.members)))
    for row, name in zip(flat, config.groups, strict=True):
        for i, member in enumerate(config.members):
            row[i] = member.get("weight", 1) if member["group"] == name else 0
        if not row.any():
            raise ValueError(f"group '{name}' has no member of a weight above 0, so its weight cannot be searched")
        row /= row.sum()
    return flat


def gain(
    over: str, rows: list[dict[str, Any]], held: dict[str, tuple[np.ndarray, np.ndarray]], in_truth: np.ndarray
) -> dict[str, Any]:
    """How much better the searched weights are than another row, and an interval of that on held-out videos."""
    by_name = {row["name"]: row for row in rows}
    one, other = by_name["searched"], by_name[over]
    # The same seed draws the same videos for both, so that these are pairs.
    draws = [mean_iou_resampled(held[name][0], in_truth, held[name][1]) for name in ("searched", over)]
    low, high = np.nanquantile(draws[0] - draws[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "over": over,
        "searched": one["searched"] - other["searched"],
        "held_out": one["held_out"] - other["held_out"],
        "interval": [float(low), float(high)],
    }


def warnings_of(gains: dict[str, dict[str, Any]], videos: int) -> list[str]:
    """What speaks against the searched weights."""
    told = []
    for one in gains.values():
        low, high = (100 * bound for bound in one["interval"])
        if low <= 0 or videos == 1:  # of one video all draws are alike
            verdict = "which may be chance" if high >= 0 or videos == 1 else "so they are worse"
            told.append(
                f"on {videos} held-out videos the searched weights gain {100 * one['held_out']:+.2f} mIoU over "
                f"{one['over']} (95 % of draws of videos: {low:+.2f} to {high:+.2f}), {verdict}"
            )
    equal = gains["equal"]
    if equal["searched"] > 0 and equal["held_out"] < equal["searched"] / 2:
        told.append(
            f"over-fitting: {100 * equal['searched']:+.2f} mIoU over equal weights on the searched videos, "
            f"{100 * equal['held_out']:+.2f} on the others; equal weights may be as good on new videos"
        )
    return told
