"""Augmentation and evaluation preparation: alignment, reference colour fixtures, determinism."""

import colorsys
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vss_hf.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentationConfig,
    TrainTransform,
    _distort_colours,
    _Draw,
    adjust_saturation,
    is_balanced,
    labels_at,
    nearest_pixels,
    resize_frames,
    rotate_hue,
    scale_contrast,
    scaled_size,
    shift_brightness,
)


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/14_inference_tta"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason="parity fixtures (../shared/parity) are not here")
PLAIN = {"scale_mode": "none", "cat_max_ratio": 1.0, "horizontal_flip_prob": 0.0, "photometric_prob": 0.0}


def noise_sample(height=60, width=90, num_frames=1, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)
    labels = torch.randint(num_classes, (height, width), generator=generator, dtype=torch.uint8)
    return {"frames": frames, "labels": labels, "video": "v", "index": 0, "frame": "00000000"}


def levels(pixel_values):
    """Undoes the normalisation: float64 in 0..255."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixel_values.double() * std + mean) * 255


# --- settings


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"crop_size": (0, 64)}, "whole numbers >= 1"),
        ({"crop_size": 64}, "whole numbers >= 1"),
        ({"base_size": 0}, "factor from 0.01"),
        ({"scale_mode": "Range"}, "betterthing, range, none"),
        ({"scale_range": (2.0, 0.5)}, "smallest <= largest"),
        ({"scale_range": (0.5, 1.5)}, "1 / largest"),
        ({"scale_range": ("a", 1)}, "smallest <= largest"),
        ({"aspect_jitter": 1.0}, "0 to 0.9"),
        ({"cat_max_ratio": -0.1}, "0 to 1"),
        ({"horizontal_flip_prob": 1.5}, "0 to 1"),
        ({"time_reversal_prob": -1}, "0 to 1"),
        ({"photometric_prob": float("nan")}, "0 to 1"),
        ({"brightness": 32}, "0 to 1"),
        ({"contrast": (0.0, 1.0)}, "0 < smallest"),
        ({"saturation": 0.5}, "0 < smallest"),
        ({"hue": 18}, "0 to 0.5"),
        ({"image_mean": (123.7, 116.3, 103.5)}, "three numbers from 0 to 1"),
        ({"image_std": (0, 0.2, 0.2)}, "0.001 to 1"),
    ],
)
def test_bad_setting_names_field_value_and_range(setting, allowed):
    (name, value), = setting.items()
    with pytest.raises(ValueError) as error:
        AugmentationConfig(**{"crop_size": (64, 64), **setting})
    assert f"{name} is {value!r}" in str(error.value) and allowed in str(error.value)


def test_lists_of_a_recipe_are_accepted():
    assert AugmentationConfig(crop_size=[48, 64], base_size=[180, 240]).base_size == (180, 240)


# --- geometry


@needs_fixture
def test_base_size_equals_mmsegmentation():
    cases = json.loads((FIXTURE / "config.json").read_text())["cases"]["rescale_size(w,h)->(w,h)"]
    assert len(cases) == 20
    for (width, height), (long, short), (expected_width, expected_height) in cases:
        assert scaled_size(height, width, (short, long)) == (expected_height, expected_width)


@pytest.mark.parametrize("size", [(37, 53), (60, 90), (61, 91), (120, 180), (143, 95), (30, 200)])
def test_resize_equals_pillow_and_labels_share_its_grid(size):
    sample = noise_sample(60, 90)
    frame = Image.fromarray(sample["frames"][0].permute(1, 2, 0).numpy())
    expected = np.asarray(frame.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(int)
    ours = resize_frames(sample["frames"], size)[0].permute(1, 2, 0).numpy().astype(int)
    assert abs(ours - expected).max() <= 2  # both work in uint8, with different fixed-point weights
    # Half-pixel centres in whole numbers: source row of row i is floor((i + 1/2) 60 / h).
    rows = [(2 * i + 1) * 60 // (2 * size[0]) for i in range(size[0])]
    columns = [(2 * i + 1) * 90 // (2 * size[1]) for i in range(size[1])]
    labels = labels_at(sample["labels"], nearest_pixels(60, size[0]), nearest_pixels(90, size[1]))
    assert labels.tolist() == sample["labels"][rows][:, columns].tolist()


def test_labels_of_a_window_equal_the_window_of_the_resized_whole():
    """Against torchvision's resize of the whole map, which the crop was taken from before."""
    random = np.random.default_rng(0)
    for _ in range(300):
        height, width, *size = random.integers(1, 400, 4).tolist()
        labels = torch.from_numpy(random.integers(0, 256, (2, height, width), dtype=np.uint8))
        whole = F.resize(labels, size, interpolation=InterpolationMode.NEAREST_EXACT)
        rows, columns = nearest_pixels(height, size[0]), nearest_pixels(width, size[1])
        assert torch.equal(labels_at(labels, rows, columns), whole)
        top, left = random.integers(0, size).tolist()
        window = labels_at(labels, rows[top : top + 50], columns[left : left + 60])
        assert torch.equal(window, whole[:, top : top + 50, left : left + 60])


