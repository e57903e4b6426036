"""Label maps with the sharper borders of CascadePSP, as `--refine cascade-psp:FOLDER` asks for.

    segmenter = VideoSegmenter.from_pretrained(folder, label_steps=[CascadePSP.from_pretrained("models/cascade-psp")])

Paper: Cheng et al., "CascadePSP: Toward Class-Agnostic and Very High-Resolution Segmentation via Global and Local
Refinement", CVPR 2020. The network knows no classes, so the regions of a label map (components.py) are refined one by
one; defaults are those of the published scripts for ADE20K.

What it costs: a region whose box is a whole VSPW frame (480x853) takes 1746 GMAC in the global and 1521 in the local
step (counted for the published network); others take their box's share of that. A frame of ten regions with boxes of
a third of the frame each takes about 11 000 GMAC: far more than any segmentation model here.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vss_hf.data.labels import VSPW
from vss_hf.fields import known_or_raise, of_type, settings_from
from vss_hf.inference.score_maps import ScoreMap
from vss_hf.inference.sliding import window_starts
from vss_hf.modeling.layers import resize
from vss_hf.modeling.loading import load_strictly, stored_config
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel, pad

from .components import Claims, split_regions


MODEL_TYPE = "vss_cascade_psp"
DTYPES = ("float32", "bfloat16", "float16")
TRIM = 16  # pixels at a window's inner borders that do not count
UNDECIDED = (0.1, 0.9)  # a window with less or more of a mask than this holds no border worth another look
# VIPSeg's division of VSPW's classes: what is not countable.
STUFF = tuple(name for name, thing in zip(VSPW.names, VSPW.things, strict=True) if not thing)


@dataclass(frozen=True)
class CascadePSPSettings:
    """How label maps are refined.

    Args:
        model: folder or Hub id of a `vss_cascade_psp`.
        global_only: leave out the second look in windows of the full resolution.
        max_side: the global step sees a region's box at most this large, and windows have this side ("L").
        stride: from one window to the next, including the pixels that do not count; None: half of `max_side`.
        min_size: with `global_only`, boxes whose longer side is shorter are enlarged to it.
        min_area: pixels that a region must exceed; smaller ones stay as they are, unless their neighbours take them.
        stuff: names of the model's classes of which a pixel must be nearly certain (`stuff_factor`), so that what is
            in front takes pixels from what is behind. None: those that VSPW counts as stuff (`STUFF`), by name, upper
            and lower case alike; classes that VSPW does not have count as things.
        stuff_factor: what their probabilities are multiplied with; a pixel is claimed from 0.5 on.
        batch_size: boxes or windows that go through the network together, if they have one size; one of a whole VSPW
            frame needs about 1.3 GB in fp32.
        dtype: "float32", or under autocast "bfloat16" or, on a GPU, "float16".

    Raises:
        ValueError: a setting is outside its range.
    """

    model: str
    global_only: bool = False
    max_side: int = 900
    stride: int | None = None
    min_size: int = 224
    min_area: int = 1024
    stuff: tuple[str, ...] | None = None
    stuff_factor: float = 0.51
    batch_size: int = 2
    dtype: str = "float32"

    def __post_init__(self) -> None:
        least = {"max_side": 4 * TRIM + 2, "min_size": 0, "min_area": 0, "batch_size": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name}: expected a whole number from {number}; found {getattr(self, name)}")
        if self.stride is not None and not 2 * TRIM < self.stride <= self.max_side:
            raise ValueError(
                f"stride: expected more than {2 * TRIM}, up to max_side ({self.max_side}); found {self.stride}"
            )
        if not 0 < self.stuff_factor <= 1:
            raise ValueError(f"stuff_factor: expected more than 0, up to 1; found {self.stuff_factor}")
        known_or_raise(self.dtype, DTYPES, "dtype: there is no")
        if self.stuff is not None:
            object.__setattr__(self, "stuff", tuple(of_type(name, str, "stuff") for name in self.stuff))


class Crop(NamedTuple):
    """What is to be refined: a normalised image (3, h, w) and a mask (1, h, w) of -1 and 1."""

    image: Tensor
    mask: Tensor


class Coarse(NamedTuple):
    """What the global step says of a crop: probabilities (1, h, w), and those predicted at stride 4."""

    final: Tensor
    stride4: Tensor


class CascadePSP:
    """A label step that refines the regions of a label map (see `vss_hf.inference.steps`).

    Args:
        model: the network; it is put into evaluation mode and runs where it is.
        options: settings.

    Raises:
        ValueError: float16 on a CPU.
    """

    changes = "labels"
    memory_options = ("batch_size", "max_side")

    def __init__(self, model: CascadePSPModel, options: CascadePSPSettings):
        self.model, self.options = model.eval(), options
        self.stuff: dict[int, str] | None = None  # those of the classes; None: no names are known yet
        self.refiner = MaskRefiner(self.model, options)

    @classmethod
    def from_pretrained(cls, source: str, device: str | torch.device | None = None, **options: Any) -> "CascadePSP":
        """Load the network from a folder or Hub id.

        Args:
            source: the folder or Hub id.
            device: where to run; None: a GPU if there is one.
            options: other fields of `CascadePSPSettings`.

        Raises:
            FileNotFoundError, ValueError: as `parse`.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return parse({"model": source, **options}, device, "CascadePSP")

    @property
    def settings(self) -> dict[str, Any]:
        """What results record."""
        stuff = self.options.stuff if self.stuff is None else tuple(self.stuff.values())
        return {**vars(self.options), "stuff": None if stuff is None else list(stuff)}

    def set_names(self, names: Sequence[str]) -> None:
        """The names of the classes, in the order of the labels; `VideoSegmenter` calls this.

        Raises:
            ValueError: a class of `stuff` is not among them.
        """
        for name in self.options.stuff or ():
            known_or_raise(name, names, "CascadePSP's stuff: the model has no class")
        wanted = {name.casefold() for name in (STUFF if self.options.stuff is None else self.options.stuff)}
        self.stuff = {label: name for label, name in enumerate(names) if name.casefold() in wanted}

    def reset(self) -> None:
        """Frames are refined each for itself."""

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, labels: np.ndarray, scores: ScoreMap | None = None) -> np.ndarray:
        """Refine a label map.

        Args:
            image: uint8 (H, W, 3) RGB.
            labels: whole numbers (H, W).
            scores: not looked at.

        Returns:
            (H, W), of the labels' dtype.

        Raises:
            RuntimeError: `set_names` was not called.
        """
        if self.stuff is None:
            raise RuntimeError("CascadePSP does not know the class names; VideoSegmenter tells it, or call set_names")
        regions = split_regions(labels, self.options.min_area)
        if not regions:
            return labels
        pixels = normalised(image, self.model.device)
        crops = [Crop(pixels[(..., *region.box)], as_mask(region.mask, pixels)) for region in regions]
        claims = Claims(labels)
        for number, probabilities in self.refiner.refined(crops):
            if regions[number].label in self.stuff:
                probabilities = probabilities * self.options.stuff_factor
            claims.add(number, regions[number], probabilities.cpu().numpy())
        return claims.labels


