"""BetterThing's second loss: a focal loss that costs more where the classes are often confused."""

from collections.abc import Callable
from typing import Any

import torch

from vss_hf.modeling.dense import upsampled_confusion, upsampled_cross_entropy

from .loss_terms import focal_weights, mean_over_pixels


class ConfusionFocalLoss:
    """Mean over labelled pixels of r · (1 - p)^gamma · -log p; a `PixelLoss`.

    With y the true and y' the predicted class, r is 1 where they are the same and else
    C[y, y'] / min(C[y, y], C[y', y']), kept within floor..cap. C is either fixed, or follows the training.

    Args:
        matrix: (K, K) confusion C in any unit, rows the true class; None: it is counted from the predictions of the
            training itself (all heads, all labelled pixels), step after step, with `momentum`. Until the first step is
            over r is `floor` for all that is wrong.
        num_labels: K.
        gamma: at least 0; 2 in the paper.
        floor: least r of a wrongly predicted pixel. The paper has none: there a pixel of two classes that C knows no
            confusion of gets no gradient, however wrong it is.
        cap: largest r; also where C[y, y] or C[y', y'] is 0.
        momentum: 0..1, share of the old C in the new one after each step; the rest is the step's own.
        device: where C is kept.

    Source: "The 1st Place Solution for the VSPW challenge 2021" (team BetterThing), sec. 4.2.2; there C is of the
    validation set.
    """

    def __init__(
        self,
        matrix: torch.Tensor | None,
        num_labels: int,
        *,
        gamma: float = 2.0,
        floor: float = 1.0,
        cap: float = 10.0,
        momentum: float = 0.99,
        device: torch.device | str = "cpu",
    ):
        self.gamma, self.floor, self.cap, self.momentum = gamma, floor, cap, momentum
        self.running = matrix is None
        empty = torch.zeros(num_labels, num_labels, device=device)
        self.matrix = empty if matrix is None else matrix.to(empty)
        self.counts = torch.zeros_like(empty, dtype=torch.int64)  # of the current step
        self.factors = self.factors_of_pairs()

    def factors_of_pairs(self) -> torch.Tensor:
        """r for every pair (K, K) of true and predicted class."""
        right = self.matrix.diagonal()
        # A class that is never right would divide by 0; what is never confused stays 0.
        least = (self.matrix.sum() * 1e-9).clamp(min=1e-30)
        ratio = self.matrix / torch.minimum(right[:, None], right).clamp(min=least)
        return ratio.clamp(self.floor, self.cap).fill_diagonal_(1)

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        *,
        ignore_index: int = 255,
        align_corners: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        shared: Any = dict(ignore_index=ignore_index, align_corners=align_corners)
        if self.running and torch.is_grad_enabled():
            self.counts += upsampled_confusion(logits, labels, **shared)
        total = upsampled_cross_entropy(logits, labels, pixel_weights=self.pixel_weights, reduction="sum", **shared)
        return mean_over_pixels(total, (labels.long() != ignore_index).sum(), num_items_in_batch)

    def pixel_weights(
        self, probability: torch.Tensor, predicted: torch.Tensor, label: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """r times the weights of a focal loss; r is a constant to the gradient."""
        factor = self.factors[label, predicted]
        weight, slope = focal_weights(probability, predicted, label, gamma=self.gamma)
        return factor * weight, factor * slope

    def end_step(self, sum_over_processes: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Take the step's counts into the matrix; all processes together, so that all have the same."""
        if not self.running:
            return
        counts = sum_over_processes(self.counts).to(self.matrix)
        shares = counts / counts.sum().clamp(min=1)
        self.go_on_from(self.momentum * self.matrix + (1 - self.momentum) * shares)
        self.counts.zero_()

    def go_on_from(self, matrix: torch.Tensor) -> None:
        """Take another matrix (K, K)."""
        self.matrix = matrix.to(self.matrix)
        self.factors = self.factors_of_pairs()