def test_labels_follow_the_image_to_the_pixel():
    """The image is white where the label is 1: halved at 50 % grey it must give the labels back."""
    height, width = 48, 64
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[:, 21:43] = 1
    labels[13:30] = 1 - labels[13:30]
    frames = (labels * 255)[None, None].expand(1, 3, height, width).contiguous()
    transform = TrainTransform(AugmentationConfig(crop_size=(40, 56), photometric_prob=0.0, cat_max_ratio=1.0))
    disagreeing = total = 0
    for seed in range(200):
        example = transform({"frames": frames, "labels": labels}, seed)
        grey, result = levels(example["pixel_values"])[0], example["labels"]
        inside = (result != 255) & ((grey - 127.5).abs() > 16)  # not the padding, not the half-covered edge pixels
        disagreeing += int(((grey > 127.5).long() != result)[inside].sum())
        total += int(inside.sum())
    assert total > 200 * 700
    # At a corner of two edges bilinear and nearest may differ by a pixel; a shift of half a pixel would give > 1 %.
    assert disagreeing < 2e-4 * total


def test_plain_crop_is_a_window_of_the_source():
    sample = noise_sample()
    example = TrainTransform(AugmentationConfig(crop_size=(20, 30), **PLAIN))(sample, 7)
    crop = levels(example["pixel_values"]).round().to(torch.uint8)
    positions = [
        (top, left) for top in range(41) for left in range(61)
        if torch.equal(sample["frames"][0, :, top : top + 20, left : left + 30], crop)
    ]
    assert len(positions) == 1
    top, left = positions[0]
    assert torch.equal(example["labels"], sample["labels"][top : top + 20, left : left + 30].long())
    assert example["pixel_values"].dtype == torch.float32 and example["labels"].dtype == torch.int64


def test_small_frame_is_padded_right_and_bottom_with_mean_and_255():
    sample = noise_sample(20, 30)
    example = TrainTransform(AugmentationConfig(crop_size=(24, 48), **PLAIN))(sample, 0)
    assert example["pixel_values"].shape == (3, 24, 48) and example["labels"].shape == (24, 48)
    outside = torch.ones(24, 48, dtype=torch.bool)
    outside[:20, :30] = False
    assert (example["pixel_values"][:, outside] == 0).all() and (example["labels"][outside] == 255).all()
    assert torch.equal(example["labels"][:20, :30], sample["labels"].long())


def test_flip_mirrors_image_and_labels():
    sample = noise_sample()
    settings = {**PLAIN, "scale_mode": "betterthing", "crop_size": (20, 30)}
    straight = TrainTransform(AugmentationConfig(**settings))
    mirrored = TrainTransform(AugmentationConfig(**{**settings, "horizontal_flip_prob": 1.0}))
    for seed in range(20):
        one, two = straight(sample, seed), mirrored(sample, seed)
        if (one["labels"] == 255).any():
            continue  # padding comes after the flip
        assert torch.equal(one["pixel_values"].flip(-1), two["pixel_values"])
        assert torch.equal(one["labels"].flip(-1), two["labels"])


