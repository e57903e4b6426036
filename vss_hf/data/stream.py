"""An endless-data view of a finite data set: mixed order, split over ranks and workers, exact resume.

`datasets.IterableDataset` was tried first. It does not fit here: its shuffle buffer is lost on resume, the position is
dropped without a word unless the caller restores the epoch first, and a checkpoint written before every worker has
delivered a batch since the last resume starts the others anew (datasets 5.2 with torchdata 0.11). Here the order is a
pure function of (seed, epoch), so that the whole state is a position in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .order import EveryFrame, Order, VideoWindows


class MapStyle(Protocol):
    """What a stream reads from: `len(dataset)` and `dataset[index]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class FrameStream(IterableDataset):
    """Streams a map-style data set in an order that mixes all videos, a new one per epoch.

    Every epoch is a permutation of all samples, determined by (seed, epoch). Ranks take every `num_shards`-th sample
    of it, and DataLoader workers every `num_workers`-th of those, so that over all of them each comes exactly once.
    With the order `VideoWindows`, every worker of every rank takes a stretch of whole videos instead (one may be cut
    at each border) and mixes a few of them at a time: for data that is fetched a video at a time.
    `state_dict` holds the epoch and how many samples were delivered; resuming jumps there, and opens no file that was
    consumed. With workers use `torchdata.stateful_dataloader.StatefulDataLoader`: it asks each of them for its state.

    Do not pass it through `accelerator.prepare`: it splits itself (`shard`), and would be split twice.

    Args:
        dataset: read by index; decoding belongs in its `__getitem__`.
        seed: any whole number from 0.
        order: which samples an epoch has, and in which order; default is `EveryFrame`.
        data: a number for what is in the data set, such as `LabelledSplit.fingerprint`: a state tells it, and is not
            loaded where it is another one.

    Raises:
        ValueError: the data set is empty or the seed is negative.
    """

    def __init__(self, dataset: MapStyle, *, seed: int = 0, order: Order | None = None, data: int = 0):
        if len(dataset) == 0:
            raise ValueError("dataset is empty; nothing to stream")
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected a whole number from 0")
        self.dataset = dataset
        self.seed, self.data = seed, data
        self.order = EveryFrame(len(dataset)) if order is None else order
        self._transform: Callable[[dict[str, Any], int], Any] | None = None
        self._num_shards, self._index, self._pad = 1, 0, False
        # in shared memory, so that persistent workers see set_epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._delivered = 0  # by the current iteration, in this worker
        self._resume_at = 0  # where the next iteration starts

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration delivers."""
        return int(self._epoch)

    @property
    def num_samples(self) -> int:
        """Samples per epoch of this rank, all its workers together (no `__len__`: loaders would misread it)."""
        return self.order.lane_length(self._index, self._num_shards, self._pad)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration. A loaded position counts only for the epoch that it belongs to."""
        if epoch != self.epoch:
            self._resume_at = 0
        self._epoch.fill_(epoch)

    def shard(self, num_shards: int, index: int, *, pad: bool = False) -> FrameStream:
        """The part of one process.

        Args:
            num_shards: number of processes.
            index: number of this process, from 0.
            pad: repeat up to `num_shards - 1` samples of the epoch, so that every process gets the same number.
                Distributed training needs that; evaluation must not have it.

        Raises:
            ValueError: `index` is out of range, the stream is a shard already, or this shard would be empty.
        """
        if not 0 <= index < num_shards:
            raise ValueError(f"index is {index} with num_shards {num_shards}; expected 0 <= index < num_shards")
        if self._num_shards != 1:
            raise ValueError(f"this stream is shard {self._index} of {self._num_shards} already; shard the whole one")
        if not pad and self.order.lane_length(index, num_shards) == 0:
            raise ValueError(
                f"{self.order.num_samples} samples leave shard {index} of {num_shards} empty; use pad=True"
            )
        return self._copy(_num_shards=num_shards, _index=index, _pad=pad)

    def with_transform(self, transform: Callable[[dict[str, Any], int], Any]) -> FrameStream:
        """The stream of `transform(sample, seed)`; that seed is a function of (stream seed, epoch, sample) alone.

        So augmentation does not depend on the number of ranks and workers, nor on resuming.
        """
        return self._copy(_transform=transform)

    def _copy(self, **changes: Any) -> FrameStream:
        stream = copy.copy(self)
        stream.__dict__.update(changes, _epoch=self._epoch.clone().share_memory_())
        return stream

    def __iter__(self) -> Iterator[Any]:
        # no generator itself: the position must be set now, for state_dict may be asked for before the first sample
        start, self._resume_at = self._resume_at, 0
        self._delivered = start
        return self._deliver(start, self.epoch)

    def _deliver(self, start: int, epoch: int) -> Iterator[Any]:
        for sample in self._samples(epoch, *_worker())[start:].tolist():
            item = self.dataset[sample]
            if self._transform is not None:
                item = self._transform(item, self._sample_seed(epoch, sample))
            self._delivered += 1
            yield item

    def _samples(self, epoch: int, worker: int, num_workers: int) -> np.ndarray:
        """The samples of an epoch for one worker of this rank."""
        order, rank, ranks = self.order, self._index, self._num_shards
        if not isinstance(order, VideoWindows):
            return order.lane(self.seed, epoch, rank, ranks, self._pad)[worker::num_workers]
        # The borders of ranks are borders of workers too: a rank has the same number with any number of workers.
        samples = order.lane(self.seed, epoch, rank * num_workers + worker, ranks * num_workers)
        missing = self.num_samples - order.lane_length(rank, ranks)
        if missing and worker == num_workers - 1:  # one, by `pad`; the rank may have no other
            samples = np.append(samples, order.lane(self.seed, epoch, rank, ranks, True)[:missing])
        return samples

    def _sample_seed(self, epoch: int, sample: int) -> int:
        return int(np.random.SeedSequence([self.seed, epoch, sample]).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def state_dict(self) -> dict[str, int]:
        """The position, as plain numbers."""
        return {**self._identity(), "epoch": self.epoch, "delivered": self._delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration go on where `state` was taken, in its epoch.

        Raises:
            ValueError: the state comes from another seed, data set, number of ranks or number of workers. A position
                in such a stream says nothing about this one.
        """
        for field, here in self._identity().items():
            if field == "data" and state.get(field, 0) != here:
                raise ValueError(
                    "cannot resume the stream: the data set holds other files than when the position was saved; open "
                    "what it was then (on the Hub: owner/name@commit), or start the epoch anew"
                )
            if state.get(field) != here:
                raise ValueError(
                    f"cannot resume the stream: {field} was {state.get(field)!r} when it was saved and is {here!r} "
                    "now; set it back, or start the epoch anew"
                )
        self._epoch.fill_(state["epoch"])
        self._resume_at = self._delivered = state["delivered"]

    def _identity(self) -> dict[str, int]:
        worker, num_workers = _worker()
        return {
            "seed": self.seed,
            "data": self.data,
            "num_samples": self.order.num_samples,
            "window": self.order.window if isinstance(self.order, VideoWindows) else 0,
            "num_shards": self._num_shards,
            "shard": self._index,
            "pad": int(self._pad),
            "num_workers": num_workers,
            "worker": worker,
        }


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
