"""BiSeNet's parts against mmsegmentation's BiSeNetV1 (../shared/parity/09_bisenetv1), and names at full size."""

import gzip
import json

import pytest
import torch
from fixture_cases import GRADIENT, PARITY, compare, compare_largest
from safetensors.torch import load_file
from torch import nn

from vss_hf.convert import bisenet, load_reference_state_dict
from vss_hf.convert.mmseg_config import mmseg_resnet_config
from vss_hf.convert.resnet import MMSEG_RESNET
from vss_hf.convert.tables import joined, rename, under
from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.modeling_bisenet import (
    AttentionRefinement,
    BiSeNetForSemanticSegmentation,
    ContextPath,
    FeatureFusion,
    SpatialPath,
)
from vss_hf.modeling.modeling_resnet import DilatedResNetBackbone


class WholeContextPath(nn.Module):
    """mmsegmentation's context path has its ResNet inside; our model has it beside."""

    def __init__(self, case):
        super().__init__()
        width, fine, coarse = case["context_channels"]
        self.backbone = DilatedResNetBackbone(mmseg_resnet_config(case["backbone_cfg"]))
        self.path = ContextPath((fine, coarse), width)

    def forward(self, pixels):
        _, map_8, map_16, map_32 = self.backbone(pixels).feature_maps
        return self.path(map_16, map_32, map_8.shape[-2:])


WHOLE_CONTEXT_PATH = joined(under(MMSEG_RESNET, r"backbone\.", "backbone."), under(bisenet.CONTEXT_PATH, "", "path."))


def spatial_path(case, weights):
    widths = [weights[f"layer{layer}.conv.weight"].shape[0] for layer in range(1, 5)]
    return SpatialPath(widths, in_channels=weights["layer1.conv.weight"].shape[1])


# name of the reference's class -> (our module, table of names)
PARTS = {
    "SpatialPath": (spatial_path, bisenet.SPATIAL_PATH),
    "AttentionRefinementModule": (
        lambda case, weights: AttentionRefinement(case["in_channels"], case["out_channel"]),
        bisenet.ATTENTION_REFINEMENT,
    ),
    "FeatureFusionModule": (
        lambda case, weights: FeatureFusion(case["in_channels"], case["out_channels"]),
        bisenet.FEATURE_FUSION,
    ),
    "ContextPath": (lambda case, weights: WholeContextPath(case), WHOLE_CONTEXT_PATH),
}
CASES = sorted(path.parent for path in PARITY.glob("09_bisenetv1/*/config.json"))


def compare_part(folder):
    """One row for each output and each gradient by an input."""
    case = json.loads((folder / "config.json").read_text())
    tensors, weights = load_file(folder / "tensors.safetensors"), load_file(folder / "weights.safetensors")
    build, table = PARTS[case["kind"]]
    module = build(case, weights).eval()
    module.load_state_dict(rename(weights, table).tensors)
    inputs = [tensors[name].clone().requires_grad_() for name in sorted(tensors) if name.startswith("input")]
    outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    rows = [compare(f"output{i}", output, tensors[f"output{i}"]) for i, output in enumerate(outputs)]
    sum((output * tensors[f"grad_out{i}"]).sum() for i, output in enumerate(outputs)).backward()
    return rows + [
        compare_largest(f"grad_input{i}", image.grad, tensors[f"grad_input{i}"], GRADIENT)
        for i, image in enumerate(inputs)
    ]


@pytest.mark.skipif(not CASES, reason="no reference numbers in ../shared/parity/09_bisenetv1")
@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_part_equals_the_original(folder):
    rows = compare_part(folder)
    assert len(rows) >= 2 and [row for row in rows if not row.equal] == []


@pytest.mark.skipif(not (PARITY / "15_key_manifests").is_dir(), reason="no key manifests in ../shared/parity")
@pytest.mark.parametrize(("size", "parameters"), [("18", 13466356), ("50", 59404980)])
def test_names_and_shapes_of_full_size_checkpoints(size, parameters):
    with gzip.open(PARITY / f"15_key_manifests/mmseg_bisenetv1_r{size}.json.gz", "rt") as file:
        reference = {name: torch.empty(shape, device="meta") for name, shape in json.load(file).items()}
    config = config_from_preset(f"bisenet-resnet{size}", num_labels=124)
    with torch.device("meta"):
        model = BiSeNetForSemanticSegmentation(config)
    report = load_reference_state_dict(model, reference, "mmseg")
    assert set(report.loaded) == set(model.state_dict()) and len(report.loaded) == len(reference)
    assert not report.unused and not report.kept
    assert sum(p.numel() for p in model.parameters()) == parameters
