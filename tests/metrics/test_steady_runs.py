"""Runs of constancy against loops over pixels; all protocols of the video consistency from one pass."""

import numpy as np
import pytest
import torch
from test_video_consistency import random_video, slow_windows, stream

from vss_hf.metrics import SteadyRuns, VideoConsistency
from vss_hf.metrics.video_consistency import PROTOCOLS


LOOKUP = np.array([255, 0, 1, 2, 3, *[255] * 251], np.uint8)


def test_all_protocols_in_one_pass_are_each_alone():
    """The scripts' protocols look at values on disk (void is 0 and 255), the paper's at labels."""
    videos = [random_video(seed, length) for seed, length in enumerate([9, 4, 3, 12, 1, 20])]
    for predictions, values in videos:
        predictions %= 3  # labels; many are right
        values[:, 3:4] = np.where(np.arange(len(values)) % 5 == 0, 0, 255)[:, None, None]
    together = {name: VideoConsistency((3, 4, 7), name) for name in PROTOCOLS}
    runs = SteadyRuns(7)
    for predictions, values in videos:
        for prediction, value in zip(predictions, values, strict=True):
            runs.add_frame(prediction, value, LOOKUP[value])
            windows = runs.windows_of((3, 4, 7))
            for consistency in together.values():
                consistency.add_windows(windows)
        runs.reset()
        for consistency in together.values():
            consistency.end_video()
    for name, consistency in together.items():
        alone = VideoConsistency((3, 4, 7), name)
        stream(alone, [(guesses, LOOKUP[values] if name == "paper" else values) for guesses, values in videos])
        assert consistency.compute() == alone.compute() and 0 < alone.compute()["vc4"] < 1
        assert torch.equal(consistency.totals, alone.totals)
    for n, key in ((3, "vc3"), (7, "vc7")):
        windows = sum((slow_windows(guesses, LOOKUP[values], n, "paper") for guesses, values in videos), [])
        scored = [value for value in windows if value is not None]
        assert together["paper"].compute()[key] == pytest.approx(np.mean(scored), abs=1e-12)


def test_flicker_counts_labelled_pixels_whose_truth_stays():
    predictions, references = random_video(3, 8)
    runs = SteadyRuns(8)
    for t, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        runs.add_frame(prediction, reference)
        constant = changed = 0
        for y, x in np.ndindex(prediction.shape) if t else ():
            if references[t, y, x] == references[t - 1, y, x] != 255:
                constant += 1
                changed += predictions[t, y, x] != predictions[t - 1, y, x]
        assert runs.flicker() == (constant, changed)
    assert 0 < changed < constant < prediction.size


@pytest.mark.parametrize("longest", [254, 255, 300])
def test_windows_longer_than_a_byte_counts(longest):
    still, runs = np.zeros((2, 3), np.uint8), SteadyRuns(longest)
    for number in range(longest + 60):
        runs.add_frame(still + (number == 5), still)
        if number == longest + 4:  # frame 5 is in the window, alone
            assert runs.windows_of([longest])[longest] == (6, 0, 6, 0)
    assert runs.windows_of([longest])[longest] == (6, 6, 6, 6)
    assert runs.windows_of([longest, 2]).keys() == {longest, 2} and runs.frames == longest + 60


def test_windows_that_are_not_complete_are_left_out():
    runs = SteadyRuns(4)
    assert runs.windows_of((2, 4)) == {} and runs.flicker() == (0, 0)
    for _ in range(3):
        runs.add_frame(np.zeros((2, 3), int), np.zeros((2, 3), int))
    assert list(runs.windows_of((2, 4))) == [2]
    with pytest.raises(ValueError, match=r"frame 3 has shape \(4, 3\) .* \(2, 3\); call end_video\(\)"):
        runs.add_frame(np.zeros((4, 3), int), np.zeros((4, 3), int))
    with pytest.raises(ValueError, match="labels has dtype float64"):
        runs.add_frame(np.zeros((2, 3), int), np.zeros((2, 3), int), np.zeros((2, 3)))
