"""Masks of everything in an image, with SAM, SAM-HQ, SAM 2 or SAM 3 of transformers.

    generator = MaskGenerator.from_pretrained("path/to/sam", MaskSettings(points_per_side=32))
    masks = generator(image)  # [Mask(box=..., area=...), ...]

Every point of a grid asks the model for the masks that it may belong to; the same again in crops of the image, where
small things are larger. What is left are masks that the model thinks good, whose area hardly depends on where its
scores are cut off, and whose boxes do not overlap much (Kirillov et al., Segment Anything, appendix B, and its
`SamAutomaticMaskGenerator`). transformers' own pipeline keeps all masks of a batch of points at full size before it
filters them, has one suppression for all crops, and cannot run fewer points in crops than in the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms
from transformers import AutoModelForMaskGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

from vss_hf.fields import known_or_raise
from vss_hf.inference.segmenter import load_processor
from vss_hf.modeling.loading import load_strictly, stored_config


MASK_THRESHOLD = 0.0  # logits above it are in a mask, in all of these models
MASKS_AT_ONCE = 16  # at full size, in fp32
BORDER = 20  # pixels: a mask that comes this close to the inner border of a crop may be cut off there
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside

ENCODER_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class MaskSettings:
    """How masks are generated; the defaults are those of Semantic-Segment-Anything (`scripts/main_ssa.py`).

    Args:
        points_per_side: of the grid in the whole image.
        points_per_batch: that go through the mask decoder together.
        pred_iou_thresh: masks of which the model predicts a higher IoU are kept; 0: all.
        stability_score_thresh: masks of at least this stability are kept (see `stability_scores`); 0: all.
        stability_score_offset: how far the cutoff moves for that, in logits.
        box_nms_thresh: of two masks of one crop whose boxes have a higher IoU, that of the lower predicted IoU goes.
        crop_n_layers: layer i has 4**i crops besides the whole image.
        crop_nms_thresh: likewise of two masks of several crops that of the larger crop goes.
        crop_overlap_ratio: of the crops of layer 1, as a share of the image's short side; of later ones less.
        crop_n_points_downscale_factor: the grid of layer i has points_per_side / factor**i points per side.
        min_mask_region_area: smaller holes are filled and smaller islands go, in pixels.
        encoder_dtype: float32, bfloat16 or float16, of the image encoder; masks are always made in float32.

    Raises:
        ValueError: a setting is outside its range.
    """

    points_per_side: int = 64
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.86
    stability_score_thresh: float = 0.92
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 1
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 2
    min_mask_region_area: int = 100
    encoder_dtype: str = "float32"

    def __post_init__(self) -> None:
        least = {"crop_n_layers": 0, "min_mask_region_area": 0}
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor", *least):
            if getattr(self, name) < least.get(name, 1):
                expected = f"a whole number from {least.get(name, 1)}"
                raise ValueError(f"{name}: expected {expected}; found {getattr(self, name)}")
        shares = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1; found {getattr(self, name)}")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ValueError(f"crop_overlap_ratio: expected a number from 0, below 1; found {self.crop_overlap_ratio}")
        if not 0 < self.stability_score_offset < math.inf:
            raise ValueError(f"stability_score_offset: expected a number above 0; found {self.stability_score_offset}")
        if self.points_in_layer(self.crop_n_layers) < 1:
            raise ValueError(
                f"crop_n_layers: {self.points_per_side} points per side, divided {self.crop_n_layers} times by "
                f"{self.crop_n_points_downscale_factor}, are less than one"
            )
        known_or_raise(self.encoder_dtype, ENCODER_DTYPES, "encoder_dtype: there is no")

    def points_in_layer(self, layer: int) -> int:
        """Points per side in the crops of a layer; layer 0 is the whole image."""
        return self.points_per_side // self.crop_n_points_downscale_factor**layer


@dataclass(frozen=True)
class Mask:
    """One mask; of its box one bit per pixel is kept.

    Args:
        box: (left, top, right, bottom) of its pixels in the image; right and bottom are the first outside.
        area: its pixels.
        bits: uint8 (bottom - top, ceil((right - left) / 8)), rows as `np.packbits` makes them.
        predicted_iou: what the model says of its quality.
        stability_score: see `stability_scores`.
    """

    box: Box
    area: int
    bits: np.ndarray
    predicted_iou: float = 1.0
    stability_score: float = 1.0

    @classmethod
    def of(cls, pixels: np.ndarray, left: int = 0, top: int = 0, **scores: float) -> "Mask":
        """The mask of bool (h, w) pixels, one at least, that lie at (left, top) in the image."""
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        y, x, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        within = pixels[y:bottom, x:right]
        box = (left + x, top + y, left + right, top + bottom)
        return cls(box, int(within.sum()), np.packbits(within, axis=1), **scores)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Pixels of some rows of the image, which the box has: bool (stop - start, right - left)."""
        left, top, right, _ = self.box
        return np.unpackbits(self.bits[start - top : stop - top], axis=1, count=right - left).view(bool)

    @property
    def pixels(self) -> np.ndarray:
        """Its pixels in the box: bool (bottom - top, right - left)."""
        return self.rows(self.box[1], self.box[3])


