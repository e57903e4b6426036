"""The order in which a run sees its training samples, as a function of seed and position: resuming costs nothing.

Training is one endless sequence of draws. Draw d takes the sample that a `vss_hf.data.order.Mixture` of the sources
gives it, augmented with random numbers that depend on (seed, d) alone; of a single source with default sampling that
is `permutation(seed, d // N)[d % N]` of N samples. A step takes `world * batch` consecutive draws per micro-batch, the
ranks one slice each. So nothing is seen twice or left out in a pass over the data, whatever its size, and a run that
has done s steps continues with draw s * world * batch * accumulation, without touching what came before.

Files are opened one by one, so anybody may take any draw. Parquet is fetched a video at a time: with such a source
every worker of every process draws from a lane of its own (`Mixture`), which touches few videos at once. Lane and
position in it follow from the draw too, but the sequence is another one for another number of processes or workers.

Both kinds of data set give that sequence: `TrainingDraws` by random access, `TrainingStream` as a stream whose workers
deliver whole batches in turn.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from vss_hf.data.order import EveryFrame, Mixture, Order


ON_BAD_SAMPLE = ("raise", "skip")
BAD_IN_A_ROW = 64  # so many unreadable samples one after the other are no accident
COUNTERS = 256  # more than anybody has workers


# --- the order


@dataclass
class DrawOrder:
    """Which draws one process takes.

    Args:
        batch_size: samples per micro-batch and process.
        rank: of this process.
        world_size: number of processes.
        start: draws that the whole run has consumed already.
        workers: readers of each process, at least 1; they deliver batches in turn.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    start: int = 0
    workers: int = 1

    def draws(self, worker: int = 0, num_workers: int = 1) -> Iterator[int]:
        """The draws of this process, for ever; of worker w of n: those of its batches w, w + n, w + 2n, ..."""
        block = self.world_size * self.batch_size
        for first in count(self.start + worker * block + self.rank * self.batch_size, num_workers * block):
            yield from range(first, first + self.batch_size)

    @property
    def lanes(self) -> int:
        """Readers of all processes."""
        return self.world_size * self.workers

    def lane(self, draw: int) -> tuple[int, int]:
        """(lane, position in it) of a draw of any process.

        The run's micro-batch m is that of reader m % workers in each process. After a resume the DataLoader begins
        with worker 0, whoever's turn it was: which worker carries on which lane changes, the lanes do not.
        """
        micro_batch, place = divmod(draw, self.world_size * self.batch_size)
        rank, place = divmod(place, self.batch_size)
        turn, reader = divmod(micro_batch, self.workers)
        return rank * self.workers + reader, turn * self.batch_size + place

    def done(self, lane: int, draws: int) -> int:
        """How many of the run's first `draws` draws, whole micro-batches, belong to a lane."""
        micro_batches = draws // (self.world_size * self.batch_size)
        return len(range(lane % self.workers, micro_batches, self.workers)) * self.batch_size


