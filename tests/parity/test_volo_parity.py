"""VOLO against numbers of the original implementation, from its own weights, at sizes that fit and that do not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vss_hf.convert.tables import rename
from vss_hf.convert.volo import volo_table
from vss_hf.modeling.configuration_volo import VOLOConfig
from vss_hf.modeling.modeling_volo import VOLOBackbone, resize_position_embedding


ROOT = Path(__file__).resolve().parents[2] / "../shared/parity/05_volo"
FIXTURES = sorted(path.parent for path in ROOT.glob("*/weights.safetensors"))
FORWARD = dict(atol=2e-5, rtol=1e-4)

pytestmark = pytest.mark.skipif(not FIXTURES, reason="no VOLO fixtures at ../shared/parity/05_volo")


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda folder: folder.name)
def reference(request):
    """(backbone with the fixture's weights, the fixture's tensors)"""
    stored = json.loads((request.param / "config.json").read_text())
    fields = stored["volo"]
    config = VOLOConfig(
        stem_channels=fields["stem_hidden_dim"],
        depths=fields["layers"],
        hidden_sizes=fields["embed_dims"],
        num_heads=fields["num_heads"],
        mlp_ratios=fields["mlp_ratios"],
        qkv_bias=fields.get("qkv_bias", False),
        image_size=stored["img_size"],
        pad_input=False,
    )
    model = VOLOBackbone(config).eval()
    renamed = rename(load_file(request.param / "weights.safetensors"), volo_table(config))
    assert set(renamed.tensors) == set(model.state_dict())
    model.load_state_dict(renamed.tensors)
    return model, load_file(request.param / "tensors.safetensors")


def features(model, pixels):
    """The original's features by name, (B, h, w, C): the patches, and what each part of the network returns."""
    found = {}

    def keep(name, channels_first):
        def hook(_, __, output):
            found[name] = output.permute(0, 2, 3, 1) if channels_first else output

        return hook

    handles = [model.patch_embed.proj.register_forward_hook(keep("embed", True))]
    handles.append(model.network[1].register_forward_hook(keep("net1", False)))
    try:
        _, outlooked, *attended = model(pixels, output_hidden_states=True).hidden_states
    finally:
        for handle in handles:
            handle.remove()
    found["net0"] = outlooked.permute(0, 2, 3, 1)
    for index, tokens in enumerate(attended, start=2):
        found[f"net{index}"] = tokens.permute(0, 2, 3, 1)
    return found


def test_features(reference):
    model, tensors = reference
    prefixes = [name.removesuffix("input") for name in tensors if name == "input" or name.endswith("/input")]
    assert len(prefixes) > 1
    for prefix in prefixes:
        with torch.no_grad():
            found = features(model, tensors[prefix + "input"])
        expected = {n.removeprefix(prefix + "feat/"): t for n, t in tensors.items() if n.startswith(prefix + "feat/")}
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, **FORWARD, msg=lambda m, at=prefix + name: f"{at}: {m}")


def test_resized_position_embedding(reference):
    model, tensors = reference
    resized = {name: tensor for name, tensor in tensors.items() if name.endswith("pos_embed_resized")}
    assert resized
    for name, tensor in resized.items():
        with torch.no_grad():
            found = resize_position_embedding(model.pos_embed, tensor.shape[1:3])
        torch.testing.assert_close(found, tensor, **FORWARD, msg=lambda m, at=name: f"{at}: {m}")


def test_input_gradient(reference):
    model, tensors = reference
    pixels = tensors["input"].clone().requires_grad_()
    last = model(pixels).feature_maps[-1].permute(0, 2, 3, 1)
    (gradient,) = torch.autograd.grad((last * tensors["grad_out"]).sum(), pixels)
    expected = tensors["grad_input"]
    assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_padding_changes_nothing_where_nothing_is_padded(reference):
    model, tensors = reference
    with torch.no_grad():
        expected = model(tensors["input"]).feature_maps[-1]
        model.config.pad_input = True
        try:
            assert torch.equal(model(tensors["input"]).feature_maps[-1], expected)
        finally:
            model.config.pad_input = False
