"""Operators, layers, parts of networks and refiners against the numbers of the original code."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import (
    GRADIENT,
    Row,
    compare,
    compare_exactly,
    compare_largest,
    compare_parameter_gradients,
    part,
    read_case,
    read_weights,
)
from torch import nn

from vss_hf.convert import bisenet, load_reference_state_dict
from vss_hf.convert.mmseg_config import mmseg_resnet_config
from vss_hf.convert.resnet import MMSEG_RESNET
from vss_hf.convert.tables import Rename, Table, joined, rename, under
from vss_hf.modeling import dcnv3_gather
from vss_hf.modeling.configuration_cascade_psp import BACKBONE, CascadePSPConfig
from vss_hf.modeling.dcnv3 import DCNv3, dcnv3
from vss_hf.modeling.modeling_bisenet import AttentionRefinement, ContextPath, FeatureFusion, SpatialPath
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel
from vss_hf.modeling.modeling_resnet import DilatedResNetBackbone
from vss_hf.refinement.components import Claims, split_regions


# --- DCNv3


def compare_dcnv3_core(folder: Path) -> list[Row]:
    """The sampling alone: its output by both of our formulations, its gradients by everything that goes in."""
    case, tensors = read_case(folder)
    inputs = {name: tensors[name].requires_grad_() for name in ("input", "offset", "mask")}
    settings = {
        "kernel_size": case["kernel_h"],
        "stride": case["stride_h"],
        "padding": case["pad_h"],
        "dilation": case["dilation_h"],
        "offset_scale": case["offset_scale"],
    }
    output = dcnv3(*inputs.values(), groups=case["group"], **settings)
    geometry = dcnv3_gather.Geometry(case["group"], *settings.values())
    exported = dcnv3_gather.grid_sample_forward(*inputs.values(), geometry)
    rows = [
        compare("output", output, tensors["output"]),
        compare("output, as exported", exported, tensors["output"]),
    ]
    gradients = torch.autograd.grad(output, list(inputs.values()), tensors["grad_out"])
    return rows + [
        compare_largest(f"grad_{name}", gradient, tensors[f"grad_{name}"], GRADIENT)
        for name, gradient in zip(inputs, gradients, strict=True)
    ]


# Written here a second time and not taken from the converter.
DCNV3_LAYER = Table(
    (
        Rename(r"dw_conv\.0\.(\w+)", r"dw_conv.\1"),
        Rename(r"dw_conv\.1\.1\.(\w+)", r"dw_norm.\1"),
        Rename(r"center_feature_scale_proj_(\w+)", r"center_feature_scale_proj.\1"),
        Rename(r"(.+)", r"\1"),
    )
)


def compare_dcnv3_layer(folder: Path) -> list[Row]:
    """The layer: its output, and its gradients by the input and by every parameter."""
    case, tensors = read_case(folder)
    case = case["dcnv3"]
    layer = DCNv3(
        case["channels"],
        case["group"],
        kernel_size=case.get("kernel_size", 3),
        dw_kernel_size=case.get("dw_kernel_size"),
        offset_scale=case.get("offset_scale", 1.0),
        center_feature_scale=case.get("center_feature_scale", False),
    )
    layer.load_state_dict(rename(read_weights(folder), DCNV3_LAYER).tensors)
    hidden_states = tensors["input"].requires_grad_()
    output = layer(hidden_states)
    output.backward(tensors["grad_out"])
    gradients = compare_parameter_gradients(layer, tensors, DCNV3_LAYER)
    assert len(gradients) == len(list(layer.parameters()))
    return [
        compare("output", output, tensors["output"]),
        compare_largest("grad_input", hidden_states.grad, tensors["grad_input"], GRADIENT),
        *gradients,
    ]


# --- BiSeNet


class WholeContextPath(nn.Module):
    """mmsegmentation's context path has its ResNet inside; our model has it beside."""

    def __init__(self, case: dict[str, Any]):
        super().__init__()
        width, fine, coarse = case["context_channels"]
        self.backbone = DilatedResNetBackbone(mmseg_resnet_config(case["backbone_cfg"]))
        self.path = ContextPath((fine, coarse), width)

    def forward(self, pixels: torch.Tensor) -> Any:
        _, map_8, map_16, map_32 = self.backbone(pixels).feature_maps
        return self.path(map_16, map_32, map_8.shape[-2:])


WHOLE_CONTEXT_PATH = joined(under(MMSEG_RESNET, r"backbone\.", "backbone."), under(bisenet.CONTEXT_PATH, "", "path."))


