"""From a label map to what mask classification learns from: one binary mask per class that occurs."""

import torch
from torch import Tensor


def masks_from_labels(labels: Tensor, num_labels: int, ignore_index: int = 255) -> tuple[list[Tensor], list[Tensor]]:
    """One mask for each class of each image; ignored pixels are in no mask.

    Semantic segmentation has no instances: everything of one class is one mask, as in Detectron2's and
    mmsegmentation's data pipelines. Class ids are never shifted.

    Args:
        labels: integer (batch, height, width), classes 0..num_labels-1 and `ignore_index`.
        num_labels: number of classes, without "no object".
        ignore_index: label value without a class.

    Returns:
        Masks, per image bool (n, height, width), and their classes, per image int64 (n,) in ascending order. An image
        without any labelled pixel has n = 0.

    Raises:
        ValueError: labels of another shape or kind, or a value that is no class.
    """
    if labels.ndim != 3 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers (batch, height, width), got {labels.dtype} {tuple(labels.shape)}")
    mask_labels, class_labels = [], []
    for image in labels:
        classes = image.unique().long()  # in uint8 a comparison with 300 classes would wrap around
        classes = classes[classes != ignore_index]
        wrong = classes[(classes < 0) | (classes >= num_labels)]
        if len(wrong):
            raise ValueError(
                f"labels hold the value {int(wrong[0])}: each must be in 0..{num_labels - 1} "
                f"or ignore_index = {ignore_index}"
            )
        mask_labels.append(image == classes[:, None, None])
        class_labels.append(classes)
    return mask_labels, class_labels


__all__ = ["masks_from_labels"]
