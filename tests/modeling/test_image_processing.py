"""The image processor: both backends, label maps beside images, logits back to label maps."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vss_hf.modeling.image_processing_vss import VSSImageProcessor, VSSImageProcessorPil
from vss_hf.modeling.outputs import SemanticSegmenterOutput


BOTH = pytest.mark.parametrize("processor_class", [VSSImageProcessor, VSSImageProcessorPil])
RESIZE = {"do_resize": True, "size": {"shortest_edge": 48}}


def image(height=97, width=161, seed=0):
    """A smooth random picture: noise would only measure the resampling filters."""
    low = np.random.default_rng(seed).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    return np.array(Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC))


def label_map(height=97, width=161, seed=0):
    labels = np.random.default_rng(seed).integers(0, 13, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    labels[0, 0] = 255
    return labels.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


@BOTH
def test_default_keeps_the_size_and_normalises(processor_class):
    picture = image()
    pixels = processor_class()(images=picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 97, 161) and pixels.dtype == torch.float32
    scaled = torch.from_numpy(picture).double().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    torch.testing.assert_close(pixels[0].double(), (scaled - mean) / std, rtol=0, atol=2e-6)


@BOTH
@pytest.mark.parametrize(("size", "expected"), [((97, 161), (48, 79)), ((161, 97), (79, 48)), ((24, 30), (48, 60))])
def test_shortest_edge_keeps_the_aspect(processor_class, size, expected):
    processor = processor_class(**RESIZE)
    features = processor(images=image(*size), segmentation_maps=label_map(*size), return_tensors="pt")
    assert features["pixel_values"].shape == (1, 3, *expected)
    assert features["labels"].shape == (1, *expected)


def test_backends_agree():
    two_grey_levels = 2 / 255 / 0.22  # in units of the normalised image
    for settings, tolerance in (({}, 2e-6), (RESIZE, two_grey_levels)):
        first = VSSImageProcessor(**settings)(images=[image()], return_tensors="pt")["pixel_values"]
        second = VSSImageProcessorPil(**settings)(images=[image()], return_tensors="pt")["pixel_values"]
        assert (first - second).abs().max() <= tolerance
    maps = [
        p(images=[image()], segmentation_maps=[label_map()], return_tensors="pt")["labels"]
        for p in (VSSImageProcessor(**RESIZE), VSSImageProcessorPil(**RESIZE))
    ]
    assert (maps[0] != maps[1]).float().mean() < 0.01  # PIL's and torch's "nearest" differ by half a pixel at most


@BOTH
def test_label_maps_stay_classes_and_stay_on_their_pixels(processor_class):
    labels = label_map()
    picture = np.stack([labels] * 3, axis=-1)  # an image that shows its own labels
    plain = processor_class()(images=picture, segmentation_maps=labels, return_tensors="pt")
    assert plain["labels"].dtype == torch.int64
    assert np.array_equal(plain["labels"][0], labels)

    settings = {**RESIZE, "do_normalize": False, "do_rescale": False}
    resized = processor_class(**settings)(images=picture, segmentation_maps=labels, return_tensors="pt")
    assert set(resized["labels"].unique().tolist()) <= set(np.unique(labels).tolist())
    # Away from the edges of the 8 x 8 blocks, the resized image still shows the resized label.
    same = (resized["pixel_values"][0, 0].round() == resized["labels"][0]).float().mean()
    assert same > 0.6


@BOTH
def test_palette_masks_are_read_as_indices(processor_class):
    labels = label_map()
    mask = Image.fromarray(labels, mode="P")
    mask.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    features = processor_class()(
        images=[Image.fromarray(image())] * 2, segmentation_maps=[mask, Image.fromarray(labels)], return_tensors="pt"
    )
    assert np.array_equal(features["labels"][0], labels) and np.array_equal(features["labels"][1], labels)


@BOTH
def test_kinds_of_images_give_the_same(processor_class):
    picture = image()
    kinds = [Image.fromarray(picture), picture, torch.from_numpy(picture).permute(2, 0, 1)]
    first, *others = (processor_class()(images=k, return_tensors="pt")["pixel_values"] for k in kinds)
    assert all(torch.equal(first, other) for other in others)
    grey = processor_class()(images=Image.fromarray(picture).convert("L"), return_tensors="pt")["pixel_values"]
    assert grey.shape == (1, 3, 97, 161)


@BOTH
def test_device_argument(processor_class):
    features = processor_class()(images=[image()], segmentation_maps=[label_map()], return_tensors="pt", device="cpu")
    assert features["pixel_values"].device.type == features["labels"].device.type == "cpu"


@BOTH
def test_as_many_maps_as_images(processor_class):
    with pytest.raises(ValueError, match="1 segmentation_maps for 2 images"):
        processor_class()(images=[image()] * 2, segmentation_maps=[label_map()], return_tensors="pt")


@BOTH
def test_post_process_is_argmax_of_the_upsampled_logits(processor_class):
    logits = torch.randn(2, 13, 13, 21)
    sizes = [(97, 161), (50, 33)]
    maps = processor_class().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), sizes)
    for one, size, label in zip(logits, sizes, maps, strict=True):
        expected = F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)
        assert label.shape == size and (label == expected).float().mean() > 0.9999  # ties of rounding at most
    small = processor_class().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert torch.equal(torch.stack(small).long(), logits.argmax(1))
    as_tensor = processor_class().post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=logits), torch.tensor(sizes)
    )
    assert all(torch.equal(a, b) for a, b in zip(as_tensor, maps, strict=True))
    with pytest.raises(ValueError, match="1 entries for a batch of 2"):
        processor_class().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), [(97, 161)])


@pytest.mark.parametrize(("backend", "expected"), [("torchvision", VSSImageProcessor), ("pil", VSSImageProcessorPil)])
@BOTH
def test_saved_settings_come_back_with_either_backend(
    tmp_path, tiny_ocrnet_config, processor_class, backend, expected
):
    tiny_ocrnet_config("timm").save_pretrained(tmp_path)
    saved = processor_class(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], **RESIZE)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is expected
    for field in ("do_resize", "size", "image_mean", "image_std", "do_normalize", "rescale_factor", "resample"):
        assert getattr(loaded, field) == getattr(saved, field), field
    default = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(default) in (VSSImageProcessor, VSSImageProcessorPil)
    assert default(images=image(), return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 79)
