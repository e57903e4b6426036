"""Whole segmentation models against the numbers of the original code: build ours, load its weights, compare all."""

from pathlib import Path
from typing import Any

import torch
from rows import (
    GRADIENT,
    LOSS_RTOL,
    PARITY,
    SAMPLED_GRADIENT,
    Row,
    compare,
    compare_largest,
    compare_parameter_gradients,
    part,
    read_case,
    read_weights,
)
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_config import BACKBONES, backbone_config_from_mmseg, short_type
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.convert.state_dict import table_for
from vss_hf.modeling.backbone import build_backbone
from vss_hf.modeling.configuration_pspnet import PSPNetConfig


def compare_segmenter(folder: Path) -> list[Row]:
    """Every output, gradient and loss that the fixture has."""
    case, tensors = read_case(folder)
    weights = read_weights(folder)
    model, source = build_segmenter(case, weights)
    rows = compare_outputs(model, tensors)
    rows += compare_gradients(model, tensors, source)
    if "mmseg_loss_eval_mode" in case:
        rows += compare_losses(model, tensors, case["mmseg_loss_eval_mode"])
    if "mmseg_cfg" in case:
        rows += compare_backbone_alone(case["mmseg_cfg"], weights, tensors)
    return rows


def build_segmenter(case: dict[str, Any], weights: dict[str, torch.Tensor]) -> tuple[Any, str]:
    """Our model with the reference's weights, in eval mode, and the name of the source of its tensor names."""
    if "mmseg_cfg" in case:
        source, config = "mmseg", segmenter_config_from_mmseg(case["mmseg_cfg"])
    else:
        source, config = "vspw_baseline", vspw_pspnet_config(weights)
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    report = load_reference_state_dict(model, weights, source)
    assert set(report.loaded) == set(model.state_dict()) and not report.kept, report.kept
    assert all(report.unused.values()), report.unused
    return model, source


def vspw_pspnet_config(weights: dict[str, torch.Tensor]) -> PSPNetConfig:
    """VSPW_baseline's PSPNet, of the widths and depths that the weights have."""
    return PSPNetConfig(
        backbone_config=vspw_encoder_fields(weights),
        channels=weights["decoder.conv_last_.0.weight"].shape[0],
        auxiliary_channels=weights["decoder.cbr_deepsup.0.weight"].shape[0],
        id2label={i: str(i) for i in range(len(weights["decoder.conv_last_.4.bias"]))},
    )