def test_distribution_of_scales():
    transform = TrainTransform(AugmentationConfig(crop_size=(32, 32)))
    sizes = np.array([transform._draw_size(1000, 1500, _Draw(seed)) for seed in range(4000)]) / (1000, 1500)
    alpha = np.sqrt(sizes.prod(1))  # aspect jitter mostly cancels
    assert sizes.min() >= 0.4 and sizes.max() <= 2.4 and sizes.min() < 0.45 and sizes.max() > 2.2
    assert abs((alpha > 1).mean() - 0.5) < 0.03
    assert abs(np.median(alpha[alpha > 1.1]) - 1.53) < 0.05 and abs(np.median(1 / alpha[alpha < 0.9]) - 1.53) < 0.05
    aspect = sizes[:, 0] / sizes[:, 1]
    assert aspect.min() > 0.8 / 1.2 - 0.01 and aspect.max() < 1.2 / 0.8 + 0.01 and aspect.std() > 0.1
    keep_ratio = TrainTransform(AugmentationConfig((32, 32), scale_mode="range", scale_range=(0.8, 2), base_size=0.5))
    sizes = np.array([keep_ratio._draw_size(1000, 1500, _Draw(seed)) for seed in range(1000)])
    assert abs(sizes[:, 1] - 1.5 * sizes[:, 0]).max() <= 1.5
    assert 400 <= sizes[:, 0].min() < 410 and 990 < sizes[:, 0].max() <= 1000


