"""Pulls from the Hub that HF_ENDPOINT names, in a process of its own; prints what it found as JSON.

    pulling.py FOLDER: where `alice/street` was pushed from; its branch `wide` and `refs/pr/1` have other weights.
"""

import json
import sys

import numpy as np
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

import vss_hf  # noqa: F401  (registers the architectures)
from vss_hf import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


NAME, folder = "alice/street", sys.argv[1]
here = load_file(f"{folder}/model.safetensors")


def difference(**settings) -> list[float]:
    """How far the tensors of the pulled model are from those of the folder, smallest and largest."""
    model = AutoModelForSemanticSegmentation.from_pretrained(NAME, **settings)
    there = model.state_dict()
    assert set(there) == set(here)
    gaps = [(there[name].double() - here[name].double()).abs().max().item() for name in here]
    return [min(gaps), max(gaps)]


def video_model_pulled() -> str:
    """The class that `VideoSegmenter` makes of a video model on the Hub, which it knows by its configuration alone."""
    backbone = {"model_type": "vss_resnet", "depths": [1, 1], "hidden_sizes": [8, 8], "stem_channels": 8}
    backbone |= {"block": "basic", "out_features": ["stage1", "stage2"]}
    fields = {"in_index": 1, "auxiliary_in_index": 0, "channels": 8, "auxiliary_channels": 8, "num_labels": 3}
    config = AutoConfig.for_model("vss_st_ppm", backbone_config=backbone, **fields)
    for part in (AutoModel.from_config(config), VSSImageProcessor()):
        part.push_to_hub("alice/video-model")
    segmenter = VideoSegmenter.from_pretrained("alice/video-model", "cpu", revision="main")
    return type(segmenter.model).__name__ if segmenter.step(frame).shape == frame.shape[:2] else "another size"


def refused(**settings) -> str:
    """Why the model cannot be loaded."""
    try:
        AutoModelForSemanticSegmentation.from_pretrained(NAME, **settings)
    except OSError as error:
        return str(error)
    return ""


frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
labels = [VideoSegmenter.from_pretrained(source, "cpu").step(frame) for source in (NAME, folder)]
processors = [AutoImageProcessor.from_pretrained(source).to_dict() for source in (NAME, folder)]
model = AutoModelForSemanticSegmentation.from_pretrained(folder)
model.push_to_hub("alice/model-only", private=True)
print(
    json.dumps(
        {
            "main": difference(),
            "branch": difference(revision="wide"),
            "pull request": difference(revision="refs/pr/1"),
            "same labels": bool((labels[0] == labels[1]).all()),
            "same processor": processors[0] == processors[1],
            "video model": video_model_pulled(),
            "no such branch": refused(revision="nowhere"),
            "no token": refused(token=False, cache_dir=f"{folder}/cache"),
        }
    )
)