def vspw_encoder_fields(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of VSPW_baseline's ResNet, of the widths and depths that the weights have."""
    stages = range(1, 5)
    return dict(
        model_type="vss_resnet",
        stem="3x3x3",
        stem_channels=weights["encoder.conv3.weight"].shape[0],
        depths=[sum(f"encoder.layer{i}.{j}.conv3.weight" in weights for j in range(99)) for i in stages],
        hidden_sizes=[weights[f"encoder.layer{i}.0.conv3.weight"].shape[0] for i in stages],
        output_stride=8,
        out_features=[f"stage{i}" for i in stages],
    )


def images(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All input images of a fixture by the beginning of the names of their outputs."""
    extra = {n.removesuffix("input"): t for n, t in tensors.items() if n.startswith("extra") and n.endswith("_input")}
    return {"": tensors["input"], "zero_image_64x96_": torch.zeros(1, 3, 64, 96), **extra}


def compare_outputs(model: Any, tensors: dict[str, torch.Tensor]) -> list[Row]:
    """Logits and feature maps of all input images, and the logits at full size."""
    align_corners = model.config.align_corners
    rows = []
    for prefix, pixels in images(tensors).items():
        with torch.no_grad():
            output = model(pixels, output_auxiliary_logits=True)
            ours = {"logits": output.logits, **named_maps(model, pixels)}
        if output.auxiliary_logits:
            ours["aux_logits"] = output.auxiliary_logits[0]
        upsampled = F.interpolate(output.logits, size=pixels.shape[-2:], mode="bilinear", align_corners=align_corners)
        ours["logits_upsampled_s3"] = upsampled[..., ::3, ::3]
        ours["probs_upsampled_s3"] = upsampled.softmax(dim=1)[..., ::3, ::3]
        rows += [compare(prefix + n, t, tensors[prefix + n]) for n, t in ours.items() if prefix + n in tensors]
    return rows


def named_maps(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The maps that the heads read as feat0 (stage 1), feat1, ...: the backbone's or a pyramid's."""
    maps = list(model.encode(pixels).feature_maps)
    if model.config.model_type == "vss_bisenet":  # which is a backbone in mmsegmentation, with these three maps
        spatial, *deep = maps
        contexts = model.context_path(*deep, spatial.shape[-2:])
        return {"feat0": model.fusion(spatial, contexts[0]), "feat1": contexts[0], "feat2": contexts[1]}
    if hasattr(model.decode_head, "pyramid"):
        maps = model.decode_head.pyramid(maps)
    stages = [name.removeprefix("stage") for name in model.backbone.out_features]
    return {f"feat{int(stage) - 1}": m for stage, m in zip(stages, maps, strict=True)}


def compare_gradients(model: Any, tensors: dict[str, torch.Tensor], source: str) -> list[Row]:
    """The gradients of sum(logits * grad_out) by the image and by some weights."""
    model.zero_grad()
    pixels = tensors["input"].clone().requires_grad_()
    (model(pixels).logits * tensors["grad_out"]).sum().backward()
    sampled = model.config.backbone_config.model_type == "vss_internimage"
    relative = SAMPLED_GRADIENT if sampled else GRADIENT
    rows = [compare_largest("grad_input", pixels.grad, tensors["grad_input"], relative)]
    rows += compare_parameter_gradients(model, tensors, table_for(source, model.config))
    model.zero_grad()
    return rows


def compare_losses(model: Any, tensors: dict[str, torch.Tensor], reference: dict[str, float]) -> list[Row]:
    """The main and the auxiliary loss. mmsegmentation divides by all pixels; so does num_items_in_batch here."""
    labels, weight = tensors["labels"].long(), model.config.auxiliary_loss_weight
    losses = []
    with torch.no_grad():
        for factor in (weight, 0.0):
            model.config.auxiliary_loss_weight = factor
            losses.append(model(tensors["input"], labels=labels, num_items_in_batch=labels.numel()).loss.item())
    model.config.auxiliary_loss_weight = weight
    parts = {name: loss for name, loss in reference.items() if name.endswith("loss_ce")}
    main = parts.pop("decode_1.loss_ce" if "decode_1.loss_ce" in parts else "decode.loss_ce")
    # What one or several auxiliary heads add; a difference of two losses has the rounding of both.
    auxiliary, scale = sum(parts.values()), max(main, *parts.values(), 0.0)
    rows = [Row("loss", abs(losses[1] - main), LOSS_RTOL * scale)]
    return rows + [Row("auxiliary loss", abs(losses[0] - losses[1] - auxiliary), LOSS_RTOL * scale)]


def compare_backbone_alone(
    settings: dict[str, Any], weights: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> list[Row]:
    """All maps of the backbone that a segmenter's checkpoint is taken apart for, also those that no head reads."""
    if short_type(settings["backbone"]) not in BACKBONES:
        return []  # BiSeNet: its ResNet is a part of the context path, which has a fixture of its own
    model = build_backbone(backbone_config_from_mmseg(settings["backbone"])).eval()
    report = load_reference_state_dict(model, part(weights, "backbone."), "mmseg")
    assert set(report.loaded) == set(model.state_dict()) and not report.kept, report.kept
    assert all(report.unused.values()), report.unused
    rows = []
    for prefix, pixels in images(tensors).items():
        with torch.no_grad():
            maps = {f"{prefix}feat{i}": m for i, m in enumerate(model(pixels).feature_maps)}
        assert len(maps) == 4 and all(m.isfinite().all() for m in maps.values())
        if not settings.get("neck"):  # then the reference's maps are those behind it
            rows += [compare(f"backbone alone: {n}", m, tensors[n]) for n, m in maps.items() if n in tensors]
    return rows


__all__ = ["GRADIENT", "LOSS_RTOL", "PARITY", "compare", "compare_largest", "vspw_encoder_fields"]
