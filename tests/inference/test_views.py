"""Views of a frame and their average: against full-size float64, mmsegmentation's numbers, and by symmetry."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_mask_models
import torch
from safetensors.torch import load_file
from tiny_models import moving_frames, save_model
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from vss_hf import VideoSegmenter
from vss_hf.inference.score_maps import LogitScores
from vss_hf.inference.sliding import Axis, Placement, WindowedMasks, window_starts
from vss_hf.inference.views import KEPT, NAMED, TTA, MeanOfViews, parse_tta
from vss_hf.modeling import dense
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/14_inference_tta"
SETTINGS = {
    "flip": TTA(flip=True),
    "scales": TTA(scales=(0.75, 1.0, 1.3), flip=True),
    "logits": TTA(scales=(0.75, 1.25), flip=True, average="logits"),
    "windows": TTA(window=(40, 48), stride=(25, 31)),
    "everything": TTA(
        scales=(0.8, 1.5), flip=True, window=(48, 40), stride=(48, 33), size_divisor=32, antialias=False
    ),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows in each block, so that there are several."""
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 20_000)


@pytest.fixture(scope="module", params=[False, True], ids=["image", "video"])
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), video=request.param)


# --- the same at full size in float64, a view and a window at a time


def view_input(frame, tta, scale, size=None):
    """(1, 3, h, w) normalised; `size` of the unscaled input, if it is not the frame's."""
    size = size or frame.shape[:2]
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None]
    wanted = [int(side * scale + 0.5) for side in size]
    pixels = resize(pixels, wanted, antialias=tta.antialias)  # of bytes, as the processors do it
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels / 255 - mean) / std


