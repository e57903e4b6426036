"""Moving averages of scores against their definition in float64, and the settings that stand for them."""

import math

import numpy as np
import pytest
import torch
from largest_tensor import LargestTensor
from test_flow import texture
from torch.nn import functional as F

from vss_hf.inference.score_maps import DenseScores, LogitScores, MaskScores, WeightedScores
from vss_hf.refinement.flow import LucasKanade
from vss_hf.refinement.smoothing import NAMED, AverageSettings, MovingAverage, cell_means, parse


CLASSES = 5


def random_logits(seed, size=(9, 13), dtype=torch.float32):
    return (torch.randn(CLASSES, *size, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def probabilities(logits, size):
    upsampled = F.interpolate(logits.double()[None], size=size, mode="bilinear", align_corners=False)
    return upsampled.softmax(dim=1)[0].numpy()


class Known:
    """A flow of which the test knows every value, another one for each frame."""

    settings = {"name": "known"}

    def __init__(self, size):
        self.size, self.calls = size, 0

    def __call__(self, first, second):
        self.calls += 1
        return self.of(self.calls)

    def of(self, call):
        coarse = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(call)) * 8
        return F.interpolate(coarse, size=self.size, mode="bilinear", align_corners=False)[0]


def cells_of(values, stride):
    """(C, H, W) -> (C, h, w), means of what there is of each cell."""
    rows = [values[:, y : y + stride] for y in range(0, values.shape[1], stride)]
    cells = [[row[:, :, x : x + stride].mean(axis=(1, 2)) for x in range(0, values.shape[2], stride)] for row in rows]
    return np.array(cells).transpose(2, 0, 1)


def sampled(image, x, y):
    """image (C, h, w) at (x, y), bilinearly; beyond the borders as at them."""
    height, width = image.shape[1:]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = x - left, y - top
    upper = image[:, top, left] * (1 - a) + image[:, top, right] * a
    return upper * (1 - b) + (image[:, bottom, left] * (1 - a) + image[:, bottom, right] * a) * b


def moved(image, flow):
    height, width = image.shape[1:]
    points = [[sampled(image, x + flow[0, y, x], y + flow[1, y, x]) for x in range(width)] for y in range(height)]
    return np.array(points).transpose(2, 0, 1)


def to_pixels(cells, stride, size):
    points = [
        [sampled(cells, (x + 0.5) / stride - 0.5, (y + 0.5) / stride - 0.5) for x in range(size[1])]
        for y in range(size[0])
    ]
    return np.array(points).transpose(2, 0, 1)


def by_hand(frames, scores, settings, flow):
    """The definition, in float64; flow(n) is that of the n-th pair of frames."""
    results, state, stride = [], None, settings.stride
    pictures = [cells_of(frame.transpose(2, 0, 1) / 255, stride) for frame in frames]
    for number, new in enumerate(scores):
        means = cells_of(new, stride)
        if state is None:
            state = means
            results.append(new)
            continue
        before, trust = pictures[number - 1], np.ones(means.shape[1:])
        if flow is not None:
            vectors = cells_of(flow(number).double().numpy(), stride) / stride
            y, x = np.mgrid[: trust.shape[0], : trust.shape[1]]
            to_x, to_y = x + vectors[0], y + vectors[1]
            trust = ((to_x >= -0.5) & (to_x < trust.shape[1] - 0.5)).astype(float)
            trust *= (to_y >= -0.5) & (to_y < trust.shape[0] - 0.5)
            before, state = moved(before, vectors), moved(state, vectors)
        if settings.photometric is not None:
            difference = np.abs(pictures[number] - before).mean(axis=0)
            trust = trust * np.exp(-((difference / settings.photometric) ** 2))
        weight = settings.momentum * trust
        results.append(
            to_pixels(weight * state, stride, new.shape[1:])
            + to_pixels((1 - weight)[None], stride, new.shape[1:]) * new
        )
        state = weight * state + (1 - weight) * means
    return results


@pytest.mark.parametrize(
    "stride,photometric,with_flow", [(1, 0.1, False), (4, None, False), (4, None, True), (5, 0.1, True)]
)
def test_the_definition(stride, photometric, with_flow):
    size = (22, 33)  # no multiple of 4 or 5
    frames = [texture(*size, seed) // 4 + 64 for seed in range(4)]
    settings = AverageSettings(momentum=0.7, photometric=photometric, stride=stride, scene_cut=1.0)
    step, known = MovingAverage(settings), Known(size)
    step.motion.flow = known if with_flow else None
    logits = [random_logits(seed) for seed in range(4)]
    wanted = by_hand(frames, [probabilities(one, size) for one in logits], settings, known.of if with_flow else None)
    for frame, one, right in zip(frames, logits, wanted, strict=True):
        result = step(frame, LogitScores(one, size))
        np.testing.assert_allclose(result.dense().numpy(), right, atol=2e-5)
        np.testing.assert_allclose(result.dense().sum(dim=0).numpy(), 1, atol=1e-5)
        # However the labels are found, they are the best of these scores.
        chosen = np.take_along_axis(right, result.labels().numpy()[None].astype(int), axis=0)[0]
        assert (chosen >= right.max(axis=0) - 1e-5).all()
    assert np.abs(wanted[-1] - probabilities(logits[-1], size)).max() > 0.1


def test_in_place_at_full_size_it_is_the_plain_average():
    size, step = (9, 13), MovingAverage(AverageSettings(momentum=0.5, photometric=None, stride=1, scene_cut=1.0))
    mean = None
    for seed in range(5):
        new = random_logits(seed).double()
        mean = new.softmax(0) if mean is None else 0.5 * mean + 0.5 * new.softmax(0)
        result = step(texture(*size, seed), LogitScores(new, size))
        torch.testing.assert_close(result.rows(0, 9).transpose(0, 1), mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    size = (18, 26)
    logits = [random_logits(seed, dtype=dtype) for seed in range(3)]
    half, full = MovingAverage(NAMED["ema"]), MovingAverage(NAMED["ema"])
    frame = texture(*size)
    for one in logits:
        result = half(frame, LogitScores(one, size)).dense()
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, full(frame, LogitScores(one.float(), size)).dense(), atol=1e-6, rtol=0)


def test_maps_of_every_kind():
    """Of masks, whose scores do not sum to 1; of sums; of a tensor."""
    size, generator = (20, 31), torch.Generator().manual_seed(0)
    masks = MaskScores(
        torch.randn(6, CLASSES + 1, generator=generator), torch.randn(6, 5, 8, generator=generator), size
    )
    logits = LogitScores(random_logits(1), size)
    frame = texture(*size)
    for one in (masks, WeightedScores([(0.5, masks), (0.5, logits)]), DenseScores(logits.dense())):
        step = MovingAverage(NAMED["flow"])
        step(frame, logits)
        result = step(frame, one)
        # Nothing moves: 0.8 of the first and 0.2 of the second.
        state = F.interpolate(cell_means(logits, 4)[None], scale_factor=4, mode="bilinear")[0, :, :20, :31]
        torch.testing.assert_close(result.dense(), 0.8 * state + 0.2 * one.dense(), atol=0.02, rtol=0)
        assert torch.equal(result.labels(), result.dense().argmax(dim=0).to(torch.uint8))


def test_what_is_hidden_takes_the_new_scores():
    """A box of another colour appears: inside it nothing of the frame before counts."""
    size = (40, 60)
    before = texture(*size) // 4 + 64
    now = before.copy()
    now[12:28, 20:40] = 255 - now[12:28, 20:40]
    first, second = LogitScores(random_logits(0), size), LogitScores(random_logits(1), size)
    step = MovingAverage(AverageSettings(momentum=0.8, photometric=0.05, scene_cut=1.0))
    step(before, first)
    result = step(now, second).dense()
    torch.testing.assert_close(result[:, 16:24, 24:36], second.dense()[:, 16:24, 24:36], atol=1e-4, rtol=0)
    state = F.interpolate(cell_means(first, 4)[None], scale_factor=4, mode="bilinear")[0]
    wanted = 0.2 * second.dense() + 0.8 * state
    torch.testing.assert_close(result[:, :, 48:], wanted[:, :, 48:], atol=1e-5, rtol=0)
    assert (result - second.dense())[:, :, 48:].abs().max() > 0.3


def test_scores_move_with_things():
    """The camera pans by 8 pixels; the model is right once and then knows nothing: along the flow it stays right."""
    whole, classes = texture(64, 160), (np.arange(160) // 16) % CLASSES
    right = F.one_hot(torch.from_numpy(np.tile(classes, (64, 1))), CLASSES).permute(2, 0, 1).float()
    unsure = DenseScores(torch.full((CLASSES, 64, 128), 1 / CLASSES))
    step = MovingAverage(AverageSettings(momentum=0.8, flow="lucas-kanade", scene_cut=1.0))
    step(whole[:, 24:152], DenseScores(right[:, :, 24:152]))
    labels = step(whole[:, 16:144], unsure).labels()
    in_place = MovingAverage(AverageSettings(momentum=0.8, photometric=None, scene_cut=1.0))
    in_place(whole[:, 24:152], DenseScores(right[:, :, 24:152]))
    stayed = in_place(whole[:, 16:144], unsure).labels()
    wanted = torch.from_numpy(classes[16:144])
    # Beyond the first columns, which came in, and the borders of the classes, which cells blur.
    there = torch.arange(128) > 16
    assert (labels == wanted)[:, there].float().mean() > 0.93
    assert (stayed == wanted)[:, there].float().mean() < 0.7


def test_another_scene_video_or_size_begins_anew():
    size = (24, 32)
    dark, bright = texture(*size) // 4, texture(*size) // 4 + 120
    first, second = LogitScores(random_logits(0), size), LogitScores(random_logits(1), size)
    step = MovingAverage(NAMED["ema"])
    assert step(dark, first) is first
    assert step(dark, second) is not second
    assert step(bright, second) is second
    changed = step(bright, first).dense()
    assert not torch.equal(changed, first.dense())
    step.reset()
    assert step(bright, first) is first
    step.reset()
    small = LogitScores(random_logits(2), (20, 30))
    assert step(texture(20, 30), small) is small


def test_maps_are_lazy_and_may_be_asked_twice():
    """A map stays what it was when the next frame has come."""
    size, frame = (24, 32), texture(24, 32)
    step = MovingAverage(NAMED["ema"])
    step(frame, LogitScores(random_logits(0), size))
    kept = step(frame, LogitScores(random_logits(1), size))
    dense = kept.dense()
    step(frame, LogitScores(random_logits(2), size))
    assert torch.equal(kept.dense(), dense)
    rows = torch.cat([kept.rows(start, min(start + 5, 24)) for start in range(0, 24, 5)]).transpose(0, 1)
    torch.testing.assert_close(rows, dense, atol=1e-6, rtol=0)
    pixels = torch.tensor([0, 31, 32, 24 * 32 - 1])
    torch.testing.assert_close(kept.at(pixels), dense.flatten(1)[:, pixels].t(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (17, 23)])
def test_any_size(size):
    step = MovingAverage(AverageSettings(flow="lucas-kanade", scene_cut=1.0))
    for seed in range(2):
        result = step(texture(*size, seed), LogitScores(random_logits(seed, (2, 3)), size))
    assert result.labels().shape == size and result.dense().isfinite().all()


@pytest.mark.parametrize("stride", [1, 4, 7])
def test_cells_of_several_blocks(stride):
    """Of 300 classes 52 rows of 100 pixels are made at a time; the last block may be less than a cell."""
    scores = LogitScores(torch.randn(300, 14, 25, generator=torch.Generator().manual_seed(0)), (105, 100))
    wanted = F.avg_pool2d(scores.dense().double(), stride, ceil_mode=True)
    torch.testing.assert_close(cell_means(scores, stride).double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["ema", "flow"])
def test_no_map_of_full_size(name):
    """150 classes at 200 x 240: a full-size map has 7.2 million numbers."""
    size = (200, 240)
    step = MovingAverage(NAMED[name])
    logits = [torch.randn(150, 50, 60, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    frames = [texture(*size, seed) for seed in range(2)]
    with LargestTensor() as memory:
        for frame, one in zip(frames, logits, strict=True):
            step(frame, LogitScores(one, size)).labels()
    assert memory.elements < 150 * 200 * 240 / 4
    assert step.state.numel() == 150 * 50 * 60


# --- settings


def test_parse():
    ema, flow, flicker = (parse(name)[0] for name in ("ema", "flow", "flicker"))
    assert [ema.changes, flow.changes, flicker.changes] == ["scores", "scores", "labels"]
    wanted = {"momentum": 0.5, "flow": None, "photometric": 0.1, "stride": 4, "scene_cut": 0.1}
    assert ema.settings == wanted
    assert flow.settings == {**wanted, "momentum": 0.8, "flow": {"name": "lucas-kanade"}}
    assert isinstance(flow.motion.flow, LucasKanade)
    changed, filtered = parse([{"name": "flow", "momentum": 0.9, "photometric": None}, "flicker"])
    assert changed.config == AverageSettings(0.9, "lucas-kanade", None) and filtered.config == flicker.config
    assert parse({"name": "flow", "stride": 1, "scene_cut": 1})[0].config.scene_cut == 1


@pytest.mark.parametrize(
    "given,message",
    [
        ("emma", "--smooth: there is no setting 'emma'; did you mean 'ema'?"),
        ({"momentum": 0.5}, "--smooth: {'momentum': 0.5} has no name; expected one of ema, flow, flicker"),
        ({"name": "ema", "momentun": 0.5}, "--smooth has no field 'momentun'; did you mean 'momentum'?"),
        ({"name": "flicker", "momentum": 0.5}, "--smooth has no field 'momentum'"),
        ({"name": "ema", "momentum": 1}, "--smooth.momentum: expected a number above 0 and below 1; found 1"),
        ({"name": "ema", "momentum": "0.5"}, "--smooth.momentum: expected a number; found '0.5'"),
        ({"name": "ema", "momentum": math.nan}, "--smooth.momentum: expected a number above 0"),
        ({"name": "ema", "stride": 0}, "--smooth.stride: expected a whole number from 1 to 64; found 0"),
        ({"name": "ema", "photometric": 0}, "--smooth.photometric: expected a number above 0, up to 1, or null"),
        ({"name": "flow", "scene_cut": 0.0}, "--smooth.scene_cut: expected a number above 0, up to 1"),
        (
            {"name": "flow", "flow": "raft.pth"},
            "--smooth.flow: there is no file with RAFT's weights and no flow 'raft",
        ),
        ({"name": "flicker", "frames": 1}, "--smooth.frames: expected a whole number from 2 to 255; found 1"),
        (["ema", "flickr"], "--smooth: there is no setting 'flickr'; did you mean 'flicker'?"),
        ([], "--smooth: an empty list"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ValueError) as error:
        parse(given, "cpu", "--smooth")
    assert message in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    size, steps = (90, 130), [parse("flow", place)[0] for place in ("cpu", "cuda", "cuda")]
    for seed in range(3):
        frame, logits = texture(*size, seed) // 8 + 100, random_logits(seed, (23, 33))
        cpu, one, other = (
            step(frame, LogitScores(logits.to(place), size)).dense()
            for step, place in zip(steps, ("cpu", "cuda", "cuda"), strict=True)
        )
        assert torch.equal(one, other)
        torch.testing.assert_close(one.cpu(), cpu, atol=0.02, rtol=0)
