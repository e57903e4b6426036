"""The order of the training samples: complete, the same however it is split, and seekable."""

import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from tiny import make_default_data, training_data
from torch.utils.data import DataLoader

from vss_hf.data.clips import load_vspw
from vss_hf.training.draws import DrawOrder, EndlessSampler, Source, TrainingDraws, draw_seed


NUM_SAMPLES = 7  # odd, so that no batch size below divides it


def draws(count, *, num_samples=NUM_SAMPLES, seed=0, batch_size=1, rank=0, world_size=1, start=0):
    """The first (draw, sample) pairs of one process."""
    data = TrainingDraws([Source(range(num_samples))], lambda sample, _: sample, seed)
    order = DrawOrder(batch_size, rank, world_size, start)
    return [(draw, data[draw]) for draw in islice(EndlessSampler(order), count)]


def sample_of(draw, num_samples=NUM_SAMPLES, seed=42):
    """The sample that a draw takes: the formula that checkpoints of earlier versions rely on."""
    return int(np.random.default_rng([seed, draw // num_samples]).permutation(num_samples)[draw % num_samples])


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


@pytest.mark.parametrize(("num_samples", "seed"), [(1, 0), (7, 42), (1000, 3)])
def test_one_source_is_drawn_as_ever(num_samples, seed):
    """Bit for bit what earlier versions drew, so that their checkpoints go on as they were."""
    for start in (0, 10 * num_samples - 3, 10**9):
        drawn = draws(300, num_samples=num_samples, seed=seed, start=start)
        assert drawn == [(draw, sample_of(draw, num_samples, seed)) for draw in range(start, start + 300)]


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
    draw, later = (next(d for d in range(start, start + 7) if sample_of(d) == 3) for start in (0, 7))
    first, again, other = data[draw], data[draw], data[later]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    calm = training_data(root, horizontal_flip_prob=0.0, photometric_prob=0.0)
    assert torch.equal(calm[draw]["pixel_values"], calm[later]["pixel_values"])


def test_augmenting_leaves_cached_frames_alone(root):
    """Draws of a cached frame are those of the file, also the second time."""
    plain = training_data(root)
    cached = TrainingDraws([Source(load_vspw(root, "train", cache=True))], plain.transform, plain.seed)
    for draw in range(3 * len(plain)):
        assert all(torch.equal(plain[draw][name], cached[draw][name]) for name in ("pixel_values", "labels"))


def test_loader_workers_do_not_change_the_sequence(root):
    data = training_data(root)
    sequences = []
    for workers in (0, 2):
        sampler = EndlessSampler(DrawOrder(2))
        loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers)
        sequences.append(list(islice(loader, 6)))
    for one, other in zip(*sequences, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])


def test_drawing_leaves_the_global_random_numbers_alone(root):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    training_data(root)[0]
    draws(20)
    assert torch.equal(torch.rand(3), expected)


# --- streams


def name_samples(sample, seed):
    """Instead of augmentation: which sample it is and with which seed it would be augmented."""
    return {"sample": f"{sample['video']}/{sample['frame']}", "seed": seed}


def batches(loader, count):
    return [list(zip(batch["sample"], batch["seed"].tolist(), strict=True)) for batch in islice(loader, count)]


@pytest.fixture
def loaders(root):
    """Makes loaders of sample names over a data set of either kind."""
    data = {kind: training_data(root, streaming=kind == "stream") for kind in ("draws", "stream")}
    for dataset in data.values():
        dataset.transform = name_samples

    def make(kind, order, workers=0):
        dataset = data[kind]
        if kind == "stream":
            dataset.order = order
            return DataLoader(dataset, order.batch_size, num_workers=workers)
        sampler = EndlessSampler(order)
        return DataLoader(dataset, order.batch_size, sampler=sampler, num_workers=workers)

    return make


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize(("batch_size", "world_size", "rank"), [(1, 1, 0), (2, 1, 0), (3, 2, 1), (5, 3, 2)])
def test_stream_and_draws_give_the_same_batches(loaders, workers, batch_size, world_size, rank):
    """Same samples, same order, same augmentation seeds; 7 samples, so that batches cross the ends of passes."""
    order = DrawOrder(batch_size, rank, world_size, start=3)
    expected = batches(loaders("draws", order), 8)
    assert batches(loaders("stream", order, workers), 8) == expected
    for step, batch in enumerate(expected):
        first = 3 + (step * world_size + rank) * batch_size
        assert [seed for _, seed in batch] == [draw_seed(42, draw) for draw in range(first, first + batch_size)]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 2), (2, 1), (2, 3), (3, 5)])
def test_every_pass_of_a_stream_has_every_sample_once(loaders, workers, world_size, batch_size):
    steps = -(-3 * NUM_SAMPLES // (world_size * batch_size))
    parts = [
        batches(loaders("stream", DrawOrder(batch_size, rank, world_size), workers), steps)
        for rank in range(world_size)
    ]
    in_order = [sample for step in zip(*parts, strict=True) for batch in step for sample, _ in batch]
    for first in range(0, 3 * NUM_SAMPLES, NUM_SAMPLES):
        assert len(set(in_order[first : first + NUM_SAMPLES])) == NUM_SAMPLES


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_stream_resumes_anywhere(loaders, workers, batch_size):
    """In the middle of a pass, right at its end (7 samples), and several passes later; the start is all the state."""
    whole = batches(loaders("stream", DrawOrder(batch_size), workers), 12)
    for stop in (1, 3, 4, 7, 8):
        order = DrawOrder(batch_size, start=stop * batch_size)
        assert batches(loaders("stream", order, workers), 12 - stop) == whole[stop:], f"stopped at {stop}"


def test_stream_starts_far_away_at_once(loaders):
    [[(_, seed)]] = batches(loaders("stream", DrawOrder(1, start=10**12)), 1)
    assert seed == draw_seed(42, 10**12)


def test_stream_with_more_workers_than_samples(loaders):
    order = DrawOrder(3)
    assert batches(loaders("stream", order, 9), 12) == batches(loaders("stream", order), 12)


def test_augmented_batches_of_both_kinds_are_equal(root):
    draws_, stream = training_data(root), training_data(root, streaming=True)
    stream.order = DrawOrder(2)
    sampled = DataLoader(draws_, 2, sampler=EndlessSampler(DrawOrder(2)))
    for one, other in islice(zip(sampled, DataLoader(stream, 2, num_workers=2), strict=False), 5):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])


def test_a_stream_wants_its_order(root):
    stream = training_data(root, streaming=True)
    with pytest.raises(ValueError, match="order is not set"):
        next(iter(stream))


# --- names


@pytest.mark.parametrize("streaming", [False, True])
def test_the_name_of_a_draw_is_that_of_its_sample(root, loaders, streaming):
    data = training_data(root, streaming=streaming)
    for draw, [(sample, _)] in enumerate(batches(loaders("draws", DrawOrder(1)), 20)):
        video, frame = sample.split("/")
        assert data.name(draw) == f"video {video}, frame {frame}"


def test_naming_opens_no_file(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    data = training_data(copy)
    expected = [data.name(draw) for draw in range(7)]
    shutil.rmtree(copy / "data")
    assert [data.name(draw) for draw in range(7)] == expected and len(set(expected)) == 7
