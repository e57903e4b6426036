"""Orders and mixtures: what a pass holds, what each lane gets, and proportions, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vss_hf.data.order import BLOCK, ClassBalanced, EveryFrame, EveryNth, Mixture, OnePerVideo, VideoWindows


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)


def video_of(lengths):
    """The video of every sample."""
    return np.repeat(np.arange(len(lengths)), lengths)


def orders(lengths):
    return [
        EveryFrame(sum(lengths)),
        EveryNth(lengths, 3),
        OnePerVideo(lengths),
        ClassBalanced(np.arange(1, sum(lengths) + 1)),
        VideoWindows(lengths, 2),
        VideoWindows(lengths, 3, every_nth=2),
    ]


# --- one pass


def test_every_frame_is_drawn_as_in_earlier_versions():
    assert EveryFrame(50).pass_of(7, 3).tolist() == np.random.default_rng([7, 3]).permutation(50).tolist()


@given(LENGTHS, st.integers(1, 6))
def test_every_nth(lengths, n):
    expected = [start + i for start, length in zip(np.cumsum([0, *lengths]), lengths) for i in range(0, length, n)]  # noqa: B905
    order = EveryNth(lengths, n)
    assert sorted(order.pass_of(1, 0)) == expected and order.num_samples == len(expected)


@given(LENGTHS, st.integers(0, 5))
def test_one_per_video(lengths, epoch):
    order = OnePerVideo(lengths)
    videos = video_of(lengths)[order.pass_of(3, epoch)]
    assert sorted(videos) == [video for video, length in enumerate(lengths) if length]


def test_one_per_video_takes_all_frames_equally_often():
    lengths, passes = [1, 4, 10], 4000
    counts = np.bincount(np.concatenate([OnePerVideo(lengths).pass_of(0, epoch) for epoch in range(passes)]))
    expected = np.concatenate([np.full(length, passes / length) for length in lengths])
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()  # and another one in every pass
    orders_seen = {tuple(video_of(lengths)[OnePerVideo(lengths).pass_of(0, epoch)]) for epoch in range(50)}
    assert len(orders_seen) == 6  # the videos come in any order


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30).filter(any), st.integers(0, 3))
def test_class_balanced_draws_in_proportion_in_every_pass(weights, epoch):
    order = ClassBalanced(weights)
    counts = np.bincount(order.pass_of(5, epoch), minlength=len(weights))
    expected = np.array(weights) / sum(weights) * len(weights)
    assert counts.sum() == len(weights) == order.num_samples
    assert (np.abs(counts - expected) < 1 + 1e-6).all()
    assert not counts[np.array(weights) == 0].any()


def test_class_balanced_has_no_favourite_among_equals():
    """Of ten samples with 1/2 draw a pass each, every one gets half of the passes."""
    weights = np.array([1.0] * 10 + [3.0] * 5)  # 15 draws: 0.6 and 1.8 a pass
    counts = sum(np.bincount(ClassBalanced(weights).pass_of(0, epoch), minlength=15) for epoch in range(2000))
    assert np.abs(counts[:10] / 2000 - 0.6).max() < 0.05 and np.abs(counts[10:] / 2000 - 1.8).max() < 0.05


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf")]])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="weights of samples|no samples"):
        ClassBalanced(weights)


def test_numbers_that_are_none():
    for wrong in (lambda: EveryFrame(0), lambda: EveryNth([2], 0), lambda: OnePerVideo([0]), lambda: VideoWindows([])):
        with pytest.raises(ValueError, match="no samples|every_nth is 0"):
            wrong()
    with pytest.raises(ValueError, match="window is 0"):
        VideoWindows([2], 0)


# --- lanes


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 3))
def test_lanes_share_a_pass(lengths, lanes, epoch):
    """Together exactly the pass; with `pad` equally long by fewer than `lanes` repeats."""
    for order in orders(lengths):
        whole = sorted(order.pass_of(2, epoch))
        parts = [order.lane(2, epoch, lane, lanes) for lane in range(lanes)]
        assert sorted(np.concatenate(parts)) == whole
        assert [len(part) for part in parts] == [order.lane_length(lane, lanes) for lane in range(lanes)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        padded = [order.lane(2, epoch, lane, lanes, pad=True) for lane in range(lanes)]
        lengths_found = {len(part) for part in padded} | {order.lane_length(0, lanes, pad=True)}
        assert lengths_found == {-(-len(whole) // lanes)}
        assert set(np.concatenate(padded).tolist()) == set(whole)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_windows_touch_few_videos_at_a_time(lengths, lanes, window):
    order, videos = VideoWindows(lengths, window), video_of(lengths)
    of_lanes = [videos[order.lane(0, 1, lane, lanes)] for lane in range(lanes)]
    for seen in of_lanes:
        blocks, left = [], seen.tolist()
        while left:  # a window: as far as its first `window` videos go
            block = list(dict.fromkeys(left))[:1]
            for video in left:
                block = block if video in block or len(block) == window else [*block, video]
            size = sum(video in block for video in left)
            # all samples of a window come before the first of the next
            assert set(left[:size]) == set(block)
            blocks.append(block)
            left = left[size:]
        assert all(len(block) == window for block in blocks[:-1])
        assert len({video for block in blocks for video in block}) == sum(map(len, blocks))  # no video twice
    cut = sum(len(set(seen.tolist())) for seen in of_lanes) - len(lengths)
    assert cut <= lanes - 1


def test_windows_are_mixed_and_differ_between_epochs():
    order = VideoWindows([20] * 40, 10)
    first, second = order.pass_of(0, 0), order.pass_of(0, 1)
    assert first.tolist() != second.tolist() and sorted(first) == sorted(second)
    changes = np.count_nonzero(np.diff(first // 20))
    assert changes > 600  # of 799 neighbours 9 in 10 are of different videos
    assert set((first[:200] // 20).tolist()) != set((second[:200] // 20).tolist())


# --- mixtures

SHARES = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


@settings(max_examples=50)
@given(SHARES, st.integers(0, 10**7))
def test_proportions_hold_anywhere(weights, draws):
    mixture = Mixture([EveryFrame(5 + i) for i in range(len(weights))], weights, seed=1)
    block = draws - draws % BLOCK
    counts = np.array(mixture.counts(block))
    shares = np.array(weights) / sum(weights)
    assert counts.sum() == block
    assert (np.abs(counts - block * shares) <= 0.5 + shares * len(weights) / 2 + 1e-6).all()
    assert (np.array(mixture.counts(block + BLOCK)) >= counts).all()


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [3, 2, 0.01], [0.6, 0.4]])
@pytest.mark.parametrize("lanes", [1, 3])
def test_counts_are_those_of_the_draws(weights, lanes):
    mixture = Mixture([EveryFrame(7)] * len(weights), weights, seed=4)
    for lane in range(lanes):
        sources = [mixture.locate(draw, lane, lanes)[0] for draw in range(3 * BLOCK)]
        for draws in (0, 1, 17, BLOCK, BLOCK + 1, 3 * BLOCK):
            expected = np.bincount(sources[:draws], minlength=len(weights)).tolist()
            assert mixture.counts(draws, lane, lanes) == expected
        in_blocks = np.bincount(sources[:BLOCK], minlength=len(weights))
        assert np.abs(in_blocks - BLOCK * np.array(weights) / sum(weights)).max() <= 1


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_each_source_is_walked_pass_by_pass(lanes):
    """Nothing of a source comes again before all of it came: in every lane, and over all lanes."""
    sources = [EveryFrame(37), EveryNth([8, 5, 11], 2), OnePerVideo([3] * 21), VideoWindows([4, 6, 2, 9], 2)]
    mixture = Mixture(sources, [5, 1, 2, 3], seed=9)
    for source, order in enumerate(sources):
        for epoch in range(3):
            drawn = []
            for lane in range(lanes):
                found = [mixture.locate(draw, lane, lanes) for draw in range(1200)]
                own, length = [index for s, index in found if s == source], order.lane_length(lane, lanes)
                drawn += own[epoch * length : (epoch + 1) * length]
            videos = [sample // 3 for sample in drawn] if source == 2 else drawn  # which frame changes
            assert len(drawn) == order.num_samples == len(set(videos))


def test_a_mixture_is_a_function_of_seed_and_draw():
    def make(seed):
        return Mixture([EveryFrame(30), EveryFrame(11)], [2, 1], seed)

    straight, far = make(0), make(0)
    whole = [straight.locate(draw) for draw in range(2000)]
    assert [far.locate(draw) for draw in reversed(range(2000))] == whole[::-1]
    assert [make(1).locate(draw) for draw in range(200)] != whole[:200]
    assert {source for source, _ in whole} == {0, 1}
    assert make(0).locate(10**13) == straight.locate(10**13)


def test_sources_do_not_fall_into_step():
    """With equal shares, each of two processes that take every other draw sees both sources equally often."""
    mixture = Mixture([EveryFrame(10)] * 2, [1, 1], 0)
    sources = np.array([mixture.locate(draw)[0] for draw in range(20 * BLOCK)])
    assert abs(sources[::2].mean() - 0.5) < 0.05
    passes = [[mixture.sample(source, number) for number in range(10)] for source in range(2)]
    assert passes[0] != passes[1]  # of equal length, but in orders of their own


def test_a_lane_with_fewer_samples_than_lanes_repeats_them():
    mixture = Mixture([EveryFrame(2), VideoWindows([1, 1])], [1, 1], 0)
    for lane in range(5):
        found = [mixture.locate(draw, lane, 5) for draw in range(200)]
        assert {source for source, _ in found} == {0, 1} and {index for _, index in found} <= {0, 1}


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_mix_nothing(weights):
    with pytest.raises(ValueError, match="weights"):
        Mixture([EveryFrame(2), EveryFrame(3)], weights, 0)