class MaskGenerator:
    """Finds the masks of everything in an image.

    Args:
        model: a model of transformers that takes points: SamModel, SamHQModel, Sam2Model, Sam3TrackerModel.
        processor: its image processor.
        settings: how; None: the defaults.
    """

    def __init__(self, model: Any, processor: Any, settings: MaskSettings | None = None):
        self.model, self.processor = model.eval(), processor
        self.settings = settings or MaskSettings()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        settings: MaskSettings | None = None,
        device: str | torch.device | None = None,
    ) -> "MaskGenerator":
        """Load a model from a folder or the Hub: SAM, SAM-HQ, SAM 2 or SAM 3, of the last two also the video models.

        Args:
            source: folder or Hub id.
            settings: as for the class.
            device: where to run; None: the CPU.

        Raises:
            FileNotFoundError: `source` looks like a folder and holds no model.
            ValueError: it is another kind of model, or a file is damaged; the message names it.
        """
        model_type = stored_config(source).get("model_type")
        if model_type is not None and model_type not in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
            known = ", ".join(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)
            raise ValueError(f"{source}: a model of type '{model_type}' takes no points; expected one of {known}")
        model = load_strictly(AutoModelForMaskGeneration, source)
        model.config.return_dict = True  # outputs are read by name here, whatever the file says
        return cls(model.to(device or "cpu", torch.float32), load_processor(source), settings)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> list[Mask]:
        """The masks of an image.

        Args:
            image: uint8 (H, W, 3) RGB.

        Returns:
            Masks in the order of the last suppression; they may overlap, and pixels may be in none.
        """
        settings, size = self.settings, image.shape[:2]
        crops = crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
        by_crop = [self._in_crop(image, box, settings.points_in_layer(layer)) for layer, box in crops]
        masks = [mask for found in by_crop for mask in found]
        if len(crops) > 1:
            sharpness = [1 / box_area(box) for (_, box), found in zip(crops, by_crop, strict=True) for _ in found]
            masks = suppressed(masks, sharpness, settings.crop_nms_thresh)
        if settings.min_mask_region_area:
            thresh = max(settings.box_nms_thresh, settings.crop_nms_thresh)
            masks = without_small_regions(masks, size, settings.min_mask_region_area, thresh)
        return masks

    def _in_crop(self, image: np.ndarray, crop: Box, points_per_side: int) -> list[Mask]:
        left, top, right, bottom = crop
        settings = self.settings
        inputs = self.processor(
            images=np.ascontiguousarray(image[top:bottom, left:right]),
            input_data_format="channels_last",  # also of an image that is three pixels high
            return_tensors="pt",
            device=str(self.model.device),
        )
        # Of SAM the image is padded; SAM 2 and 3 stretch it to a square.
        inputs_size = inputs.get("reshaped_input_sizes", [inputs["pixel_values"].shape[-2:]])[0]
        embeddings = self._embeddings(inputs["pixel_values"])
        scale = torch.tensor([float(inputs_size[1]), float(inputs_size[0])])
        points = (point_grid(points_per_side) * scale).to(self.model.device)
        masks: list[Mask] = []
        for some in points.split(settings.points_per_batch):
            outputs = self.model(
                input_points=some[None, :, None],
                input_labels=torch.ones(1, len(some), 1, dtype=torch.int64, device=some.device),
                multimask_output=True,
                **embeddings,
            )
            logits, ious = outputs.pred_masks[0].flatten(0, 1), outputs.iou_scores[0].flatten()
            # First this, for which no mask is needed at full size.
            good = ious > (settings.pred_iou_thresh or -math.inf)
            for few in good.nonzero()[:, 0].split(MASKS_AT_ONCE):
                masks += self._at_full_size(logits[few], ious[few], inputs, crop, image.shape[:2])
        return suppressed(masks, [mask.predicted_iou for mask in masks], settings.box_nms_thresh)

    def _embeddings(self, pixel_values: Tensor) -> dict[str, Any]:
        """What the model takes instead of the image, in fp32."""
        device, dtype = self.model.device, ENCODER_DTYPES[self.settings.encoder_dtype]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            embeddings = self.model.get_image_embeddings(pixel_values.to(device, torch.float32))
        if isinstance(embeddings, tuple):  # SAM-HQ; SAM gives a tensor, SAM 2 and 3 a list of tensors
            image, intermediate = embeddings
            return {"image_embeddings": in_fp32(image), "intermediate_embeddings": in_fp32(intermediate)}
        return {"image_embeddings": in_fp32(embeddings)}

    def _at_full_size(
        self, logits: Tensor, ious: Tensor, inputs: Any, crop: Box, image_size: tuple[int, int]
    ) -> list[Mask]:
        """Those of a few masks, logits (n, h, w), that are stable, not empty and not cut off by the crop."""
        settings, (left, top, right, bottom) = self.settings, crop
        logits = self.processor.post_process_masks(
            logits[None, :, None],
            [(bottom - top, right - left)],
            reshaped_input_sizes=inputs.get("reshaped_input_sizes"),
            binarize=False,
        )[0][:, 0]
        stability = stability_scores(logits, settings.stability_score_offset)
        pixels = logits > MASK_THRESHOLD
        keep = pixels.flatten(1).any(dim=1)
        if settings.stability_score_thresh:
            keep &= stability >= settings.stability_score_thresh
        boxes = masks_to_boxes(pixels[keep]) + torch.tensor([left, top, left, top], device=pixels.device)
        keep[keep.clone()] = ~cut_off(boxes, crop, image_size)
        told = zip(pixels[keep].cpu().numpy(), ious[keep].tolist(), stability[keep].tolist(), strict=True)
        return [Mask.of(one, left, top, predicted_iou=iou, stability_score=score) for one, iou, score in told]