class MaskRefiner:
    """The network's global and local step, for masks of any size.

    Crops go through the network together only if they are padded to the same size anyway: it averages over the whole
    of its input, so that padding to a common size would change every result.

    Args:
        model: the network.
        options: settings.

    Raises:
        ValueError: float16 on a CPU.
    """

    def __init__(self, model: CascadePSPModel, options: CascadePSPSettings):
        self.model, self.options = model, options
        self.dtype = getattr(torch, options.dtype)
        if self.dtype == torch.float16 and model.device.type == "cpu":
            raise ValueError("CascadePSP's dtype: 'float16' needs a GPU; on a CPU float32 or bfloat16")
        self.step = (options.stride or options.max_side // 2) - 2 * TRIM
        self.min_size = min(options.min_size, options.max_side) if options.global_only else 0

    def refined(self, crops: Sequence[Crop]) -> Iterator[tuple[int, Tensor]]:
        """The place of each crop in the list, in any order, and its refined mask: probabilities, fp32 (h, w)."""
        for places in self.together([self.input_size(crop.mask.shape[-2:]) for crop in crops]):
            chosen = [crops[place] for place in places]
            coarse = self.global_step(chosen)
            fine = self.at_own_size(chosen, coarse) if self.options.global_only else self.local_step(chosen, coarse)
            yield from zip(places, fine, strict=True)

    def together(self, sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Places of crops that the network can take at once, given the sizes of its inputs."""
        groups: dict[Hashable, list[int]] = {}
        for place, (height, width) in enumerate(sizes):
            padded = pad(torch.empty(height, width, device="meta"), 0.0).shape
            groups.setdefault(padded, []).append(place)
        for group in groups.values():
            for start in range(0, len(group), self.options.batch_size):
                yield group[start : start + self.options.batch_size]

    def probabilities(self, crops: Sequence[Crop], stride8: Sequence[Tensor] | None = None) -> list[Coarse]:
        """One pass through the network, of crops that are padded to one size.

        Args:
            crops: what to refine.
            stride8: masks (1, h, w) in [-1, 1] for `mask_stride8`.
        """
        images = torch.stack([pad(crop.image, 0.0) for crop in crops])
        masks = torch.stack([pad(crop.mask, -1.0) for crop in crops])
        earlier = None if stride8 is None else torch.stack([pad(mask, -1.0) for mask in stride8])
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.model(images, masks, earlier, return_dict=True)
        results = zip(output.logits, output.logits_stride4[-1], (crop.mask.shape[-2:] for crop in crops), strict=True)
        return [
            Coarse(*(logits[:, :height, :width].float().sigmoid() for logits in (final, stride4)))
            for final, stride4, (height, width) in results
        ]

    # --- the global step

    def input_size(self, size: Sequence[int]) -> tuple[int, int]:
        """(height, width) that the global step sees of a crop of `size`."""
        height, width = size
        factor = min(max(max(size), self.min_size), self.options.max_side) / max(size)
        return max(1, int(height * factor)), max(1, int(width * factor))

    def global_step(self, crops: Sequence[Crop]) -> list[Coarse]:
        """The network's three passes on whole crops, whose `input_size` is padded to one size."""
        return self.probabilities([self.resized(crop) for crop in crops])

    def resized(self, crop: Crop) -> Crop:
        """A crop at its `input_size`: smaller by averages, larger bicubic (the mask bilinear)."""
        height, width = crop.mask.shape[-2:]
        size = self.input_size((height, width))
        if size == (height, width):
            return crop
        if max(size) < max(height, width):
            return Crop(*(F.interpolate(each[None], size, mode="area")[0] for each in crop))
        # With the exact factor: a side's own ratio differs where it was rounded.
        factor = self.min_size / max(height, width)
        image = F.interpolate(crop.image[None], scale_factor=factor, mode="bicubic", align_corners=False)
        mask = F.interpolate(crop.mask[None], scale_factor=factor, mode="bilinear", align_corners=False)
        return Crop(image[0], mask[0])

    def at_own_size(self, crops: Sequence[Crop], coarse: Sequence[Coarse]) -> Iterator[Tensor]:
        """The global step's masks (h, w) at the size of their crops: by averages where these were enlarged."""
        for crop, (final, _) in zip(crops, coarse, strict=True):
            size = crop.mask.shape[-2:]
            if max(final.shape) > max(size):
                yield F.interpolate(final[None], size, mode="area")[0, 0]
            else:
                yield resize(final[None], size)[0, 0]

    # --- the local step

    def local_step(self, crops: Sequence[Crop], coarse: Sequence[Coarse]) -> list[Tensor]:
        """The network's last two passes in windows of the full resolution, averaged where they overlap.

        Args:
            crops: at full resolution.
            coarse: what the global step says of them.

        Returns:
            Probabilities (h, w) for each crop.
        """
        masks = [WindowedMask(*pair) for pair in zip(crops, coarse, strict=True)]
        parts = [(mask, window) for mask in masks for window in mask.windows(self.options.max_side, self.step)]
        sizes = [(rows.stop - rows.start, columns.stop - columns.start) for _, (rows, columns) in parts]
        for places in self.together(sizes):
            chosen = [parts[place] for place in places]
            inputs = [mask.crop(window) for mask, window in chosen]
            results = self.probabilities([crop for crop, _ in inputs], [stride4 for _, stride4 in inputs])
            for (mask, window), result in zip(chosen, results, strict=True):
                mask.add(window, result.final[0])
        return [mask.mean() for mask in masks]


class WindowedMask:
    """A mask that is refined window by window.

    Args:
        crop: image and mask at full resolution.
        coarse: what the global step says of them, at any size.
    """

    def __init__(self, crop: Crop, coarse: Coarse):
        size = crop.mask.shape[-2:]
        self.image = crop.image
        self.mask = (resize(coarse.final[None], size)[0] > 0.5).float()  # (1, h, w), 0 or 1
        self.stride4 = resize(coarse.stride4[None], size)[0]
        self.total, self.count = torch.zeros_like(self.mask[0]), torch.zeros_like(self.mask[0])

    def windows(self, side: int, step: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the windows that hold enough of the mask's border."""
        height, width = self.mask.shape[-2:]
        for left in window_starts(width, side, step):
            for top in window_starts(height, side, step):
                window = slice(top, min(top + side, height)), slice(left, min(left + side, width))
                if UNDECIDED[0] <= self.mask[(..., *window)].mean().item() <= UNDECIDED[1]:
                    yield window

    def crop(self, window: tuple[slice, slice]) -> tuple[Crop, Tensor]:
        """What the network gets of a window: image, mask, and the mask of stride 4, for that of stride 8."""
        image, mask, stride4 = (each[(..., *window)] for each in (self.image, self.mask, self.stride4))
        return Crop(image, mask * 2 - 1), stride4 * 2 - 1

    def add(self, window: tuple[slice, slice], probabilities: Tensor) -> None:
        """What the network says of a window (h, w)."""
        inner, place = trimmed(window, self.total.shape)
        self.total[place] += probabilities[inner]
        self.count[place] += 1

    def mean(self) -> Tensor:
        """Probabilities (h, w): of all windows; where there is none, the global step's mask, 0 or 1."""
        return torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.mask[0])


def trimmed(window: tuple[slice, slice], size: Sequence[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a window that counts, in the window and in the map of `size`: without its inner borders."""
    inner, place = [], []
    for part, length in zip(window, size, strict=True):
        start = part.start + TRIM if part.start else 0
        stop = part.stop - TRIM if part.stop < length else length
        inner.append(slice(start - part.start, stop - part.start))
        place.append(slice(start, stop))
    return (inner[0], inner[1]), (place[0], place[1])


def normalised(image: np.ndarray, device: torch.device) -> Tensor:
    """An image uint8 (H, W, 3) as the network takes it: fp32 (3, H, W), with ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]
    return (pixels - mean) / deviation


def as_mask(mask: np.ndarray, like: Tensor) -> Tensor:
    """A bool mask (h, w) as the network takes it: (1, h, w) of -1 and 1."""
    return torch.from_numpy(mask).to(like.device, like.dtype)[None] * 2 - 1


def parse(value: Any, device: torch.device, place: str) -> CascadePSP:
    """The step that `--refine cascade-psp:...` asks for.

    Args:
        value: folder or Hub id, or fields of `CascadePSPSettings`.
        device: where to run.
        place: how messages call the option.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
        ValueError: it holds another kind of model, a file is damaged, or a field does not exist or fit.
    """
    settings = settings_from(CascadePSPSettings, {"model": value} if isinstance(value, str) else value, place)
    kind = stored_config(settings.model).get("model_type")
    if kind not in (None, MODEL_TYPE):
        raise ValueError(
            f"{place}: {settings.model} holds a model of type '{kind}'; expected a '{MODEL_TYPE}', as `vss-hf convert "
            "--source cascadepsp --arch cascade-psp` writes it"
        )
    return CascadePSP(load_strictly(CascadePSPModel, settings.model).to(device), settings)
