"""InternImage against the original segmentation code's own numbers (../shared/parity/04_internimage, README.md there).

Tolerances are that README's. Gradients pass through bilinear samples, so those of the input may differ by 1e-3.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.internimage import LAYERS
from vss_hf.convert.tables import rename
from vss_hf.modeling.configuration_internimage import InternImageConfig
from vss_hf.modeling.modeling_internimage import InternImageBackbone


CASES = Path(__file__).resolve().parents[2] / "../shared/parity/04_internimage/backbone"
NAMES = sorted(path.name for path in CASES.iterdir()) if CASES.is_dir() else []
# Settings of the original that are no fields of ours: its operator and LayerNorm are the only ones here.
NOT_OURS = {"core_op": "DCNv3", "norm_layer": "LN", "with_cp": None, "out_indices": None}

pytestmark = pytest.mark.skipif(not NAMES, reason=f"reference numbers not found at {CASES}")


def config_of(reference: dict) -> InternImageConfig:
    """Our configuration for the original's arguments."""
    assert all(reference.get(name, value) == value for name, value in NOT_OURS.items() if value)
    fields = {name: value for name, value in reference.items() if name not in NOT_OURS}
    return InternImageConfig(**fields, out_features=[f"stage{index + 1}" for index in reference["out_indices"]])


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """(model with the reference's weights, the reference's tensors)."""
    folder = CASES / request.param
    model = InternImageBackbone(config_of(json.loads((folder / "config.json").read_text())["internimage"])).eval()
    report = load_reference_state_dict(model, load_file(folder / "weights.safetensors"), "internimage")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept
    return model, load_file(folder / "tensors.safetensors")


def assert_features(model, pixels, tensors, prefix):
    with torch.no_grad():
        maps = model(pixels).feature_maps
    assert len(maps) == sum(name.startswith(f"{prefix}feat") for name in tensors) > 0
    for index, feature_map in enumerate(maps):
        torch.testing.assert_close(feature_map, tensors[f"{prefix}feat{index}"], rtol=1e-4, atol=2e-5)


def test_features(case):
    model, tensors = case
    assert_features(model, tensors["input"], tensors, "")
    assert_features(model, tensors["extra0_input"], tensors, "extra0_")


def test_zero_image_shows_the_eps_of_the_norms(case):
    model, tensors = case
    assert_features(model, torch.zeros(1, 3, 64, 96), tensors, "zero_image_64x96_")


def test_gradients(case):
    model, tensors = case
    model.zero_grad()
    pixels = tensors["input"].clone().requires_grad_()
    maps = model(pixels).feature_maps
    sum((feature_map * tensors[f"grad_out{index}"]).sum() for index, feature_map in enumerate(maps)).backward()
    assert (pixels.grad - tensors["grad_input"]).abs().max() <= 1e-3 * tensors["grad_input"].abs().max()
    reference = {n.removeprefix("grad_param/"): t for n, t in tensors.items() if n.startswith("grad_param/")}
    assert len(reference) >= 5
    for name, gradient in rename(reference, LAYERS).tensors.items():
        difference = (model.get_parameter(name).grad - gradient).abs().max()
        assert difference <= 1e-3 * gradient.abs().max(), name
