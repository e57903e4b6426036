"""In which order samples are drawn: passes over one data set, and several data sets mixed by weights.

Everything is a pure function of a seed and a position, so that a run resumes anywhere at no cost and every process
and worker finds its part by itself. A sample is named by its index in the map-style data set of its source (videos in
order, frames in order of time). An order says which samples one pass holds; `lane` is the part of a pass for one of
several readers that do not share what they read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


BLOCK = 128  # draws of a mixture that are shuffled among each other


class EveryFrame:
    """Every sample once per pass, in a new order: `default_rng([seed, epoch]).permutation(num_samples)`.

    Args:
        num_samples: draws of one pass, at least 1.
    """

    def __init__(self, num_samples: int):
        if num_samples < 1:
            raise ValueError("no samples to draw from")
        self.num_samples = num_samples

    def pass_of(self, seed: int, epoch: int) -> np.ndarray:
        """The samples of one pass, int64 (num_samples,)."""
        return np.random.default_rng([seed, epoch]).permutation(self.num_samples)

    def lane(self, seed: int, epoch: int, lane: int, lanes: int, pad: bool = False) -> np.ndarray:
        """The part of a pass for one of several readers: every `lanes`-th sample; together they have all of them once.

        Args:
            seed, epoch: as for `pass_of`.
            lane: from 0 to `lanes` - 1.
            lanes: number of readers.
            pad: make all lanes equally long by repeating up to `lanes` - 1 samples.
        """
        samples = self.pass_of(seed, epoch)
        if pad:
            samples = np.resize(samples, -(-len(samples) // lanes) * lanes)  # repeats from the beginning
        return samples[lane::lanes]

    def lane_length(self, lane: int, lanes: int, pad: bool = False) -> int:
        """How many samples `lane` has; the same in every epoch."""
        return -(-self.num_samples // lanes) if pad else len(range(lane, self.num_samples, lanes))


class EveryNth(EveryFrame):
    """Frames 0, n, 2n, ... of every video, each once per pass, in a new order.

    Args:
        video_lengths: samples of each video.
        n: at least 1.
    """

    def __init__(self, video_lengths: Sequence[int], n: int):
        self.samples = nth_samples(video_lengths, n)
        super().__init__(len(self.samples))

    def pass_of(self, seed: int, epoch: int) -> np.ndarray:
        return self.samples[super().pass_of(seed, epoch)]


class OnePerVideo(EveryFrame):
    """One random frame of every video per pass, in a new order: the sampling of VSPW's challenge entries.

    Args:
        video_lengths: samples of each video; videos without samples are left out.
    """

    def __init__(self, video_lengths: Sequence[int]):
        lengths = np.asarray(video_lengths, dtype=np.int64)
        self.first = (np.cumsum(lengths) - lengths)[lengths > 0]
        self.lengths = lengths[lengths > 0]
        super().__init__(len(self.lengths))

    def pass_of(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        frames = self.first + rng.integers(0, self.lengths)
        return frames[rng.permutation(len(frames))]


class ClassBalanced(EveryFrame):
    """As many draws per pass as there are samples, in proportion to weights: rare classes more often than others.

    A sample of weight w among weights that sum to W has n * w / W draws of the n of a pass, rounded up or down
    (systematic resampling): the proportions are right in every pass and not only in the long run.

    Args:
        weights: float (num_samples,), from 0, one of them above 0.
    """

    def __init__(self, weights: Sequence[float] | np.ndarray):
        self.weights = np.asarray(weights, dtype=np.float64)
        super().__init__(len(self.weights))
        if not np.isfinite(self.weights).all() or self.weights.min() < 0 or not self.weights.any():
            raise ValueError("weights of samples: expected finite numbers from 0, one of them above 0")

    def pass_of(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        ends = np.cumsum(self.weights / self.weights.max())
        ends *= self.num_samples / ends[-1]
        chosen = np.searchsorted(ends, np.arange(self.num_samples) + rng.random(), side="right")
        # The last sum may be rounded down, so that the last point lies behind it.
        chosen = np.minimum(chosen, np.flatnonzero(self.weights)[-1])
        return chosen[rng.permutation(self.num_samples)]


class VideoWindows(EveryFrame):
    """Every sample once per pass, few videos at a time: for data that is fetched a video at a time (Parquet).

    The videos come in a new order in each pass. A lane is a stretch of that order: whole videos, except that one
    video is cut at each border, so that all lanes have equally many samples (+-1). Within a lane the samples of
    `window` videos after another are shuffled. So a reader keeps at most `window` videos, and fetches each once.

    Args:
        video_lengths: samples of each video.
        window: videos whose samples are shuffled among each other, at least 1.
        every_nth: only samples 0, n, 2n, ... of every video.
    """

    def __init__(self, video_lengths: Sequence[int], window: int = 16, every_nth: int = 1):
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1 video")
        self.samples = nth_samples(video_lengths, every_nth)
        super().__init__(len(self.samples))
        self.lengths = np.array([len(range(0, length, every_nth)) for length in video_lengths], dtype=np.int64)
        self.window = window

    def pass_of(self, seed: int, epoch: int) -> np.ndarray:
        return self.lane(seed, epoch, 0, 1)

    def lane(self, seed: int, epoch: int, lane: int, lanes: int, pad: bool = False) -> np.ndarray:
        videos = np.random.default_rng([seed, epoch]).permutation(len(self.lengths))
        lengths = self.lengths[videos]
        ends = np.cumsum(lengths)
        start, stop = (border * self.num_samples // lanes for border in (lane, lane + 1))
        places = np.arange(start, stop)  # among all samples in the order of the videos
        if pad and len(places) < self.lane_length(lane, lanes, pad):
            places = np.append(places, start % self.num_samples)
        turns = np.searchsorted(ends, places, side="right")  # of each sample's video in that order
        starts = (np.cumsum(self.lengths) - self.lengths)[videos]
        samples = starts[turns] + places - (ends - lengths)[turns]
        windows = (turns - turns[:1]) // self.window
        shuffled = np.random.default_rng([seed, epoch, lanes, lane]).permutation(len(places))
        return self.samples[samples[shuffled[np.argsort(windows[shuffled], kind="stable")]]]

    def lane_length(self, lane: int, lanes: int, pad: bool = False) -> int:
        if pad:
            return -(-self.num_samples // lanes)
        return (lane + 1) * self.num_samples // lanes - lane * self.num_samples // lanes


Order = EveryFrame  # what all orders are


def nth_samples(video_lengths: Sequence[int], n: int) -> np.ndarray:
    """The indices of samples 0, n, 2n, ... of every video, int64."""
    if n < 1:
        raise ValueError(f"every_nth is {n}; expected at least 1")
    lengths = np.asarray(video_lengths, dtype=np.int64)
    of_video = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.flatnonzero(of_video % n == 0)


# --- several sources


class Mixture:
    """An endless sequence of draws from several sources in fixed proportions.

    Among the first D draws, the share of every source is D * weight / (sum of weights), rounded: by the method of
    Sainte-Lague, which never takes back a draw when D grows. Within blocks of 128 draws the order of the sources is
    shuffled by (seed, block); without that, sources could fall into step with processes and workers. Each source walks
    through its own passes, so that none of its samples comes again before all of them came. With one source, draw d is
    `order.pass_of(seed, d // n)[d % n]`.

    Lanes are mixtures of their own, with the parts of all sources that belong to them.

    Args:
        orders: of the samples of each source.
        weights: of the sources, above 0.
        seed: from 0.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int):
        self.orders, self.seed = list(orders), seed
        self.seeds = [source_seed(seed, source) for source in range(len(orders))]
        shares = np.asarray(weights, dtype=np.float64)
        if len(orders) != len(shares) or not len(orders):
            raise ValueError(f"{len(orders)} orders with {len(shares)} weights; expected one weight for each order")
        if not np.isfinite(shares).all() or shares.min() <= 0:
            raise ValueError(f"weights are {list(weights)}; expected finite numbers above 0")
        self.shares = shares / shares.sum()
        self._blocks = Newest(8)
        self._passes = Newest(2 * len(self.orders))  # near the end of a pass, two of a source are in use

    def locate(self, draw: int, lane: int = 0, lanes: int = 1) -> tuple[int, int]:
        """(source, index of the sample in the source) of draw `draw` of a lane."""
        source, number = self.turn(draw, lane, lanes)
        return source, self.sample(source, number, lane, lanes)

    def turn(self, draw: int, lane: int = 0, lanes: int = 1) -> tuple[int, int]:
        """(source, how many draws it had before) of draw `draw` of a lane."""
        block, place = divmod(draw, BLOCK)
        key = (block, lane, lanes)
        sources, numbers = self._blocks.get(key, lambda: self._block(*key))
        return sources[place], numbers[place]

    def sample(self, source: int, number: int, lane: int = 0, lanes: int = 1) -> int:
        """The sample that draw `number` of a source takes, in a lane."""
        order = self.orders[source]
        pad = order.num_samples < lanes  # otherwise a lane would have nothing to draw from
        epoch, position = divmod(number, order.lane_length(lane, lanes, pad))
        key = (source, epoch, lane, lanes)
        seed = self.seeds[source]
        samples = self._passes.get(key, lambda: order.lane(seed, epoch, lane, lanes, pad))
        return int(samples[position])

    def counts(self, draws: int, lane: int = 0, lanes: int = 1) -> list[int]:
        """How many of the first `draws` draws of a lane are from each source."""
        block, place = divmod(draws, BLOCK)
        begun, _ = self._block(block, lane, lanes)
        return (self._before(block) + np.bincount(begun[:place], minlength=len(self.orders))).tolist()

    def _block(self, block: int, lane: int, lanes: int) -> tuple[list[int], list[int]]:
        """For each draw of a block its source, and how many draws this source had before."""
        before = self._before(block)
        sources = np.repeat(np.arange(len(self.orders)), self._before(block + 1) - before)
        np.random.default_rng([self.seed, block, lanes, lane]).shuffle(sources)
        numbers = np.empty(BLOCK, dtype=np.int64)
        for source, first in enumerate(before):
            own = sources == source
            numbers[own] = first + np.arange(own.sum())
        return sources.tolist(), numbers.tolist()

    def _before(self, block: int) -> np.ndarray:
        """Draws of each source before a block, int64 (num_sources,).

        Draw j of a source of share p is due at time (j + 1/2) / p, so that floor(t * p + 1/2) of them are due by time
        t: over all n sources t draws, give or take n / 2. That finds a time at which all draws but a few are known.
        """
        draws = block * BLOCK
        time = max(0.0, draws - len(self.shares) / 2 - 1)  # one less, for rounding errors
        counts = np.floor(time * self.shares + 0.5).astype(np.int64)
        while counts.sum() < draws:
            counts[np.argmin((counts + 0.5) / self.shares)] += 1
        return counts


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's passes: that of the mixture for the first, other ones for the others."""
    return seed if source == 0 else int(np.random.SeedSequence([seed, source]).generate_state(1, np.uint64)[0] >> 1)


class Newest:
    """Keeps the values that were made last, by their key; `functools.lru_cache` would keep whole objects alive."""

    def __init__(self, size: int):
        self.size = size
        self.values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not kept."""
        if key not in self.values:
            self.values[key] = make()
            if len(self.values) > self.size:
                self.values.popitem(last=False)
        return self.values[key]
