"""Averages of a model's weights and BatchNorm statistics that follow its training; the exponential moving average."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .sharded import whole


class WeightAverage(AveragedModel):
    """torch's AveragedModel for what a kind of average says of its weights, of whole tensors also of a sharded model.

    Args:
        model: the model to follow, not sharded yet; its weights are copied.
    """

    def __init__(self, model: nn.Module):
        # Without a device the counter would stay on the CPU, and be copied to the GPU once per tensor.
        device = next(model.parameters()).device
        super().__init__(model, device=device, use_buffers=True)

    def share(self) -> torch.Tensor:
        """How much of the average the current weights are going to be, 0..1; 1 when there is none yet."""
        raise NotImplementedError

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the current weights. A sharded model (FSDP2) is gathered for it: every process must call this."""
        share = self.share()
        averages = chain(self.module.parameters(), self.module.buffers())
        for average, current in zip(averages, chain(model.parameters(), model.buffers()), strict=True):
            current = whole(current.detach()).to(average.device)
            if average.is_floating_point():
                average.lerp_(current.to(average.dtype), share.to(average.dtype))
            else:
                average.copy_(current)  # counters such as num_batches_tracked: an average of them has no meaning
        self.n_averaged += 1

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Within this context `model` carries the averaged tensors; afterwards its own again, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)


class EMA(WeightAverage):
    """The exponential moving average, with a decay that warms up.

    Args:
        model: as for `WeightAverage`.
        decay: 0..1, the share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def share(self) -> torch.Tensor:
        # The decay is min(decay, (1 + n) / (10 + n)): lower at first, so that the initial weights are soon forgotten.
        # This is 1 minus it, and 1 in the first step; as a tensor, because reading n would wait for the GPU.
        share = (9 / (10 + self.n_averaged)).clamp(min=1 - self.decay)
        return torch.where(self.n_averaged == 0, torch.ones_like(share), share)