def test_balance_rule_and_redraw():
    """Slow recount; then a frame with a rare corner: redrawing must find it far more often than one draw does."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        window = torch.randint(3, (6, 6), generator=generator, dtype=torch.uint8) ** 3
        window[window == 8] = 255
        counts = Counter(value for value in window.flatten().tolist() if value != 255)
        expected = len(counts) > 1 and max(counts.values()) / sum(counts.values()) < 0.6
        assert is_balanced(window, 0.6) == expected
    assert not is_balanced(torch.full((4, 4), 255, dtype=torch.uint8), 0.75)

    sample = noise_sample(64, 64)
    sample["labels"] = torch.zeros(64, 64, dtype=torch.uint8)
    sample["labels"][32:, 32:] = 1
    found = {}
    for ratio in (1.0, 0.75):
        transform = TrainTransform(AugmentationConfig((16, 16), **{**PLAIN, "cat_max_ratio": ratio}))
        balanced = [is_balanced(transform(sample, seed)["labels"], 0.75) for seed in range(300)]
        found[ratio] = sum(balanced) / 300
    single = found[1.0]
    assert 0.1 < single < 0.35
    assert abs(found[0.75] - (1 - (1 - single) ** 11)) < 0.1  # one draw and ten more


# --- determinism


def test_result_depends_on_sample_and_seed_only():
    sample = noise_sample(80, 100, num_frames=2)
    before = {key: value.clone() for key, value in sample.items() if isinstance(value, torch.Tensor)}
    transform = TrainTransform(AugmentationConfig(crop_size=(48, 64)))
    first = [transform(sample, seed) for seed in (0, 1, 2**63 - 1)]
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.random.get_rng_state()
    again = [TrainTransform(AugmentationConfig(crop_size=(48, 64)))(sample, seed) for seed in (2**63 - 1, 1, 0)][::-1]
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one["pixel_values_videos"], two["pixel_values_videos"])
        assert torch.equal(one["labels"], two["labels"])
    assert not torch.equal(first[0]["pixel_values_videos"], first[1]["pixel_values_videos"])
    assert all(torch.equal(sample[key], value) for key, value in before.items())


def test_frames_of_a_clip_are_augmented_alike():
    sample = noise_sample(80, 100)
    clip = {**sample, "frames": sample["frames"].expand(3, -1, -1, -1)}
    transform = TrainTransform(AugmentationConfig(crop_size=(48, 64), photometric_prob=1.0))
    for seed in range(5):
        single, several = transform(sample, seed), transform(clip, seed)
        assert several["pixel_values_videos"].shape == (3, 3, 48, 64)
        for frame in several["pixel_values_videos"]:
            torch.testing.assert_close(frame, single["pixel_values"], rtol=0, atol=1e-6)
        assert torch.equal(single["labels"], several["labels"])


@pytest.mark.parametrize(
    ("num_frames", "seed", "of_labels", "of_pixels"),
    [
        *[(1, 0, 214035, 38261.05), (1, 1, 217241, -243353.4), (1, 2, 17507520, 31964.67)],
        *[(3, 0, 215339, 112181.78), (3, 1, 217853, -722371.5), (3, 2, 17513512, 101390.19)],
    ],
)
def test_draws_stay_as_they_were(num_frames, seed, of_labels, of_pixels):
    """Recorded before clips had labels and could be reversed: old seeds give the old images."""
    example = TrainTransform(AugmentationConfig(crop_size=(48, 64)))(noise_sample(num_frames=num_frames), seed)
    pixels = example["pixel_values" if num_frames == 1 else "pixel_values_videos"]
    assert example.keys() == {"labels", "pixel_values" if num_frames == 1 else "pixel_values_videos"}

    def checksum(tensor):  # weighted, so that pixels must be in their places
        return float((tensor.double() * (torch.arange(tensor.numel()) % 97).view(tensor.shape)).sum())

    assert checksum(example["labels"]) == of_labels
    assert checksum(pixels) == pytest.approx(of_pixels, abs=1)  # other processors round float32 otherwise


# --- the labels of all frames, and time


def clip_sample(num_frames=4, height=48, width=64):
    """Frames that are white where their label is 1, and another pattern for each."""
    labels = torch.zeros(num_frames, height, width, dtype=torch.uint8)
    for t in range(num_frames):
        labels[t, 5 + 4 * t : 30 + 3 * t, 9 * t : 21 + 9 * t] = 1
    frames = (labels * 255)[:, None].expand(-1, 3, -1, -1).contiguous()
    return {"frames": frames, "labels": labels[-1], "reference_labels": labels[:-1], "video": "v", "frame": "0"}


@pytest.mark.parametrize("crop_size", [(40, 56), (90, 90)])
def test_labels_of_all_frames_follow_their_images(crop_size):
    """Through every step of geometry, padding and reversal; 50 % grey must give the labels back."""
    config = AugmentationConfig(crop_size=crop_size, photometric_prob=0.0, time_reversal_prob=0.5)
    transform = TrainTransform(config, reference_labels=True)
    disagreeing = total = 0
    for seed in range(60):
        example = transform(clip_sample(), seed)
        labels = torch.cat([example["reference_labels"], example["labels"][None]])
        assert labels.shape == (4, *crop_size) and labels.dtype == torch.int64
        white = levels(example["pixel_values_videos"])[:, 0] > 127.5
        labelled = labels != 255
        assert (labelled == labelled[:1]).all()
        disagreeing += int((white != (labels == 1))[labelled].sum())
        total += int(labelled.sum())
    assert disagreeing < 0.004 * total  # pixels on an edge that the resize put at 50 %


def test_a_reversed_clip_is_the_clip_backwards():
    forwards, backwards = (
        TrainTransform(
            AugmentationConfig(crop_size=(40, 56), cat_max_ratio=1.0, time_reversal_prob=probability),
            reference_labels=True,
        )
        for probability in (1e-12, 1.0)  # both draw, with the same outcome for all the rest
    )
    for seed in range(10):
        one, other = forwards(clip_sample(), seed), backwards(clip_sample(), seed)
        assert torch.equal(other["pixel_values_videos"], one["pixel_values_videos"].flip(0))
        labels, reversed_labels = (torch.cat([e["reference_labels"], e["labels"][None]]) for e in (one, other))
        assert torch.equal(reversed_labels, labels.flip(0))
        assert not torch.equal(one["labels"], other["labels"])


def test_how_often_clips_are_reversed():
    config = AugmentationConfig(crop_size=(48, 64), time_reversal_prob=0.25, **PLAIN)
    sample = clip_sample()
    reversed_ = [torch.equal(TrainTransform(config)(sample, seed)["labels"], sample["reference_labels"][0].long())
                 for seed in range(400)]  # fmt: skip
    assert abs(np.mean(reversed_) - 0.25) < 0.07
    assert "reference_labels" not in TrainTransform(config)(sample, 0)  # needed here, not wanted there


def test_the_window_is_chosen_by_the_labelled_frame():
    """The other frames are of one class all over, which would ask for ten other windows."""
    sample = noise_sample(num_frames=3)
    others = torch.zeros(2, *sample["labels"].shape, dtype=torch.uint8)
    config = AugmentationConfig(crop_size=(30, 30))
    for seed in range(10):
        with_others = TrainTransform(config, reference_labels=True)({**sample, "reference_labels": others}, seed)
        alone = TrainTransform(config)(sample, seed)
        assert torch.equal(with_others["labels"], alone["labels"])
        assert torch.equal(with_others["pixel_values_videos"], alone["pixel_values_videos"])


def test_clips_of_one_frame():
    image = TrainTransform(AugmentationConfig(crop_size=(48, 64)))(noise_sample(), 3)
    config = AugmentationConfig(crop_size=(48, 64), time_reversal_prob=1.0)  # there is nothing to reverse
    clip = TrainTransform(config, for_video_model=True)(noise_sample(), 3)
    assert clip.keys() == {"pixel_values_videos", "labels"}
    assert torch.equal(clip["pixel_values_videos"], image["pixel_values"][None])
    assert torch.equal(clip["labels"], image["labels"])


def test_bad_labels_of_other_frames_are_named():
    sample = clip_sample()
    alone = {key: value for key, value in sample.items() if key != "reference_labels"}
    reversing = AugmentationConfig(crop_size=(8, 8), time_reversal_prob=0.5)
    for transform in (TrainTransform(AugmentationConfig((8, 8)), reference_labels=True), TrainTransform(reversing)):
        with pytest.raises(ValueError, match="video 'v', frame '0' has no 'reference_labels'; load the data with"):
            transform(alone, 0)
        with pytest.raises(ValueError, match=r"'reference_labels' is torch.uint8 \(2, 48, 64\); it must be uint8 \(3"):
            transform({**sample, "reference_labels": sample["reference_labels"][1:]}, 0)


# --- colour


@pytest.fixture(scope="module")
def reference():
    tensors = load_file(FIXTURE / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if tensor.ndim == 3 and tensor.dtype == torch.uint8}


def as_rgb(bgr):
    return bgr.flip(-1).permute(2, 0, 1)  # (3, h, w)


def difference(ours, reference_bgr):
    """Absolute difference in levels; the reference truncates to uint8, so half a level is its mean error."""
    return (ours.double() * 255 - (as_rgb(reference_bgr).double() + 0.5)).abs()


@needs_fixture
@pytest.mark.parametrize("shift", ["+21.7", "-30.2"])
def test_brightness_parity(reference, shift):
    image = as_rgb(reference["tta_image_bgr_uint8"]).float() / 255
    ours = shift_brightness(image, float(shift) / 255)
    assert difference(ours, reference[f"pm_brightness_{shift}"]).max() <= 1


@needs_fixture
@pytest.mark.parametrize("factor", ["0.63", "1.44"])
def test_contrast_parity(reference, factor):
    image = as_rgb(reference["tta_image_bgr_uint8"]).float() / 255
    assert difference(scale_contrast(image, float(factor)), reference[f"pm_contrast_{factor}"]).max() <= 1


@needs_fixture
@pytest.mark.parametrize("factor", ["0.57", "1.38"])
def test_saturation_parity(reference, factor):
    image = as_rgb(reference["tta_image_bgr_uint8"]).float() / 255
    error = difference(adjust_saturation(image, float(factor)), reference[f"pm_saturation_{factor}"])
    assert error.max() <= 5 and error.mean() <= 0.7  # see test_hue_parity


@needs_fixture
@pytest.mark.parametrize("steps", ["-18", "17"])
def test_hue_parity(reference, steps):
    """OpenCV's hue scale 0..179 against turns.

    OpenCV stores H in steps of 2 degrees; half a step is 4.25 levels at full chroma. That rounding alone makes the
    difference: the reference's own rounded HSV, rotated and converted in float, gives the reference to a level.
    """
    image = as_rgb(reference["tta_image_bgr_uint8"]).float() / 255
    error = difference(rotate_hue(image, int(steps) / 180), reference[f"pm_hue_{steps}"])
    assert error.max() <= 5 and error.mean() <= 0.7
    rounded = [
        colorsys.hsv_to_rgb((hue + int(steps)) % 180 / 180, saturation / 255, value / 255)
        for hue, saturation, value in reference["hsv"].view(-1, 3).tolist()
    ]
    rounded = torch.tensor(rounded).view(*reference["hsv"].shape).permute(2, 0, 1)
    assert (rounded * 255 - as_rgb(reference[f"pm_hue_{steps}"])).abs().max() <= 1


@needs_fixture
@pytest.mark.parametrize("seed", range(4))
def test_order_of_colour_steps_equals_mmsegmentation(reference, seed):
    """Replays the reference's own stream of random numbers through our order of draws and steps."""

    class Replay:
        random = np.random.RandomState(seed)

        def chance(self, probability):
            return bool(self.random.randint(2))

        def uniform(self, low, high):
            if (low, high) == (-0.1, 0.1):
                return self.random.randint(-18, 18) / 180
            return self.random.uniform(low, high)

    image = as_rgb(reference["tta_image_bgr_uint8"]).float() / 255
    ours = _distort_colours(image, AugmentationConfig(crop_size=(1, 1)), Replay())  # pyright: ignore
    error = difference(ours, reference[f"pm_full_npseed{seed}"])
    assert error.mean() <= 2 and error.max() <= 12


