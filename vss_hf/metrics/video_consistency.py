"""Video consistency (VC_n): of the pixels whose true label stays the same for n frames, the share predicted steadily.

VC_n was proposed with VSPW (Miao et al., CVPR 2021). A window is n consecutive frames; C is the set of pixels whose
ground truth does not change in it. What is counted differs between the published scripts and the text, so the protocol
is named in every result:

| protocol        | a pixel of C counts when       | windows of a video    | void pixels           |
|-----------------|--------------------------------|-----------------------|-----------------------|
| "vspw-official" | the prediction does not change | len - n (not the last)| in C when constant    |
| "paper"         | the prediction is right        | len - n + 1           | never in C            |
| "dvis-legacy"   | as vspw-official               | as vspw-official      | as vspw-official      |

The score is the mean over all windows of all videos; windows with an empty C are dropped and counted as such.

- "vspw-official" is `VC_perclip.py` of VSPW_code. It never compares the prediction with the ground truth: a constant
  prediction scores 1. Published numbers follow it.
- "dvis-legacy" is `utils/eval_vc_vspw.py` of DVIS_Plus (VidEoMT and others copied it). Its list of windows is not
  emptied between n=8 and n=16, so that its "VC16" is the mean over the VC8 *and* VC16 windows, which is higher.

**Which label space.** "vspw-official" depends on it, because 0 and 255 on disk are both void but distinct values: the
script that reads PNG files (`VC_perclip.py`) sees two constants where a model's evaluation loop (`test_clip.py`) sees
one. Give raw disk values as `reference` to reproduce the first and labels (void = 255) to reproduce the second; they
differ in the third decimal. "paper" needs labels: prediction and reference must mean the same by the same number.

Memory is O(height x width), whatever the number of frames (`SteadyRuns`). All protocols need the same runs: to have
the scores of several in one pass, keep one `SteadyRuns` and give its windows to a `VideoConsistency` of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._tensors import sum_over_processes
from .steady_runs import SteadyRuns, WindowPixels


PROTOCOLS = ("vspw-official", "paper", "dvis-legacy")


class VideoConsistency:
    """Streaming VC_n. Feed the frames of one video in order, then call `end_video()`.

    Args:
        num_frames: window lengths n, in frames, each at least 2. "dvis-legacy" pools each with the ones before it.
        protocol: "vspw-official", "paper" or "dvis-legacy" (module docstring).
        ignore_index: reference value of void pixels; only "paper" looks at it.

    Raises:
        ValueError: unknown protocol, or window lengths that are too short or appear twice.
    """

    def __init__(self, num_frames: Sequence[int] = (8, 16), protocol: str = "vspw-official", ignore_index: int = 255):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}; known are {', '.join(map(repr, PROTOCOLS))}")
        if not num_frames or min(num_frames) < 2 or len(set(num_frames)) != len(num_frames):
            raise ValueError(f"num_frames is {tuple(num_frames)}; give different window lengths of at least 2 frames")
        self.num_frames = tuple(num_frames)
        self.protocol = protocol
        self.ignore_index = ignore_index
        self._runs = SteadyRuns(max(num_frames), ignore_index)
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._videos = 0
        # per n: sum of the windows' values, number of windows scored, number dropped
        self._totals = torch.zeros(len(self.num_frames), 3, dtype=torch.float64)
        self._forget_video()

    def add_frame(self, prediction: Any, reference: Any) -> dict[str, float | None]:
        """Adds the next frame of the current video.

        Args:
            prediction: predicted labels (H, W), tensor or array of any integer dtype.
            reference: true labels (H, W), labels or raw disk values (module docstring).

        Returns:
            The windows that this frame completes, for example {"vc8": 0.97}; None for a window that is dropped because
            no pixel is constant in it. "vspw-official" and "dvis-legacy" complete a window one frame after its last,
            since their scripts leave out the last window of a video.

        Raises:
            ValueError: a shape differs between prediction and reference or from the previous frame, is not (H, W), or
                a dtype is not integer.
        """
        self._runs.add_frame(prediction, reference)
        return self.add_windows(self._runs.windows_of(self.num_frames))

    def add_windows(self, windows: Mapping[int, WindowPixels]) -> dict[str, float | None]:
        """Adds the next frame of the current video by the windows that end with it, instead of by its maps.

        Args:
            windows: as of `SteadyRuns.windows_of`, for all `num_frames` that the video is long enough for.

        Returns:
            As `add_frame`.
        """
        self._frames += 1
        if self.protocol == "paper":
            return self._score({n: (window.right, window.labelled) for n, window in windows.items()})
        complete, self._waiting = self._waiting, {n: (pixels.steady, pixels.constant) for n, pixels in windows.items()}
        return self._score(complete)

    def end_video(self) -> None:
        """Ends the current video; the next frame may have another size. No effect when no frame was added."""
        self._videos += self._frames > 0
        self._forget_video()

    @property
    def totals(self) -> torch.Tensor:
        """The windows so far: sum of their values, number scored, number dropped; float64 (len(num_frames), 3)."""
        return self._totals.clone()

    def add_totals(self, totals: torch.Tensor) -> None:
        """Adds the `totals` of one video that was counted elsewhere.

        Sums of floats depend on the order in their last bits: added video by video, in the order of the data set, the
        result does not depend on who counted which video.
        """
        self._totals += totals
        self._videos += 1

    def reduce(self) -> None:
        """Replaces the sums by those over all processes, in every process. Call it once, after the last `end_video`.

        Does nothing when torch.distributed is not initialised. Each video must be seen by one process only. The last
        bits depend on the number of processes (`add_totals` avoids that).
        """
        local = torch.cat((self._totals.flatten(), torch.tensor([self._videos], dtype=torch.float64)))
        summed = sum_over_processes(local)
        self._totals, self._videos = summed[:-1].view_as(self._totals), int(summed[-1])

    def compute(self) -> dict[str, Any]:
        """Means over the windows so far.

        Returns:
            `vc8`, `vc16` (one per window length): mean, a fraction in 0..1, or None when there was no window to score;
            `clips`: number of windows in each mean; `dropped_clips`: windows without any pixel of constant ground
            truth; `videos`: number of videos ended; `protocol`.
        """
        totals = self._totals.cumsum(0) if self.protocol == "dvis-legacy" else self._totals
        names = [f"vc{n}" for n in self.num_frames]
        rows = dict(zip(names, totals.tolist(), strict=True))
        return {
            **{name: total / scored if scored else None for name, (total, scored, _) in rows.items()},
            "clips": {name: int(scored) for name, (_, scored, _) in rows.items()},
            "dropped_clips": {name: int(dropped) for name, (_, _, dropped) in rows.items()},
            "videos": self._videos,
            "protocol": self.protocol,
        }

    # --- inside

    def _forget_video(self) -> None:
        self._frames = 0
        self._waiting: dict[int, tuple[int, int]] = {}  # windows that count if another frame follows
        self._runs.reset()

    def _score(self, windows: Mapping[int, tuple[int, int]]) -> dict[str, float | None]:
        """Adds the windows, given as steady and constant pixels by their length."""
        values = {}
        for n, (steady, constant) in windows.items():
            value = steady / constant if constant else None
            row = self._totals.numpy()[self.num_frames.index(n)]
            row += (value or 0.0, value is not None, value is None)
            values[f"vc{n}"] = value
        return values
