"""Pulls from the Hub that HF_ENDPOINT names, in a process of its own; prints what it found as JSON.

    pulling.py FOLDER: where `alice/street` was pushed from; its branch `wide` and `refs/pr/1` have other weights.
"""

import json
import sys

import numpy as np
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import vss_hf  # noqa: F401  (registers the architectures)
from vss_hf import VideoSegmenter


NAME, folder = "alice/street", sys.argv[1]
here = load_file(f"{folder}/model.safetensors")


def difference(**settings) -> list[float]:
    """How far the tensors of the pulled model are from those of the folder, smallest and largest."""
    model = AutoModelForSemanticSegmentation.from_pretrained(NAME, **settings)
    there = model.state_dict()
    assert set(there) == set(here)
    gaps = [(there[name].double() - here[name].double()).abs().max().item() for name in here]
    return [min(gaps), max(gaps)]


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
            "no such branch": refused(revision="nowhere"),
            "no token": refused(token=False, cache_dir=f"{folder}/cache"),
        }
    )
)
