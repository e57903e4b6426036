"""What MaskFormer and Mask2Former share here: a label map in, transformers' outputs out."""

from typing import Any

import torch
from torch import Tensor

from .backbone import StartsFromBackbone
from .mask_labels import masks_from_labels


class MaskClassifier(StartsFromBackbone):
    """Loss from a label map, for a subclass of one of transformers' mask models."""

    # transformers' models set these
    config: Any
    criterion: Any
    model: Any
    weight_dict: dict[str, float]
    supports_gradient_checkpointing = True

    @property
    def backbone(self) -> Any:
        """The backbone; its parameters are named `model.pixel_level_module.encoder.*`."""
        return self.model.pixel_level_module.encoder

    def total_loss(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        auxiliary_logits: list[dict[str, Tensor]],
        *,
        labels: Tensor | None,
        mask_labels: list[Tensor] | None,
        class_labels: list[Tensor] | None,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor | None:
        """The weighted sum of all losses, or None without labels.

        Args:
            masks_queries_logits: of the last decoder layer, (batch, queries, h, w).
            class_queries_logits: of the last decoder layer, (batch, queries, num_labels + 1).
            auxiliary_logits: both, of the other decoder layers.
            labels: integer (batch, height, width), or None.
            mask_labels: instead of `labels`, with `class_labels`: per image (n, height, width).
            class_labels: per image (n,).
            num_items_in_batch: labelled pixels of the whole optimisation step. The loss is then weighted with this
                batch's share of them, so that micro-batches and processes add up to a weighted mean of their losses.
        """
        if labels is None and mask_labels is None and class_labels is None:
            return None
        if (labels is None) != (mask_labels is not None) or (mask_labels is None) != (class_labels is None):
            raise ValueError("expected either labels, or both mask_labels and class_labels")
        void = None
        if labels is not None:
            labels = labels.to(masks_queries_logits.device)
            ignore_index = self.config.ignore_index
            mask_labels, class_labels = masks_from_labels(labels, self.config.num_labels, ignore_index)
            if self.config.void_pixels == "ignore":
                void = labels == ignore_index
        elif num_items_in_batch is not None:
            raise ValueError("num_items_in_batch counts labelled pixels: it needs labels instead of mask_labels")
        losses = self.criterion(
            masks_queries_logits, class_queries_logits, mask_labels, class_labels, auxiliary_logits, void
        )
        loss = sum(
            weight * value
            for kind, weight in self.weight_dict.items()
            for name, value in losses.items()
            if name.startswith(kind)
        )
        if labels is not None and num_items_in_batch is not None:
            share = (labels != self.config.ignore_index).sum()
            loss = loss * share / torch.as_tensor(num_items_in_batch, device=share.device).clamp(min=1)
        return loss  # type: ignore[return-value]  # sum() of tensors


__all__ = ["MaskClassifier"]
