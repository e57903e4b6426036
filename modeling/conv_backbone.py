"""What the convolutional backbones share: initial weights, and recomputing activations despite BatchNorm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers import initialization as init

from .feature_maps import FeatureMaps


class ConvBackbone(FeatureMaps, PreTrainedModel):
    """A backbone of convolutions and BatchNorm; an architecture adds its layers and `compute_maps`."""

    timm_prefix: ClassVar[str] = ""  # our name of a tensor is this and timm's name

    def __init__(self, config: Any):
        super().__init__(config)
        self.gradient_checkpointing = False

    def run(self, module: nn.Module, *inputs: torch.Tensor, function: Callable | None = None) -> Any:
        """`module(*inputs)`; under gradient checkpointing its activations are computed a second time in backward.

        Args:
            module: the part of the network to run.
            inputs: its input maps.
            function: what to call instead of `module`, whose BatchNorms it uses.
        """
        function = function or module
        if not (self.gradient_checkpointing and self.training):
            return function(*inputs)
        norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        passes = []

        def compute(*inputs: torch.Tensor) -> Any:
            passes.append(None)
            with uncounted(norms if len(passes) > 1 else []):
                return function(*inputs)

        return self._gradient_checkpointing_func(compute, *inputs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """He et al. 2015 for convolutions; BatchNorm starts as the identity."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)


@contextmanager
def uncounted(norms: list[_BatchNorm]) -> Iterator[None]:
    """What runs inside does not count in the running statistics of `norms`."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, counter) in zip(norms, before, strict=True):
        assert counter is not None  # ours all keep statistics
        # Not `track_running_stats = False`: non-reentrant checkpointing wants the same tensors saved in both passes.
        norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros_like(counter)
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


__all__ = ["ConvBackbone"]
