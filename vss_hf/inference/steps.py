"""What can happen to a frame between the model and its label map.

    frame -> model -> ScoreMap -> score steps -> labels -> label steps -> label map

A score step changes the scores of all classes (e.g. smooths them over time), a label step the finished labels (e.g.
refines their borders). `VideoSegmenter` takes both and calls them for every frame, in order.

A step that has a method `set_names(names)` is told the names of the classes, in the order of the labels, when the
segmenter is made. A step may remember the video that it is in; `reset` makes it forget. It is called before the first
frame of every video, and where frames change their size in the middle of one. `memory_options` are the settings of a
label step that can be lowered where memory runs out in it; the error names them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .score_maps import ScoreMap


class ScoreStep(Protocol):
    """Changes the scores of a frame."""

    def reset(self) -> None:
        """A new video begins."""
        ...

    def __call__(self, image: np.ndarray, scores: ScoreMap) -> ScoreMap:
        """The next frame of the video.

        Args:
            image: uint8 (H, W, 3) RGB.
            scores: of this frame, at its size.

        Returns:
            The scores to go on with, of the same classes and size.
        """
        ...


class LabelStep(Protocol):
    """Changes the labels of a frame."""

    def reset(self) -> None:
        """A new video begins."""
        ...

    def __call__(self, image: np.ndarray, labels: np.ndarray, scores: ScoreMap) -> np.ndarray:
        """The next frame of the video.

        Args:
            image: uint8 (H, W, 3) RGB.
            labels: uint8 (H, W), what the steps before made of the scores.
            scores: of this frame, after the score steps.

        Returns:
            uint8 (H, W), the labels to go on with: classes that the scores know.
        """
        ...


def recorded(steps: Sequence[Any]) -> list[dict[str, Any]]:
    """What results say of the steps that made them: class names, and `settings` (a dict for JSON) of those that have
    any."""
    return [{"step": type(step).__name__, **getattr(step, "settings", {})} for step in steps]
