"""The mixed stream: every sample once, over all ranks and workers, and exact after a resume."""

import numpy as np
import pytest
import torch
from make_tree import make_tree
from torchdata.stateful_dataloader import StatefulDataLoader

from vss_hf.data import FrameStream, load_vspw
from vss_hf.data.order import VideoWindows


class Recorder:
    """A map-style data set of numbers that writes down, across processes, which of them were read."""

    def __init__(self, length, folder):
        self.length, self.folder = length, folder

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with open(self.folder / f"{index}", "a") as file:
            file.write("x")
        return {"index": index}

    def reads(self):
        return {int(path.name): path.stat().st_size for path in self.folder.iterdir()}


@pytest.fixture
def recorder(tmp_path):
    def make(length):
        (tmp_path / "reads").mkdir(exist_ok=True)
        for path in (tmp_path / "reads").iterdir():
            path.unlink()
        return Recorder(length, tmp_path / "reads")

    return make


def loader(stream, workers=0, batch_size=3, **options):
    return StatefulDataLoader(stream, batch_size=batch_size, num_workers=workers, **options)


def batches(source):
    return [batch["index"].tolist() for batch in source]


def flat(source):
    return sum(batches(source), [])


# --- order


def test_order_is_a_function_of_seed_and_epoch(recorder):
    first, again, other = (FrameStream(recorder(50), seed=seed) for seed in (1, 1, 2))
    orders = {}
    for epoch in (0, 1, 5):
        for stream in (first, again, other):
            stream.set_epoch(epoch)
        orders[epoch] = [s["index"] for s in first]
        assert orders[epoch] == [s["index"] for s in again]
        assert orders[epoch] != [s["index"] for s in other]
        assert sorted(orders[epoch]) == list(range(50)) and orders[epoch] != list(range(50))
    assert orders[0] != orders[1] != orders[5]


def test_videos_are_mixed(tmp_path):
    root = make_tree(tmp_path, {"train": {f"{i}_v": list(range(8)) for i in range(8)}})
    stream = load_vspw(root, "train", streaming=True, shuffle_seed=0)
    videos = [sample["video"] for sample in stream]
    assert len(videos) == 64
    # 8 draws from 8 videos show 5.3 of them on average; file order would show one
    assert np.mean([len(set(videos[i : i + 8])) for i in range(0, 64, 8)]) > 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 11, 12, 17])
def test_every_sample_once_over_ranks_and_workers(recorder, length, world, workers):
    stream = FrameStream(recorder(length), seed=4)
    stream.set_epoch(2)
    ranks = min(world, length)
    parts = [stream.shard(ranks, rank) for rank in range(ranks)]
    delivered = [flat(loader(part, workers)) for part in parts]
    assert [len(part) for part in delivered] == [part.num_samples for part in parts]
    assert sorted(sum(delivered, [])) == list(range(length))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("length", "world"), [(11, 3), (12, 3), (2, 3), (1, 4)])