def draw_seed(seed: int, draw: int) -> int:
    """The seed of one sample's augmentation."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0] >> 1)


class EndlessSampler(Sampler[int]):
    """Yields the draws of a process for ever. It has no length, because a run ends at `max_steps`."""

    def __init__(self, order: DrawOrder):
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return self.order.draws()


# --- the samples


@dataclass
class Source:
    """One data set that is trained on.

    Args:
        samples: indexable; yields data samples (`vss_hf.data.load_split`).
        order: which of them make a pass, and how they follow each other; default: all, mixed.
        weight: its share of the draws is its part in the sum of all weights.
        name: for messages and counters.
        packed: it is fetched a video at a time, so workers should not share its videos.
        fingerprint: a number for its files (`LabelledSplit.fingerprint`); None: not known.
    """

    samples: Any
    order: Order | None = None
    weight: float = 1.0
    name: str = "samples"
    packed: bool = False
    fingerprint: int | None = None

    def place(self, index: int) -> str:
        """'video V, frame F' of a sample, without decoding it."""
        if not isinstance(self.samples, datasets.Dataset):
            return f"sample {index}"
        row = self.samples.with_format(None)[index]
        return f"video {row['video']}, frame {row['frame']}"


class DrawReader:
    """What both data sets do with a draw: find its sample, decode it, or the next readable one, and augment it.

    Args:
        sources: what is trained on.
        transform: (sample, seed) -> model inputs.
        seed: of the order of the samples and of their augmentation.
        on_bad_sample: what happens to a file that is damaged or gone. `raise`: an error that names video and frame.
            `skip`: the draw gets the next readable sample of its source, is counted in `skipped`, and a warning names
            the frame once.
    """

    order: DrawOrder | None = None  # set by whoever knows batch size, rank and position: the Trainer

    def __init__(
        self,
        sources: Sequence[Source],
        transform: Callable[[dict, int], dict],
        seed: int,
        on_bad_sample: str = "raise",
    ):
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"on_bad_sample is {on_bad_sample!r}; expected {' or '.join(ON_BAD_SAMPLE)}")
        self.sources, self.transform, self.seed, self.on_bad_sample = list(sources), transform, seed, on_bad_sample
        orders = [source.order or EveryFrame(len(source.samples)) for source in sources]
        self.mixture = Mixture(orders, [source.weight for source in sources], seed)
        self.in_lanes = any(source.packed for source in sources)
        # In shared memory, because workers write there. A counter each: adding is no single step between processes.
        self._skipped = torch.zeros(COUNTERS, dtype=torch.int64).share_memory_()
        self._named = [torch.zeros(len(source.samples), dtype=torch.bool).share_memory_() for source in sources]

    @property
    def num_samples(self) -> int:
        """Samples of one pass over all sources."""
        return sum(order.num_samples for order in self.mixture.orders)

    @property
    def skipped(self) -> int:
        """Draws of this process and its workers that got another sample, because their own could not be read.

        Workers read ahead: batches that were prepared and not used count too.
        """
        return int(self._skipped.sum())

    def counts(self, draws: int) -> dict[str, int]:
        """How many of the run's first `draws` draws were of each source, by its name."""
        total = np.zeros(len(self.sources), dtype=np.int64)
        if self.in_lanes:
            order = self._order()
            for lane in range(order.lanes):
                total += self.mixture.counts(order.done(lane, draws), lane, order.lanes)
        else:
            total += self.mixture.counts(draws)
        return dict(zip([source.name for source in self.sources], total.tolist(), strict=True))

    def described(self) -> str:
        """What decides the sequence beside the seed and the number of samples; empty for one source of files.

        Runs whose descriptions differ have different sequences.
        """
        parts = []
        for source, order, share in zip(self.sources, self.mixture.orders, self.mixture.shares, strict=True):
            fingerprint = zlib.crc32(order.pass_of(self.seed, 0).tobytes())
            parts.append(f"{source.name} {share:.9g} {type(order).__name__} {order.num_samples} {fingerprint:08x}")
        if self.in_lanes:
            order = self._order()
            parts.append(
                f"{order.world_size} processes, {order.workers} readers each, batches of {order.batch_size} samples"
            )
        plain = len(parts) == 1 and type(self.mixture.orders[0]) is EveryFrame
        return "" if plain else "; ".join(parts)

    def fingerprints(self) -> dict[str, int]:
        """A number for the files of each source, by its name, where it is known."""
        return {source.name: source.fingerprint for source in self.sources if source.fingerprint is not None}

    def name(self, draw: int) -> str:
        """'video V, frame F' of a draw, without decoding it; of several sources with the source's name."""
        lane, position, lanes = self._lane(draw)
        return self._place(*self.mixture.locate(position, lane, lanes))

    def read(self, draw: int) -> dict[str, torch.Tensor]:
        """The augmented sample of a draw."""
        return self.transform(self.readable(draw), draw_seed(self.seed, draw))

    def readable(self, draw: int) -> dict:
        """The decoded sample of a draw, or the next one of its source that can be read.

        Raises:
            ValueError: it cannot be read and is not to be skipped, or too many in a row cannot be read.
        """
        lane, position, lanes = self._lane(draw)
        source, number = self.mixture.turn(position, lane, lanes)
        # Two passes hold every sample, wherever in a pass the draw lies.
        limit = min(BAD_IN_A_ROW, 2 * self.mixture.orders[source].num_samples)
        problem = ""
        for ahead in range(limit):
            index = self.mixture.sample(source, number + ahead, lane, lanes)
            try:
                return self.sources[source].samples[index]
            except (ValueError, OSError) as error:  # what vss_hf.data raises for damaged and missing files
                problem = f"{self._place(source, index)}: {error}"
                if self.on_bad_sample == "raise":
                    hint = "vss-hf data verify lists all such files, data.on_bad_sample: skip trains without them"
                    raise ValueError(f"{problem} ({hint})") from error
                self._note(source, index, problem, first=ahead == 0)
        raise ValueError(f"{limit} samples in a row cannot be read, the last one: {problem}")

    def _order(self) -> DrawOrder:
        if self.order is None:
            raise ValueError(f"{type(self).__name__}.order is not set: give it the DrawOrder of this process")
        return self.order

    def _lane(self, draw: int) -> tuple[int, int, int]:
        """(lane, position in it, number of lanes) of a draw."""
        if not self.in_lanes:
            return 0, draw, 1
        order = self._order()
        return *order.lane(draw), order.lanes

    def _place(self, source: int, index: int) -> str:
        name = f"{self.sources[source].name}: " if len(self.sources) > 1 else ""
        return name + self.sources[source].place(index)

    def _note(self, source: int, index: int, problem: str, first: bool) -> None:
        """Count a skipped draw once, and name a bad sample once."""
        if first:
            worker = get_worker_info()
            self._skipped[worker.id % COUNTERS if worker else 0] += 1
        if not self._named[source][index]:
            self._named[source][index] = True
            warnings.warn(f"skipped: {problem}", RuntimeWarning, stacklevel=2)


class TrainingDraws(DrawReader, Dataset):
    """Augmented training samples by draw; for a DataLoader with an `EndlessSampler`.

    Arguments as `DrawReader`.
    """

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, draw: int) -> dict[str, torch.Tensor]:
        return self.read(draw)


class TrainingStream(DrawReader, IterableDataset):
    """The same augmented samples in the same order as a stream; for a plain DataLoader of `order.batch_size`.

    A DataLoader takes batches from its workers in turn. So worker w of n delivers this process's batches w, w + n, ...
    and the sequence does not depend on the number of workers. Where to start is part of `order`: there is no state.

    Arguments as `DrawReader`.
    """

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order, worker = self._order(), get_worker_info()
        for draw in order.draws(worker.id, worker.num_workers) if worker else order.draws():
            yield self.read(draw)
