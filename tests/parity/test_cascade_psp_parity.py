"""CascadePSP's refinement network against the original (../shared/parity/10_cascadepsp), and names at full size."""

import gzip
import json

import pytest
import torch
from fixture_cases import GRADIENT, PARITY, compare, compare_largest
from safetensors.torch import load_file

from vss_hf.convert import load_reference_state_dict
from vss_hf.modeling.configuration_cascade_psp import BACKBONE, CascadePSPConfig
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel


CASES = sorted(path.parent for path in PARITY.glob("10_cascadepsp/*/weights.safetensors"))


def config_of(weights):
    """The configuration of the widths and depths that the weights have."""
    stages, dilations = range(1, 5), (1, 1, 2, 4)
    depths = [sum(f"feats.layer{stage}.{b}.conv3.weight" in weights for b in range(99)) for stage in stages]
    return CascadePSPConfig(
        backbone_config={
            **BACKBONE,
            "stem_channels": len(weights["feats.conv1.weight"]),
            "depths": depths,
            "hidden_sizes": [len(weights[f"feats.layer{stage}.0.conv3.weight"]) for stage in stages],
            "dilations": [[1] + [d] * (depth - 1) for d, depth in zip(dilations, depths, strict=True)],
        },
        channels=len(weights["psp.bottleneck.weight"]),
        upsample_channels=[len(weights[f"up_{number}.shortcut.weight"]) for number in (1, 2, 3)],
        head_channels=len(weights["final_11.weight"]),
    )


def reference_outputs(output):
    """Ours under the original's names: the last pass is the third, whichever passes ran before it."""
    logits = {"out_224": output.logits}
    passes = zip(("out_28_3", "out_28_2", "out_28"), reversed(output.logits_stride8), strict=False)
    logits |= {name: tensor for name, tensor in passes}
    logits |= dict(zip(("out_56_2", "out_56"), reversed(output.logits_stride4), strict=False))
    return logits | {name.replace("out", "pred"): tensor.sigmoid() for name, tensor in logits.items()}


def compare_network(folder):
    """One row for each output of every call and each gradient by an input."""
    tensors, weights = load_file(folder / "tensors.safetensors"), load_file(folder / "weights.safetensors")
    model = CascadePSPModel(config_of(weights)).eval()
    report = load_reference_state_dict(model, weights, "cascadepsp")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept
    image, mask = (tensors[name].clone().requires_grad_() for name in ("image", "seg"))
    calls = {
        "full": (),
        "given_s8": (tensors["inter_s8"],),
        "given_s8_s4": (tensors["inter_s8"], tensors["inter_s4"]),
    }
    rows = []
    for call, given in calls.items():
        ours = reference_outputs(model(image, mask, *given))
        names = {name.removeprefix(f"{call}/") for name in tensors if name.startswith(f"{call}/")}
        assert names <= set(ours) and names
        rows += [compare(f"{call}/{name}", ours[name], tensors[f"{call}/{name}"]) for name in sorted(names)]
    (model(image, mask).logits * tensors["grad_out"]).sum().backward()
    return rows + [
        compare_largest("grad_image", image.grad, tensors["grad_image"], GRADIENT),
        compare_largest("grad_seg", mask.grad, tensors["grad_seg"], GRADIENT),
    ]


@pytest.mark.skipif(not CASES, reason="no reference numbers in ../shared/parity/10_cascadepsp")
@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_network_equals_the_original(folder):
    rows = compare_network(folder)
    assert len(rows) >= 5 and [row for row in rows if not row.equal] == []


@pytest.mark.skipif(not (PARITY / "15_key_manifests").is_dir(), reason="no key manifests in ../shared/parity")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_and_shapes_of_the_full_size_checkpoint(prefix):
    with gzip.open(PARITY / "15_key_manifests/cascadepsp_refinement.json.gz", "rt") as file:
        reference = {prefix + name: torch.empty(shape, device="meta") for name, shape in json.load(file).items()}
    with torch.device("meta"):
        model = CascadePSPModel(CascadePSPConfig())
    report = load_reference_state_dict(model, reference, "cascadepsp")
    assert set(report.loaded) == set(model.state_dict()) and len(report.loaded) == len(reference)
    assert not report.unused and not report.kept
    assert sum(p.numel() for p in model.parameters()) == 67683433
