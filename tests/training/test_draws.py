"""The order of the training samples: complete, the same however it is split, and seekable."""

from itertools import islice

import pytest
import torch
from tiny import make_default_data, training_data
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from vss_hf.training.draws import DrawOrder, EndlessSampler, TrainingDraws, draw_seed


NUM_SAMPLES = 7  # odd, so that no batch size below divides it


def draws(count, *, num_samples=NUM_SAMPLES, seed=0, batch_size=1, rank=0, world_size=1, start=0):
    """The first (draw, sample) pairs of one process."""
    order = DrawOrder(seed, batch_size, rank, world_size, start)
    return list(islice(EndlessSampler(num_samples, order), count))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


# --- map-style draws


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("num_samples", [1, 5, 7])
def test_every_pass_has_every_sample_once(world_size, batch_size, num_samples):
    steps = -(-3 * num_samples // (world_size * batch_size))
    pairs = [
        pair
        for rank in range(world_size)
        for pair in draws(
            steps * batch_size, num_samples=num_samples, batch_size=batch_size, rank=rank, world_size=world_size
        )
    ]
    pairs.sort()
    assert [draw for draw, _ in pairs] == list(range(steps * batch_size * world_size))
    for epoch in range(3):
        samples = [sample for draw, sample in pairs if draw // num_samples == epoch]
        assert sorted(samples) == list(range(num_samples))


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 4), (4, 2), (8, 1)])
def test_global_batches_do_not_depend_on_the_split(world_size, batch_size):
    whole = draws(5 * 8, batch_size=8)
    split = dict(batch_size=batch_size, world_size=world_size)
    parts = [draws(5 * batch_size, rank=rank, **split) for rank in range(world_size)]
    joined = [
        pair
        for step in range(5)
        for part in parts
        for pair in part[step * batch_size : (step + 1) * batch_size]
    ]  # fmt: skip
    assert joined == whole


@pytest.mark.parametrize("start", [1, 4, 7, 10, 700_001])
def test_start_skips(start):
    if start < 100:
        assert draws(20, start=start) == draws(20 + start)[start:]
    else:  # far away at once
        assert [draw for draw, _ in draws(3, start=start)] == [start, start + 1, start + 2]


def test_start_skips_for_every_rank():
    for rank in range(3):
        split = dict(batch_size=2, rank=rank, world_size=3)
        assert draws(10, start=4 * 6, **split) == draws(18, **split)[8:]


def test_passes_and_seeds_differ():
    samples = [sample for _, sample in draws(5 * 50, num_samples=50)]
    passes = {tuple(samples[i : i + 50]) for i in range(0, 250, 50)}
    assert len(passes) == 5
    assert draws(50, num_samples=50, seed=1) != draws(50, num_samples=50, seed=2)


def test_seeds_of_augmentation_are_distinct_and_fixed():
    seeds = [draw_seed(seed, draw) for seed in range(3) for draw in range(1000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch.manual_seed takes
    assert draw_seed(1, 2) == draw_seed(1, 2) != draw_seed(2, 1)


def test_augmentation_differs_between_draws_and_repeats(root):
    data = training_data(root)
    first, again, other = data[0, 3], data[0, 3], data[1, 3]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    calm = training_data(root, horizontal_flip_prob=0.0, photometric_prob=0.0)
    assert torch.equal(calm[0, 3]["pixel_values"], calm[1, 3]["pixel_values"])


def test_cache_gives_the_same_samples_and_opens_each_file_once(root):
    plain = training_data(root)
    cached = TrainingDraws(CountingSamples(plain.samples), plain.transform, plain.seed, cache=True)
    for draw in range(3 * len(plain)):
        key = (draw, draw % len(plain))
        assert all(torch.equal(plain[key][name], cached[key][name]) for name in ("pixel_values", "labels"))
    assert cached.samples.opened == list(range(len(plain)))


class CountingSamples:
    """Notes which samples were decoded."""

    def __init__(self, samples):
        self.samples, self.opened = samples, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.opened.append(index)
        return self.samples[index]


def test_loader_workers_do_not_change_the_sequence(root):
    data = training_data(root)
    sequences = []
    for workers in (0, 2):
        sampler = EndlessSampler(len(data), DrawOrder(seed=3, batch_size=2))
        loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers)
        sequences.append(list(islice(loader, 6)))
    for one, other in zip(*sequences, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])