def test_saturation_equals_hsv_conversion():
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(3, 8, 8, generator=generator, dtype=torch.float64)
    image[:, 0, 0] = 0
    image[:, 0, 1] = 0.4  # grey
    for factor in (0.5, 1.0, 1.5):
        ours = adjust_saturation(image, factor)
        for row in range(8):
            for column in range(8):
                hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
                expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
                assert ours[:, row, column].tolist() == pytest.approx(expected, abs=1e-12)


def hue_colours():
    """float32 (3, n): every corner, edge and grey of the colour cube, ties of two channels, and noise."""
    levels_ = torch.tensor([0, 1, 2, 85, 127, 128, 254, 255])
    corners = torch.cartesian_prod(levels_, levels_, levels_).T / 255  # (3, 512)
    noise = torch.rand(3, 5000, generator=torch.Generator().manual_seed(2))
    almost_grey = 0.5 + (noise - 0.5) * 1e-5
    return torch.cat([corners, noise, almost_grey, noise.round(decimals=1)], 1)


@pytest.mark.parametrize("turns", [0.0, 0.07, -0.1, 1 / 6, -1 / 3, 0.5, -0.5])
def test_hue_equals_torchvision_and_hsv_conversion(turns):
    image = hue_colours()[:, :, None]  # (3, n, 1)
    before = image.clone()
    ours = rotate_hue(image, turns)
    assert torch.equal(image, before)
    assert (ours - F.adjust_hue(image, turns)).abs().max() <= 2e-6
    clip = torch.stack([image, image.flip(0)])
    assert torch.equal(rotate_hue(clip, turns)[0], ours)
    for colour, result in zip(image[:, ::7, 0].T.tolist(), ours[:, ::7, 0].T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert result == pytest.approx(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), abs=2e-6)


