"""DCNv3 against InternImage's own core and module (../shared/parity/04_internimage, README.md there)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vss_hf.modeling import dcnv3_gather
from vss_hf.modeling.dcnv3 import DCNv3, dcnv3


PARITY = Path(__file__).resolve().parents[2] / "../shared/parity/04_internimage"
CORES = sorted((PARITY / "core").glob("*/config.json"))
MODULES = sorted((PARITY / "module").glob("*/config.json"))

# Reference name -> ours, by beginning.
NAMES = {
    "dw_conv.0.": "dw_conv.",
    "dw_conv.1.1.": "dw_norm.",
    "center_feature_scale_proj_": "center_feature_scale_proj.",
}

pytestmark = pytest.mark.skipif(not CORES, reason=f"reference numbers not found at {PARITY}")


def our_name(name):
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def assert_same_gradient(ours, reference, relative=1e-4):
    assert (ours - reference).abs().max() <= relative * reference.abs().max()


@pytest.mark.parametrize("path", CORES, ids=lambda path: path.parent.name)
def test_core(path):
    case, tensors = json.loads(path.read_text()), load_file(path.parent / "tensors.safetensors")
    inputs = [tensors[name].requires_grad_() for name in ("input", "offset", "mask")]
    settings = {
        "kernel_size": case["kernel_h"],
        "stride": case["stride_h"],
        "padding": case["pad_h"],
        "dilation": case["dilation_h"],
        "offset_scale": case["offset_scale"],
    }
    output = dcnv3(*inputs, groups=case["group"], **settings)
    torch.testing.assert_close(output, tensors["output"], rtol=1e-4, atol=2e-5)
    gradients = torch.autograd.grad(output, inputs, tensors["grad_out"])
    for name, gradient in zip(("input", "offset", "mask"), gradients, strict=True):
        assert_same_gradient(gradient, tensors[f"grad_{name}"])

    exported = dcnv3_gather.grid_sample_forward(*inputs, dcnv3_gather.Geometry(case["group"], *settings.values()))
    torch.testing.assert_close(exported, tensors["output"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_module(path):
    case, tensors = json.loads(path.read_text())["dcnv3"], load_file(path.parent / "tensors.safetensors")
    layer = DCNv3(
        case["channels"],
        case["group"],
        kernel_size=case.get("kernel_size", 3),
        dw_kernel_size=case.get("dw_kernel_size"),
        offset_scale=case.get("offset_scale", 1.0),
        center_feature_scale=case.get("center_feature_scale", False),
    )
    weights = load_file(path.parent / "weights.safetensors")
    layer.load_state_dict({our_name(name): weight for name, weight in weights.items()})

    hidden_states = tensors["input"].requires_grad_()
    output = layer(hidden_states)
    torch.testing.assert_close(output, tensors["output"], rtol=1e-4, atol=2e-5)
    output.backward(tensors["grad_out"])
    assert_same_gradient(hidden_states.grad, tensors["grad_input"])
    parameters = dict(layer.named_parameters())
    references = {n.removeprefix("grad_param/"): t for n, t in tensors.items() if n.startswith("grad_param/")}
    assert {our_name(name) for name in references} == set(parameters)
    for name, reference in references.items():
        assert_same_gradient(parameters[our_name(name)].grad, reference, relative=1e-3)