def test_drawing_leaves_the_global_random_numbers_alone(root):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    training_data(root)[0, 0]
    draws(20)
    assert torch.equal(torch.rand(3), expected)


# --- streams


def name_samples(sample, seed):
    """Instead of augmentation: which sample it is and with which seed it would be augmented."""
    return {"sample": f"{sample['video']}/{sample['frame']}", "seed": seed}


def batches(loader, count):
    return [list(zip(batch["sample"], batch["seed"].tolist(), strict=True)) for batch in islice(loader, count)]


@pytest.fixture
def stream_loader(root):
    """Makes new loaders over the same stream of names."""

    def make(workers, batch_size=2, state=None):
        data = training_data(root, streaming=True)
        data.transform = name_samples
        loader = StatefulDataLoader(data, batch_size=batch_size, num_workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pass_of_a_stream_has_every_sample_once(stream_loader, workers):
    """Workers pass from epoch to epoch at different times: none may push another one into the next epoch."""
    per_worker = {0: [7], 2: [4, 3]}[workers]
    passes = 4
    loader = iter(stream_loader(workers, batch_size=1))
    taken = [[] for _ in per_worker]
    for i in range(passes * max(per_worker) * len(per_worker)):
        [(sample, _)] = batches(loader, 1)[0]
        taken[i % len(per_worker)].append(sample)
    for epoch in range(passes):
        seen = [s for part, n in zip(taken, per_worker, strict=True) for s in part[epoch * n : (epoch + 1) * n]]
        assert len(set(seen)) == len(seen) == 7, f"pass {epoch}: {sorted(seen)}"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_stream_resumes_anywhere(stream_loader, workers, batch_size):
    """In the middle of a pass, right at its end (7 samples), and several passes later."""
    total = 12
    whole = batches(stream_loader(workers, batch_size), total)
    assert len(whole) == total
    for stop in (1, 3, 4, 7, 8):
        loader = stream_loader(workers, batch_size)
        assert batches(interrupted := iter(loader), stop) == whole[:stop]
        state = loader.state_dict()
        del interrupted
        assert batches(stream_loader(workers, batch_size, state), total - stop) == whole[stop:], f"stopped at {stop}"


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_resumes_again_and_again(stream_loader, workers):
    """A state that is taken before every worker has delivered something since the last resume."""
    whole = batches(stream_loader(workers), 7)
    state, pieces = None, []
    for _ in range(7):
        loader = stream_loader(workers, state=state)
        pieces += batches(loader_iterator := iter(loader), 1)
        state = loader.state_dict()
        del loader_iterator
    assert pieces == whole


def test_stream_with_more_workers_than_samples(stream_loader):
    """A worker without samples ends; the others go on for ever."""
    data = stream_loader(0).dataset
    data.stream = data.stream.shard(4, 1)  # 2 of the 7 samples, for 3 workers
    taken = [sample for [(sample, _)] in batches(StatefulDataLoader(data, batch_size=1, num_workers=3), 12)]
    assert len(set(taken[:2])) == 2 and len(taken) == 12
    assert len(set(taken)) > 2  # a pass has a new order, so these are not always the same two


def test_stream_state_of_another_seed_is_refused(stream_loader, root):
    loader = stream_loader(0)
    batches(iter(loader), 1)
    other = training_data(root, seed=1, streaming=True)
    with pytest.raises(ValueError, match="seed was 42"):
        other.load_state_dict(loader.dataset.state_dict())


def test_seed_of_a_streamed_sample_differs_between_passes(stream_loader):
    pairs = [pair for batch in batches(stream_loader(0, 7), 3) for pair in batch]
    assert len({seed for _, seed in pairs}) == 21
    assert batches(stream_loader(0, 7), 3) == batches(stream_loader(0, 7), 3)
