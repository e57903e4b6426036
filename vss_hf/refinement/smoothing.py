"""Scores smoothed over time, for any model: the moving average of each pixel's scores, in place or along its motion.

    segmenter = VideoSegmenter.from_pretrained(folder, score_steps=[MovingAverage(NAMED["flow"])])

A frame's scores p become  p' = (1 - w) p + w state,  with w = momentum · trust. The state is the last frame's p',
moved along the optical flow; a cell is trusted as far as its colour is the same as where it came from, which leaves
out what was hidden, what changed, and where the flow is wrong.

The state has a cell for every `stride` x `stride` pixels: at stride 4 a sixteenth of a full-size map. A frame's own
scores keep their resolution. On CamVid "flow" with stride 4 has 0.2 points of mIoU less than with a full-size state,
and 0.5 points of VC8 more.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vss_hf.fields import known_or_raise, settings_from, shown
from vss_hf.inference.interpolation import Interpolation
from vss_hf.inference.score_maps import ScoreMap, rows_first
from vss_hf.modeling.dense import bilinear_weights, block_rows, full_precision

from .flicker import FlickerFilter, FlickerSettings
from .flow import along, open_flow
from .motion import Motion, check_motion_fields


@dataclass(frozen=True)
class AverageSettings:
    """How scores are averaged over time.

    Args:
        momentum: weight of the frames before where they are trusted, above 0, below 1.
        flow: "lucas-kanade", or a file with RAFT's weights; None: pixels stay where they are.
        photometric: the difference of colours (mean over RGB, 0..1) at which trust has fallen to 1/e, as
            exp(-(difference / photometric)²); None: everything inside the frame is trusted fully.
        stride: pixels along the side of a cell of the state.
        scene_cut: as for `Motion`.

    Raises:
        ValueError: a setting is outside its range.
    """

    momentum: float = 0.5
    flow: str | None = None
    photometric: float | None = 0.1
    stride: int = 4
    scene_cut: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.momentum < 1:
            raise ValueError(f"momentum: expected a number above 0 and below 1; found {self.momentum}")
        if not 1 <= self.stride <= 64:
            raise ValueError(f"stride: expected a whole number from 1 to 64; found {self.stride}")
        check_motion_fields(self.photometric, self.scene_cut)


class MovingAverage:
    """The score step; see the module docstring.

    Args:
        config: its settings.
        device: where the flow is computed.
        place: how messages call the settings.
    """

    changes = "scores"

    def __init__(self, config: AverageSettings, device: str | torch.device = "cpu", place: str = "smoothing"):
        self.config = config
        flow = None if config.flow is None else open_flow(config.flow, device, f"{place}.flow")
        self.settings = {**vars(config), "flow": None if flow is None else flow.settings}
        self.motion = Motion(flow, config.scene_cut, config.stride)
        self.state: Tensor | None = None  # (num_labels, h, w)

    def reset(self) -> None:
        """A new video begins."""
        self.motion.reset()
        self.state = None

    @torch.no_grad()
    def __call__(self, image: np.ndarray, scores: ScoreMap) -> ScoreMap:
        """As `ScoreStep`."""
        came = self.motion.step(image, scores.device)
        means = cell_means(scores, self.config.stride)
        if came is None or self.state is None:
            self.state = means
            return scores
        state = self.state if came.flow is None else along(self.state, came.flow)
        weight = self.config.momentum * self._trust(came.difference).to(state.dtype)
        carried, own = state * weight, 1 - weight
        self.state = carried + own * means
        return SmoothedScores(scores, carried, own, self.config.stride)

    def _trust(self, difference: Tensor) -> Tensor:
        if self.config.photometric is None:
            return difference.isfinite()
        return torch.exp(-((difference / self.config.photometric) ** 2))


class SmoothedScores(ScoreMap):
    """own · scores + carried, the latter two interpolated from cells.

    Args:
        scores: of the frame.
        carried: (num_labels, h, w), what comes from the frames before.
        own: (h, w), what the frame's own scores count.
        stride: pixels along the side of a cell.
    """

    def __init__(self, scores: ScoreMap, carried: Tensor, own: Tensor, stride: int):
        super().__init__(scores.num_labels, scores.size, scores.device)
        self.scores = scores
        # Interpolated together: the weights of old and new scores keep summing to 1.
        self.image = rows_first(torch.cat((carried, own[None])), mirrored=False)  # (h, num_labels + 1, w)
        shape = (own.shape[0], own.shape[1])
        self.interpolation = from_cells(shape, scores.size, stride, carried.dtype, scores.device)

    def rows(self, start: int, stop: int) -> Tensor:
        return mixed(self.interpolation.rows(self.image, start, stop), self.scores.rows(start, stop))

    def at(self, pixels: Tensor) -> Tensor:
        return mixed(self.interpolation.at(self.image, pixels), self.scores.at(pixels))

    def sure_labels(self) -> Tensor | None:
        sure = self.scores.sure_labels()
        if sure is None:
            return None
        carried = self.interpolation.agreed(self.image[:, :-1].max(dim=1).indices)
        return torch.where(sure == carried, sure, -1)


def mixed(cells: Tensor, scores: Tensor) -> Tensor:
    """Carried scores and the weight of own ones (n, num_labels + 1, ...) with those scores (n, num_labels, ...)."""
    return torch.addcmul(cells[:, :-1], cells[:, -1:], scores)


@lru_cache(maxsize=4)
def from_cells(
    shape: tuple[int, int], size: tuple[int, int], stride: int, dtype: torch.dtype, device: torch.device
) -> Interpolation:
    """From cells (h, w) to a frame (height, width): bilinear, with all cells whole, though the last ones may reach
    beyond the frame."""
    like = torch.empty(0, dtype=dtype)
    wy, wx = (
        bilinear_weights(cells, cells * stride, False, like)[:side] for cells, side in zip(shape, size, strict=True)
    )
    return Interpolation(wy, wx, device)


def cell_means(scores: ScoreMap, stride: int) -> Tensor:
    """The mean scores of every cell of stride x stride pixels, (num_labels, h, w); those at the right and bottom may
    be smaller."""
    height, width = scores.size
    number = block_rows(scores.num_labels, width, torch.empty(0, device=scores.device))
    number = max(number // stride, 1) * stride  # whole cells
    means = []
    for start in range(0, height, number):
        with full_precision(scores.device):
            rows = scores.rows(start, min(start + number, height))
        # In three dimensions: to pool two after a transposition takes four times as long.
        cell = (min(stride, len(rows)), 1, min(stride, width))
        means.append(F.avg_pool3d(rows[None], cell, ceil_mode=True)[0])
    return torch.cat(means).transpose(0, 1)


Settings = AverageSettings | FlickerSettings
NAMED: dict[str, Settings] = {
    # Chosen among some 45 settings on CamVid's one dense video, with one image model: a start, no optimum.
    "ema": AverageSettings(),
    "flow": AverageSettings(momentum=0.8, flow="lucas-kanade"),
    "flicker": FlickerSettings(),
}


def parse(given: Any, device: str | torch.device = "cpu", place: str = "smoothing") -> list[Any]:
    """Steps from a name, from fields, or from a list of these.

    Args:
        given: a name of `NAMED`; or fields, {"name": "flow", "momentum": 0.7}, which change those of the name.
        device: where optical flow is computed.
        place: how messages call it.

    Returns:
        Score steps and label steps; their `changes` is "scores" or "labels".

    Raises:
        ValueError: a name or field that does not exist (with the nearest one), a value outside its range, or a file
            that does not hold RAFT's weights.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError(f"{place}: an empty list; expected names, one of {', '.join(NAMED)}, or fields")
        return [step for one in given for step in parse(one, device, place)]
    settings = settings_of(given, place)
    if isinstance(settings, FlickerSettings):
        return [FlickerFilter(settings, device, place)]
    return [MovingAverage(settings, device, place)]


def settings_of(given: Any, place: str) -> Settings:
    """Settings from a name or from fields."""
    fields = dict(given) if isinstance(given, dict) else {"name": given}
    if "name" not in fields:
        raise ValueError(f"{place}: {shown(given)} has no name; expected one of {', '.join(NAMED)}")
    name = fields.pop("name")
    known_or_raise(name, list(NAMED), f"{place}: there is no setting")
    base = NAMED[name]
    return settings_from(type(base), {**vars(base), **fields}, place)
