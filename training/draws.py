"""The order in which a run sees its training samples, as a function of seed and position: resuming costs nothing.

Training is one endless sequence of draws. Draw d is sample `permutation(seed, d // N)[d % N]` of N samples, augmented
with random numbers that depend on (seed, d) alone. A step takes `world * batch` consecutive draws per micro-batch, the
ranks one slice each. So nothing is seen twice or left out in a pass over the data, whatever its size, and a run that
has done s steps continues with draw s * world * batch * accumulation, without touching what came before.

Both kinds of data set give that sequence: `TrainingDraws` by random access, `TrainingStream` as a stream whose workers
deliver whole batches in turn.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info


ON_BAD_SAMPLE = ("raise", "skip")
BAD_IN_A_ROW = 64  # so many unreadable samples one after the other are no accident
COUNTERS = 256  # more than anybody has workers


# --- the order


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

    def draws(self, worker: int = 0, num_workers: int = 1) -> Iterator[int]:
        """The draws of this process, for ever; of worker w of n: those of its batches w, w + n, w + 2n, ..."""
        block = self.world_size * self.batch_size
        for first in count(self.start + worker * block + self.rank * self.batch_size, num_workers * block):
            yield from range(first, first + self.batch_size)


def sample_of(draw: int, seed: int, num_samples: int) -> int:
    """The sample, 0..num_samples-1, that a draw takes."""
    epoch, position = divmod(draw, num_samples)
    return int(permutation(seed, epoch, num_samples)[position])


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order of one pass over the data."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def draw_seed(seed: int, draw: int) -> int:
    """The seed of one sample's augmentation."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0] >> 1)


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
        for draw in self.order.draws():
            yield draw, sample_of(draw, self.order.seed, self.num_samples)


# --- the samples


class DrawReader:
    """What both data sets do with a draw: decode its sample, or the next readable one, and augment it.

    Args:
        samples: indexable; yields data samples (`vss_hf.data.load_vspw`).
        transform: (sample, seed) -> model inputs.
        seed: of the run and its `DrawOrder`.
        on_bad_sample: what happens to a file that is damaged or gone. `raise`: an error that names video and frame.
            `skip`: the draw gets the next readable sample of the pass, is counted in `skipped`, and a warning names
            the frame once.
    """

    def __init__(
        self,
        samples: Any,
        transform: Callable[[dict, int], dict],
        seed: int,
        on_bad_sample: str = "raise",
    ):
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"on_bad_sample is {on_bad_sample!r}; expected {' or '.join(ON_BAD_SAMPLE)}")
        self.samples, self.transform, self.seed, self.on_bad_sample = samples, transform, seed, on_bad_sample
        # In shared memory, because workers write there. A counter each: adding is no single step between processes.
        self._skipped = torch.zeros(COUNTERS, dtype=torch.int64).share_memory_()
        self._named = torch.zeros(len(samples), dtype=torch.bool).share_memory_()

    @property
    def num_samples(self) -> int:
        """Samples of one pass over the data."""
        return len(self.samples)

    @property
    def skipped(self) -> int:
        """Draws of this process and its workers that got another sample, because their own could not be read.

        Workers read ahead: batches that were prepared and not used count too.
        """
        return int(self._skipped.sum())

    def name(self, draw: int) -> str:
        """'video V, frame F' of a draw, without decoding it."""
        return self.place(sample_of(draw, self.seed, self.num_samples))

    def place(self, index: int) -> str:
        """'video V, frame F' of a sample, without decoding it."""
        if not isinstance(self.samples, datasets.Dataset):
            return f"sample {index}"
        row = self.samples.with_format(None)[index]
        return f"video {row['video']}, frame {row['frame']}"

    def read(self, draw: int, index: int) -> dict[str, torch.Tensor]:
        """The augmented sample of a draw whose own sample is `index`."""
        return self.transform(self.readable(draw, index), draw_seed(self.seed, draw))

    def readable(self, draw: int, index: int) -> dict:
        """The decoded sample of a draw, or the next one of the sequence that can be read.

        Raises:
            ValueError: it cannot be read and is not to be skipped, or too many in a row cannot be read.
        """
        # Two passes hold every sample, wherever in a pass the draw lies.
        limit = min(BAD_IN_A_ROW, 2 * self.num_samples)
        problem = ""
        for ahead in range(limit):
            candidate = index if ahead == 0 else sample_of(draw + ahead, self.seed, self.num_samples)
            try:
                return self.samples[candidate]
            except (ValueError, OSError) as error:  # what vss_hf.data raises for damaged and missing files
                problem = f"{self.place(candidate)}: {error}"
                if self.on_bad_sample == "raise":
                    hint = "vss-hf data verify lists all such files, data.on_bad_sample: skip trains without them"
                    raise ValueError(f"{problem} ({hint})") from error
                self.note(candidate, problem, first=ahead == 0)
        raise ValueError(f"{limit} samples in a row cannot be read, the last one: {problem}")

    def note(self, index: int, problem: str, first: bool) -> None:
        """Count a skipped draw once, and name a bad sample once."""
        if first:
            worker = get_worker_info()
            self._skipped[worker.id % COUNTERS if worker else 0] += 1
        if not self._named[index]:
            self._named[index] = True
            warnings.warn(f"skipped: {problem}", RuntimeWarning, stacklevel=2)


class TrainingDraws(DrawReader, Dataset):
    """Augmented training samples by (draw, sample index); for a DataLoader with an `EndlessSampler`.

    Arguments as `DrawReader`.
    """

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return self.read(*key)


class TrainingStream(DrawReader, IterableDataset):
    """The same augmented samples in the same order as a stream; for a plain DataLoader of `order.batch_size`.

    A DataLoader takes batches from its workers in turn. So worker w of n delivers this process's batches w, w + n, ...
    and the sequence does not depend on the number of workers. Where to start is part of `order`: there is no state.

    Arguments as `DrawReader`.
    """

    order: DrawOrder | None = None  # set by whoever knows batch size, rank and position: the Trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.order is None:
            raise ValueError("TrainingStream.order is not set: give it the DrawOrder of this process")
        if self.order.seed != self.seed:
            raise ValueError(f"TrainingStream.order has seed {self.order.seed}, the stream {self.seed}; expected one")
        worker = get_worker_info()
        for draw in self.order.draws(worker.id, worker.num_workers) if worker else self.order.draws():
            yield self.read(draw, sample_of(draw, self.seed, self.num_samples))