def in_fp32(features: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """A tensor, or a list of tensors, in fp32."""
    return features.float() if isinstance(features, Tensor) else [one.float() for one in features]


# --- points and crops


def point_grid(points_per_side: int) -> Tensor:
    """Points in the middle of n x n equal parts of the unit square: fp32 (n * n, 2), (x, y), row by row."""
    middle = 1 / (2 * points_per_side)
    side = torch.linspace(middle, 1 - middle, points_per_side)
    return torch.cartesian_prod(side, side).flip(1)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[int, Box]]:
    """The whole image, then the crops of each layer, column by column.

    Args:
        size: (height, width) of the image.
        layers: of crops; layer i has 2**i by 2**i.
        overlap_ratio: of the crops of layer 1, as a share of the short side; halved for each later layer.

    Returns:
        (layer, box) of each.
    """
    height, width = size
    crops = [(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / per_side))
        wide, high = (math.ceil((overlap * (per_side - 1) + length) / per_side) for length in (width, height))
        lefts, tops = ([(length - overlap) * i for i in range(per_side)] for length in (wide, high))
        boxes = [(x, y, min(x + wide, width), min(y + high, height)) for x, y in product(lefts, tops)]
        # An image of a few pixels has fewer crops.
        crops += [(layer, box) for box in boxes if box_area(box) > 0]
    return crops


