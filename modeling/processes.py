"""Sums over the processes of a distributed training, through which gradients flow."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself where there is one process.

    All processes must call it, and those with gradients go through `backward` together.

    Args:
        tensor: of the same shape and dtype in all processes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return SumOverProcesses.apply(tensor)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; what each of them makes of it flows back to all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


__all__ = ["SumOverProcesses", "sum_over_processes"]
