"""Both pipeline tasks take every architecture; "image-segmentation" is transformers' own and knows them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_every_architecture import NAMES, build
from tiny_video_models import TINY as VIDEO
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

import vss_hf  # noqa: F401
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.architectures import MODELS, VIDEO_MODELS
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height, width, seed=0):
    """Coarse blobs: random pixels would average out to one class."""
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def save(model_type, folder):
    model = build(model_type)
    for name, weight in model.named_parameters():
        if "mask_embedder" in name or "class_predictor" in name:
            weight.data.mul_(8)  # a new mask model's masks are all 0.5
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return str(folder)


def exact_scores(folder, image):
    """Scores of all classes at full size, straight from the definition."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    pixels = (np.asarray(image, np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        output = model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])
    size = (image.height, image.width)
    if "masks_queries_logits" in output:
        masks = F.interpolate(output.masks_queries_logits.double(), size=size, mode="bilinear").sigmoid()
        classes = output.class_queries_logits.double().softmax(-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)[0]
    aligned = getattr(model.config, "align_corners", False)
    return F.interpolate(output.logits.double(), size=size, mode="bilinear", align_corners=aligned)[0]


def as_labels(segments):
    """The label map that masks make; each pixel is in one of them."""
    masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
    assert set(np.unique(masks)) <= {0, 255} and ((masks == 255).sum(axis=0) == 1).all()
    values = np.array([NAMES.index(segment["label"]) for segment in segments])
    return values[(masks == 255).argmax(axis=0)]


@pytest.mark.parametrize("model_type", MODELS)
def test_image_segmentation(model_type, tmp_path, caplog):
    folder = save(model_type, tmp_path)
    image = picture(45, 71)
    image.save(tmp_path / "picture.png")
    segment = pipeline("image-segmentation", model=folder, device="cpu")
    assert "not supported" not in caplog.text
    scores = exact_scores(folder, image)
    best = scores.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4 * scores.abs().max()).numpy()  # not where rounding decides
    for result in (segment(image), segment(str(tmp_path / "picture.png"), subtask="semantic")):
        assert (as_labels(result) == scores.argmax(0).numpy())[clear].all() and clear.mean() > 0.9
        assert [s["label"] for s in result] == sorted((s["label"] for s in result), key=NAMES.index)
        assert {s["mask"].size for s in result} == {(71, 45)}


