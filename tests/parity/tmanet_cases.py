"""TMANet, and its attention alone, against the numbers of the original code."""

from pathlib import Path

import torch
from rows import GRADIENT, Row, compare, compare_largest, read_case, read_weights
from torch.nn import functional as F

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.modeling.architectures import model_class
from vss_hf.modeling.modeling_tmanet import read_memory


def compare_tmanet(folder: Path) -> list[Row]:
    """Logits of both heads, at full size too, and the gradients by the labelled frame and by the others."""
    case, tensors = read_case(folder)
    config = segmenter_config_from_mmseg({"type": "EncoderDecoder", **part_of_model(case)})
    model = model_class(config.model_type)(config).eval()
    report = load_reference_state_dict(model, read_weights(folder), "tmanet")
    assert set(report.loaded) == set(model.state_dict()) and not report.kept and not report.unused
    # The reference's memory is oldest frame first, as here, and does not hold the labelled frame.
    clip = torch.cat([tensors["sequence"], tensors["image"].unsqueeze(1)], dim=1).requires_grad_()
    output = model(clip, output_auxiliary_logits=True)
    (output.logits * tensors["grad_out"]).sum().backward()
    assert clip.grad is not None
    upsampled = F.interpolate(output.logits, size=clip.shape[-2:], mode="bilinear", align_corners=config.align_corners)
    return [
        compare("logits", output.logits, tensors["logits"]),
        compare("logits_upsampled_s3", upsampled[..., ::3, ::3], tensors["logits_upsampled_s3"]),
        compare("aux_logits", output.auxiliary_logits[0][:, -1], tensors["aux_logits"]),
        compare_largest("grad_image", clip.grad[:, -1], tensors["grad_image"], GRADIENT),
        compare_largest("grad_sequence", clip.grad[:, :-1], tensors["grad_sequence"], GRADIENT),
    ]


def part_of_model(case: dict) -> dict:
    """The settings of the model among those of the fixture."""
    return {name: case[name] for name in ("backbone", "decode_head", "auxiliary_head")}


def compare_memory(folder: Path) -> list[Row]:
    """The attention, beside what the frame itself holds, and the gradients of all that it reads."""
    case, tensors = read_case(folder)
    names = ("memory_keys", "memory_values", "query_key", "query_value")
    inputs = {name: tensors[name].clone().requires_grad_() for name in names}
    keys, values = (list(inputs[name].unbind(0)) for name in names[:2])
    scale = inputs["query_key"].shape[1] ** -0.5 if case["matmul_norm"] else 1.0
    read = read_memory(inputs["query_key"], keys, values, scale)
    output = torch.cat([inputs["query_value"], read], dim=1)
    (output * tensors["grad_out"]).sum().backward()
    rows = [compare("output", output, tensors["output"])]
    return rows + [
        compare_largest(f"grad_{name}", tensor.grad, tensors[f"grad_{name}"], GRADIENT)
        for name, tensor in inputs.items()
    ]
