"""Models whose weights are spread over processes (FSDP2): to evaluate and save them they are put together again."""

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


CONFIG = "accelerate_configs/fsdp2_8gpu.yaml"


def check_fsdp(plugin: Any) -> None:
    """Raise for settings of FSDP with which a run would break, or could not be saved and resumed.

    Args:
        plugin: accelerate's FullyShardedDataParallelPlugin.
    """
    wanted = {
        "fsdp_version": (plugin.fsdp_version, 2),
        # Others leave checkpoints that are no model folders.
        "fsdp_state_dict_type": (plugin.state_dict_type.name, "FULL_STATE_DICT"),
        # accelerate hands out parameters only, and BatchNorm has buffers too.
        "fsdp_cpu_ram_efficient_loading": (bool(plugin.cpu_ram_efficient_loading), False),
    }
    for field, (found, expected) in wanted.items():
        if found != expected:
            raise ValueError(f"{field} {found}: not supported, expected {expected} (see {CONFIG})")


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with all its shards; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole_copy(model: Any) -> Any:
    """An ordinary copy of a sharded model, in every process; every process must call it.

    The sharded one cannot be used by one process alone: each forward pass gathers weights from all of them, so that
    processes with unequally many frames to evaluate would wait for ever.
    """
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    original = next(each for each in type(model).__mro__ if not issubclass(each, FSDPModule))
    unsharded = original(copy.deepcopy(model.config))
    unsharded.load_state_dict(state)
    return unsharded.to(model.device)
