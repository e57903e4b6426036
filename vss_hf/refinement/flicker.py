"""A filter of labels against flicker: a pixel changes its label only when it has seen the new one some times in a row.

    segmenter = VideoSegmenter.from_pretrained(folder, label_steps=[FlickerFilter()])

It knows nothing of scores, so it can follow a refinement. It never looks ahead, and what really changes is late by
`frames` - 1 frames, unless its colour says so: pixels that look different from where they came take their new label at
once.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vss_hf.inference.score_maps import ScoreMap
from vss_hf.metrics.temporal_consistency import warp_labels

from .flow import open_flow
from .motion import Motion, check_motion_fields


@dataclass(frozen=True)
class FlickerSettings:
    """When a new label is believed.

    Args:
        frames: how many frames in a row must show it, 2 to 255.
        flow: "lucas-kanade", or a file with RAFT's weights: labels move along; None: pixels stay where they are.
        photometric: the difference of colours (mean over RGB, 0..1) from which a pixel takes its new label at once;
            None: only pixels that come from outside the frame do.
        scene_cut: as for `Motion`.

    Raises:
        ValueError: a setting is outside its range.
    """

    frames: int = 3
    flow: str | None = "lucas-kanade"
    photometric: float | None = 0.1
    scene_cut: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.frames <= 255:
            raise ValueError(f"frames: expected a whole number from 2 to 255; found {self.frames}")
        check_motion_fields(self.photometric, self.scene_cut)


class FlickerFilter:
    """The label step; see the module docstring. It remembers three bytes for every pixel.

    Args:
        config: its settings.
        device: where it computes.
        place: how messages call the settings.
    """

    changes = "labels"

    def __init__(
        self,
        config: FlickerSettings = FlickerSettings(),  # noqa: B008  (frozen)
        device: str | torch.device = "cpu",
        place: str = "smoothing",
    ):
        self.config, self.device = config, torch.device(device)
        flow = None if config.flow is None else open_flow(config.flow, device, f"{place}.flow")
        self.settings = {**vars(config), "flow": None if flow is None else flow.settings}
        self.motion = Motion(flow, config.scene_cut)
        self.state: torch.Tensor | None = None

    def reset(self) -> None:
        """A new video begins."""
        self.motion.reset()
        self.state = None

    @torch.no_grad()
    def __call__(self, image: np.ndarray, labels: np.ndarray, scores: ScoreMap | None = None) -> np.ndarray:
        """As `LabelStep`; the scores do not matter."""
        came = self.motion.step(image, self.device)
        seen = torch.from_numpy(np.array(labels)).to(self.device)
        fresh = torch.stack((seen, seen, torch.zeros_like(seen)))
        if came is None or self.state is None:
            self.state = fresh
            return labels
        state = self.state if came.flow is None else warp_labels(self.state, came.flow)[0]
        same = (
            came.difference.isfinite()
            if self.config.photometric is None
            else (came.difference < self.config.photometric)
        )
        shown, waiting, times = torch.where(same, state, fresh)
        # How many frames in a row have shown the waiting label, this one included; 0 where it is the one shown.
        times = torch.where(seen == waiting, times + 1, 1) * (seen != shown)
        shown = torch.where(times >= self.config.frames, seen, shown)
        self.state = torch.stack((shown, seen, times * (seen != shown)))
        return shown.cpu().numpy()
