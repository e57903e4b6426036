"""VideoSegmenter against processor, model and argmax called by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from vss_hf import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation


@pytest.fixture
def folder(tmp_path, tiny_ocrnet_config):
    torch.manual_seed(0)
    model = OCRNetForSemanticSegmentation(tiny_ocrnet_config("swin"))
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(tmp_path / "model")
    VSSImageProcessor(do_resize=True, size={"shortest_edge": 48}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def frames(count=3, height=60, width=107):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def labels_by_hand(folder, frame):
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(images=frame, return_tensors="pt")).logits
    return F.interpolate(logits, size=frame.shape[:2], mode="bilinear", align_corners=False).argmax(1)[0].numpy()


def test_step_is_processor_model_argmax(folder):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    video = frames()
    labels = [segmenter.step(frame) for frame in video]
    for frame, label in zip(video, labels, strict=True):
        assert label.shape == (60, 107) and label.dtype == np.uint8
        assert (label == labels_by_hand(folder, frame)).mean() > 0.999  # ties of rounding at most
    assert len(np.unique(labels)) > 1
    for kind in (segmenter.stream(iter(video)), segmenter.label_batch(video)):
        assert all(np.array_equal(a, b) for a, b in zip(kind, labels, strict=True))
    tensor = torch.from_numpy(video[0]).permute(2, 0, 1)
    assert np.array_equal(segmenter.step(tensor), labels[0])


def test_odd_small_frames(folder):
    segmenter = VideoSegmenter.from_pretrained(str(folder), device="cpu")
    for size in ((33, 47), (3, 64), (64, 3)):
        assert segmenter.step(frames(1, *size)[0]).shape == size


def test_names_are_in_label_order(folder):
    assert VideoSegmenter.from_pretrained(folder, device="cpu").names == [f"class {i}" for i in range(5)]


def test_the_model_is_put_into_eval_mode(tiny_ocrnet_config):
    model = OCRNetForSemanticSegmentation(tiny_ocrnet_config(classifier_dropout=0.5)).train()
    assert not VideoSegmenter(model, VSSImageProcessor()).model.training


def test_bf16_model(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.bfloat16)
    label = VideoSegmenter(model, AutoImageProcessor.from_pretrained(folder)).step(frames(1)[0])
    assert (label == labels_by_hand(folder, frames(1)[0])).mean() > 0.9


def test_a_damaged_file_is_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.*safetensors is damaged"):
        VideoSegmenter.from_pretrained(folder)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*no such model folder"):
        VideoSegmenter.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="./nowhere.*no such model folder"):
        VideoSegmenter.from_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match="config.json.*save_pretrained"):
        VideoSegmenter.from_pretrained(tmp_path)
