"""What both metrics need: label maps in as integer tensors, and sums across processes."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def as_label_map(values: Any, name: str) -> torch.Tensor:
    """Turns a tensor, an array, a PIL image or nested lists into an integer tensor, without a copy where possible.

    Args:
        values: labels of any integer dtype and any shape.
        name: how errors call it.

    Raises:
        ValueError: the values are not integers, or need more than 64 bits with sign, or an image has several channels.
    """
    if isinstance(values, torch.Tensor):
        if values.is_floating_point() or values.is_complex():
            raise ValueError(
                f"{name} has dtype {values.dtype}; label maps hold integers (take the argmax of scores first)"
            )
        labels = values
    else:
        bands = getattr(values, "getbands", tuple)()  # of a PIL image: RGB values are no labels, whatever their dtype
        if len(bands) > 1:
            raise ValueError(f"{name} is an image of mode {values.mode}; label maps have one channel (mode L or P)")
        array = np.asarray(values)
        if array.dtype.kind not in "iub":
            raise ValueError(
                f"{name} has dtype {array.dtype}; label maps hold integers (take the argmax of scores first)"
            )
        native = np.dtype(f"{array.dtype.kind}{array.dtype.itemsize}")  # C has two names for 64 bits, torch knows one
        array = np.ascontiguousarray(array, dtype=native).view(native).reshape(array.shape)
        labels = torch.from_numpy(array if array.flags.writeable else array.copy())
    if labels.dtype is torch.bool:
        return labels.to(torch.uint8)
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has few operations for these
        wide = labels.to(torch.int64)
        if wide.numel() and wide.min() < 0:  # from 2^63 up the value wrapped round
            raise ValueError(f"{name} hold values from 2^63 up; label maps hold small numbers")
        return wide
    return labels


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum of `values` over the processes of torch.distributed, or `values` when it is not in use."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    on_cpu = values.device.type == "cpu"
    # NCCL sums on the GPU only. Gloo, and the "cpu:gloo,cuda:nccl" pair, take CPU tensors as they are.
    total = values.cuda() if on_cpu and dist.get_backend() == "nccl" else values.clone()
    dist.all_reduce(total)
    return total.to(values.device)


# On the CPU numpy compares bytes with a number, and counts, ten times as fast as torch does. Of a single
# pixel it makes no array, hence `asarray`.


def equals(labels: torch.Tensor, value: int) -> torch.Tensor:
    """`labels == value`, also where the value does not fit the dtype: torch would compare -100 as 156 in uint8."""
    limits = torch.iinfo(labels.dtype)
    if not limits.min <= value <= limits.max:
        return torch.zeros_like(labels, dtype=torch.bool)
    return torch.from_numpy(np.asarray(labels.numpy() == value)) if labels.device.type == "cpu" else labels == value


def at_least(values: torch.Tensor, value: int) -> torch.Tensor:
    """`values >= value`."""
    return torch.from_numpy(np.asarray(values.numpy() >= value)) if values.device.type == "cpu" else values >= value


def count(pixels: torch.Tensor) -> Any:
    """Number of true values: an int on the CPU, elsewhere a tensor, to be fetched together with others."""
    return int(np.count_nonzero(pixels.numpy())) if pixels.device.type == "cpu" else pixels.count_nonzero()
