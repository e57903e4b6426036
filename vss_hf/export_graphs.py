"""What is exported of a model: from `pixel_values` to logits, to what its queries say, or to a label map."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


CLASSES_AT_ONCE = 16  # whose scores exist at full size, in a graph that gives labels


class LogitsGraph(nn.Module):
    """Logits of a per-pixel model."""

    outputs = ("logits",)

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From (B, 3, H, W)."""
        return (self.model(pixel_values).logits,)


class MasksGraph(LogitsGraph):
    """Class and mask logits of a mask model."""

    outputs = ("class_queries_logits", "masks_queries_logits")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From (B, 3, H, W)."""
        output = self.model(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits


class LabelsGraph(LogitsGraph):
    """The class of each pixel, by a per-pixel model."""

    outputs = ("labels",)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From (B, 3, H, W)."""
        logits, size = self.model(pixel_values).logits, pixel_values.shape[-2:]
        aligned = bool(getattr(self.model.config, "align_corners", False))
        highest: Any = None
        labels: Any = None
        for first in range(0, logits.shape[1], CLASSES_AT_ONCE):
            some = logits[:, first : first + CLASSES_AT_ONCE]
            scores = F.interpolate(some, size=size, mode="bilinear", align_corners=aligned)
            score, label = scores.max(dim=1)
            label = label + first
            # The first class wins a tie, as it does in argmax.
            labels = label if labels is None else torch.where(score > highest, label, labels)
            highest = score if highest is None else torch.maximum(score, highest)
        return (labels.to(torch.uint8) if logits.shape[1] <= 255 else labels,)


def exported_graph(model: Any, labels: bool, source: str | Path) -> LogitsGraph:
    """The graph for a model: by its kind, and with labels at the end if they are wanted."""
    if not hasattr(model, "class_predictor"):
        return LabelsGraph(model) if labels else LogitsGraph(model)
    if labels:
        raise ValueError(
            f"--labels: {source} is a mask model, whose label map needs every query's mask at full size; export it "
            "without --labels"
        )
    return MasksGraph(model)