def test_training_images_are_those_of_torchvisions_hue(monkeypatch):
    """Everything else is the same to the bit; seeds that draw no hue give the same image with either."""
    transform = TrainTransform(AugmentationConfig(crop_size=(48, 64)))
    ours = [transform(noise_sample(seed=seed), seed)["pixel_values"] for seed in range(30)]
    monkeypatch.setattr("vss_hf.data.transforms.rotate_hue", F.adjust_hue)
    theirs = [transform(noise_sample(seed=seed), seed)["pixel_values"] for seed in range(30)]
    different = [not torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert 5 < sum(different) < 25
    assert max((one - other).abs().max() for one, other in zip(ours, theirs, strict=True)) < 1e-5


def test_saturation_equals_its_formula_to_the_bit():
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(2, 3, 31, 17, generator=generator)
    before = image.clone()
    for factor in (0.5, 1.0, 1.37):
        value = image.amax(-3, keepdim=True)
        chroma = (value - image.amin(-3, keepdim=True)).clamp_min(1e-6)
        expected = value - (value / chroma).clamp_max(factor) * (value - image)
        assert torch.equal(adjust_saturation(image, factor), expected)
    assert torch.equal(image, before)


def test_colour_ranges_reach_the_limits_end_to_end():
    """A grey frame shows brightness and contrast alone; its extremes over many seeds are those of the settings."""
    sample = noise_sample(8, 8)
    sample["frames"] = torch.full_like(sample["frames"], 100)
    neutral = {**PLAIN, "photometric_prob": 1.0, "saturation": (1.0, 1.0), "hue": 0.0}
    for settings, low, high in (
        ({"contrast": (1.0, 1.0)}, 100 - 32, 100 + 32),
        ({"brightness": 0.0}, 50, 150),
    ):
        transform = TrainTransform(AugmentationConfig(crop_size=(8, 8), **{**neutral, **settings}))
        seen = [levels(transform(sample, seed)["pixel_values"]).mean().item() for seed in range(300)]
        assert low - 0.1 <= min(seen) < low + 4 and high - 4 < max(seen) <= high + 0.1


def test_bad_samples_are_named():
    transform = TrainTransform(AugmentationConfig(crop_size=(8, 8)))
    sample = noise_sample(10, 12)
    with pytest.raises(ValueError, match="video 'v', frame '00000000' has no 'labels'"):
        transform({key: value for key, value in sample.items() if key != "labels"}, 0)
    with pytest.raises(ValueError, match=r"'labels' is torch.uint8 \(10, 11\); it must be uint8 \(10, 12\)"):
        transform({**sample, "labels": sample["labels"][:, 1:]}, 0)
    with pytest.raises(ValueError, match=r"'frames' is torch.float32 .* must be a uint8 tensor"):
        transform({**sample, "frames": sample["frames"].float()}, 0)
