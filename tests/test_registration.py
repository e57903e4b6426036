"""The Auto classes know our models in whatever order things are imported. Each test runs in a clean process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vss_hf
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation


ROOT = Path(__file__).resolve().parents[1]


def run(code, *arguments, **variables):
    """What `code` prints in a new interpreter."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path, tiny_ocrnet_config):
    torch.manual_seed(0)
    OCRNetForSemanticSegmentation(tiny_ocrnet_config("timm")).save_pretrained(tmp_path)
    VSSImageProcessor().save_pretrained(tmp_path)
    return tmp_path


def test_the_import_loads_no_heavy_library():
    heavy = "torch torchvision timm datasets accelerate matplotlib av"
    code = f"import sys, vss_hf; dir(vss_hf); print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert run(code) == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'vss_hf' has no attribute 'VideoSegmentor'"):
        vss_hf.VideoSegmentor  # noqa: B018
    assert set(vss_hf.PUBLIC) <= set(dir(vss_hf))
    assert all(getattr(vss_hf, name).__module__.startswith("vss_hf.") for name in vss_hf.PUBLIC if name != "VSPW")


IMPORTS = {
    "vss_hf first": "import vss_hf\nfrom transformers import AutoConfig",
    "Auto classes first": "from transformers import AutoImageProcessor, AutoModel, AutoConfig\nimport vss_hf",
    "model module first": "import vss_hf.modeling.modeling_ocrnet",
    "a part of transformers that our models need first": "import vss_hf\nfrom transformers import UperNetConfig",
    "transformers' pipelines first": "import vss_hf\nfrom transformers import pipeline",
    "our pipeline first": "import vss_hf.inference.pipeline",
    "our ensembles first": "import vss_hf.ensembles.ensemble",
    "image processor first": "from vss_hf.modeling.image_processing_vss import VSSImageProcessor",
}

LOAD_EVERYTHING = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
folder = sys.argv[1]
print(
    type(AutoConfig.from_pretrained(folder)).__name__,
    type(AutoModelForSemanticSegmentation.from_pretrained(folder)).__name__,
    type(AutoModel.from_pretrained(folder)).__name__,
    type(AutoImageProcessor.from_pretrained(folder, backend="torchvision")).__name__,
)
"""


QUICK = ("vss_hf first", "Auto classes first", "our pipeline first")  # each takes a process of its own


@pytest.mark.parametrize("order", [o if o in QUICK else pytest.param(o, marks=pytest.mark.slow) for o in IMPORTS])
def test_every_import_order_registers_everything(folder, order):
    names = run(IMPORTS[order] + LOAD_EVERYTHING, folder)
    model = "OCRNetForSemanticSegmentation"
    assert names.splitlines()[-1] == f"OCRNetConfig {model} {model} VSSImageProcessor"


def test_pipeline_segments_an_image(folder):
    code = """
import importlib, sys
import numpy as np
import vss_hf
finders = len(sys.meta_path)
importlib.reload(vss_hf)
assert len(sys.meta_path) == finders, "importing twice registers once"
from PIL import Image
from transformers import pipeline
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8))
segments = pipeline("image-segmentation", model=sys.argv[1])(image)
covered = sum(np.asarray(s["mask"]) > 0 for s in segments)
assert covered.shape == (33, 47) and (covered == 1).all(), "the masks are disjoint and cover everything"
print(*sorted(s["label"] for s in segments), sep=",")
"""
    labels = run(code, folder).splitlines()[-1].split(",")
    assert set(labels) <= {f"class {i}" for i in range(5)} and len(labels) == len(set(labels))


@pytest.mark.slow
def test_the_modeling_room_works_as_remote_code(folder, tmp_path):
    """Its files travel in the model folder and load where this package is not installed."""
    save = """
import sys
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
OCRNetConfig.register_for_auto_class()
OCRNetForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
VSSImageProcessor.register_for_auto_class()
OCRNetForSemanticSegmentation.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
VSSImageProcessor().save_pretrained(sys.argv[2])
"""
    load = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vss_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True)
logits = model(torch.linspace(-2, 2, 3 * 33 * 47).view(1, 3, 33, 47)).logits
torch.save(logits.detach(), sys.argv[2])
"""
    run(save, folder, tmp_path / "remote")
    run(load, tmp_path / "remote", tmp_path / "logits.pt", HF_MODULES_CACHE=str(tmp_path / "modules"))
    model = OCRNetForSemanticSegmentation.from_pretrained(folder)
    expected = model(torch.linspace(-2, 2, 3 * 33 * 47).view(1, 3, 33, 47)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), expected, rtol=0, atol=1e-6)