def window_logits(pixels, tta, run):
    """The sum over windows of what `run(crop, index)` gives at the crop's size, over their number: (C, h, w)."""
    height, width = pixels.shape[-2:]
    crop = tta.window or (height, width)
    stride = tta.stride or crop
    grid = [max(side - of + by - 1, 0) // by + 1 for side, of, by in zip((height, width), crop, stride, strict=True)]
    total, count = 0.0, torch.zeros(height, width, dtype=torch.float64)
    for index, (i, j) in enumerate(product(range(grid[0]), range(grid[1]))):
        bottom, right = min(i * stride[0] + crop[0], height), min(j * stride[1] + crop[1], width)
        top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
        window = pixels[..., top:bottom, left:right]
        size = window.shape[-2:]
        padded = F.pad(window, (0, -size[1] % tta.size_divisor, 0, -size[0] % tta.size_divisor))
        out = resized(run(padded, index), padded.shape[-2:])[:, : size[0], : size[1]]
        total = total + F.pad(out, (left, width - right, top, height - bottom))
        count[top:bottom, left:right] += 1
    return total / count


def resized(logits, size):
    return F.interpolate(logits[None].double(), tuple(size), mode="bilinear")[0]


class Naive:
    """TTA of a model as `VideoSegmenter` should do it; every view of a video model has a state of its own."""

    def __init__(self, model, tta):
        self.model, self.tta, self.states = model, tta, {}

    def outputs(self, pixels, view):
        with torch.no_grad():
            if not hasattr(self.model, "init_state"):
                return self.model(pixel_values=pixels)
            outputs, self.states[view] = self.model.step(pixels, self.states.get(view, self.model.init_state()))
            return outputs

    def scores(self, frame, size=None):
        views = []
        for scale, mirrored in product(self.tta.scales, (False, True) if self.tta.flip else (False,)):
            pixels = view_input(frame, self.tta, scale, size)
            pixels = pixels.flip(-1) if mirrored else pixels
            run = lambda crop, index, view=(scale, mirrored): self.outputs(crop, (*view, index)).logits[0]  # noqa: E731
            logits = resized(window_logits(pixels, self.tta, run), frame.shape[:2])
            logits = logits.flip(-1) if mirrored else logits
            views.append(logits if self.tta.average == "logits" else logits.softmax(0))
        mean = sum(views) / len(views)
        return mean.softmax(0) if self.tta.average == "logits" else mean


def assert_close(scores, wanted, atol=2e-5):
    torch.testing.assert_close(scores.dense().double(), wanted, atol=atol, rtol=0)
    sure = wanted.topk(2, dim=0).values.diff(dim=0)[0].abs() > 2 * atol
    assert (scores.labels().long() == wanted.argmax(0))[sure].all()
    assert sure.float().mean() > 0.9


@pytest.mark.parametrize("name", list(SETTINGS))
@torch.no_grad()
def test_equal_to_full_size_views(folder, name):
    """Image and video models; the video model remembers each view and each window apart."""
    tta = SETTINGS[name]
    segmenter = VideoSegmenter.from_pretrained(folder, "cpu", tta=tta)
    naive = Naive(segmenter.model, tta)
    frames = moving_frames(3, 61, 83)
    for scores, frame in zip(segmenter.score_maps(frames), frames, strict=True):
        assert_close(scores, naive.scores(frame))


@pytest.mark.parametrize("kind", tiny_mask_models.KINDS)
@pytest.mark.parametrize("window", [None, (40, 48)])
@torch.no_grad()
def test_mask_models(kind, window):
    """The mean of scores that are not normalised; windows have queries of their own, so their scores are averaged."""
    torch.manual_seed(0)
    model = tiny_mask_models.make(kind, "resnet")
    stride = None if window is None else (29, 31)
    tta = TTA(scales=(1.0,) if window else (0.75, 1.0, 1.25), flip=True, window=window, stride=stride, size_divisor=32)
    segmenter = VideoSegmenter(model, VSSImageProcessor(), tta=tta)
    frames = moving_frames(2, 61, 83)

    def scores_of(frame):
        views = []
        for scale, mirrored in product(tta.scales, (False, True)):
            pixels = view_input(frame, tta, scale)
            pixels = pixels.flip(-1) if mirrored else pixels

            def run(crop, index):
                outputs = model(pixel_values=crop)
                classes = outputs.class_queries_logits[0].double().softmax(-1)[:, :-1]
                masks = outputs.masks_queries_logits[0]
                if window is None:
                    return masks
                return torch.einsum("qk,qhw->khw", classes, resized(masks, crop.shape[-2:]).sigmoid())

            scores = resized(window_logits(pixels, tta, run), frame.shape[:2])
            if window is None:
                padded = F.pad(pixels, (0, -pixels.shape[-1] % 32, 0, -pixels.shape[-2] % 32))
                classes = model(pixel_values=padded).class_queries_logits[0].double().softmax(-1)[:, :-1]
                scores = torch.einsum("qk,qhw->khw", classes, scores.sigmoid())
            views.append(scores.flip(-1) if mirrored else scores)
        return sum(views) / len(views)

    for scores, frame in zip(segmenter.score_maps(frames), frames, strict=True):
        assert_close(scores, scores_of(frame))
    normalised = segmenter.score_maps(frames[:1], normalised=True)[0].dense()
    torch.testing.assert_close(normalised.sum(0), torch.ones(61, 83), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="classifies masks and has no logits"):
        VideoSegmenter(model, VSSImageProcessor(), tta=TTA(average="logits")).step(frames[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_windows_of_resized_masks_cover_the_frame_evenly(dtype):
    """Masks that are 1 everywhere: whatever the windows and the scale, every pixel has the classes' scores."""
    classes, masks = torch.tensor([[[0.3, -1.0, 2.0, 0.5]]]), torch.full((1, 1, 9, 9), 50.0)
    classes, masks = classes.to(dtype), masks.to(dtype)
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks, logits=None)
    model = torch.nn.Conv2d(1, 1, 1)
    model.config, model.device, model.dtype = SimpleNamespace(), torch.device("cpu"), torch.float32
    model.forward = lambda pixel_values: outputs
    tta = TTA(scales=(0.6, 1.7), flip=True, window=(33, 40), stride=(20, 17))
    scores = VideoSegmenter(model, VSSImageProcessor(), tta=tta).score_maps(moving_frames(1, 67, 91))[0].dense()
    wanted = classes[0, 0].float().softmax(0)[:-1, None, None].expand(3, 67, 91)
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_windows_beside_all_pixels_of_a_small_frame():
    """A frame of 10 pixels whose view has 512: most windows of 32 hold none of the pixels that the frame takes."""
    axis = Axis.of(512, 32, 32, 1, 10)
    windows = Placement(axis, axis, (8, 8), False, torch.float32, torch.device("cpu")).windows
    assert len(windows) == 256
    classes, masks = torch.tensor([[0.3, -1.0, 2.0]]), torch.full((1, 8, 8), 50.0)
    scores = WindowedMasks([classes] * 256, [masks] * 256, (10, 10), windows).dense()
    torch.testing.assert_close(scores, classes[0].softmax(0)[:-1, None, None].expand(2, 10, 10), atol=1e-5, rtol=0)


# --- numbers of mmsegmentation


class Toy(torch.nn.Module):
    """The network of the fixture."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        weights = load_file(FIXTURE / "weights.safetensors")
        self.config = SimpleNamespace(align_corners=False)
        self.backbone = torch.nn.ModuleDict(
            {"c1": torch.nn.Conv2d(3, 8, 3, 2, 1), "c2": torch.nn.Conv2d(8, 16, 3, 2, 1)}
        )
        conv = torch.nn.ModuleDict(
            {"conv": torch.nn.Conv2d(16, 16, 3, 1, 1, bias=False), "bn": torch.nn.BatchNorm2d(16)}
        )
        head = {"convs": torch.nn.ModuleList([conv]), "conv_seg": torch.nn.Conv2d(16, 13, 1)}
        self.decode_head = torch.nn.ModuleDict(head)
        self.load_state_dict(weights)

    def forward(self, pixel_values):
        x = self.backbone["c2"](self.backbone["c1"](pixel_values).relu()).relu()
        block = self.decode_head["convs"][0]
        return SimpleNamespace(logits=self.decode_head["conv_seg"](block["bn"](block["conv"](x)).relu()))


class AsItIs:
    """A processor for frames that are the input already."""

    size, do_resize = None, False

    def __call__(self, images, **settings):
        return {"pixel_values": torch.stack(list(images))}


needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason="no reference numbers in ../shared/parity")


@needs_fixture
@torch.no_grad()
def test_windows_of_mmsegmentation():
    tensors, cases = load_file(FIXTURE / "tensors.safetensors"), json.loads((FIXTURE / "config.json").read_text())
    for case in ("slide0", "slide1", "slide2", "slide3", "slide_batch2"):
        window, stride = cases["cases"][case]["crop_size"], cases["cases"][case]["stride"]
        tta = TTA(window=tuple(window), stride=tuple(stride), average="logits")
        images = tensors["slide_batch2_image" if case == "slide_batch2" else "image"]
        maps = VideoSegmenter(Toy(), AsItIs(), tta=tta).score_maps(list(images))
        for scores, wanted in zip(maps, tensors[f"{case}_logits_s2"], strict=True):
            logits = torch.cat([scores._sum(row, row + 1) for row in range(0, scores.size[0], 2)])[..., ::2]
            torch.testing.assert_close(logits.transpose(0, 1), wanted, atol=2e-5, rtol=1e-4)
    view, *_ = VideoSegmenter(Toy(), AsItIs(), tta=TTA(average="logits")).score_maps(list(tensors["image"]))
    logits = torch.cat([view._sum(row, row + 1) for row in range(0, view.size[0], 2)])[..., ::2].transpose(0, 1)
    torch.testing.assert_close(logits, tensors["whole_logits_s2"][0], atol=2e-5, rtol=1e-4)


@needs_fixture
@torch.no_grad()
def test_views_of_mmsegmentation(monkeypatch):
    """Inputs to a grey level (OpenCV's resize rounds on its own), and so scores and labels nearly."""
    tensors = load_file(FIXTURE / "tensors.safetensors")
    frame = tensors["tta_image_bgr_uint8"].flip(-1).contiguous().numpy()
    ratios = tuple(json.loads((FIXTURE / "config.json").read_text())["cases"]["tta"]["ratios"])
    processor = VSSImageProcessor()
    seen = []
    forward = Toy.forward
    monkeypatch.setattr(
        Toy, "forward", lambda self, pixel_values: seen.append(pixel_values) or forward(self, pixel_values)
    )
    for average, which in (("probabilities", "softmax"), ("logits", "logits")):
        tta = TTA(scales=ratios, flip=True, average=average, antialias=False)
        (scores,) = VideoSegmenter(Toy(), processor, tta=tta).score_maps([frame])
        wanted = tensors[f"tta_mean_{which}_s2"]
        ours = scores.dense()[:, ::2, ::2]
        if average == "logits":
            wanted = wanted.softmax(0)
        labels = tensors["tta_pred_mmseg1x"][0] if average == "probabilities" else tensors["tta_pred_mean_logits"]
        assert (ours - wanted).abs().max() < 0.01
        assert (scores.labels() == labels).float().mean() > 0.995
    step = 1 / (255 * 0.224)
    for index, name in ((1, "tta_input_r0.5_flip1"), (6, "tta_input_r1.25_flip0")):
        difference = (seen[index][0] - tensors[name]).abs()
        assert difference.max() < 1.1 * step and difference.mean() < 0.25 * step


# --- symmetry, plain path, memory


def test_mirrored_frames_have_mirrored_scores(folder):
    frames = moving_frames(3, 61, 83)
    for flip in (True, False):
        tta = TTA(scales=(0.75, 1.0), flip=flip, size_divisor=32)
        segmenter = VideoSegmenter.from_pretrained(folder, "cpu", tta=tta)
        scores = torch.stack([one.dense() for one in segmenter.score_maps(frames)])
        segmenter.reset()
        mirrored = torch.stack([one.dense() for one in segmenter.score_maps([frame[:, ::-1] for frame in frames])])
        farthest = (mirrored.flip(-1) - scores).abs().max()
        assert farthest < 1e-4 if flip else farthest > 1e-2


def test_one_view_is_the_model(folder):
    frames = moving_frames(3, 61, 83)
    plain = VideoSegmenter.from_pretrained(folder, "cpu")
    viewed = VideoSegmenter.from_pretrained(folder, "cpu", tta=TTA())
    assert np.array_equal(plain.label_batch(frames), viewed.label_batch(frames))
    both = zip(plain.segment(frames, with_scores=True), viewed.segment(frames, with_scores=True), strict=True)
    for one, other in both:
        assert np.array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_view_that_is_too_small(folder):
    segmenter = VideoSegmenter.from_pretrained(folder, "cpu", tta=TTA(scales=(1.0, 0.6)))
    with pytest.raises(ValueError, match=r"tta.scales: 0.6 makes 38x29 of 64x48 .* 32 pixels on each side"):
        segmenter.step(moving_frames(1)[0])


def test_processor_that_resizes():
    """transformers' own, to a square: scales are of that square, labels have the frame's size."""
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    config.num_labels = 5
    model = SegformerForSemanticSegmentation(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    processor = SegformerImageProcessor(size={"height": 64, "width": 64}, do_reduce_labels=False)
    tta = TTA(scales=(1.0, 1.5), flip=True)
    (frame,) = moving_frames(1, 61, 83)
    (scores,) = VideoSegmenter(model, processor, tta=tta).score_maps([frame])
    wanted = Naive(model, tta).scores(frame, size=(64, 64))
    torch.testing.assert_close(scores.dense().double(), wanted, atol=2e-5, rtol=0)


class Patches(torch.nn.Module):
    """Logits of 40 classes at a stride of 4, which are much larger than anything else in it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(align_corners=False)
        self.layer = torch.nn.Conv2d(3, 40, 4, stride=4)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.layer(pixel_values))


def most_bytes(work, path):
    """The most memory that tensors took while `work` ran, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(path))
    events = [event["args"] for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(event["Total Allocated"] for event in events) - (events[0]["Total Allocated"] - events[0]["Bytes"])


def test_memory_does_not_grow_with_the_views(tmp_path):
    """The logits of 80 views would be five full-size maps: never more than 2.25, and a view."""
    (frame,) = moving_frames(1, 64, 96)
    full = 40 * 64 * 96 * 4
    taken = {}
    for views in (2, 40, 80):
        tta = TTA(scales=tuple(0.8 + 0.01 * i for i in range(views // 2)), flip=True)
        segmenter = VideoSegmenter(Patches(), VSSImageProcessor(), tta=tta)
        segmenter.step(frame)  # matrices of interpolation are kept; frames are much larger than these in earnest
        taken[views] = most_bytes(lambda: segmenter.step(frame), tmp_path / f"{views}.json") / full  # noqa: B023
    assert taken[2] < 0.5 and taken[40] < 2.9 and taken[80] < 2.9, taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_many_views_are_averaged_right(dtype):
    generator = torch.Generator().manual_seed(0)
    wanted, size = 0.0, (33, 47)
    mean = MeanOfViews(4, size, torch.device("cpu"), of_logits=False)
    for _ in range(40):
        logits = torch.randn(4, 12, 17, generator=generator).to(dtype)
        mean.add(LogitScores(logits, size), logits.numel())
        wanted = wanted + resized(logits, size).softmax(0) / 40
        assert mean.numbers <= KEPT * 4 * 33 * 47
    assert mean.total is not None
    assert_close(mean, wanted)


# --- settings


@pytest.mark.parametrize(
    "length,window,stride,starts",
    [
        (97, 64, 42, [0, 33]),
        (161, 64, 42, [0, 42, 84, 97]),
        (97, 97, 50, [0]),
        (60, 97, 50, [0]),
        (106, 64, 42, [0, 42]),
    ],
)
def test_where_windows_begin(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize(
    "given,message",
    [
        ("betterthing_swin", "tta: there is no setting 'betterthing_swin'; did you mean 'betterthing-swin'"),
        ({"scale": [1]}, "tta has no field 'scale'; did you mean 'scales'"),
        ({"scales": 1}, "tta.scales: expected a list; found 1"),
        ({"scales": ["1"]}, "tta.scales: expected a number; found '1'"),
        ({"scales": []}, r"tta.scales: expected numbers above 0, up to 8; found \[\]"),
        ({"scales": [0.5, 0]}, "tta.scales: expected numbers above 0"),
        ({"scales": [1, 1.0]}, "tta.scales: .* has a number twice"),
        ({"flip": 1}, "tta.flip: expected true or false; found 1"),
        ({"window": [512]}, r"tta.window: expected \[height, width\], whole numbers from 32; found \[512\]"),
        ({"window": [16, 512]}, r"tta.window: expected \[height, width\]"),
        ({"stride": [10, 10]}, "tta.stride: there is no window"),
        ({"window": [64, 64], "stride": [32, 65]}, r"tta.stride: \(32, 65\) leaves gaps"),
        ({"size_divisor": 0}, "tta.size_divisor: expected a whole number from 1; found 0"),
        ({"average": "logit"}, "tta.average: there is no 'logit'; did you mean 'logits'"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        parse_tta(given)


def test_settings_for_json():
    assert parse_tta({"scales": [0.5, 1], "window": [64, 96]}) == TTA(scales=(0.5, 1.0), window=(64, 96))
    for tta in NAMED.values():
        assert parse_tta(json.loads(json.dumps(tta.settings()))) == tta
