"""BatchNorm whose statistics are those of the samples of all processes: for few samples per GPU, as clips allow."""

import warnings
from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

from vss_hf.modeling.processes import SumOverProcesses


def with_synchronised_batchnorm(model: Any, world_size: int, device: torch.device) -> Any:
    """The model with synchronised BatchNorms; names, weights, what it saves and how it evaluates stay as they are.

    GPUs take torch's SyncBatchNorm. It refuses CPUs, and so does DistributedDataParallel with it; they take the one
    below, which is slower and needs more memory.

    Args:
        model: changed in place.
        world_size: number of processes; one alone has nothing to synchronise, and keeps its model.
        device: where it will train.
    """
    if world_size == 1:
        warnings.warn(
            "--sync_batchnorm changes nothing: there is one process, so BatchNorm sees all samples of a step already",
            stacklevel=2,
        )
        return model
    if device.type != "cpu":
        return convert_sync_batchnorm(model)  # timm's: torch's loses the activations that timm's BatchNorms hold
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            on_cpus: Any = BatchNormActOnCPUs if isinstance(module, BatchNormAct2d) else BatchNormOnCPUs
            module.__class__ = on_cpus
    return model


class BatchNormOnCPUs(_BatchNorm):
    """BatchNorm over the samples of all processes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return normalised(self, input) if self.training else super().forward(input)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass  # any number of dimensions, as torch's SyncBatchNorm


class BatchNormActOnCPUs(BatchNormAct2d):
    """The same with timm's activation behind it."""

    drop: Any
    act: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(normalised(self, x))) if self.training else super().forward(x)


def normalised(norm: Any, input: torch.Tensor) -> torch.Tensor:
    """What the BatchNorm `norm` in training makes of the inputs (batch, channels, ...) of all processes together."""
    values = input.float()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    count = values.new_tensor([values.numel() / values.shape[1]])  # other processes may have maps of another size
    total = SumOverProcesses.apply(torch.cat([values.sum(axes), count]))
    mean, count = total[:-1] / total[-1], total[-1]
    centred = values - mean.view(shape)
    variance = SumOverProcesses.apply(centred.square().sum(axes)) / count
    if norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).detach(), momentum)
    output = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        output = output * norm.weight.view(shape) + norm.bias.view(shape)
    return output.to(input.dtype)
