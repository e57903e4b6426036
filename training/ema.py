"""Exponential moving average of a model's weights and BatchNorm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def ema_step(average: torch.Tensor, current: torch.Tensor, num_averaged: torch.Tensor, decay: float) -> torch.Tensor:
    """One update of one tensor. The decay is lower at the start, so that the initial weights are soon forgotten."""
    if not average.is_floating_point():
        return current  # counters such as num_batches_tracked are copied: an average of them has no meaning
    decay_now = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    return torch.lerp(average, current.to(average.dtype), 1 - decay_now)


class EMA(AveragedModel):
    """torch's AveragedModel with a decay that warms up.

    Args:
        model: the model to follow; its weights are copied.
        decay: 0..1, the share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, avg_fn=lambda a, c, n: ema_step(a, c, n, decay), use_buffers=True)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Within this context `model` carries the averaged tensors; afterwards its own again, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)
