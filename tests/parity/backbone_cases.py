"""Backbones that have fixtures of their own, InternImage and VOLO, against the numbers of the original code."""

from pathlib import Path
from typing import Any

import torch
from fixture_cases import images
from rows import (
    GRADIENT,
    SAMPLED_GRADIENT,
    Row,
    compare,
    compare_exactly,
    compare_largest,
    compare_parameter_gradients,
    part,
    read_case,
    read_weights,
)

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.internimage import LAYERS
from vss_hf.convert.tables import rename
from vss_hf.convert.volo import volo_table
from vss_hf.modeling.configuration_internimage import InternImageConfig
from vss_hf.modeling.configuration_volo import VOLOConfig
from vss_hf.modeling.modeling_internimage import InternImageBackbone
from vss_hf.modeling.modeling_volo import VOLOBackbone, resize_position_embedding


# --- InternImage

# Settings of the original that are no fields of ours: its operator and LayerNorm are the only ones here.
NOT_OURS = {"core_op": "DCNv3", "norm_layer": "LN", "with_cp": None, "out_indices": None}


def internimage_config(reference: dict[str, Any]) -> InternImageConfig:
    """Our configuration for the original's arguments."""
    assert all(reference.get(name, value) == value for name, value in NOT_OURS.items() if value)
    fields = {name: value for name, value in reference.items() if name not in NOT_OURS}
    return InternImageConfig(**fields, out_features=[f"stage{index + 1}" for index in reference["out_indices"]])


def compare_internimage(folder: Path) -> list[Row]:
    """Every map of all input images, and the gradients of all maps by the image and by some weights."""
    case, tensors = read_case(folder)
    model = InternImageBackbone(internimage_config(case["internimage"])).eval()
    report = load_reference_state_dict(model, read_weights(folder), "internimage")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept
    rows = []
    for prefix, pixels in images(tensors).items():
        with torch.no_grad():
            maps = model(pixels).feature_maps
        assert len(maps) == len(part(tensors, f"{prefix}feat")) > 0
        rows += [compare(f"{prefix}feat{i}", m, tensors[f"{prefix}feat{i}"]) for i, m in enumerate(maps)]
    pixels = tensors["input"].clone().requires_grad_()
    sum((m * tensors[f"grad_out{i}"]).sum() for i, m in enumerate(model(pixels).feature_maps)).backward()
    rows.append(compare_largest("grad_input", pixels.grad, tensors["grad_input"], SAMPLED_GRADIENT))
    return rows + compare_parameter_gradients(model, tensors, LAYERS)


# --- VOLO


def build_volo(case: dict[str, Any], weights: dict[str, torch.Tensor]) -> VOLOBackbone:
    """Our backbone with the original's weights, in eval mode."""
    fields = case["volo"]
    config = VOLOConfig(
        stem_channels=fields["stem_hidden_dim"],
        depths=fields["layers"],
        hidden_sizes=fields["embed_dims"],
        num_heads=fields["num_heads"],
        mlp_ratios=fields["mlp_ratios"],
        qkv_bias=fields.get("qkv_bias", False),
        image_size=case["img_size"],
        pad_input=False,
    )
    model = VOLOBackbone(config).eval()
    renamed = rename(weights, volo_table(config))
    assert set(renamed.tensors) == set(model.state_dict())
    model.load_state_dict(renamed.tensors)
    return model


def compare_volo(folder: Path) -> list[Row]:
    """What every part of the network returns, at sizes that fit and that do not, and the gradient by the image."""
    case, tensors = read_case(folder)
    model = build_volo(case, read_weights(folder))
    rows = []
    prefixes = [name.removesuffix("input") for name in tensors if name == "input" or name.endswith("/input")]
    for prefix in prefixes:
        ours, reference = volo_features(model, tensors[f"{prefix}input"]), part(tensors, f"{prefix}feat/")
        assert set(ours) == set(reference)
        rows += [compare(f"{prefix}feat/{name}", ours[name], tensor) for name, tensor in reference.items()]
    for name, tensor in tensors.items():
        if name.endswith("pos_embed_resized"):
            rows.append(compare(name, resize_position_embedding(model.pos_embed, tensor.shape[1:3]), tensor))
    pixels = tensors["input"].clone().requires_grad_()
    last = model(pixels).feature_maps[-1]
    (last.permute(0, 2, 3, 1) * tensors["grad_out"]).sum().backward()
    rows.append(compare_largest("grad_input", pixels.grad, tensors["grad_input"], GRADIENT))
    model.config.pad_input = True  # changes nothing where nothing is padded
    padded = model(tensors["input"]).feature_maps[-1]
    return [*rows, compare_exactly("same with pad_input", padded, last)]


@torch.no_grad()
def volo_features(model: VOLOBackbone, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The original's features by name, (B, h, w, C): the patches, and what each part of the network returns."""
    found = {}
    handles = [
        model.patch_embed.proj.register_forward_hook(lambda *seen: found.update(embed=seen[-1].permute(0, 2, 3, 1))),
        model.network[1].register_forward_hook(lambda *seen: found.update(net1=seen[-1])),
    ]
    try:
        _, outlooked, *attended = model(pixels, output_hidden_states=True).hidden_states
    finally:
        for handle in handles:
            handle.remove()
    for index, tokens in enumerate([outlooked, *attended]):
        found[f"net{index + (index > 0)}"] = tokens.permute(0, 2, 3, 1)  # net1 is the Downsample above
    return found
