r"""Losses of mask classification: match queries with masks, then compare each pair; in fp32 whatever the precision.

They subclass transformers' losses, whose buffer `criterion.empty_weight` is part of every saved model, and give the
same numbers in one process. What differs: half precision works; a mask loss over full-size pictures is computed a few
masks at a time; the number of masks is averaged over processes (transformers divides their mean by the number of
processes once more), once per forward and in training only; void pixels may be left out.

Letters: B batch, Q queries, K num_labels, h and w the masks' own size, H and W the labels', M matched pairs, P points.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    dice_loss,
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
    sigmoid_cross_entropy_loss,
)
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerLoss,
    pair_wise_sigmoid_focal_loss,
    sigmoid_focal_loss,
)
from transformers.utils.generic import maybe_autocast


# A number of masks is a Tensor; Any, because transformers' functions are annotated with int.
Pairs = list[tuple[Tensor, Tensor]]  # per image: indices of queries, indices of the masks they are matched with
VOID_LOGIT = -1e4  # its sigmoid is exactly 0: where the target is 0 too, it adds nothing to any of the losses
MASKS_AT_A_TIME = 16  # 16 masks of 480x853 take 0.3 GB in the focal loss


class MatchedLosses:
    """Matching and the sum over decoder layers, for a subclass of one of transformers' losses."""

    # transformers' losses set these
    matcher: Any
    num_labels: int
    eos_coef: float
    training: bool
    class_bias: Tensor | None = None  # (K + 1,), set for a run with logit adjustment; part of no checkpoint

    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        auxiliary_predictions: list[dict[str, Tensor]] | None = None,
        void: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of the last decoder layer, and of others.

        Args:
            masks_queries_logits: (B, Q, h, w).
            class_queries_logits: (B, Q, K + 1), the last class being "no object".
            mask_labels: per image (n, H, W), bool or 0 and 1; smaller ones are padded below and on the right.
            class_labels: per image int64 (n,).
            auxiliary_predictions: dicts with both kinds of logits, one for each other decoder layer.
            void: bool (B, H, W): pixels that the mask losses and the matching leave out.

        Returns:
            `loss_cross_entropy`, `loss_mask`, `loss_dice` without weights, and for the i-th auxiliary prediction the
            same with `_i` behind.
        """
        device = masks_queries_logits.device
        last = {"masks_queries_logits": masks_queries_logits, "class_queries_logits": class_queries_logits}
        predictions = {"": last}
        predictions.update({f"_{index}": each for index, each in enumerate(auxiliary_predictions or [])})
        mask_labels = padded_to_one_size(mask_labels)
        losses = {}
        with maybe_autocast(device.type, enabled=False):
            num_masks = self.get_num_masks(class_labels, device)
            for suffix, prediction in predictions.items():
                masks, classes = (prediction[f"{kind}_queries_logits"].float() for kind in ("masks", "class"))
                pairs = self.match(masks, classes, mask_labels, class_labels, void)
                parts = {
                    **self.loss_masks(masks, mask_labels, pairs, num_masks, void),
                    **self.loss_labels(classes, class_labels, pairs),
                }
                losses.update({name + suffix: loss for name, loss in parts.items()})
        return losses

    @torch.no_grad()
    def match(
        self,
        masks: Tensor,
        classes: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        void: Tensor | None,
    ) -> Pairs:
        """The cheapest assignment of masks to queries, for each image."""
        try:  # for transformers' loader of remote code, which wants every package whose import is not inside of `try`
            from scipy.optimize import linear_sum_assignment
        except ImportError as missing:
            raise ImportError("the loss of mask models needs scipy: install the package `scipy`") from missing

        pairs = []
        for i, labels in enumerate(class_labels):
            points, targets = self.points_for_matching(masks[i], mask_labels[i], None if void is None else void[i])
            costs = self.matcher.cost_mask * self.mask_cost(points, targets)
            costs = costs - self.matcher.cost_class * classes[i].softmax(-1)[:, labels]
            costs = costs + self.matcher.cost_dice * pair_wise_dice_loss(points, targets)
            # A diverging model must not stop here, where nothing says why: its loss shows it.
            most = torch.finfo(costs.dtype).max
            costs = costs.nan_to_num(nan=most, posinf=most, neginf=most)
            queries, matched = map(torch.as_tensor, linear_sum_assignment(costs.cpu()))
            pairs.append((queries.to(masks.device), matched.to(masks.device)))
        return pairs

    def points_for_matching(self, masks: Tensor, targets: Tensor, void: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (Q, P) and targets (n, P) of the pixels that decide about the assignment."""
        raise NotImplementedError

    def mask_cost(self, points: Tensor, targets: Tensor) -> Tensor:
        """(Q, n) from (Q, P) and (n, P)."""
        raise NotImplementedError

    def loss_masks(
        self, masks: Tensor, mask_labels: list[Tensor], pairs: Pairs, num_masks: Any, void: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`loss_mask` and `loss_dice`, summed over the matched pairs and divided by `num_masks`."""
        raise NotImplementedError

    def loss_labels(self, classes: Tensor, class_labels: list[Tensor], pairs: Pairs) -> dict[str, Tensor]:
        """Cross entropy over all queries; those without a mask should say "no object", with a smaller weight."""
        if self.class_bias is not None and self.training:
            classes = classes + self.class_bias.to(classes)
        target = torch.full(classes.shape[:2], self.num_labels, device=classes.device)
        for i, (queries, matched) in enumerate(pairs):
            target[i, queries] = class_labels[i][matched]
        # Not the buffer `empty_weight`: it has the model's precision, and the checkpoint's weight, not the config's.
        weights = torch.ones(self.num_labels + 1, device=classes.device)
        weights[-1] = self.eos_coef
        return {"loss_cross_entropy": F.cross_entropy(classes.transpose(1, 2), target, weights)}

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Masks of the batch; in training their mean over all processes, as published (one small all-reduce).

        In evaluation processes may hold unequal numbers of batches, and would wait for each other for ever.
        """
        count = torch.as_tensor(sum(map(len, class_labels)), dtype=torch.float, device=device)
        if self.training and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            count = count / distributed.get_world_size()
        return count.clamp(min=1)


class MaskFormerCriterion(MatchedLosses, MaskFormerLoss):
    """MaskFormer: focal and dice loss on every pixel at the labels' size; matching at the masks' own size.

    Memory beside the model's own: the M matched masks at the labels' size, as bool (0.4 MB each at 480x853), and the
    intermediate values of 16 masks at a time, which backward computes again.
    """

    def points_for_matching(self, masks: Tensor, targets: Tensor, void: Tensor | None) -> tuple[Tensor, Tensor]:
        size = masks.shape[-2:]
        points, targets = masks.flatten(1), nearest(targets, size).flatten(1).float()
        if void is not None:
            points = points.masked_fill(nearest(void[None], size).flatten(1).bool(), VOID_LOGIT)
        return points, targets

    def mask_cost(self, points: Tensor, targets: Tensor) -> Tensor:
        return pair_wise_sigmoid_focal_loss(points, targets)

    def loss_masks(
        self, masks: Tensor, mask_labels: list[Tensor], pairs: Pairs, num_masks: Any, void: Tensor | None = None
    ) -> dict[str, Tensor]:
        focal, dice = masks.new_zeros(()), masks.new_zeros(())
        for i, (queries, matched) in enumerate(pairs):
            # At least one piece, empty if need be: even without any mask every parameter gets its gradient of 0.
            pieces = zip(queries.split(MASKS_AT_A_TIME), matched.split(MASKS_AT_A_TIME), strict=True)
            for some_queries, some_matched in pieces:
                some_focal, some_dice = checkpoint(
                    full_size_losses,
                    masks[i, some_queries],
                    mask_labels[i][some_matched],
                    None if void is None else void[i],
                    num_masks,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                focal, dice = focal + some_focal, dice + some_dice
        return {"loss_mask": focal, "loss_dice": dice}


def full_size_losses(masks: Tensor, targets: Tensor, void: Tensor | None, num_masks: Any) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of logits (n, h, w) upsampled to their targets (n, H, W)."""
    logits = F.interpolate(masks[:, None], size=targets.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
    if void is not None:
        logits = logits.masked_fill(void, VOID_LOGIT)
    logits, labels = logits.flatten(1), targets.flatten(1).float()
    return sigmoid_focal_loss(logits, labels, num_masks), dice_loss(logits, labels, num_masks)


class Mask2FormerCriterion(MatchedLosses, Mask2FormerLoss):
    """Mask2Former: cross entropy and dice loss on random points; 3/4 of them where the mask is undecided.

    The points come from torch's global generator of the masks' device.
    """

    oversample_ratio: Any  # transformers annotates int, and has 3.0

    def points_for_matching(self, masks: Tensor, targets: Tensor, void: Tensor | None) -> tuple[Tensor, Tensor]:
        places = torch.rand(1, self.matcher.num_points, 2, device=masks.device)
        points = sample_point(masks[None], places, align_corners=False)[0]
        targets = sample_point(targets[None].float(), places, align_corners=False)[0]
        if void is not None:
            points = points.masked_fill(void_at(void, places), VOID_LOGIT)
        return points, targets

    def mask_cost(self, points: Tensor, targets: Tensor) -> Tensor:
        return pair_wise_sigmoid_cross_entropy_loss(points, targets)

    def loss_masks(
        self, masks: Tensor, mask_labels: list[Tensor], pairs: Pairs, num_masks: Any, void: Tensor | None = None
    ) -> dict[str, Tensor]:
        matched_masks = torch.cat([masks[i, queries] for i, (queries, _) in enumerate(pairs)])[:, None]  # (M, 1, h, w)
        with torch.no_grad():
            places = self.sample_points_using_uncertainty(
                matched_masks,
                self.calculate_uncertainty,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )  # (M, P, 2), x and y in 0..1
            each = places.split([len(matched) for _, matched in pairs])
            labels = torch.cat(
                [
                    sample_point(mask_labels[i][matched][:, None].float(), each[i], align_corners=False)[:, 0]
                    for i, (_, matched) in enumerate(pairs)
                ]
            )  # (M, P)
        logits = sample_point(matched_masks, places, align_corners=False)[:, 0]  # (M, P)
        if void is not None:
            logits = logits.masked_fill(torch.cat([void_at(void[i], each[i]) for i in range(len(pairs))]), VOID_LOGIT)
        return {
            "loss_mask": sigmoid_cross_entropy_loss(logits, labels, num_masks),
            "loss_dice": dice_loss(logits, labels, num_masks),
        }


def nearest(masks: Tensor, size: torch.Size) -> Tensor:
    """Masks (n, H, W) resized to (n, h, w); torch has no nearest neighbour for bool."""
    masks = masks.byte() if masks.dtype == torch.bool else masks
    return F.interpolate(masks[:, None], size=size, mode="nearest")[:, 0]


def void_at(void: Tensor, places: Tensor) -> Tensor:
    """Whether the pixels of `void` (H, W) at `places` (n, P, 2), x and y in 0..1, are void: bool (n, P)."""
    height, width = void.shape
    columns = (places[..., 0] * width).long().clamp(max=width - 1)
    rows = (places[..., 1] * height).long().clamp(max=height - 1)
    return void[rows, columns]


def padded_to_one_size(masks: list[Tensor]) -> list[Tensor]:
    """The masks of a batch, (n, H, W) each, padded with 0 below and on the right."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (1, 2))
    return [F.pad(mask, (0, width - mask.shape[2], 0, height - mask.shape[1])) for mask in masks]


__all__ = ["Mask2FormerCriterion", "MaskFormerCriterion"]
