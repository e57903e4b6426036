"""How far a mean IoU depends on which videos happen to be in the split: a bootstrap over videos.

Frames of one video are alike, so videos, not frames, are drawn. Pixels of each class are added over the drawn videos
and divided once, as in the score itself.
"""

import numpy as np

from .confusion import check_protocol


RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
BLOCK = 2**22  # numbers per intermediate table


def mean_iou_resampled(
    hits: np.ndarray,
    in_truth: np.ndarray,
    in_prediction: np.ndarray,
    protocol: str = "vspw",
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> np.ndarray:
    """The mean IoU of splits of equally many videos that are drawn, with repetition, from those that there are.

    Args:
        hits, in_truth, in_prediction: whole numbers (videos, num_labels), as of `ConfusionMatrix.class_pixels`.
        protocol: "vspw" or "evaluate".
        resamples: number of draws. The same seed draws the same videos, so models can be compared draw by draw.
        seed: of the draws.

    Returns:
        float64 (resamples,); NaN where no class is scored.

    Raises:
        ValueError: unknown protocol.
    """
    check_protocol(protocol)
    videos = len(hits)
    drawn = np.random.default_rng(seed).integers(0, videos, (resamples, videos))
    counts = np.zeros((resamples, videos))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    means = []
    for rows in np.array_split(counts, max(1, resamples * hits.shape[1] // BLOCK)):
        # sums of whole numbers below 2^53 are exact, whatever the order
        right, truth, predicted = (rows @ pixels.astype(np.float64) for pixels in (hits, in_truth, in_prediction))
        union = truth + predicted - right
        scored = truth > 0 if protocol == "vspw" else union > 0
        iou = np.where(scored, right / np.maximum(union, 1), 0)
        number = scored.sum(axis=1)
        means.append(np.where(number > 0, iou.sum(axis=1) / np.maximum(number, 1), np.nan))
    return np.concatenate(means)


def mean_iou_interval(
    hits: np.ndarray, in_truth: np.ndarray, in_prediction: np.ndarray, protocol: str = "vspw"
) -> dict[str, float | int | str] | None:
    """The interval that holds 95 % of `mean_iou_resampled`, with what it is; None for fewer than two videos.

    Args:
        hits, in_truth, in_prediction, protocol: as of `mean_iou_resampled`.
    """
    if np.count_nonzero(in_truth.any(axis=1)) < 2:
        return None
    means = mean_iou_resampled(hits, in_truth, in_prediction, protocol)
    low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    of = {"level": LEVEL, "over": "videos", "resamples": RESAMPLES, "seed": SEED}
    return {"low": float(low), "high": float(high), **of}
