"""TC against its definition in numpy, perfect and hopeless predictions, and the published script's oddities."""

import numpy as np
import pytest
import torch

from vss_hf.metrics.temporal_consistency import PROTOCOLS, TemporalConsistency, warp_as_published, warp_labels


CLASSES = 5


def shift(x, y, height=12, width=17):
    """A flow that is the same everywhere."""
    return torch.tensor([x, y], dtype=torch.float32)[:, None, None].expand(2, height, width)


def scores_of(videos, flow, protocol="paper"):
    """The results for videos, lists of (prediction, image)."""
    metric = TemporalConsistency(CLASSES, flow, protocol)
    for video in videos:
        for frame in video:
            metric.add_frame(*frame)
        metric.end_video()
    return metric.compute(), metric


def random_video(seed, frames=4, height=12, width=17):
    rng = np.random.default_rng(seed)
    # As an image the frame's own number, from which `numbered_flow` knows what it is asked for.
    return [(rng.integers(0, CLASSES, (height, width), dtype=np.uint8), (seed, n)) for n in range(frames)]


def numbered_flow(first, second):
    """Another flow for every pair of frames and each direction."""
    generator = torch.Generator().manual_seed(1000 * first[0] + 10 * first[1] + second[1])
    return torch.randn(2, 12, 17, generator=generator) * 4


def moved(labels, flow):
    """Pixel by pixel; None where the flow leads out of the frame."""
    height, width = labels.shape
    result = np.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            column, row = np.floor(x + float(flow[0, y, x]) + 0.5), np.floor(y + float(flow[1, y, x]) + 0.5)
            if 0 <= column < width and 0 <= row < height:
                result[y, x] = labels[int(row), int(column)]
    return result


def mean_iou(pairs, among):
    """Mean IoU over pairs of maps (own, moved), of the classes of `among`; -1 is nothing."""
    ious = []
    for label in range(CLASSES):
        both = union = wanted = 0
        for own, other in pairs:
            known = other >= 0
            a, b = (own == label) & known, (other == label) & known
            both, union = both + (a & b).sum(), union + (a | b).sum()
            wanted += a.sum() if among == "own" else (a | b).sum()
        if wanted:
            ious.append(both / union)
    return np.mean(ious)


def test_the_definition():
    videos = [random_video(1), random_video(2, frames=2), random_video(3, frames=1)]
    found, _ = scores_of(videos, numbered_flow)
    wanted = []
    for video in videos[:2]:
        pairs = []
        for (before, image_before), (now, image) in zip(video, video[1:], strict=False):
            pairs.append((now, moved(before, numbered_flow(image, image_before))))
        wanted.append(mean_iou(pairs, "either"))
    assert found["per_video"] == [pytest.approx(wanted[0]), pytest.approx(wanted[1]), None]
    assert found["tc"] == pytest.approx(np.mean(wanted))
    assert (found["videos"], found["protocol"]) == (2, "paper")


def test_the_published_script():
    """One confusion matrix; frame t+1 is moved; 0 comes in from outside; the grid is too large by W / (W - 1)."""
    videos = [random_video(1), random_video(2)]
    found, _ = scores_of(videos, numbered_flow, "vspw-official")
    pairs = []
    for video in videos:
        for (before, image_before), (now, image) in zip(video, video[1:], strict=False):
            flow = numbered_flow(image_before, image).numpy()
            height, width = now.shape
            other = np.zeros((height, width), dtype=int)
            for y in range(height):
                for x in range(width):
                    column = np.rint((x + flow[0, y, x]) * width / (width - 1) - 0.5)
                    row = np.rint((y + flow[1, y, x]) * height / (height - 1) - 0.5)
                    if 0 <= column < width and 0 <= row < height:
                        other[y, x] = now[int(row), int(column)]
            pairs.append((before, other))
    assert found["tc"] == pytest.approx(mean_iou(pairs, "own"), abs=1e-9)


def test_without_motion_the_published_grid_loses_the_last_row_and_column():
    labels = torch.full((10, 16), 3, dtype=torch.uint8)
    still = warp_as_published(labels, shift(0, 0, 10, 16))
    assert (still[:-1, :-1] == 3).all() and (still[-1] == 0).all() and (still[:, -1] == 0).all()