def box_area(box: Box) -> int:
    """Pixels of a box; 0 of one that ends where it begins, or before."""
    left, top, right, bottom = box
    return max(0, right - left) * max(0, bottom - top)


def cut_off(boxes: Tensor, crop: Box, image_size: tuple[int, int]) -> Tensor:
    """Whether masks come near a border of their crop that is no border of the image.

    Args:
        boxes: (n, 4), left, top, right, bottom in the image.
        crop: of the image.
        image_size: (height, width).

    Returns:
        bool (n,).
    """
    whole = boxes.new_tensor([0, 0, image_size[1], image_size[0]])
    near_crop = (boxes - boxes.new_tensor(crop)).abs() <= BORDER
    near_image = (boxes - whole).abs() <= BORDER
    return (near_crop & ~near_image).any(dim=1)


# --- what is kept


def stability_scores(logits: Tensor, offset: float) -> Tensor:
    """The area of each mask at a cutoff that is `offset` higher, as a share of that at one that is as much lower.

    Args:
        logits: (n, h, w).
        offset: above 0.

    Returns:
        fp32 (n,); nan where no logit is above the lower cutoff.
    """
    high = (logits > MASK_THRESHOLD + offset).flatten(1).sum(dim=1)
    low = (logits > MASK_THRESHOLD - offset).flatten(1).sum(dim=1)
    return high.float() / low.float()


def suppressed(masks: Sequence[Mask], scores: Sequence[float], iou_threshold: float) -> list[Mask]:
    """Masks without those whose box has a higher IoU with that of a mask of a higher score; the best score first, and
    of equal ones the first."""
    # On the CPU, where equal scores keep their order. As published a box ends with its last pixel, not behind it.
    boxes = torch.tensor([mask.box for mask in masks], dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] -= 1
    return [masks[i] for i in nms(boxes, torch.tensor(scores, dtype=torch.float32), iou_threshold).tolist()]


def without_small_regions(
    masks: Sequence[Mask], size: tuple[int, int], min_area: int, iou_threshold: float
) -> list[Mask]:
    """Masks of which small holes are filled and small islands taken away, suppressed once more.

    Args:
        masks: of one image.
        size: its (height, width).
        min_area: smallest area of a hole or an island that stays, in pixels.
        iou_threshold: of the suppression; masks that did not change go first.
    """
    tidied = [tidy(mask, size, min_area) for mask in masks]
    unchanged = [float(new is old) for new, old in zip(tidied, masks, strict=True)]
    return suppressed(tidied, unchanged, iou_threshold)


def tidy(mask: Mask, size: tuple[int, int], min_area: int) -> Mask:
    """A mask with small holes filled and small islands taken away (but the largest, if all are small); the same object
    if it has none."""
    # Background that goes on for `min_area` pixels outside the box is no small hole, so more need not be looked at.
    left, top = max(0, mask.box[0] - min_area), max(0, mask.box[1] - min_area)
    right, bottom = min(size[1], mask.box[2] + min_area), min(size[0], mask.box[3] + min_area)
    pixels = np.zeros((bottom - top, right - left), bool)
    pixels[mask.box[1] - top : mask.box[3] - top, mask.box[0] - left : mask.box[2] - left] = mask.pixels
    holes, areas = regions(~pixels)
    small_holes = areas < min_area
    small_holes[0] = False  # the mask itself
    pixels |= small_holes[holes]
    islands, areas = regions(pixels)
    small_islands = areas < min_area
    small_islands[0] = False  # the background
    if not small_holes.any() and not small_islands.any():
        return mask
    if small_islands[1:].all():
        small_islands[1 + areas[1:].argmax()] = False
    pixels &= ~small_islands[islands]
    return Mask.of(pixels, left, top, predicted_iou=mask.predicted_iou, stability_score=mask.stability_score)


def regions(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts, corners included, of bool (h, w): a number from 1 for each pixel, 0 outside; and their areas by
    number."""
    numbers = np.zeros(pixels.shape, np.int32)
    ndimage.label(pixels, EIGHT_NEIGHBOURS, output=numbers)
    return numbers, np.bincount(numbers.ravel(), minlength=1)
