"""The order in which a run sees its training samples, as a function of seed and position: resuming costs nothing.

Training is one endless sequence of draws. Draw d is sample `permutation(seed, d // N)[d % N]` of N samples, augmented
with random numbers that depend on (seed, d) alone. A step takes `world * batch` consecutive draws per micro-batch, the
ranks one slice each. So nothing is seen twice or left out in a pass over the data, whatever its size, and a run that
has done s steps continues with draw s * world * batch * accumulation, without touching what came before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from vss_hf.data.stream import FrameStream


@dataclass
class DrawOrder:
    """Which draws one process takes.

    Args:
        seed: of the run.
        batch_size: samples per micro-batch and process.
        rank: of this process.
        world_size: number of processes.
        start: draws that the whole run has consumed already.
    """

    seed: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def draws(self) -> Iterator[int]:
        """This process's draws, for ever."""
        block = self.start
        while True:
            first = block + self.rank * self.batch_size
            yield from range(first, first + self.batch_size)
            block += self.world_size * self.batch_size


class EndlessSampler(Sampler[tuple[int, int]]):
    """Yields (draw, sample index) for ever. It has no length, because a run ends at `max_steps`.

    Args:
        num_samples: N, at least 1.
        order: which draws.
    """

    def __init__(self, num_samples: int, order: DrawOrder):
        self.num_samples = num_samples
        self.order = order

    def __iter__(self) -> Iterator[tuple[int, int]]:
        current, permutation = -1, np.empty(0, dtype=np.int64)
        for draw in self.order.draws():
            epoch, position = divmod(draw, self.num_samples)
            if epoch != current:
                current = epoch
                permutation = np.random.default_rng([self.order.seed, epoch]).permutation(self.num_samples)
            yield draw, int(permutation[position])


class TrainingDraws(Dataset):
    """Augmented training samples by (draw, sample index).

    Args:
        samples: indexable; yields data samples (`vss_hf.data.load_vspw`).
        transform: (sample, seed) -> model inputs.
        seed: of the run.
        cache: keep every decoded sample in memory; with workers, each of them keeps its own.
    """

    def __init__(self, samples: Any, transform: Callable[[dict, int], dict], seed: int, cache: bool = False):
        self.samples, self.transform, self.seed = samples, transform, seed
        self.decoded: dict[int, dict] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        draw, index = key
        return self.transform(self.sample(index), draw_seed(self.seed, draw))

    def sample(self, index: int) -> dict:
        """The decoded sample, from memory if it is kept there."""
        if self.decoded is None:
            return self.samples[index]
        if index not in self.decoded:
            self.decoded[index] = self.samples[index]
        return self.decoded[index]


class TrainingStream(IterableDataset):
    """Pass after pass over a shuffled stream of augmented samples, with a state to continue from.

    Args:
        stream: this process's share of a `FrameStream`.
        transform: (sample, seed) -> model inputs.
    """

    def __init__(self, stream: FrameStream, transform: Callable[[dict, int], dict]):
        self.stream, self.transform = stream.with_transform(transform), transform

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.take_own_epoch()
        while True:
            yield from self.stream
            if self.stream.state_dict()["delivered"] == 0:
                return  # fewer samples than workers: this one has nothing to read
            self.stream.set_epoch(self.stream.epoch + 1)

    def take_own_epoch(self) -> None:
        """A stream shares its epoch with all workers, but each of them passes to the next epoch at its own time."""
        self.stream = self.stream.with_transform(self.transform)  # a copy, position included

    def state_dict(self) -> dict[str, Any]:
        """Where this worker stands."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.take_own_epoch()
        self.stream.load_state_dict(state)


def draw_seed(seed: int, draw: int) -> int:
    """The seed of one sample's augmentation."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0] >> 1)