@pytest.mark.parametrize("model_type", ["vss_upernet", "vss_mask2former"])
def test_arguments_as_everywhere_in_transformers(model_type, tmp_path):
    folder = save(model_type, tmp_path)
    images = [picture(45, 71, seed) for seed in range(3)]
    expected = [as_labels(result) for result in pipeline("image-segmentation", model=folder)(images)]
    if model_type == "vss_upernet":  # a new mask model says the same of every picture
        assert any((one != expected[0]).any() for one in expected[1:])
    for settings in ({"batch_size": 2}, {"dtype": "auto"}, {"device": -1}, {"device": torch.device("cpu")}):
        results = pipeline("image-segmentation", model=folder, **settings)(image for image in images)
        same = [np.mean(as_labels(result) == one) for result, one in zip(results, expected, strict=True)]
        assert min(same) > 0.999, settings  # batches may round a tie differently
    half = pipeline("image-segmentation", model=folder, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert np.mean(as_labels(half(images[0])) == expected[0]) > 0.8


class Pictures(torch.utils.data.Dataset):
    """Three of one size."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return picture(48, 64, index)


ODD = [picture(33, 90), picture(64, 64)]
CALLS = {
    "picture": lambda segment: segment(Pictures()[0]),
    "list": lambda segment: segment([Pictures()[0], Pictures()[1]]),
    "generator": lambda segment: [*segment(Pictures()[i] for i in range(2))],
    "dataset": lambda segment: [*segment(Pictures(), batch_size=2)],
    "workers": lambda segment: [*segment(Pictures(), num_workers=1)],
    "array": lambda segment: segment(np.asarray(Pictures()[0])),
    "nothing": lambda segment: segment(None),
    "other sizes": lambda segment: segment(ODD),
    "a batch of other sizes": lambda segment: segment(ODD, batch_size=2),
    "semantic": lambda segment: segment(ODD[0], subtask="semantic"),
    "instance": lambda segment: segment(ODD[0], subtask="instance"),
    "panoptic": lambda segment: segment(ODD[0], subtask="panoptic"),
    "threshold": lambda segment: segment(ODD[0], threshold=2.0, mask_threshold=2.0, overlap_mask_area_threshold=2.0),
}


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    """A model of transformers with its processor, which keeps sizes."""
    folder = tmp_path_factory.mktemp("segformer")
    sizes = dict(hidden_sizes=[8] * 4, depths=[1] * 4, decoder_hidden_size=8, id2label=dict(enumerate(NAMES)))
    SegformerForSemanticSegmentation(SegformerConfig(**sizes)).save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return str(folder)


def outcome(call, *arguments):
    """What a call gives, without the classes that it finds: keys and sizes; or what it raises, without our names."""
    try:
        result = call(*arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        return type(error), re.sub("<class .*>", "", str(error))
    several = result if isinstance(result[0], list) else [result]
    return type(result[0]), [
        (set(one[0]), one[0]["score"], one[0]["mask"].size, one[0]["mask"].mode) for one in several
    ]


@pytest.mark.parametrize("model_type", ["vss_upernet", pytest.param("vss_mask2former", marks=pytest.mark.slow)])
def test_calls_end_as_those_of_a_model_of_transformers(model_type, segformer, tmp_path):
    folders = save(model_type, tmp_path), segformer
    ours, theirs = (pipeline("image-segmentation", model=folder) for folder in folders)
    for name, call in CALLS.items():
        assert outcome(call, ours) == outcome(call, theirs), name
    for device in ("cuda:77", "nowhere"):
        ends = [outcome(lambda one, to: pipeline("image-segmentation", one, device=to), f, device) for f in folders]
        assert ends[0] == ends[1] and ends[0][0] is RuntimeError, device


def test_a_batch_of_other_sizes(tmp_path):
    """Where the processor resizes to one size, as docs/video.md has it; masks have each picture's own."""
    folder = save("vss_upernet", tmp_path)
    same = AutoImageProcessor.from_pretrained(folder, do_resize=True, size={"height": 64, "width": 96})
    segment = pipeline("image-segmentation", model=folder, image_processor=same)
    for results in (segment(ODD, batch_size=2), segment(ODD)):
        assert [{part["mask"].size for part in result} for result in results] == [{(90, 33)}, {(64, 64)}]


@pytest.mark.parametrize("model_type", [*MODELS, *VIDEO_MODELS])
def test_video_semantic_segmentation(model_type, tmp_path):
    if model_type in MODELS:
        save(model_type, tmp_path)
    else:
        torch.manual_seed(0)
        fields = json.loads(json.dumps(VIDEO[model_type]))
        config = AutoConfig.for_model(model_type, **fields, id2label=dict(enumerate(NAMES)))
        AutoModel.from_config(config).save_pretrained(tmp_path)
        VSSImageProcessor().save_pretrained(tmp_path)
    frames = [np.asarray(picture(45, 71, seed)) for seed in range(3)]
    expected = list(VideoSegmenter.from_pretrained(tmp_path, "cpu").label_video(frames))
    results = pipeline("video-semantic-segmentation", model=str(tmp_path), device="cpu", batch_size=2)(frames)
    for result, labels in zip(results, expected, strict=True):
        assert np.mean(result["labels"] == labels) > 0.999
        assert {s["label"] for s in result["segments"]} == {NAMES[i] for i in np.unique(result["labels"])}


@pytest.mark.slow
def test_image_segmentation_without_the_package(tmp_path):
    """Of folders that carry their code, in a process where this package cannot be imported."""
    image = picture(45, 71)
    image.save(tmp_path / "picture.png")
    expected = {}
    for model_type in ("vss_upernet", "vss_mask2former"):
        folder = tmp_path / model_type
        VSSImageProcessor().save_pretrained(folder)
        build(model_type).save_pretrained(folder, with_code=True)
        expected[folder] = pipeline("image-segmentation", model=str(folder))(image)
    script = """
import sys
from load_remote_code import Missing
sys.meta_path.insert(0, Missing())
import numpy as np
from transformers import pipeline
for folder in sys.argv[2:]:
    segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
    assert type(segment.model).__module__.startswith("transformers_modules.")
    np.savez(f"{folder}.npz", **{s["label"]: np.asarray(s["mask"]) for s in segment(sys.argv[1])})
"""
    settings = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    settings["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-c", script, str(tmp_path / "picture.png"), *map(str, expected)]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, segments in expected.items():
        masks = np.load(f"{folder}.npz")
        assert set(masks) == {segment["label"] for segment in segments}
        for segment in segments:  # another process's sums run in another order
            assert np.mean(masks[segment["label"]] == np.asarray(segment["mask"])) > 0.999
