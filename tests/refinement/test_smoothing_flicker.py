"""The filter against flicker, on sequences that can be followed by hand."""

import numpy as np
import pytest
import torch
from test_flow import texture

from vss_hf.refinement.flicker import FlickerFilter, FlickerSettings


IN_PLACE = {"flow": None, "photometric": None, "scene_cut": 1.0}


def filtered(sequence, **settings):
    """What one pixel shows of the labels that it sees."""
    step, frame = FlickerFilter(FlickerSettings(**{**IN_PLACE, **settings})), np.zeros((1, 1, 3), np.uint8)
    return [int(step(frame, np.array([[label]], np.uint8))[0, 0]) for label in sequence]


@pytest.mark.parametrize(
    "frames,seen,shown",
    [
        (2, [1, 2, 1, 2, 1, 1], [1, 1, 1, 1, 1, 1]),  # flicker
        (2, [1, 2, 2, 2, 1, 1], [1, 1, 2, 2, 2, 1]),  # a change, and back
        (3, [1, 2, 2, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 2]),  # in a row, not in all
        (3, [1, 2, 3, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 3]),  # of one label, not of several
        (3, [5, 0, 0, 0, 255, 255, 255], [5, 5, 5, 0, 0, 0, 255]),  # 0 and 255 are labels as others
        (2, [7], [7]),
    ],
)
def test_by_hand(frames, seen, shown):
    assert filtered(seen, frames=frames) == shown


def test_the_definition_on_noise():
    """A label is shown once its run is long enough."""
    rng = np.random.default_rng(0)
    sequence = rng.choice([0, 1, 2], size=(60, 6, 7), p=[0.7, 0.2, 0.1]).astype(np.uint8)
    step, frame = FlickerFilter(FlickerSettings(frames=4, **IN_PLACE)), np.zeros((6, 7, 3), np.uint8)
    found = np.stack([step(frame, labels) for labels in sequence])
    assert found.dtype == np.uint8
    for y in range(6):
        for x in range(7):
            seen, shown = sequence[:, y, x], [sequence[0, y, x]]
            for n in range(1, 60):
                last = seen[max(n - 3, 0) : n + 1]
                shown.append(seen[n] if len(last) == 4 and (last == seen[n]).all() else shown[-1])
            assert found[:, y, x].tolist() == shown


def test_long_runs_do_not_overflow():
    assert filtered([1] + [2] * 260, frames=255) == [1] * 255 + [2] * 6


def test_labels_move_with_things():
    """The camera pans by 4 pixels a frame; labels flicker in one frame. In place, moving borders are late."""
    whole = texture(48, 140)
    classes = np.tile((np.arange(140) // 10 % 3).astype(np.uint8), (48, 1))
    offsets = [24, 20, 16, 12]
    truth = [classes[:, start : start + 96].copy() for start in offsets]
    seen = [one.copy() for one in truth]
    seen[2][20:28, 40:70] = 9
    wrong = {}
    for name, flow in (("along", "lucas-kanade"), ("in place", None)):
        step = FlickerFilter(FlickerSettings(frames=2, flow=flow, photometric=None, scene_cut=1.0))
        shown = [step(whole[:, start : start + 96], one) for start, one in zip(offsets, seen, strict=True)]
        wrong[name] = [(one != right).mean() for one, right in zip(shown, truth, strict=True)]
        assert not (shown[2] == 9).any()
    assert max(wrong["along"]) < 0.05 and min(wrong["in place"][1:]) > 0.2


def test_what_looks_different_changes_at_once():
    frame = texture(20, 30) // 4 + 64
    other = frame.copy()
    other[5:10, 5:15] = 255 - other[5:10, 5:15]
    step = FlickerFilter(FlickerSettings(frames=3, flow=None, photometric=0.1, scene_cut=1.0))
    step(frame, np.full((20, 30), 1, np.uint8))
    shown = step(other, np.full((20, 30), 2, np.uint8))
    wanted = np.full((20, 30), 1, np.uint8)
    wanted[5:10, 5:15] = 2
    assert np.array_equal(shown, wanted)


def test_another_scene_video_or_size_begins_anew():
    frame, one, two = texture(16, 24) // 4, np.full((16, 24), 1, np.uint8), np.full((16, 24), 2, np.uint8)
    step = FlickerFilter(FlickerSettings(frames=2, flow=None))
    assert np.array_equal(step(frame, one), one)
    assert np.array_equal(step(frame, two), one)
    assert np.array_equal(step(frame + 120, one), one)
    assert np.array_equal(step(frame + 120, two), one)
    step.reset()
    assert np.array_equal(step(frame + 120, two), two) and step.state.shape == (3, 16, 24)
    assert step.state.dtype == torch.uint8
    step.reset()
    assert np.array_equal(step(frame[:10], one[:10]), one[:10])
