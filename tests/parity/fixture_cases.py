"""Whole segmentation models against the numbers of the original code: build ours, load its weights, compare all.

`compare_case(folder)` takes a folder of ../shared/parity (README.md there explains the tensors and tolerances) and
returns one row per quantity. The tests assert the rows, the summary of all fixtures prints them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.convert.state_dict import table_for
from vss_hf.convert.tables import rename
from vss_hf.modeling.configuration_pspnet import PSPNetConfig


PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"
# Outputs are compared element by element: |ours - reference| <= ATOL + RTOL * |reference|.
ATOL, RTOL = 2e-5, 1e-4
LOSS_RTOL = 1e-5
GRADIENT, WEIGHT_GRADIENT = 1e-4, 1e-3  # of the gradient's largest element
SAMPLED_GRADIENT = 1e-3  # through deformable convolutions, whose samples may lie on a border between pixels


@dataclass(frozen=True)
class Row:
    """One quantity of a fixture.

    Args:
        what: its name, e.g. `logits`.
        difference: from the reference, where it is largest in terms of what is tolerated there.
        tolerance: what is tolerated there.
    """

    what: str
    difference: float
    tolerance: float

    @property
    def equal(self) -> bool:
        return self.difference <= self.tolerance  # False for nan


def segmenter_cases() -> list[Path]:
    """The folders of whole segmentation models that are here; none without ../shared."""
    folders = [path.parent for path in PARITY.glob("**/config.json")]
    mmseg = [folder for folder in folders if "mmseg_cfg" in json.loads((folder / "config.json").read_text())]
    known = [folder for folder in mmseg if folder.parent.name[:2] in ("01", "02", "03", "04")]
    return sorted(known) + sorted(PARITY.glob("07_vspw_clip/pspnet_deepsup"))


def compare_case(folder: Path) -> list[Row]:
    """Every output, gradient and loss that the fixture has."""
    case = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "tensors.safetensors")
    model, source = build_case(folder, case)
    rows = compare_outputs(model, tensors)
    rows += compare_gradients(model, tensors, source)
    if "mmseg_loss_eval_mode" in case:
        rows += compare_losses(model, tensors, case["mmseg_loss_eval_mode"])
    return rows


def build_case(folder: Path, case: dict[str, Any]) -> tuple[Any, str]:
    """Our model with the reference's weights, in eval mode, and the name of the source of its tensor names."""
    weights = load_file(folder / "weights.safetensors")
    if "mmseg_cfg" in case:
        source, config = "mmseg", segmenter_config_from_mmseg(case["mmseg_cfg"])
    else:
        source, config = "vspw_baseline", vspw_pspnet_config(weights)
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    report = load_reference_state_dict(model, weights, source)
    assert set(report.loaded) == set(model.state_dict()) and not report.kept, report.kept
    return model, source


def vspw_pspnet_config(weights: dict[str, torch.Tensor]) -> PSPNetConfig:
    """VSPW_baseline's PSPNet, of the widths and depths that the weights have."""
    stages = range(1, 5)
    backbone = dict(
        model_type="vss_resnet",
        stem="3x3x3",
        stem_channels=weights["encoder.conv3.weight"].shape[0],
        depths=[sum(f"encoder.layer{i}.{j}.conv3.weight" in weights for j in range(99)) for i in stages],
        hidden_sizes=[weights[f"encoder.layer{i}.0.conv3.weight"].shape[0] for i in stages],
        output_stride=8,
        out_features=[f"stage{i}" for i in stages],
    )
    return PSPNetConfig(
        backbone_config=backbone,
        channels=weights["decoder.conv_last_.0.weight"].shape[0],
        auxiliary_channels=weights["decoder.cbr_deepsup.0.weight"].shape[0],
        id2label={i: str(i) for i in range(len(weights["decoder.conv_last_.4.bias"]))},
    )


def compare_outputs(model: Any, tensors: dict[str, torch.Tensor]) -> list[Row]:
    """Logits and feature maps of all input images, and the logits at full size."""
    align_corners = model.config.align_corners
    rows = []
    images = {"": tensors["input"], "zero_image_64x96_": torch.zeros(1, 3, 64, 96)}
    images |= {
        n.removesuffix("input"): t for n, t in tensors.items() if n.startswith("extra") and n.endswith("_input")
    }
    for prefix, pixels in images.items():
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
    """The maps that the decode head reads as feat0 (stage 1), feat1, ...: the backbone's or a pyramid's."""
    maps = list(model.backbone(pixels).feature_maps)
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
    rows = [
        compare_largest("grad_input", pixels.grad, tensors["grad_input"], SAMPLED_GRADIENT if sampled else GRADIENT)
    ]
    reference = {n.removeprefix("grad_param/"): t for n, t in tensors.items() if n.startswith("grad_param/")}
    for name, gradient in rename(reference, table_for(source, model.config)).tensors.items():
        rows.append(compare_largest(f"grad {name}", model.get_parameter(name).grad, gradient, WEIGHT_GRADIENT))
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
    ours = {"decode.loss_ce": losses[1], "decode_1.loss_ce": losses[1]}
    ours |= {"aux.loss_ce": losses[0] - losses[1], "decode_0.loss_ce": losses[0] - losses[1]}
    names = [name for name in reference if name.endswith("loss_ce")]
    # A difference of two losses has the rounding of both.
    scale = max(reference[name] for name in names)
    return [Row(name, abs(ours[name] - reference[name]), LOSS_RTOL * scale) for name in names]


def compare(what: str, ours: torch.Tensor, reference: torch.Tensor) -> Row:
    """The element that is farthest off in terms of the tolerance of outputs."""
    assert ours.shape == reference.shape, f"{what}: {tuple(ours.shape)} for {tuple(reference.shape)}"
    difference, tolerance = (ours - reference).abs().flatten(), (ATOL + RTOL * reference.abs()).flatten()
    worst = (difference / tolerance).argmax()
    return Row(what, difference[worst].item(), tolerance[worst].item())


def compare_largest(what: str, ours: torch.Tensor | None, reference: torch.Tensor, relative: float) -> Row:
    """The largest difference, against a part of the largest element."""
    assert ours is not None and ours.shape == reference.shape, what
    return Row(what, (ours - reference).abs().max().item(), relative * reference.abs().max().item())
