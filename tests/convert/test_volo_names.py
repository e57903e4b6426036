"""VOLO's releases: every name of the full-size networks has a place, and nothing is dropped unseen."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from vss_hf.convert import read_reference_file
from vss_hf.convert.tables import reason_to_keep, rename
from vss_hf.convert.volo import volo_table
from vss_hf.modeling.configuration_volo import VOLO_SIZES, VOLOConfig
from vss_hf.modeling.modeling_volo import VOLOBackbone


MANIFESTS = Path(__file__).resolve().parents[2] / "../shared/parity/15_key_manifests"
SMALL = dict(
    depths=(1, 1, 1),
    hidden_sizes=(8, 16, 16),
    num_heads=(2, 2, 2),
    mlp_ratios=(2, 2, 2),
    stem_channels=4,
    image_size=64,
)
CLASSIFIER = {
    "cls_token": (1, 1, 16), "norm.weight": (16,), "norm.bias": (16,), "head.weight": (5, 16), "head.bias": (5,),
    "aux_head.weight": (5, 16), "aux_head.bias": (5,), "post_network.0.attn.kv.weight": (32, 16),
    "post_network.1.mlp.fc1.bias": (32,),
}  # fmt: skip


def backbone(**fields) -> VOLOBackbone:
    return VOLOBackbone(VOLOConfig(**{**SMALL, **fields}))


def released(model) -> dict[str, torch.Tensor]:
    """Random tensors under the names of a release that fits `model`."""
    own = {name: torch.rand(t.shape) for name, t in model.state_dict().items() if not name.startswith("norms.")}
    counters = {name: torch.tensor(7) for name in own if name.endswith("num_batches_tracked")}
    return {**own, **counters, **{name: torch.rand(shape) for name, shape in CLASSIFIER.items()}}


def fill(model, tensors):
    """The table alone, strictly: (loaded tensors, unused names with reasons)."""
    renamed = rename(tensors, volo_table(model.config))
    report = model.load_state_dict(renamed.tensors, strict=False)
    assert not report.unexpected_keys
    assert all(reason_to_keep(name, volo_table(model.config)) for name in report.missing_keys)
    return renamed.tensors, renamed.unused


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="no key manifests at ../shared/parity")
@pytest.mark.parametrize("size", VOLO_SIZES)
@pytest.mark.filterwarnings("ignore:pos_embed has 14 x 14")
def test_full_size_networks_of_other_grids(size):
    """Position embeddings of 224 pixels into our sizes, which are larger; as they are: tests/parity."""
    shapes = json.loads(gzip.open(MANIFESTS / f"{size.replace('-', '_')}.json.gz").read())
    reference = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        model = VOLOBackbone(VOLOConfig(**VOLO_SIZES[size]))
    renamed = rename(reference, volo_table(model.config))
    assert {n: t.shape for n, t in renamed.tensors.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert {name.split(".")[0] for name in renamed.unused} == {"post_network", "cls_token", "norm", "head", "aux_head"}
    assert all(renamed.unused.values())


def test_every_tensor_is_filled_as_it_is():
    model = backbone()
    tensors = released(model)
    _, unused = fill(model, tensors)
    assert set(unused) == set(CLASSIFIER)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_files(tmp_path, wrapper, prefix):
    model = backbone()
    tensors = released(model)
    stored = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({wrapper: stored, "epoch": 300} if wrapper else stored, tmp_path / "d1.pth.tar")
    fill(model, read_reference_file(tmp_path / "d1.pth.tar"))
    assert torch.equal(model.pos_embed, tensors["pos_embed"])


def test_positions_of_another_grid_are_resized_and_told():
    large = released(backbone(image_size=(128, 96)))
    model = backbone()
    with pytest.warns(UserWarning, match=r"8 x 6 cells .* 4 x 4 \(image_size=64\); image_size=\[128, 96\] keeps"):
        fill(model, large)
    expected = torch.nn.functional.interpolate(large["pos_embed"].permute(0, 3, 1, 2), size=(4, 4), mode="bicubic")
    assert torch.equal(model.pos_embed, expected.permute(0, 2, 3, 1))


def test_the_classifiers_norm_starts_the_last_maps():
    model = backbone(tap_norm=True, out_features=["stem", "stage1", "stage3"])
    tensors = released(model)
    loaded, unused = fill(model, tensors)
    assert torch.equal(model.norms["stage3"].weight, tensors["norm.weight"])
    assert not {"norm.weight", "norm.bias"} & set(unused)
    assert set(model.state_dict()) - set(loaded) == {"norms.stage1.weight", "norms.stage1.bias"}


def test_an_unknown_name_is_refused():
    model = backbone()
    with pytest.raises(ValueError, match="no layer known here: decoder.weight"):
        rename({**released(model), "decoder.weight": torch.zeros(1)}, volo_table(model.config))
