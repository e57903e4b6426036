"""For how many frames truth and prediction have been constant in each pixel: what every video consistency counts.

A window of n frames that ends now is constant in a pixel exactly when its run is at least n frames long. A prediction
that is constant in a window of constant truth, and right now, was right in all of it; so one run of each serves all
protocols. Memory is O(height x width): the last frame and two runs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ._tensors import as_label_map, at_least, count, equals


class WindowPixels(NamedTuple):
    """Pixels of one window.

    Args:
        constant: with constant truth.
        steady: of these, with constant prediction.
        labelled: of the constant ones, not void.
        right: of the labelled ones, predicted right in every frame.
    """

    constant: int
    steady: int
    labelled: int
    right: int


class FlickerPixels(NamedTuple):
    """Labelled pixels whose truth is that of the frame before, and those of them whose prediction is not."""

    constant: int
    changed: int


class SteadyRuns:
    """Runs of one video. Feed its frames in order; `reset` begins another.

    Args:
        longest: the longest window that is asked for; runs are counted up to it.
        ignore_index: label of void pixels.
    """

    def __init__(self, longest: int, ignore_index: int = 255):
        self.longest, self.ignore_index = longest, ignore_index
        self._dtype = torch.uint8 if longest < 255 else torch.int32  # bytes are four times as fast
        self.reset()

    def reset(self) -> None:
        """Forgets the video."""
        self.frames = 0
        nothing = torch.empty(0)
        self._prediction = self._reference = nothing  # the newest frame, (H, W)
        self._prediction_run = self._reference_run = nothing  # frames without a change, up to `longest`, (H, W)
        self._labelled = self._right = nothing  # of the newest frame: not void; not void and right, bool (H, W)

    def add_frame(self, prediction: Any, reference: Any, labels: Any = None) -> None:
        """Brings the runs up to the next frame.

        Args:
            prediction: predicted labels (H, W), tensor or array of any integer dtype.
            reference: what has to be constant (H, W): labels or raw values on disk.
            labels: true labels (H, W), by which void and right predictions are known; None: `reference`. Where two
                references that are not void differ, their labels must differ too.

        Raises:
            ValueError: a shape differs from the others or from the previous frame's, is not (H, W), or a dtype is not
                integer.
        """
        prediction = as_label_map(prediction, "prediction")
        reference = as_label_map(reference, "reference").to(prediction.device)
        labels = reference if labels is None else as_label_map(labels, "labels").to(prediction.device)
        self._check_shapes(prediction, reference, labels)
        if self.frames == 0:
            self._reference_run = torch.ones_like(reference, dtype=self._dtype)
            self._prediction_run = torch.ones_like(reference, dtype=self._dtype)
        else:
            _extend(self._reference_run, reference == self._reference, self.longest)
            _extend(self._prediction_run, prediction == self._prediction, self.longest)
        self._labelled = ~equals(labels, self.ignore_index)
        self._right = (prediction == labels) & self._labelled
        # copies, because callers like to reuse their buffers
        self._prediction, self._reference = prediction.clone(), reference.clone()
        self.frames += 1

    def windows_of(self, lengths: Sequence[int]) -> dict[int, WindowPixels]:
        """The windows that end with the newest frame, by their length; those longer than the video are left out.

        Args:
            lengths: in frames, each at most `longest`.
        """
        complete = [n for n in lengths if n <= self.frames]
        pixels = []
        for n in complete:
            constant = at_least(self._reference_run, n)  # (H, W)
            steady = constant & at_least(self._prediction_run, n)
            pixels += [count(constant), count(steady), count(constant & self._labelled), count(steady & self._right)]
        numbers = _as_numbers(pixels)
        return {n: WindowPixels(*numbers[4 * i : 4 * i + 4]) for i, n in enumerate(complete)}

    def flicker(self) -> FlickerPixels:
        """What flickers between the last two frames; (0, 0) at the first frame of a video."""
        if self.frames < 2:
            return FlickerPixels(0, 0)
        constant = at_least(self._reference_run, 2) & self._labelled
        changed = constant & equals(self._prediction_run, 1)
        return FlickerPixels(*_as_numbers([count(constant), count(changed)]))

    def _check_shapes(self, prediction: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> None:
        if not prediction.shape == reference.shape == labels.shape or prediction.ndim != 2:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and reference {tuple(reference.shape)}; "
                "both must be the same (height, width)"
            )
        if self.frames and self._reference.shape != reference.shape:
            raise ValueError(
                f"frame {self.frames} has shape {tuple(reference.shape)} and the frames of this video before it "
                f"{tuple(self._reference.shape)}; call end_video() between videos"
            )


def _extend(run: torch.Tensor, same: torch.Tensor, longest: int) -> None:
    run.clamp_(max=longest - 1).mul_(same).add_(1)


def _as_numbers(pixels: list[Any]) -> list[int]:
    """One transfer for all of them."""
    return torch.stack(pixels).tolist() if pixels and isinstance(pixels[0], torch.Tensor) else pixels