def test_perfect_and_hopeless():
    picture = np.random.default_rng(0).integers(0, CLASSES, (12, 40), dtype=np.uint8)
    # The camera pans by 3 pixels: what a frame shows at x, the one before showed at x - 3.
    panned = [(picture[:, 20 - 3 * n : 37 - 3 * n].copy(), n) for n in range(4)]
    assert scores_of([panned], lambda first, second: shift(3 * (second - first), 0))[0]["tc"] == 1
    assert scores_of([panned], lambda first, second: shift(0, 0))[0]["tc"] < 0.3
    constant = [(np.full((12, 17), 2, np.uint8), n) for n in range(3)]
    assert scores_of([constant], numbered_flow_of_ints)[0]["tc"] == 1
    changing = [(np.full((12, 17), n + 1, np.uint8), n) for n in range(3)]  # what comes from outside is 0
    for protocol in PROTOCOLS:
        assert scores_of([changing], lambda first, second: shift(0, 0), protocol)[0]["tc"] == 0


def numbered_flow_of_ints(first, second):
    return numbered_flow((0, first), (0, second))


def test_no_class_is_left_out():
    """Pixels without a class in either map count for nothing; a flow that leads outside everywhere has no score."""
    rng = np.random.default_rng(4)
    maps = [rng.integers(0, CLASSES, (12, 17), dtype=np.uint8) for _ in range(2)]
    full = scores_of([[(one, n) for n, one in enumerate(maps)]], lambda first, second: shift(0, 0))[1].totals
    maps[0][:6], maps[1][:, :4] = 255, 255
    part = scores_of([[(one, n) for n, one in enumerate(maps)]], lambda first, second: shift(0, 0))[1].totals
    known = (maps[0] != 255) & (maps[1] != 255)
    assert part[0, :, 1].sum() == known.sum() and full[0, :, 1].sum() == 12 * 17
    nowhere = scores_of([[(one, n) for n, one in enumerate(maps)]], lambda first, second: shift(100, 0))[0]
    assert nowhere == {"tc": None, "per_video": [None], "videos": 0, "protocol": "paper"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_videos_counted_apart(protocol):
    """Totals of videos that two processes counted make the result of one, and buffers may be reused."""
    videos = [random_video(seed) for seed in (1, 2, 3)]
    whole, _ = scores_of(videos, numbered_flow, protocol)
    first, second = (scores_of(part, numbered_flow, protocol)[1] for part in (videos[:1], videos[1:]))
    merged = TemporalConsistency(CLASSES, numbered_flow, protocol)
    merged.add_totals(torch.cat((first.totals, second.totals)))
    assert merged.compute() == whole
    buffer = np.empty((12, 17), np.uint8)
    again = TemporalConsistency(CLASSES, numbered_flow, protocol)
    for video in videos:
        for labels, image in video:
            buffer[:] = labels
            again.add_frame(buffer, image)
        again.end_video()
    again.end_video()
    assert again.compute() == whole
    again.reset()
    assert again.compute()["tc"] is None and again.totals.shape == (0, CLASSES, 3)


def test_warp_labels_is_the_definition():
    labels = torch.from_numpy(random_video(5)[0][0])
    flow = numbered_flow((5, 0), (5, 1))
    found, inside = warp_labels(labels[None], flow)
    wanted = moved(labels.numpy(), flow)
    assert np.array_equal(inside.numpy(), wanted >= 0) and inside.any() and not inside.all()
    assert np.array_equal(found[0].numpy()[wanted >= 0], wanted[wanted >= 0])


def test_errors():
    with pytest.raises(ValueError, match="protocol is 'vspw'; known are 'paper', 'vspw-official'"):
        TemporalConsistency(CLASSES, numbered_flow, "vspw")
    metric = TemporalConsistency(CLASSES, lambda first, second: torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="prediction has dtype float64"):
        metric.add_frame(np.zeros((4, 4)), 0)
    with pytest.raises(ValueError, match=r"prediction holds 5; expected classes 0..4, or 255"):
        metric.add_frame(np.full((4, 4), 5), 0)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\); expected \(height, width\)"):
        metric.add_frame(np.zeros((1, 4, 4), int), 0)
    metric.add_frame(np.zeros((4, 4), int), 0)
    with pytest.raises(ValueError, match="call end_video"):
        metric.add_frame(np.zeros((4, 5), int), 0)
    with pytest.raises(ValueError, match=r"the flow has shape \(2, 3, 3\)"):
        metric.add_frame(np.zeros((4, 4), int), 1)
