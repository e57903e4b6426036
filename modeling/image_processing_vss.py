"""Image processor of every model here: optional resize, rescale, normalise; logits back to label maps.

Two backends with equal settings: torchvision (default) and PIL (chosen by AutoImageProcessor where torchvision is
absent, or by `backend="pil"`).
"""

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

    def preprocess(self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs) -> BatchFeature:
        """Prepare images, and label maps where given.

        Args:
            images: one or several images (PIL, numpy or torch; uint8 0..255).
            segmentation_maps: as many label maps (height, width), already 0..num_labels-1 and 255; `vss_hf.data`
                converts files. They are resized like the images, with the nearest label.
            kwargs: settings for this call, e.g. `do_resize`, `size`, `return_tensors`, `device`.

        Returns:
            BatchFeature: `pixel_values` (batch, 3, height, width) float32 and, with maps, `labels` (batch, height,
            width) int64.

        Raises:
            ValueError: when there are not as many maps as images.
        """
        features = super().preprocess(images, **kwargs)
        if segmentation_maps is not None:
            several = isinstance(segmentation_maps, (list, tuple))
            maps = [np.asarray(m)[None] for m in (segmentation_maps if several else [segmentation_maps])]  # (1, H, W)
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
            outputs: anything with `logits` (batch, num_labels, h, w).
            target_sizes: (height, width) wanted for each image; `None`: the size of the logits.

        Returns:
            One label map (height, width) of class ids per image. The upsampled scores are never held as a whole.

        Raises:
            ValueError: when `target_sizes` has another length than the batch.
        """
        logits = outputs.logits
        sizes = [tuple(logits.shape[-2:])] * len(logits) if target_sizes is None else target_sizes
        if len(sizes) != len(logits):
            raise ValueError(f"target_sizes has {len(sizes)} entries for a batch of {len(logits)}; give one per image")
        return [
            upsampled_argmax(image_logits[None], (int(height), int(width)))[0]
            for image_logits, (height, width) in zip(logits, sizes, strict=True)
        ]


class VSSImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Torchvision backend of the image processor."""


class VSSImageProcessorPil(SegmentationProcessing, PilBackend):
    """PIL backend of the image processor."""


__all__ = ["VSSImageProcessor", "VSSImageProcessorPil"]
