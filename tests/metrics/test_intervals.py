"""The bootstrap over videos against a loop that draws videos one by one."""

import numpy as np
import pytest

from vss_hf.metrics import ConfusionMatrix, mean_iou_interval, mean_iou_resampled


def random_videos(number, num_labels=5, seed=0):
    """Confusion matrices of videos that hold few classes each."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(number):
        truth = rng.choice(rng.choice(num_labels - 1, 2, replace=False), 60)
        wrong = rng.random(60) < rng.uniform(0, 0.8)
        matrix = ConfusionMatrix(num_labels)
        matrix.update(np.where(wrong, rng.integers(0, num_labels, 60), truth), truth)
        matrices.append(matrix)
    return matrices


def stacked(matrices):
    return tuple(np.stack(rows) for rows in zip(*(matrix.class_pixels() for matrix in matrices), strict=True))


@pytest.mark.parametrize("protocol", ["vspw", "evaluate"])
def test_each_draw_is_the_score_of_the_drawn_videos(protocol):
    matrices = random_videos(6)
    means = mean_iou_resampled(*stacked(matrices), protocol, resamples=40, seed=3)
    drawn = np.random.default_rng(3).integers(0, 6, (40, 6))
    for row, mean in zip(drawn, means, strict=True):
        together = ConfusionMatrix(5)
        for video in row:
            together.merge(matrices[video])
        assert mean == pytest.approx(together.compute(protocol)["mean_iou"], abs=1e-12)
    assert len(set(means)) > 20


def test_interval():
    matrices = random_videos(30)
    found = mean_iou_interval(*stacked(matrices))
    assert found == mean_iou_interval(*stacked(matrices))  # seeded
    means = np.sort(mean_iou_resampled(*stacked(matrices)))
    assert (found["low"], found["high"]) == pytest.approx((means[25], means[974]), abs=2e-3)
    together = ConfusionMatrix(5)
    for matrix in matrices:
        together.merge(matrix)
    assert found["low"] < together.compute()["mean_iou"] < found["high"]
    assert {key: found[key] for key in ("level", "over", "resamples", "seed")} == {
        "level": 0.95,
        "over": "videos",
        "resamples": 1000,
        "seed": 0,
    }
    more = mean_iou_interval(*stacked(matrices * 9))
    assert more["high"] - more["low"] < (found["high"] - found["low"]) / 2  # nine times the videos, a third of it


def test_fewer_than_two_videos_have_none():
    videos = stacked(random_videos(3))
    assert mean_iou_interval(*(pixels[:1] for pixels in videos)) is None
    nothing = [pixels.copy() for pixels in videos]
    for pixels in nothing:
        pixels[1:] = 0  # two videos without a labelled pixel
    assert mean_iou_interval(*nothing) is None
    with pytest.raises(ValueError, match="protocol is 'vspv'"):
        mean_iou_interval(*videos, "vspv")
