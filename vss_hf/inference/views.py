"""Test-time augmentation: a frame goes through the model several times, resized and mirrored; the scores are averaged.

    segmenter = VideoSegmenter.from_pretrained(folder, tta=TTA(scales=(0.75, 1.0, 1.25), flip=True))
    segmenter = VideoSegmenter.from_pretrained(folder, tta=NAMED["betterthing-swin"])

Views go through the model one after the other, and what is kept of each are its logits as the model gave them: see
`MeanOfViews` for how much that can become.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from transformers.image_processing_backends import TorchvisionBackend

from vss_hf.data.transforms import resize_frames
from vss_hf.fields import known_or_raise, of_type, settings_from, shown

from .score_maps import LogitScores, MaskScores, ScoreMap, agreeing
from .scores import align_corners, is_mask_classification
from .sliding import Axis, Placement, WindowedMasks, crops, mosaic
from .video_memory import VideoMemory


if TYPE_CHECKING:
    from .segmenter import VideoSegmenter

AVERAGES = ("probabilities", "logits")
# How many full-size maps the logits that are kept of views may be: six scales from 0.5 to 1.75 with their mirror
# images, as many as are published, are 1.09 at a stride of 4. Until they are added up, most labels need no scores.
KEPT = 1.25
SMALLEST_INPUT = 32  # pixels on each side, of the models here; so also the smallest window


@dataclass(frozen=True)
class TTA:
    """In which views a frame goes through a model, and how their scores are averaged.

    Args:
        scales: sizes of the views, as factors of the size that the processor gives the frame; sides are rounded,
            halves up. A view is resized from the frame itself, bilinearly.
        flip: whether each view also goes through mirrored, left to right.
        window: (height, width) of a sliding window in pixels of the view; None: the whole view at once. The logits are
            averaged where windows overlap (mmsegmentation's `slide` mode).
        stride: (vertical, horizontal) from one window to the next; None: two thirds of the window.
        size_divisor: what the model gets is padded with zeros, at the bottom and at the right, to a multiple of this,
            and the logits there are cut off. The models here take any size from 32 up as it is, so 1 does.
        average: "probabilities": the mean over the views of the softmax (of mask classification models, of their
            scores, which are not normalised, as in MaskFormer's `SemanticSegmentorWithTTA`). "logits": the softmax of
            the mean of the logits, for models that have logits of classes.
        antialias: whether smaller views are made of all pixels that they cover, as the processors and training here do
            it; False: of the nearest two in each direction, as in mmsegmentation.

    Raises:
        ValueError: a setting is outside its range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    size_divisor: int = 1
    average: str = "probabilities"
    antialias: bool = True

    def __post_init__(self) -> None:
        scales = tuple(float(scale) for scale in self.scales)
        object.__setattr__(self, "scales", scales)
        if not scales or not all(0 < scale <= 8 for scale in scales):
            raise ValueError(f"scales: expected numbers above 0, up to 8; found {list(self.scales)}")
        if len(set(scales)) < len(scales):
            raise ValueError(f"scales: {list(scales)} has a number twice")
        for name, least in (("window", SMALLEST_INPUT), ("stride", 1)):
            object.__setattr__(self, name, as_pair(getattr(self, name), name, least))
        if self.stride is not None:
            if self.window is None:
                raise ValueError("stride: there is no window")
            if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
                raise ValueError(f"stride: {self.stride} leaves gaps between windows of {self.window}")
        if self.size_divisor < 1:
            raise ValueError(f"size_divisor: expected a whole number from 1; found {self.size_divisor}")
        known_or_raise(self.average, AVERAGES, "average: there is no")

    def settings(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def as_pair(value: Any, name: str, least: int) -> tuple[int, int] | None:
    """(vertical, horizontal), checked."""
    if value is None:
        return None
    if len(value) != 2 or not all(type(number) is int and number >= least for number in value):
        raise ValueError(f"{name}: expected [height, width], whole numbers from {least}; found {shown(list(value))}")
    return (value[0], value[1])


MMSEG_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
NAMED = {
    # The frame and its mirror image: what mostly pays for its time.
    "flip": TTA(flip=True),
    # BetterThing (VSPW 2021, third), section 4.3: Swin; VOLO "is very sensitive to multi-scale input".
    "betterthing-swin": TTA(scales=(0.5, 1.0, 1.5), flip=True),
    "betterthing-volo": TTA(flip=True),
    # DUT (PVUW 2023, third), section 3 and table 3: the default, and the better set of its best model.
    "dut": TTA(scales=MMSEG_SCALES, flip=True, antialias=False),
    "dut-small": TTA(scales=(0.5, 0.75, 1.0), flip=True, antialias=False),
    # mmsegmentation's default, `img_ratios` with `TestTimeAug` and `SegTTAModel`.
    "mmseg": TTA(scales=MMSEG_SCALES, flip=True, antialias=False),
    # MaskFormer and Mask2Former for ADE20K: `TEST.AUG`, 0.5 to 1.75 of the short side, and `SIZE_DIVISIBILITY`.
    "maskformer": TTA(scales=MMSEG_SCALES, flip=True, size_divisor=32),
}


def parse_tta(given: Any, place: str = "tta") -> TTA:
    """The settings from a name or from fields.

    Args:
        given: a name of `NAMED`, or fields of `TTA`, e.g. {"scales": [0.75, 1], "flip": True}.
        place: how messages call it.

    Raises:
        ValueError: a name or field that does not exist (with the nearest one), or a value outside its range.
    """
    if isinstance(given, TTA):
        return given
    if not isinstance(given, dict):
        known_or_raise(given, list(NAMED), f"{place}: there is no setting")
        return NAMED[given]
    for scale in given["scales"] if isinstance(given.get("scales"), list) else ():
        of_type(scale, float, f"{place}.scales")
    return settings_from(TTA, given, place)


class MeanOfViews(ScoreMap):
    """The mean of the scores of one frame's views, or the softmax of the mean of their logits.

    Views are kept as logits (at a stride of 4 a sixteenth of a full-size score map for scale 1). When these come to be
    more than `KEPT` full-size maps, they become one. So it holds at most 1 + `KEPT` full-size maps and one view's
    logits, however many views there are.

    Args:
        num_labels, size, device: as for `ScoreMap`.
        of_logits: mean of logits; then only `LogitScores` can be added.
    """

    def __init__(self, num_labels: int, size: tuple[int, int], device: torch.device, of_logits: bool):
        super().__init__(num_labels, size, device)
        self.of_logits = of_logits
        self.views = 0
        self.kept: list[Any] = []
        self.numbers = 0  # in the logits of those
        self.total: Tensor | None = None  # (H, K, W), sum of the views that are not kept

    def add(self, view: ScoreMap, numbers: int) -> None:
        """Take another view.

        Args:
            view: its scores.
            numbers: how many numbers it keeps.
        """
        self.kept.append(view)
        self.views += 1
        self.numbers += numbers
        if self.numbers > KEPT * self.num_labels * math.prod(self.size):
            self._add_up()

    def _add_up(self) -> None:
        total = self.total
        for start, stop, of_rows in self._blocks(self._sum):
            if total is None:
                total = of_rows.new_empty((self.size[0], self.num_labels, self.size[1]))
            total[start:stop] = of_rows
        self.total, self.kept, self.numbers = total, [], 0

    def _sum(self, start: int, stop: int) -> Tensor:
        total = None if self.total is None else self.total[start:stop].clone()
        for view in self.kept:  # whose rows are free to be overwritten: they were upsampled right now
            part = view.ranking(start, stop) if self.of_logits else view.rows(start, stop)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def rows(self, start: int, stop: int) -> Tensor:
        mean = self._sum(start, stop).div_(self.views)
        return mean.softmax(dim=1) if self.of_logits else mean

    def sure_labels(self) -> Tensor | None:
        if self.total is not None:
            return None
        return agreeing(self.kept)

    def at(self, pixels: Tensor) -> Tensor:
        parts = (view.ranking_at(pixels) if self.of_logits else view.at(pixels) for view in self.kept)
        mean = reduce(torch.Tensor.add_, parts).div_(self.views)
        return mean.softmax(dim=1) if self.of_logits else mean


class Views:
    """The views of frames, as `tta` wants them.

    Args:
        tta: the settings.
    """

    def __init__(self, tta: TTA):
        self.tta = tta
        self.size: tuple[int, int] | None = None  # of the frames that these are for:
        self.placements: dict[Hashable, Placement] = {}

    def score_maps(
        self,
        segmenter: "VideoSegmenter",
        frames: Sequence[Any],
        size: tuple[int, int],
        video: VideoMemory,
        pixel_values: Tensor,
        normalised: bool = False,
    ) -> list[ScoreMap]:
        """The mean scores of the next frames of a video; a video model takes one, and remembers each view apart.

        Args:
            segmenter: with model and processor.
            frames: as for `VideoSegmenter.step`, all of one size.
            size: (height, width) of the frames.
            video: what the model remembers.
            pixel_values: what the processor makes of the frames.
            normalised: as for `MaskScores`, of each view.

        Raises:
            ValueError: the model classifies masks and the logits are to be averaged, a view is too small, or the
                processor does not keep its size.
        """
        if size != self.size:
            self.size, self.placements = size, {}
        means: list[MeanOfViews] = []
        for scale in self.tta.scales:
            pixels = pixel_values if scale == 1 else self._resized(segmenter, frames, pixel_values.shape[-2:], scale)
            for mirrored in (False, True)[: 1 + self.tta.flip]:
                view = pixels.flip(-1) if mirrored else pixels
                maps = self._view(segmenter.model, view, size, video, (scale, mirrored), normalised)
                means = means or [
                    MeanOfViews(one.num_labels, size, one.device, self.tta.average == "logits") for one, _ in maps
                ]
                for mean, (one, numbers) in zip(means, maps, strict=True):
                    mean.add(one, numbers)
        return list(means)

    def _resized(
        self, segmenter: "VideoSegmenter", frames: Sequence[Any], size: Sequence[int], scale: float
    ) -> Tensor:
        """The input of a view (n, 3, h, w); `size` is that of the input without scaling."""
        height, width = (math.floor(side * scale + 0.5) for side in size)
        if min(height, width) < SMALLEST_INPUT:
            raise ValueError(
                f"tta.scales: {scale} makes {width}x{height} of {size[1]}x{size[0]} (width x height); models here "
                f"take {SMALLEST_INPUT} pixels on each side at least"
            )
        images = torch.stack([as_tensor(frame) for frame in frames]).to(segmenter.model.device)
        if self.tta.antialias:
            images = resize_frames(images, (height, width))
        else:
            images = transforms.resize(images, [height, width], antialias=False)
        if not isinstance(segmenter.processor, TorchvisionBackend):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        pixels = segmenter.pixel_values(list(images), do_resize=False)
        if pixels.shape[-2:] != (height, width):
            raise ValueError(
                f"tta.scales: {type(segmenter.processor).__name__} makes {tuple(pixels.shape[-2:])} of a view of "
                f"{(height, width)} (height, width); views need a processor that only resizes and normalises"
            )
        return pixels

    def _view(
        self,
        model: Any,
        pixels: Tensor,
        size: tuple[int, int],
        video: VideoMemory,
        view: tuple[float, bool],
        normalised: bool,
    ) -> list[tuple[ScoreMap, int]]:
        """For each frame the scores by one view (n, 3, h, w), and how many numbers they keep."""
        vertical, horizontal = self._axes((pixels.shape[-2], pixels.shape[-1]), size, mirrored=view[1])
        classes, logits = [], []  # of each window
        for index, crop in enumerate(crops(pixels, vertical, horizontal)):
            outputs = video.outputs(crop, (*view, index))
            if is_mask_classification(model, outputs):
                classes.append(outputs.class_queries_logits)
                logits.append(outputs.masks_queries_logits)
            else:
                logits.append(outputs.logits)
        if classes and self.tta.average == "logits":
            raise ValueError(
                f"tta.average: {type(model).__name__} classifies masks and has no logits of classes to average; "
                "use 'probabilities'"
            )
        placement = self._placement(model, vertical, horizontal, logits[0])
        maps: list[tuple[ScoreMap, int]] = []
        for frame in range(len(pixels)):
            of_frame = [window[frame] for window in logits]
            numbers = sum(one.numel() for one in of_frame)
            if not classes:
                whole = mosaic(of_frame, placement.columns)
                maps.append((LogitScores(whole, size, interpolation=placement.whole), numbers))
                continue
            of_classes = [window[frame] for window in classes]
            if len(of_frame) == 1:
                scores = MaskScores(
                    of_classes[0], of_frame[0], size, normalised=normalised, interpolation=placement.whole
                )
            else:
                scores = WindowedMasks(of_classes, of_frame, size, placement.windows, normalised)
            maps.append((scores, numbers))
        return maps

    def _axes(self, shape: tuple[int, int], size: tuple[int, int], mirrored: bool) -> tuple[Axis, Axis]:
        """How windows lie in a view of some (height, width), and the view in the frame."""
        window = self.tta.window or shape
        stride = self.tta.stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
        divisor = self.tta.size_divisor
        return (
            Axis.of(shape[0], window[0], stride[0], divisor, size[0]),
            Axis.of(shape[1], window[1], stride[1], divisor, size[1], mirrored),
        )

    def _placement(self, model: Any, vertical: Axis, horizontal: Axis, logits: Tensor) -> Placement:
        shape = (logits.shape[-2], logits.shape[-1])
        key = (vertical, horizontal, shape, logits.dtype)
        if key not in self.placements:
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            corners = align_corners(model)
            self.placements[key] = Placement(vertical, horizontal, shape, corners, dtype, logits.device)
        return self.placements[key]


def as_tensor(frame: Any) -> Tensor:
    """A frame as uint8 (3, H, W)."""
    if isinstance(frame, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    return frame
