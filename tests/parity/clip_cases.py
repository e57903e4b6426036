"""ST-PPM and TCB-OCR against the numbers of VSPW_baseline's clip models."""

from pathlib import Path
from typing import Any

import torch
from fixture_cases import vspw_encoder_fields
from rows import GRADIENT, LOSS_RTOL, Row, compare, compare_largest, part, read_case, read_weights
from torch.nn import functional as F

from vss_hf.convert import load_reference_state_dict
from vss_hf.modeling.architectures import model_class
from vss_hf.modeling.configuration_st_ppm import STPPMConfig
from vss_hf.modeling.configuration_tcb_ocr import TCBOCRConfig


def compare_clips(folder: Path) -> list[Row]:
    """The outputs of every call, the loss, and the gradients by every frame of the first call."""
    case, tensors = read_case(folder)
    model = build_clip_model(case, read_weights(folder))
    clips = read_clips(case, tensors)
    with torch.no_grad():
        outputs = [model(clip, output_auxiliary_logits=True) for clip in clips]
        logits = [output.logits for output in outputs]
        if case["args"]["use_memory"]:
            logits = memory_outputs(model, clips, case["args"]["memory_num"])
    rows = []
    for call, ours in enumerate(logits):
        rows += compare_call(f"call{call}_", ours, clips[call].shape[-2:], tensors)
    if "aux_logits_all_frames" in tensors:  # the batches of the frames one after the other
        ours = outputs[0].auxiliary_logits[0].transpose(0, 1).flatten(0, 1)
        rows.append(compare("aux_logits_all_frames", ours, tensors["aux_logits_all_frames"]))
    if "train_loss" in tensors:
        rows.append(compare_clip_loss(model, outputs[0], tensors, case))
    return rows + compare_clip_gradients(model, clips[0], tensors)


def build_clip_model(case: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """Our model with the reference's weights in eval mode."""
    config = (st_ppm_config if "ppm_conv.conv_last_.0.weight" in weights else tcb_ocr_config)(weights, case)
    model = model_class(config.model_type)(config).eval()
    report = load_reference_state_dict(model, weights, "vspw_baseline")
    assert set(report.loaded) == set(model.state_dict()) and not report.kept
    return model


def st_ppm_config(weights: dict[str, torch.Tensor], case: dict[str, Any]) -> STPPMConfig:
    return STPPMConfig(
        backbone_config=vspw_encoder_fields(weights),
        channels=weights["ppm_conv.conv_last_.0.weight"].shape[0],
        auxiliary_channels=weights["deepsup.0.weight"].shape[0],
        frame_weights="published" if case["args"]["psp_weight"] else None,
        frame_offsets=list(range(-case["clip_num"], 0)),
        id2label={i: str(i) for i in range(case["num_class"])},
    )


def tcb_ocr_config(weights: dict[str, torch.Tensor], case: dict[str, Any]) -> TCBOCRConfig:
    return TCBOCRConfig(
        backbone_config=vspw_encoder_fields(weights),
        in_indices=[3],
        coarse_in_indices=[2],
        channels=weights["conv_3x3.0.weight"].shape[0],
        ocr_channels=weights["spatial_ocr_head.object_context_block.f_down.0.weight"].shape[0],
        coarse_channels=weights["dsn_head.0.weight"].shape[0],
        coarse_kernel_size=3,
        frame_offsets=list(range(-case["clip_num"], 0)),
        id2label={i: str(i) for i in range(case["num_class"])},
    )


def read_clips(case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The clips of each call, the labelled frame last: (batch, num_frames, 3, height, width)."""
    calls = sum(f"call{i}_frame0" in tensors for i in range(99))
    frames = range(case["clip_num"] + 1)
    return [torch.stack([tensors[f"call{call}_frame{i}"] for i in frames], dim=1) for call in range(calls)]


def memory_outputs(model: Any, clips: list[torch.Tensor], memory_num: int) -> list[torch.Tensor]:
    """Evaluation with the reference's memory: regions of the first clip, whose list no later call changes.

    The reference means to keep the latest regions, drops down to `memory_num` of them before it appends one, and loses
    what it appends from the second call on. `frame_offsets=list(range(-memory_num, 0))` is what it means.
    """
    kept, logits = [], []
    for clip in clips:
        _, frames, of_clip = model.describe_clip(clip)
        memory = list(kept)
        for regions in of_clip:
            memory = [*memory[max(len(memory) - memory_num, 0) :], regions]
        kept = kept or memory
        logits.append(model.decode_clip(tuple(maps[:, -1] for maps in frames.current), memory))
    return logits


def compare_call(prefix: str, logits: torch.Tensor, size: torch.Size, tensors: dict[str, torch.Tensor]) -> list[Row]:
    """The logits of one call, and the probabilities at full size."""
    upsampled = F.interpolate(logits, size=size, mode="bilinear").softmax(dim=1)
    ours = {"logits": logits, "probs_upsampled_s3": upsampled[..., ::3, ::3]}
    rows = [compare(prefix + name, ours[name], t) for name, t in part(tensors, prefix).items() if name in ours]
    assert rows, prefix
    return rows


def compare_clip_loss(model: Any, output: Any, tensors: dict[str, torch.Tensor], case: dict[str, Any]) -> Row:
    """The reference's loss by its own formula, on our logits: log-probabilities are upsampled, not logits.

    Ours, cross entropy of upsampled logits, is what the same project trains its single-frame models with.
    """
    others = [tensors[f"clip_label{i}"] for i in range(case["clip_num"])]
    labels = torch.stack([*others, tensors["label"]], dim=1)[:, :, 0].long()

    def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        log_probabilities = F.interpolate(logits.log_softmax(dim=1), size=labels.shape[-2:], mode="bilinear")
        return F.nll_loss(log_probabilities, labels, ignore_index=255)

    auxiliary = nll(output.auxiliary_logits[0].flatten(0, 1), labels.flatten(0, 1))
    loss = nll(output.logits, labels[:, -1]) + model.config.auxiliary_loss_weight * auxiliary
    return compare_largest("train_loss", loss.reshape(1), tensors["train_loss"], LOSS_RTOL)


def compare_clip_gradients(model: Any, clip: torch.Tensor, tensors: dict[str, torch.Tensor]) -> list[Row]:
    """The gradients of sum(logits * grad_out) by every frame."""
    if "grad_out" not in tensors:
        return []
    clip = clip.clone().requires_grad_()
    (model(clip).logits * tensors["grad_out"]).sum().backward()
    assert clip.grad is not None
    return [
        compare_largest(f"grad_frame{i}", clip.grad[:, int(i)], tensor, GRADIENT)
        for i, tensor in part(tensors, "grad_frame").items()
    ]
