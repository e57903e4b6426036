"""Several processes on one evaluation or prediction: who takes which videos, and how all of them end together.

The processes are those of torch.distributed, started by the Trainer or by `joined_processes`. With one process
everything here does nothing. What is exchanged are numbers and texts as tensors, never pickled objects.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from vss_hf.metrics import sum_over_processes


# A process that has no video left waits for the longest one. One that died is noticed by torchrun, not by this.
PATIENCE = timedelta(days=7)


class OtherProcessFailed(ChildProcessError):
    """Another process ended with an error, whose text this one repeats (an OSError: no fault of this program)."""


def rank_and_world() -> tuple[int, int]:
    """The number of this process and the number of processes; (0, 1) without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank_and_world()[0] == 0


@contextmanager
def joined_processes(device: str | None) -> Iterator[str | None]:
    """Joins the processes that torchrun or `accelerate launch` started, for a program without a Trainer.

    Args:
        device: "cpu", "cuda", or None for a GPU if there is one. Started alone, anything goes.

    Yields:
        The device of this process: one GPU each.

    Raises:
        ValueError: one GPU is named for all, or there are fewer GPUs than processes on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield device
        return
    if device not in (None, "cpu", "cuda"):
        raise ValueError(
            f"--device {device} with {os.environ['WORLD_SIZE']} processes: each takes a device of its own; give cpu, "
            "cuda or nothing"
        )
    backend, device = "gloo", device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"this machine has {gpus} GPUs; start at most that many processes on it, or --device cpu")
        backend, device = "nccl", f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()  # without it, processes sometimes abort at exit


@contextmanager
def failing_together() -> Iterator[None]:
    """An error in one process ends this block in all of them, instead of leaving the others to wait for ever.

    All processes must come here; each waits at the end of the block for the others. Such blocks follow one another:
    they must not be nested, nor hold another exchange between processes.

    Raises:
        OtherProcessFailed: another process raised, and this one did not.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # raised again below, when the others know
        failure = error
    texts = gather_texts("" if failure is None else one_line(failure))
    if failure is not None:
        raise failure
    for rank, text in enumerate(texts):
        if text:
            raise OtherProcessFailed(f"process {rank} of {len(texts)} failed: {text}")


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process does this block before all others, who then find the files that it wrote.

    Errors end the block in all processes, and what `failing_together` says of exchanges holds here too.
    """
    if is_first():
        with failing_together():
            yield
        with failing_together():
            pass
    else:
        with failing_together():
            pass
        with failing_together():
            yield


def one_line(error: Exception) -> str:
    """An error in a line; of a data worker, which sends its whole traceback, the end of that."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Caught ") else f"{type(error).__name__}: {' '.join(lines)}"


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in every process, in their order."""
    rank, world = rank_and_world()
    if world == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
    lengths = torch.zeros(world, dtype=torch.int64)
    lengths[rank] = len(data)
    lengths = sum_over_processes(lengths)
    table = torch.zeros(world, max(1, int(lengths.max())), dtype=torch.uint8)
    table[rank, : len(data)] = data  # a row of zeros everywhere else, so that the sum is the text
    table = sum_over_processes(table)
    return [row[:n].numpy().tobytes().decode() for row, n in zip(table, lengths.tolist(), strict=True)]


def largest(value: float) -> float:
    """The largest of the values of all processes."""
    rank, world = rank_and_world()
    values = torch.zeros(world, dtype=torch.float64)
    values[rank] = value
    return float(sum_over_processes(values).max())


def own_share(lengths: Sequence[int]) -> list[int]:
    """The positions, ascending, of the videos that this process takes: whole ones, about equally many frames for all.

    Args:
        lengths: frames of each video, the same in every process.
    """
    rank, world = rank_and_world()
    return [video for video, owner in enumerate(share_out(lengths, world)) if owner == rank]


def share_out(lengths: Sequence[int], world: int) -> list[int]:
    """Which process takes each video: the longest first, each to the one that has the fewest frames so far."""
    owners, loads = [0] * len(lengths), [0] * world
    for video in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        owners[video] = loads.index(min(loads))
        loads[owners[video]] += lengths[video]
    return owners


def check_same_everywhere(text: str, what: str) -> None:
    """Raise in all processes unless `text` is the same in all: their shares would overlap or leave gaps.

    Args:
        text: e.g. the videos that a process sees.
        what: how the error calls it.
    """
    texts = gather_texts(text)
    for rank, other in enumerate(texts):
        if other != texts[0]:
            raise ValueError(
                f"{what} is not the same for all processes: process 0 sees {len(texts[0].splitlines())} videos and "
                f"process {rank} sees {len(other.splitlines())}, or other names or lengths; give all machines one copy"
            )


@torch.no_grad()
def take_from_first(model: nn.Module) -> None:
    """Give every process the first one's weights and buffers, in place; all must call it.

    In training every process has BatchNorm statistics of its own; those of the first one are saved.
    """
    if rank_and_world()[1] == 1:
        return
    for tensor in model.state_dict().values():
        contiguous = tensor.contiguous()  # channels-last weights are not
        dist.broadcast(contiguous, src=0)
        tensor.copy_(contiguous)