def test_padding_gives_every_rank_the_same_number(recorder, length, world, workers):
    parts = [FrameStream(recorder(length), seed=4).shard(world, rank, pad=True) for rank in range(world)]
    delivered = [flat(loader(part, workers)) for part in parts]
    expected = -(-length // world)
    assert [len(part) for part in delivered] == [part.num_samples for part in parts] == [expected] * world
    assert set(sum(delivered, [])) == set(range(length))


def test_rank_order_does_not_depend_on_padding_or_world(recorder):
    stream = FrameStream(recorder(10), seed=4)
    whole = [s["index"] for s in stream]
    parts = [[s["index"] for s in stream.shard(4, rank)] for rank in range(4)]
    assert parts == [whole[rank::4] for rank in range(4)]


def test_persistent_workers_see_the_new_epoch(recorder):
    stream = FrameStream(recorder(13), seed=0)
    source = loader(stream, 2, persistent_workers=True)
    first = batches(source)
    stream.set_epoch(1)
    second = batches(source)
    fresh = FrameStream(recorder(13), seed=0)
    fresh.set_epoch(1)
    assert first != second == batches(loader(fresh, 2))


# --- few videos at a time

LENGTHS = [4, 0, 7, 1, 5, 3]  # 20 samples of 6 videos


def of_windows(recorder, window=2, seed=3):
    return FrameStream(recorder(20), seed=seed, order=VideoWindows(LENGTHS, window))


def videos_of(samples):
    return [int(np.searchsorted(np.cumsum(LENGTHS), sample, side="right")) for sample in samples]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_windows_every_sample_once_over_ranks_and_workers(recorder, world, workers):
    parts = [of_windows(recorder).shard(world, rank) for rank in range(world)]
    delivered = [flat(loader(part, workers)) for part in parts]
    assert [len(part) for part in delivered] == [part.num_samples for part in parts]
    assert sorted(sum(delivered, [])) == list(range(20))


def test_windows_give_every_worker_its_own_videos(recorder):
    lanes = []
    for rank in range(2):
        stream = of_windows(recorder).shard(2, rank)
        lanes += [videos_of(stream._samples(0, worker, 2).tolist()) for worker in range(2)]
        alone = [sample["index"] for sample in of_windows(recorder).shard(2, rank)]
        assert sorted(videos_of(alone)) == sorted(lanes[-2] + lanes[-1])
    seen = [video for lane in lanes for video in set(lane)]
    assert len(seen) - len(set(seen)) <= 3  # one video cut at each border
    whole = [sample["index"] for sample in of_windows(recorder)]
    epochs = FrameStream(recorder(20), seed=3, order=VideoWindows(LENGTHS, 2))
    epochs.set_epoch(1)
    assert whole != [sample["index"] for sample in epochs]
    places = [place for place, video in enumerate(videos_of(whole)) if video == videos_of(whole)[0]]
    assert places[-1] < 12  # of the first two videos at most 7 + 5 samples
    assert places != list(range(len(places))) or len(places) == 1


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [3, 25])
def test_windows_padding_gives_every_rank_the_same_number(recorder, world, workers):
    parts = [of_windows(recorder).shard(world, rank, pad=True) for rank in range(world)]
    if workers:
        samples = [[int(i) for w in range(workers) for i in part._samples(0, w, workers)] for part in parts]
    else:
        samples = [[sample["index"] for sample in part] for part in parts]
    assert [len(part) for part in samples] == [part.num_samples for part in parts] == [-(-20 // world)] * world
    assert set(sum(samples, [])) == set(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_resume(recorder, workers):
    def make():
        return loader(of_windows(recorder).shard(2, 1), workers)

    running = make()
    iterator = iter(running)
    next(iterator)
    state = running.state_dict()
    rest = batches(iterator)
    resumed = make()
    resumed.load_state_dict(state)
    assert batches(resumed) == rest
    assert set(resumed.dataset.dataset.reads()) == set(sum(rest, []))
    other = FrameStream(recorder(20), seed=3)
    with pytest.raises(ValueError, match="window was 2 .* is 0 now"):
        other.load_state_dict(of_windows(recorder).state_dict())


# --- resume


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_resume_delivers_the_rest_and_reads_nothing_else(recorder, done, world, workers):
    def make():
        return FrameStream(recorder(29), seed=9).shard(world, world - 1)

    stream = make()
    stream.set_epoch(3)
    running = loader(stream, workers)
    iterator = iter(running)
    head = [next(iterator)["index"].tolist() for _ in range(done)]
    state = running.state_dict()
    rest = batches(iterator)

    stream = make()  # in epoch 0; the state brings its own
    resumed = loader(stream, workers)
    resumed.load_state_dict(state)
    assert batches(resumed) == rest
    assert set(stream.dataset.reads()) == set(sum(rest, [])) and set(stream.dataset.reads().values()) <= {1}
    assert len(sum(head + rest, [])) == stream.num_samples


@pytest.mark.parametrize("workers", [0, 2])
def test_two_resumes_one_batch_apart(recorder, workers):
    # the second state is taken before every worker has delivered since the first resume
    running = loader(FrameStream(recorder(31), seed=0), workers)
    iterator = iter(running)
    delivered = [next(iterator)["index"].tolist()]
    state = running.state_dict()
    expected = delivered + batches(iterator)
    for _ in range(3):
        running = loader(FrameStream(recorder(31), seed=0), workers)
        running.load_state_dict(state)
        iterator = iter(running)
        delivered.append(next(iterator)["index"].tolist())
        state = running.state_dict()
    assert delivered + batches(iterator) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_after_a_resume_is_whole(recorder, workers):
    def rest_of_epoch_then_next(source):
        rest = batches(source)
        source.dataset.set_epoch(1)
        return rest, batches(source)

    whole = loader(FrameStream(recorder(10), seed=0), workers)
    iterator = iter(whole)
    next(iterator)
    state = whole.state_dict()
    resumed = loader(FrameStream(recorder(10), seed=0), workers)
    resumed.load_state_dict(state)
    rest, following = rest_of_epoch_then_next(resumed)
    assert rest == batches(iterator)
    fresh = loader(FrameStream(recorder(10), seed=0), workers)
    fresh.dataset.set_epoch(1)
    assert following == batches(fresh)


def test_plain_iteration_resumes_too(recorder):
    stream = FrameStream(recorder(9), seed=0)
    iterator = iter(stream)
    head = [next(iterator)["index"] for _ in range(4)]
    other = FrameStream(recorder(9), seed=0)
    other.load_state_dict(stream.state_dict())
    assert other.state_dict() == stream.state_dict()  # even before the first sample
    assert head + [s["index"] for s in other] == [s["index"] for s in FrameStream(recorder(9), seed=0)]


def test_choosing_another_epoch_drops_the_position(recorder):
    stream = FrameStream(recorder(9), seed=0)
    iterator = iter(stream)
    next(iterator)
    stream.load_state_dict(stream.state_dict())
    stream.set_epoch(1)
    assert len(list(stream)) == 9


def test_frames_of_a_real_tree_resume(tmp_path):
    root = make_tree(tmp_path, {"train": {"1_a": [1, 2, 3], "2_b": [4, 5, 6, 7]}})

    def make():
        return loader(load_vspw(root, "train", streaming=True, shuffle_seed=5, frame_offsets=(-1,)), 2, 2)

    running = make()
    iterator = iter(running)
    next(iterator)
    state = running.state_dict()
    rest = [(batch["video"], batch["frame"], batch["labels"].sum().item()) for batch in iterator]
    resumed = make()
    resumed.load_state_dict(state)
    assert [(batch["video"], batch["frame"], batch["labels"].sum().item()) for batch in resumed] == rest


# --- transforms


def test_transform_seeds_depend_on_epoch_and_sample_only(recorder):
    def transform(sample, seed):
        return {"index": sample["index"], "seed": torch.tensor(seed)}

    stream = FrameStream(recorder(12), seed=2).with_transform(transform)
    alone = {s["index"]: int(s["seed"]) for s in stream}
    assert len(set(alone.values())) == 12 and min(alone.values()) >= 0
    for rank in range(2):
        for batch in loader(stream.shard(2, rank), 2):
            assert all(alone[i] == s for i, s in zip(batch["index"].tolist(), batch["seed"].tolist(), strict=True))
    stream.set_epoch(1)
    assert not set(alone.values()) & {int(s["seed"]) for s in stream}


# --- errors


def test_state_of_another_stream_is_refused(recorder):
    state = FrameStream(recorder(9), seed=0).state_dict()
    with pytest.raises(ValueError, match="seed was 0 .* is 1 now"):
        FrameStream(recorder(9), seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="num_samples was 9 .* is 8 now"):
        FrameStream(recorder(8), seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="num_shards was 1 .* is 2 now"):
        FrameStream(recorder(9), seed=0).shard(2, 0).load_state_dict(state)
    with pytest.raises(ValueError, match="holds other files than when the position was saved.*owner/name@commit"):
        FrameStream(recorder(9), seed=0, data=7).load_state_dict(state)


def test_data_is_told_by_its_files_and_not_by_its_place(tmp_path):
    def stream(root):
        return load_vspw(root, "train", streaming=True, shuffle_seed=2)

    make_tree(tmp_path / "one", {"train": {"a": [1, 2, 3], "b": [4]}})
    saved = stream(tmp_path / "one")
    next(iter(saved))
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = stream(tmp_path / "moved")
    moved.load_state_dict(saved.state_dict())
    assert len(list(moved)) == 3
    for videos in ({"a": [1, 2, 5], "b": [4]}, {"a": [1, 2], "b": [3, 4]}, {"b": [4], "a": [1, 2, 3]}):
        root = make_tree(tmp_path / f"{len(list(tmp_path.iterdir()))}", {"train": videos})
        with pytest.raises(ValueError, match="other files"):
            stream(root).load_state_dict(saved.state_dict())


def test_wrong_arguments(recorder):
    with pytest.raises(ValueError, match="empty"):
        FrameStream(recorder(0))
    with pytest.raises(ValueError, match="seed is -1"):
        FrameStream(recorder(3), seed=-1)
    stream = FrameStream(recorder(3))
    with pytest.raises(ValueError, match="index is 2 with num_shards 2"):
        stream.shard(2, 2)
    with pytest.raises(ValueError, match="pad=True"):
        stream.shard(4, 3)
    with pytest.raises(ValueError, match="already"):
        stream.shard(2, 0).shard(2, 0)
