"""What the convolutional backbones share: choosing maps, initial weights, and recomputing activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput


class ConvBackbone(BackboneMixin, PreTrainedModel):
    """A backbone of convolutions and BatchNorm; an architecture adds its layers and `compute_maps`."""

    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # as transformers' own models have it; its annotation knows no tuple
    supports_gradient_checkpointing = True
    has_attentions = False
    timm_prefix: ClassVar[str] = ""  # our name of a tensor is this and timm's name

    def __init__(self, config: Any):
        super().__init__(config)
        self.gradient_checkpointing = False

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """One map (batch, channels, h, w) for each of `stage_names`."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        r"""Compute feature maps.

        Args:
            pixel_values: float (batch, num_channels, height, width), normalised; any height and width. A map's size is
                the image's divided by its stride, rounded up.
            output_hidden_states: also return the maps of all stages, whatever `out_features` says.
            output_attentions: accepted and ignored: there is no attention here.
            return_dict: `False` for a plain tuple.

        Returns:
            BackboneOutput: with `feature_maps`, in the order of `out_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = self.compute_maps(pixel_values)
        wanted: Any = tuple(m for name, m in zip(self.stage_names, maps, strict=True) if name in self.out_features)
        hidden_states: Any = tuple(maps) if output_hidden_states else None
        output = BackboneOutput(feature_maps=wanted, hidden_states=hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

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
            init.ones_(module.weight)
            init.zeros_(module.bias)
            assert module.running_mean is not None and module.running_var is not None  # ours all keep statistics
            assert module.num_batches_tracked is not None
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


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