def spatial_path(case: dict[str, Any], weights: dict[str, torch.Tensor]) -> SpatialPath:
    widths = [weights[f"layer{layer}.conv.weight"].shape[0] for layer in range(1, 5)]
    return SpatialPath(widths, in_channels=weights["layer1.conv.weight"].shape[1])


# name of the reference's class -> (our module, table of names)
BISENET_PARTS = {
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


def compare_bisenet_part(folder: Path) -> list[Row]:
    """Every output, and every gradient by an input."""
    case, tensors = read_case(folder)
    weights = read_weights(folder)
    build, table = BISENET_PARTS[case["kind"]]
    module = build(case, weights).eval()
    module.load_state_dict(rename(weights, table).tensors)
    inputs = [tensors[name].clone().requires_grad_() for name in sorted(tensors) if name.startswith("input")]
    outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(part(tensors, "output"))
    rows = [compare(f"output{i}", output, tensors[f"output{i}"]) for i, output in enumerate(outputs)]
    sum((output * tensors[f"grad_out{i}"]).sum() for i, output in enumerate(outputs)).backward()
    return rows + [
        compare_largest(f"grad_input{i}", image.grad, tensors[f"grad_input{i}"], GRADIENT)
        for i, image in enumerate(inputs)
    ]


# --- CascadePSP


def cascade_psp_config(weights: dict[str, torch.Tensor]) -> CascadePSPConfig:
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


def cascade_psp_outputs(output: Any) -> dict[str, torch.Tensor]:
    """Ours under the original's names: the last pass is the third, whichever passes ran before it."""
    logits = {"out_224": output.logits}
    logits |= dict(zip(("out_28_3", "out_28_2", "out_28"), reversed(output.logits_stride8), strict=False))
    logits |= dict(zip(("out_56_2", "out_56"), reversed(output.logits_stride4), strict=False))
    return logits | {name.replace("out", "pred"): tensor.sigmoid() for name, tensor in logits.items()}


def compare_cascade_psp_regions(folder: Path) -> list[Row]:
    """The label maps of the scene parsing scripts: their regions, boxes, and what becomes of them with given masks."""
    case, tensors = read_case(folder)
    # Classes of which a pixel must be nearly certain there, as ADE20K counts them from 1.
    stuff = [1, 2, 3, 4, 6, 7, 10, 12, 14, 17, 22, 26, 27, 29, 30, 47, 49, 52, 53, 55, 60, 61, 62, 69, 80, 85, 92, 95]
    stuff += [97, 102, 106, 110, 114, 129, 141]
    rows, names = [], []
    for image in sorted(part(tensors, "in_seg/")):
        labels = tensors[f"in_seg/{image}"].numpy()
        regions, numbers = split_regions(labels), Counter()
        claims = Claims(labels)
        for number, region in enumerate(regions):
            numbers[region.label] += 1
            name = f"{image}_{region.label}.{numbers[region.label]}"
            names.append(f"{name}_seg.png")
            (top, bottom), (left, right) = ((each.start, each.stop) for each in region.box)
            box = case["masks"][f"{name}_mask.png"]["box_rmin_rmax_cmin_cmax"]
            rows.append(compare_exactly(f"box {name}", [top, bottom, left, right], box))
            wanted = tensors[f"split_seg/{name}"][region.box] > 0
            rows.append(compare_exactly(f"region {name}", torch.from_numpy(region.mask), wanted))
            mask = Image.fromarray(tensors[f"mask/{name}"].numpy().astype(np.float32) / 255)
            mask = np.array(mask.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
            claims.add(number, region, mask * np.float32(0.51) if region.label in stuff else mask)
        claims.labels[tensors[f"gt/{image}"].numpy() == 0] = 0
        rows.append(compare_exactly(f"labels {image}", torch.from_numpy(claims.labels), tensors[f"out_mask/{image}"]))
    assert sorted(names) == sorted(case["split_files"])
    return rows


def compare_cascade_psp(folder: Path) -> list[Row]:
    """Every output of every call, and the gradients by the image and the mask."""
    _, tensors = read_case(folder)
    weights = read_weights(folder)
    model = CascadePSPModel(cascade_psp_config(weights)).eval()
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
        ours, reference = cascade_psp_outputs(model(image, mask, *given)), part(tensors, f"{call}/")
        assert reference and set(reference) <= set(ours)
        rows += [compare(f"{call}/{name}", ours[name], reference[name]) for name in sorted(reference)]
    (model(image, mask).logits * tensors["grad_out"]).sum().backward()
    return rows + [
        compare_largest("grad_image", image.grad, tensors["grad_image"], GRADIENT),
        compare_largest("grad_seg", mask.grad, tensors["grad_seg"], GRADIENT),
    ]
