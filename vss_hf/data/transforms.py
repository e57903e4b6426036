"""Training augmentation of data samples, equal for all frames of a clip.

The training recipe is that of the published VSPW entries: random scale (with aspect jitter, or keeping the ratio as
mmsegmentation does), random crop, horizontal flip, photometric distortion. The crop is chosen on the labels before any
image work, geometry runs on uint8, colour runs once in float32 on the crop only.

Letters: T frames of a clip, (H, W) the decoded frame, (h, w) the network's input.
"""

import math
import sys
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE_INDEX = 255
CROP_ATTEMPTS = 10  # mmsegmentation's RandomCrop: the last window is taken as it is
SCALE_MODES = ("betterthing", "range", "none")


# --- settings


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # false for nan too; math.isfinite fails on whole numbers of 400 digits


def _is_size(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(item) is int and item >= 1 for item in value)


def _is_between(value: object, low: float, high: float) -> bool:
    return _is_number(value) and low <= value <= high  # pyright: ignore[reportOperatorIssue]


def _is_range(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)) and 0 < value[0] <= value[1]


def _is_rgb(value: object, low: float) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(_is_between(item, low, 1) for item in value)


def _require(owner: object, name: str, valid: bool, allowed: str) -> None:
    if not valid:
        value = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; allowed: {allowed}")


def _lists_to_tuples(config: object) -> None:
    """YAML and JSON know no tuples: lists become tuples once, at construction."""
    for field in fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, field.name)
        if isinstance(value, list):
            object.__setattr__(config, field.name, tuple(value))


@dataclass(frozen=True)
class AugmentationConfig:
    """Settings of `TrainTransform`. Lists (from YAML) are accepted for pairs.

    Args:
        crop_size: (height, width) of the result in pixels. Smaller frames are padded at the right and the bottom: the
            image with the mean colour (0 after normalisation), the labels with 255.
        base_size: what scale 1 means. None: the decoded frame; a number: the frame times it; (height, width): the
            largest keep-ratio size inside that box, the box being turned for portrait frames (mmsegmentation's rule).
        scale_mode: "betterthing": alpha ~ U(1, max), with probability 0.5 taken as 1 / alpha, max being the upper end
            of `scale_range`; then (height * alpha * (1 + beta1), width * alpha * (1 + beta2)) with
            beta ~ U(-aspect_jitter, aspect_jitter). "range": keep-ratio factor ~ U(scale_range). "none": `base_size`.
        scale_range: (smallest, largest) factor on `base_size`.
        aspect_jitter: 0..0.9, used by "betterthing" only.
        cat_max_ratio: a window is redrawn (at most 10 times) while one class covers this share of its labelled pixels
            or more, 0..1; 1 keeps the first window.
        horizontal_flip_prob: 0..1.
        time_reversal_prob: 0..1, how often a clip is played backwards: its first frame then becomes the labelled one.
            Needs the labels of all frames, and of single frames does nothing.
        photometric_prob: 0..1, drawn separately for brightness, contrast, saturation and hue.
        brightness: largest shift, as a fraction of the value range 0..1.
        contrast: (smallest, largest) factor on all three channels.
        saturation: (smallest, largest) factor on S of HSV.
        hue: largest rotation in turns, 0..0.5 (0.1 is 36 degrees, "18" on OpenCV's scale 0..179).
        image_mean: per channel, R G B, for values in 0..1.
        image_std: per channel, R G B, for values in 0..1.

    Raises:
        ValueError: a field is outside what is allowed.

    Source: scale, crop and colour ranges of BetterThing, third of the VSPW 2021 challenge (arXiv 2109.01316, sec. 4);
    the order of the colour steps and `cat_max_ratio` of mmsegmentation 1.2.2 (PhotoMetricDistortion, RandomCrop).
    """

    crop_size: tuple[int, int]
    base_size: tuple[int, int] | float | None = None
    scale_mode: str = "betterthing"
    scale_range: tuple[float, float] = (0.5, 2.0)
    aspect_jitter: float = 0.2
    cat_max_ratio: float = 0.75
    horizontal_flip_prob: float = 0.5
    time_reversal_prob: float = 0.0
    photometric_prob: float = 0.5
    brightness: float = 32 / 255
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 0.1
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        _lists_to_tuples(self)
        _require(self, "crop_size", _is_size(self.crop_size), "(height, width), whole numbers >= 1")
        base_ok = self.base_size is None or _is_size(self.base_size) or _is_between(self.base_size, 0.01, 100)
        _require(self, "base_size", base_ok, "null, a factor from 0.01 to 100, or (height, width) >= 1")
        _require(self, "scale_mode", self.scale_mode in SCALE_MODES, ", ".join(SCALE_MODES))
        _require(self, "scale_range", _is_range(self.scale_range), "(smallest, largest) with 0 < smallest <= largest")
        if self.scale_mode == "betterthing":
            # One free number only: the lower end is the reciprocal, so a disagreement is a mistake in the recipe.
            smallest, largest = self.scale_range
            allowed = "(1 / largest, largest) with largest >= 1 when scale_mode is betterthing"
            _require(self, "scale_range", largest >= 1 and math.isclose(smallest, 1 / largest, rel_tol=0.01), allowed)
        for name, low, high in (
            ("aspect_jitter", 0, 0.9), ("cat_max_ratio", 0, 1), ("horizontal_flip_prob", 0, 1),
            ("time_reversal_prob", 0, 1), ("photometric_prob", 0, 1), ("brightness", 0, 1), ("hue", 0, 0.5),
        ):
            _require(self, name, _is_between(getattr(self, name), low, high), f"a number from {low} to {high}")
        for name in ("contrast", "saturation"):
            _require(self, name, _is_range(getattr(self, name)), "(smallest, largest) with 0 < smallest <= largest")
        _require(self, "image_mean", _is_rgb(self.image_mean, 0), "three numbers from 0 to 1")
        _require(self, "image_std", _is_rgb(self.image_std, 1e-3), "three numbers from 0.001 to 1")


