"""Image processor of every model here: optional resize, rescale, normalise; logits back to label maps.

Two backends with equal settings: torchvision (default) and PIL (chosen by AutoImageProcessor where torchvision is
absent, or by `backend="pil"`).
"""

import math
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
)

from .dense import upsampled_argmax
from .dense_masks import upsampled_mask_argmax
from .remote_code import lead_to_code


SWITCHES = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")
SMALLEST_SIDE, LARGEST_SIDE = 32, 2**14  # pixels; the models take no smaller images
LARGEST_LABEL = 2**24  # up to here resizing, which goes through float32, keeps whole numbers


class SegmentationProcessing:
    """What both backends share.

    By default images keep their size (the models take any size from 32 up); set `do_resize` and
    `size={"shortest_edge": 480}` for a model that was trained at another scale than its videos.
    """

    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 480}
    default_to_square = False
    do_convert_rgb = True
    do_resize = False
    do_rescale = True
    do_normalize = True
    rescale_factor = 1 / 255

    def __init__(self, **kwargs: Any):
        refuse_misspelt(kwargs, self.valid_kwargs.__annotations__)
        super().__init__(**kwargs)
        check_settings(self)

    def preprocess(self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs) -> BatchFeature:
        """Prepare images, and label maps where given.

        Args:
            images: one or several images (PIL, numpy or torch; uint8 0..255).
            segmentation_maps: as many label maps (height, width), integers 0..num_labels-1 and 255; `vss_hf.data`
                converts files. They are resized like the images, with the nearest label.
            kwargs: settings for this call, e.g. `do_resize`, `size`, `return_tensors`, `device`.

        Returns:
            BatchFeature: `pixel_values` (batch, 3, height, width) float32 and, with maps, `labels` (batch, height,
            width) int64.

        Raises:
            ValueError: when there are not as many maps as images, or one is no (height, width) map of labels.
        """
        features = super().preprocess(images, **kwargs)
        if segmentation_maps is not None:
            several = isinstance(segmentation_maps, (list, tuple))
            maps = segmentation_maps if several else [segmentation_maps]
            maps = [label_array(values, f"segmentation_maps[{i}]")[None] for i, values in enumerate(maps)]  # (1, H, W)
            if len(maps) != len(features["pixel_values"]):
                images_given = len(features["pixel_values"])
                raise ValueError(f"{len(maps)} segmentation_maps for {images_given} images; give one per image")
            plain = dict(do_rescale=False, do_normalize=False, do_convert_rgb=False)
            plain["resample"] = PILImageResampling.NEAREST
            processed = super().preprocess(maps, **{**kwargs, **plain, "return_tensors": None})["pixel_values"]
            labels = [np.asarray(m)[0].astype(np.int64) for m in processed]
            features.update(BatchFeature({"labels": labels}, tensor_type=kwargs.get("return_tensors")))
        return features

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Label maps from a model's output.

        Args:
            outputs: anything with `logits` (batch, num_labels, h, w), or of a mask classification model with
                `class_queries_logits` (batch, queries, num_labels + 1) and `masks_queries_logits` (batch, queries, h,
                w).
            target_sizes: (height, width) wanted for each image; `None`: the size of the logits or masks.

        Returns:
            One label map (height, width) of class ids per image. The upsampled scores are never held as a whole.

        Raises:
            ValueError: when `target_sizes` has another length than the batch.
        """
        classes = getattr(outputs, "class_queries_logits", None)
        logits = outputs.logits if classes is None else outputs.masks_queries_logits
        sizes = [tuple(logits.shape[-2:])] * len(logits) if target_sizes is None else target_sizes
        if len(sizes) != len(logits):
            raise ValueError(f"target_sizes has {len(sizes)} entries for a batch of {len(logits)}; give one per image")
        maps = []
        for i, (height, width) in enumerate(sizes):
            one, size = slice(i, i + 1), (int(height), int(width))
            if classes is None:
                maps.append(upsampled_argmax(logits[one], size)[0])
            else:
                maps.append(upsampled_mask_argmax(classes[one], logits[one], size)[0])
        return maps

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """As transformers has it; beside a model's code (`save_pretrained(..., with_code=True)`) it leads there."""
        super().to_json_file(json_file_path)
        lead_to_code(Path(json_file_path))


def label_array(values: Any, name: str) -> np.ndarray:
    """A label map as uint8 (H, W), or int32 where a label is above 255; `name` is how errors call it."""
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iub":
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}; a label map holds one integer per pixel, (height, width); "
            "a coloured picture of labels cannot be used"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > LARGEST_LABEL:
        raise ValueError(f"{name} holds values from {low} to {high}; labels are 0..num_labels-1, and 255 is ignored")
    return array.astype(np.uint8 if high <= 255 else np.int32)


def refuse_misspelt(settings: dict[str, Any], known: Any) -> None:
    """Raise for an unknown setting that resembles one which is not given: transformers ignores it silently."""
    absent = [name for name in known if name not in settings]
    for key in settings:
        if key not in known and (near := get_close_matches(key, absent, n=1, cutoff=0.75)):
            raise ValueError(f"the image processor has no setting '{key}'; did you mean '{near[0]}'?")


def check_settings(processor: Any) -> None:
    """Raise for a setting outside its range; transformers looks at those of a call only, not at those of a file."""
    known_filters = [int(choice) for choice in PILImageResampling]
    size = dict(processor.size or {})
    allowed = {
        **{name: (isinstance(getattr(processor, name), bool), "true or false") for name in SWITCHES},
        "rescale_factor": (are_numbers([processor.rescale_factor], above=0), "a number above 0"),
        "image_mean": (are_rgb(processor.image_mean), "three numbers"),
        "image_std": (are_rgb(processor.image_std, above=0), "three numbers above 0"),
        "resample": (processor.resample in known_filters, f"one of {known_filters}"),
        "size": (
            bool(size) and all(type(v) is int and SMALLEST_SIDE <= v <= LARGEST_SIDE for v in size.values()),
            f"whole numbers from {SMALLEST_SIDE} to {LARGEST_SIDE}",
        ),
    }
    for name, (fits, expected) in allowed.items():
        if not fits:
            found = size if name == "size" else getattr(processor, name)
            raise ValueError(f"image processor: {name} is {found!r}; expected {expected}")


def are_rgb(values: Any, above: float = -math.inf) -> bool:
    """Whether a setting holds three finite numbers."""
    return isinstance(values, (list, tuple)) and len(values) == 3 and are_numbers(values, above)


def are_numbers(values: Any, above: float = -math.inf) -> bool:
    """Whether all are finite numbers above a limit."""
    return all(type(value) in (int, float) and above < value < math.inf for value in values)


class VSSImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Torchvision backend of the image processor."""


class VSSImageProcessorPil(SegmentationProcessing, PilBackend):
    """PIL backend of the image processor."""


__all__ = ["VSSImageProcessor", "VSSImageProcessorPil"]
