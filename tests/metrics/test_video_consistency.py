"""VideoConsistency against the definition written as loops over windows and pixels."""

import numpy as np
import pytest
import torch

from vss_hf.metrics import VideoConsistency


def random_video(seed, length, shape=(6, 7)):
    """Labels that mostly stay, with void and some wrong and flickering predictions."""
    rng = np.random.default_rng(seed)
    references = np.repeat(rng.integers(0, 4, (1, *shape)), length, 0)
    predictions = references.copy()
    for maps, share in ((references, 0.08), (predictions, 0.15)):
        for t in range(1, length):
            moved = rng.random(shape) < share
            maps[t:, moved] = rng.integers(0, 4, moved.sum())
    references[:, :1] = 255
    references[length // 2 :, 1:2] = 0
    return predictions.astype(np.uint8), references.astype(np.uint8)


def slow_windows(predictions, references, n, protocol):
    """One value per window, None without constant ground truth."""
    length, height, width = references.shape
    values = []
    for start in range(length - n + 1 if protocol == "paper" else max(length - n, 0)):
        constant = steady = 0
        for y in range(height):
            for x in range(width):
                truth = references[start : start + n, y, x].tolist()
                guess = predictions[start : start + n, y, x].tolist()
                if len(set(truth)) > 1 or (protocol == "paper" and truth[0] == 255):
                    continue
                constant += 1
                steady += guess == truth if protocol == "paper" else len(set(guess)) == 1
        values.append(steady / constant if constant else None)
    return values


def stream(consistency, videos):
    """Adds the videos; returns the windows that add_frame reported, per name."""
    windows = {}
    for predictions, references in videos:
        for prediction, reference in zip(predictions, references, strict=True):
            for name, value in consistency.add_frame(prediction, reference).items():
                windows.setdefault(name, []).append(value)
        consistency.end_video()
    return windows


@pytest.mark.parametrize("protocol", ["vspw-official", "paper", "dvis-legacy"])
def test_equals_the_definition(protocol):
    videos = [random_video(seed, length) for seed, length in enumerate([9, 4, 3, 12, 1])]
    consistency = VideoConsistency((3, 4), protocol)
    windows = stream(consistency, videos)
    expected = {n: sum((slow_windows(*video, n, protocol) for video in videos), []) for n in (3, 4)}
    assert windows == {"vc3": expected[3], "vc4": expected[4]}
    result = consistency.compute()
    pooled = expected[3] + expected[4] if protocol == "dvis-legacy" else expected[4]
    assert result["vc3"] == pytest.approx(np.mean(expected[3]), abs=1e-12)
    assert result["vc4"] == pytest.approx(np.mean(pooled), abs=1e-12)
    assert result["clips"] == {"vc3": len(expected[3]), "vc4": len(pooled)}
    assert (result["videos"], result["protocol"]) == (5, protocol)


def test_a_constant_prediction_is_perfect_only_for_the_script():
    references = random_video(1, 12)[1]
    predictions = np.full_like(references, 3)
    scores = {}
    for protocol in ("vspw-official", "paper"):
        consistency = VideoConsistency((8,), protocol)
        stream(consistency, [(predictions, references)])
        scores[protocol] = consistency.compute()["vc8"]
    assert scores["vspw-official"] == 1.0
    assert scores["paper"] < 0.6


def test_windows_without_constant_ground_truth_are_dropped():
    flicker = np.arange(6, dtype=np.uint8)[:, None, None] % 2 * np.ones((1, 3, 4), dtype=np.uint8)
    still = np.zeros((6, 3, 4), dtype=np.uint8)
    consistency = VideoConsistency((4,))
    assert stream(consistency, [(still, flicker), (still, still)])["vc4"] == [None, None, 1.0, 1.0]
    result = consistency.compute()
    assert result["vc4"] == 1.0
    assert (result["clips"], result["dropped_clips"]) == ({"vc4": 2}, {"vc4": 2})


def test_short_videos_give_no_score():
    still = np.zeros((8, 3, 4), dtype=np.uint8)
    consistency = VideoConsistency()
    stream(consistency, [(still, still)])  # the scripts skip videos of n frames and fewer
    assert consistency.compute() == {
        "vc8": None,
        "vc16": None,
        "clips": {"vc8": 0, "vc16": 0},
        "dropped_clips": {"vc8": 0, "vc16": 0},
        "videos": 1,
        "protocol": "vspw-official",
    }
    assert VideoConsistency().compute()["videos"] == 0


def test_nothing_carries_over_to_the_next_video():
    videos = [random_video(2, 10), random_video(3, 11, shape=(5, 9))]  # sizes may differ
    both, apart = VideoConsistency((3,)), [VideoConsistency((3,)), VideoConsistency((3,))]
    windows = stream(both, videos)
    assert windows["vc3"] == stream(apart[0], videos[:1])["vc3"] + stream(apart[1], videos[1:])["vc3"]
    both.end_video()  # no frame was added
    assert both.compute()["videos"] == 2
    both.reset()
    assert both.compute()["clips"] == {"vc3": 0}


@pytest.mark.parametrize("protocol", ["vspw-official", "paper"])
def test_dtypes_and_reused_buffers(protocol):
    predictions, references = random_video(4, 9)
    expected = stream(VideoConsistency((3,), protocol), [(predictions, references)])
    as_tensors = (torch.from_numpy(predictions).long(), torch.from_numpy(references).to(torch.int16))
    assert stream(VideoConsistency((3,), protocol), [as_tensors]) == expected
    consistency, buffers = VideoConsistency((3,), protocol), np.empty((2, *references.shape[1:]), dtype=np.uint8)
    windows = []
    for prediction, reference in zip(predictions, references, strict=True):
        buffers[0], buffers[1] = prediction, reference
        windows += consistency.add_frame(*buffers).values()
    assert windows == expected["vc3"]


def test_memory_does_not_grow_with_length():
    consistency = VideoConsistency()
    still = torch.zeros(5, 6, dtype=torch.uint8)

    def kept_bytes():
        kept = [*vars(consistency).values(), *vars(consistency._runs).values()]
        return sum(v.numel() * v.element_size() for v in kept if isinstance(v, torch.Tensor))

    consistency.add_frame(still, still)
    first = kept_bytes()
    for _ in range(60):
        consistency.add_frame(still, still)
    assert kept_bytes() == first == 30 * 6 + 2 * 3 * 8  # six maps of bytes
    assert not any(isinstance(value, (list, set)) for value in vars(consistency).values())


def test_errors_name_the_thing():
    with pytest.raises(ValueError, match="protocol is 'official'; known are 'vspw-official', 'paper', 'dvis-legacy'"):
        VideoConsistency(protocol="official")
    for wrong in ((), (1, 8), (8, 8)):
        with pytest.raises(ValueError, match="num_frames is"):
            VideoConsistency(wrong)
    consistency = VideoConsistency()
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 3\) and reference \(3, 2\)"):
        consistency.add_frame(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        consistency.add_frame(np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int))
    with pytest.raises(ValueError, match="reference has dtype float64"):
        consistency.add_frame(np.zeros((2, 3), int), np.zeros((2, 3)))
    consistency.add_frame(np.zeros((2, 3), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"frame 1 has shape \(4, 3\) .* \(2, 3\); call end_video\(\)"):
        consistency.add_frame(np.zeros((4, 3), int), np.zeros((4, 3), int))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("protocol", ["vspw-official", "paper"])
def test_frames_on_the_gpu(protocol):
    predictions, references = random_video(5, 9)
    on_gpu = (torch.from_numpy(predictions).cuda(), torch.from_numpy(references).cuda())
    expected = stream(VideoConsistency((3,), protocol), [(predictions, references)])
    assert stream(VideoConsistency((3,), protocol), [on_gpu]) == expected