# --- geometry


def scaled_size(height: int, width: int, base_size: tuple[int, int] | float | None) -> tuple[int, int]:
    """Size of a frame at scale 1.

    Args:
        height: of the decoded frame.
        width: of the decoded frame.
        base_size: as in `AugmentationConfig`.

    Returns:
        (height, width), rounded half up, at least 1.
    """
    if base_size is None:
        return height, width
    if isinstance(base_size, tuple):
        factor = min(max(base_size) / max(height, width), min(base_size) / min(height, width))
    else:
        factor = base_size
    return _rounded(height * factor), _rounded(width * factor)


def _rounded(pixels: float) -> int:
    return max(1, math.floor(pixels + 0.5))


def resize_frames(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize, half-pixel centres, antialiased when shrinking.

    Args:
        frames: uint8 (T, 3, H, W).
        size: (h, w).

    Returns:
        uint8 (T, 3, h, w).
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    # Channels-last bytes take the vectorised kernel, 2 to 6 times faster; frames decoded as (H, W, 3) already are.
    frames = frames.contiguous(memory_format=torch.channels_last)
    return F.resize(frames, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)


def nearest_pixels(length: int, new_length: int) -> np.ndarray:
    """The source pixel of every pixel of a resized row or column, nearest with half-pixel centres.

    That is the grid of `resize_frames`. Plain "nearest" samples up to half a source pixel to the upper left and would
    shift labels against the image.

    Args:
        length: before resizing.
        new_length: after it.

    Returns:
        int64 (new_length,), 0..length - 1.
    """
    places = torch.arange(length, dtype=torch.float32)
    return interpolate(places[None, None], new_length, mode="nearest-exact")[0, 0].long().numpy()


def labels_at(labels: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> torch.Tensor:
    """The labels (..., h, w) at these h rows and w columns of (..., H, W); numpy gathers several times faster."""
    return torch.from_numpy(labels.numpy().take(rows, axis=-2).take(columns, axis=-1))


def is_balanced(labels: torch.Tensor, cat_max_ratio: float) -> bool:
    """Whether no class dominates a window: more than one class, and the largest share is below the limit.

    Args:
        labels: uint8 (h, w), 255 not counted.
        cat_max_ratio: 0..1.
    """
    counts = torch.bincount(labels.flatten(), minlength=256)[:IGNORE_INDEX]
    return int((counts > 0).sum()) > 1 and int(counts.max()) < cat_max_ratio * int(counts.sum())


# --- colour, on float RGB (..., 3, h, w) in 0..1


def adjust_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiplies S of HSV, limited to 1, keeping H and V (torchvision's own version blends with grey instead).

    With V = max and S = (max - min) / max, scaling S moves every channel c to V - k (V - c), k = min(factor, 1 / S):
    no conversion to HSV is needed.

    Args:
        image: float (..., 3, h, w) in 0..1.
        factor: >= 0.

    Returns:
        float (..., 3, h, w) in 0..1.
    """
    value = image.amax(-3, keepdim=True)  # (..., 1, h, w)
    chroma = value - image.amin(-3, keepdim=True)
    gain = (value / chroma.clamp_min_(1e-6)).clamp_max_(factor)  # 1 / S, at most the factor
    lowered = (value - image).mul_(gain)
    return torch.sub(value, lowered, out=lowered)


def rotate_hue(image: torch.Tensor, turns: float) -> torch.Tensor:
    """Rotates H of HSV, keeping S and V: torchvision's `adjust_hue` within 2e-6, in a tenth of its time.

    With V = max, C = max - min and H in 0..6, every channel is V - C d, where d grows from 0 to 1 between one and two
    sixths away from the channel's own hue. Nothing is selected by a mask: a pixel's sector comes in as a number.

    Args:
        image: float (..., 3, h, w) in 0..1.
        turns: -0.5..0.5.

    Returns:
        float (..., 3, h, w) in 0..1.

    Source: H by two comparisons follows S. Hocevar, "Fast branchless RGB to HSV conversion in GLSL" (2013).
    """
    red, green, blue = image.unbind(-3)  # each (..., h, w)
    blue_leads = blue.clone().gt_(green)  # as 0 or 1
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    value, middle = torch.maximum(red, high), torch.minimum(red, high)
    chroma = value - torch.minimum(middle, low)
    red_trails = high.gt_(red)
    hue = middle.sub_(low).div_(chroma.clamp_min(1e-6))  # 0..1, away from red, yellow, ...
    hue += (12 * blue_leads).sub_(2).mul_(red_trails).sub_(blue_leads, alpha=6)  # ... which is 0, -6, -2 or 4
    hue.abs_().add_(6 * turns)
    hue.sub_((hue / 6).floor_(), alpha=6)
    away = torch.empty_like(image)  # d of each channel
    red_away, green_away, blue_away = away.unbind(-3)
    torch.sub(hue, 3, out=red_away).abs_().neg_().add_(2)  # red is at 0 and 6: its distance is 3 - |H - 3|
    torch.sub(hue, 2, out=green_away).abs_().sub_(1)
    torch.sub(hue, 4, out=blue_away).abs_().sub_(1)
    return torch.addcmul(value.unsqueeze(-3), away.clamp_(0, 1), chroma.unsqueeze(-3), value=-1, out=away)


def shift_brightness(image: torch.Tensor, shift: float) -> torch.Tensor:
    """Adds a shift in -1..1 to float (..., 3, h, w) in 0..1, clipped to 0..1."""
    return (image + shift).clamp_(0, 1)


def scale_contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiplies float (..., 3, h, w) in 0..1, clipped to 0..1 (torchvision's contrast blends with mean grey)."""
    return (image * factor).clamp_(0, 1)


def _distort_colours(image: torch.Tensor, config: AugmentationConfig, draw: "_Draw") -> torch.Tensor:
    """Brightness, then contrast before or after (saturation, hue) by coin flip; each with `photometric_prob`."""
    if draw.chance(config.photometric_prob):
        image = shift_brightness(image, draw.uniform(-config.brightness, config.brightness))
    contrast_first = draw.chance(0.5)
    for step in ("contrast", "saturation", "hue") if contrast_first else ("saturation", "hue", "contrast"):
        if not draw.chance(config.photometric_prob):
            continue
        if step == "contrast":
            image = scale_contrast(image, draw.uniform(*config.contrast))
        elif step == "saturation":
            image = adjust_saturation(image, draw.uniform(*config.saturation))
        else:
            image = rotate_hue(image, draw.uniform(-config.hue, config.hue))
    return image


# --- the two callables


class _Draw:
    """Random numbers of one sample. Its own generator: the global one is neither read nor moved."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))


class TrainTransform:
    """Turns a data sample into a training example; fully determined by (sample, seed).

    Args:
        config: the settings.
        for_video_model: give clips of one frame, too, instead of images.
        reference_labels: give the labels of the frames before the labelled one as well.
    """

    def __init__(self, config: AugmentationConfig, *, for_video_model: bool = False, reference_labels: bool = False):
        self.config = config
        self.for_video_model, self.reference_labels = for_video_model, reference_labels

    def __call__(self, sample: dict, seed: int) -> dict[str, torch.Tensor]:
        """Augments one sample; every frame of a clip gets the same geometry and the same colour change.

        Args:
            sample: "frames" uint8 (T, 3, H, W) RGB and "labels" uint8 (H, W), 255 = ignore; for T > 1, where they are
                to be given back or the clip may be reversed, "reference_labels" uint8 (T - 1, H, W); left unchanged.
            seed: any integer of 64 bits.

        Returns:
            "pixel_values" float32 (3, h, w) for T = 1, or "pixel_values_videos" float32 (T, 3, h, w); "labels" int64
            (h, w); and if wanted "reference_labels" int64 (T - 1, h, w).

        Raises:
            ValueError: frames or labels are missing, of another dtype, or of different sizes.
        """
        frames, config, draw = _frames_of(sample), self.config, _Draw(seed)
        may_reverse = config.time_reversal_prob > 0 and frames.shape[0] > 1
        labels = _labels_of(sample, with_references=self.reference_labels or may_reverse)  # (1 or T, H, W)
        if may_reverse and draw.chance(config.time_reversal_prob):
            frames, labels = frames.flip(0), labels.flip(0)
        if not self.reference_labels:
            labels = labels[-1:]
        size = self._draw_size(frames.shape[-2], frames.shape[-1], draw)
        rows, columns = nearest_pixels(labels.shape[-2], size[0]), nearest_pixels(labels.shape[-1], size[1])
        top, left, height, width = self._draw_window(labels[-1], rows, columns, draw)
        labels = labels_at(labels, rows[top : top + height], columns[left : left + width])
        image = resize_frames(frames, size)[..., top : top + height, left : left + width]  # (T, 3, <=h, <=w) uint8
        if draw.chance(config.horizontal_flip_prob):
            image, labels = image.flip(-1), labels.flip(-1)
        image = F.to_dtype(image.contiguous(), torch.float32, scale=True)
        image = _distort_colours(image, config, draw)
        image = F.normalize(image, list(config.image_mean), list(config.image_std), inplace=True)
        padding = [0, 0, config.crop_size[1] - width, config.crop_size[0] - height]  # left, top, right, bottom
        if any(padding):
            image, labels = F.pad(image, padding, fill=0), F.pad(labels, padding, fill=IGNORE_INDEX)
        as_clip = self.for_video_model or len(image) > 1
        example = {"pixel_values_videos": image} if as_clip else {"pixel_values": image[0]}
        example["labels"] = labels[-1].long()
        if self.reference_labels:
            example["reference_labels"] = labels[:-1].long()
        return example

    def _draw_size(self, height: int, width: int, draw: _Draw) -> tuple[int, int]:
        """Final size of the whole frame, so that it is resized only once, from the decoded pixels."""
        config = self.config
        height, width = scaled_size(height, width, config.base_size)
        if config.scale_mode == "none":
            return height, width
        if config.scale_mode == "range":
            return scaled_size(height, width, draw.uniform(*config.scale_range))
        alpha = draw.uniform(1, config.scale_range[1])
        alpha = 1 / alpha if draw.chance(0.5) else alpha
        height_jitter = draw.uniform(-config.aspect_jitter, config.aspect_jitter)
        width_jitter = draw.uniform(-config.aspect_jitter, config.aspect_jitter)
        return _rounded(height * alpha * (1 + height_jitter)), _rounded(width * alpha * (1 + width_jitter))

    def _draw_window(
        self, labels: torch.Tensor, rows: np.ndarray, columns: np.ndarray, draw: _Draw
    ) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop, redrawn while one class dominates it."""
        height, width = min(self.config.crop_size[0], len(rows)), min(self.config.crop_size[1], len(columns))
        tops, lefts = len(rows) - height + 1, len(columns) - width + 1
        top, left = draw.below(tops), draw.below(lefts)
        if self.config.cat_max_ratio < 1 and tops * lefts > 1:
            for _ in range(CROP_ATTEMPTS):
                window = labels_at(labels, rows[top : top + height], columns[left : left + width])
                if is_balanced(window, self.config.cat_max_ratio):
                    break
                top, left = draw.below(tops), draw.below(lefts)
        return top, left, height, width


def _place(sample: dict) -> str:
    return f"sample of video {sample.get('video', '?')!r}, frame {sample.get('frame', '?')!r}"


def _frames_of(sample: dict) -> torch.Tensor:
    frames = sample.get("frames")
    is_tensor = isinstance(frames, torch.Tensor)
    if not is_tensor or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not frames.numel():
        found = f"{frames.dtype} {tuple(frames.shape)}" if is_tensor else type(frames).__name__
        raise ValueError(f"{_place(sample)}: 'frames' is {found}; it must be a uint8 tensor (num_frames, 3, H, W)")
    return frames


def _labels_of(sample: dict, *, with_references: bool) -> torch.Tensor:
    """(1, H, W), or with the other frames' labels (T, H, W); the labelled frame's come last."""
    if "labels" not in sample:
        raise ValueError(f"{_place(sample)} has no 'labels'; training needs a split with masks (train or val)")
    num_frames, _, height, width = sample["frames"].shape
    labels = _checked_labels(sample, "labels", (height, width))[None]
    if not with_references or num_frames == 1:
        return labels
    if "reference_labels" not in sample:
        raise ValueError(f"{_place(sample)} has no 'reference_labels'; load the data with reference_labels=True")
    others = _checked_labels(sample, "reference_labels", (num_frames - 1, height, width))
    return torch.cat([others, labels])


def _checked_labels(sample: dict, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    labels = sample[name]
    is_tensor = isinstance(labels, torch.Tensor)
    if not is_tensor or labels.dtype != torch.uint8 or tuple(labels.shape) != shape:
        found = f"{labels.dtype} {tuple(labels.shape)}" if is_tensor else type(labels).__name__
        raise ValueError(f"{_place(sample)}: {name!r} is {found}; it must be uint8 {shape}, the size of its frame")
    return labels
