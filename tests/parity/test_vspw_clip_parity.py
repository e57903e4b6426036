"""ST-PPM and TCB-OCR against the numbers of VSPW_baseline's clip models (../shared/parity/07_vspw_clip)."""

import gzip
import json

import pytest
import torch
from fixture_cases import GRADIENT, LOSS_RTOL, PARITY, compare, compare_largest, vspw_encoder_fields
from safetensors.torch import load_file
from torch.nn import functional as F

from vss_hf.convert import load_reference_state_dict
from vss_hf.modeling.architectures import config_from_preset, model_class
from vss_hf.modeling.configuration_st_ppm import STPPMConfig
from vss_hf.modeling.configuration_tcb_ocr import TCBOCRConfig


CASES = sorted(PARITY.glob("07_vspw_clip/clip_*"))
MANIFESTS = PARITY / "15_key_manifests"


def st_ppm_config(weights, case):
    return STPPMConfig(
        backbone_config=vspw_encoder_fields(weights),
        channels=weights["ppm_conv.conv_last_.0.weight"].shape[0],
        auxiliary_channels=weights["deepsup.0.weight"].shape[0],
        frame_weights="published" if case["args"]["psp_weight"] else None,
        frame_offsets=list(range(-case["clip_num"], 0)),
        id2label={i: str(i) for i in range(case["num_class"])},
    )


def tcb_ocr_config(weights, case):
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


def build(folder):
    """The case, its tensors, and our model with the reference's weights in eval mode."""
    case = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    config = (st_ppm_config if "ppm_conv.conv_last_.0.weight" in weights else tcb_ocr_config)(weights, case)
    model = model_class(config.model_type)(config).eval()
    report = load_reference_state_dict(model, weights, "vspw_baseline")
    assert set(report.loaded) == set(model.state_dict()) and not report.kept
    return case, load_file(folder / "tensors.safetensors"), model


def read_clips(case, tensors):
    """The clips of each call, the labelled frame last: (batch, num_frames, 3, height, width)."""
    calls = sum(f"call{i}_frame0" in tensors for i in range(99))
    frames = range(case["clip_num"] + 1)
    return [torch.stack([tensors[f"call{call}_frame{i}"] for i in frames], dim=1) for call in range(calls)]


def memory_outputs(model, clips, memory_num):
    """Evaluation with the reference's memory: regions of the first clip, whose list no later call changes.

    The reference means to keep the latest regions, drops down to `memory_num` of them before it appends one, and loses
    what it appends from the second call on. `frame_offsets=list(range(-memory_num, 0))` is what it means.
    """
    kept, logits = [], []
    for clip in clips:
        frames = model.describe(list(model.encode(clip.flatten(0, 1)).feature_maps), False)
        regions = frames.memory[0].unflatten(0, clip.shape[:2])
        memory = list(kept)
        for index in range(clip.shape[1]):
            memory = [*memory[max(len(memory) - memory_num, 0) :], regions[:, index]]
        kept = kept or memory
        current = tuple(part.unflatten(0, clip.shape[:2])[:, -1] for part in frames.current)
        logits.append(model.decode_clip(current, (torch.stack(memory, dim=1),)))
    return logits


@pytest.mark.skipif(not CASES, reason=f"no reference numbers at {PARITY / '07_vspw_clip'}")
@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_equals_the_original(folder):
    case, tensors, model = build(folder)
    clips = read_clips(case, tensors)
    with torch.no_grad():
        outputs = [model(clip, output_auxiliary_logits=True) for clip in clips]
        logits = [output.logits for output in outputs]
        if case["args"]["use_memory"]:
            logits = memory_outputs(model, clips, case["args"]["memory_num"])
    rows = []
    for call, ours in enumerate(logits):
        upsampled = F.interpolate(ours, size=clips[call].shape[-2:], mode="bilinear").softmax(dim=1)
        ours = {"logits": ours, "probs_upsampled_s3": upsampled[..., ::3, ::3]}
        expected = {name: tensors[f"call{call}_{name}"] for name in ours if f"call{call}_{name}" in tensors}
        assert expected
        rows += [compare(f"call{call}_{name}", ours[name], tensor) for name, tensor in expected.items()]
    if "aux_logits_all_frames" in tensors:  # the batches of the frames one after the other
        ours = outputs[0].auxiliary_logits[0].transpose(0, 1).flatten(0, 1)
        rows.append(compare("aux_logits_all_frames", ours, tensors["aux_logits_all_frames"]))
    if "train_loss" in tensors:
        rows.append(compare_loss(model, outputs[0], tensors, case))
    rows += compare_gradients(model, clips[0], tensors)
    assert [row for row in rows if not row.equal] == []


def compare_loss(model, output, tensors, case):
    """The reference's loss by its own formula, on our logits: log-probabilities are upsampled, not logits.

    Ours, cross entropy of upsampled logits, is what the same project trains its single-frame models with.
    """
    others = [tensors[f"clip_label{i}"] for i in range(case["clip_num"])]
    labels = torch.stack([*others, tensors["label"]], dim=1)[:, :, 0].long()

    def nll(logits, labels):
        log_probabilities = F.interpolate(logits.log_softmax(dim=1), size=labels.shape[-2:], mode="bilinear")
        return F.nll_loss(log_probabilities, labels, ignore_index=255)

    auxiliary = nll(output.auxiliary_logits[0].flatten(0, 1), labels.flatten(0, 1))
    loss = nll(output.logits, labels[:, -1]) + model.config.auxiliary_loss_weight * auxiliary
    loss, expected = loss.reshape(1), tensors["train_loss"]
    return compare_largest("train_loss", loss, expected, LOSS_RTOL)


def compare_gradients(model, clip, tensors):
    """The gradients of sum(logits * grad_out) by every frame of the first call."""
    if "grad_out" not in tensors:
        return []
    clip = clip.clone().requires_grad_()
    (model(clip).logits * tensors["grad_out"]).sum().backward()
    frames = {name: int(name.removeprefix("grad_frame")) for name in tensors if name.startswith("grad_frame")}
    assert frames
    return [compare_largest(name, clip.grad[:, i], tensors[name], GRADIENT) for name, i in frames.items()]


FULL_SIZE = {
    **{f"vspw_clip_psp_r{depth}": (f"st-ppm-resnet{depth}", {"frame_weights": "published"}) for depth in (50, 101)},
    **{f"vspw_clip_ocr_r{depth}": (f"tcb-ocr-resnet{depth}", {}) for depth in (50, 101)},
}


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"key manifests not found at {MANIFESTS}")
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_checkpoints_convert_completely(name):
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt") as file:
        tensors = {key: torch.empty(shape, device="meta") for key, shape in json.load(file).items()}
    preset, fields = FULL_SIZE[name]
    config = config_from_preset(preset, id2label={i: str(i) for i in range(124)}, **fields)
    with torch.device("meta"):
        model = model_class(config.model_type)(config)
    report = load_reference_state_dict(model, tensors, "vspw_baseline")
    assert set(report.loaded) == set(model.state_dict()) and not report.kept
    # Convolutions before a BatchNorm have no bias here; the BatchNorm's mean takes it over.
    assert all(key.endswith(".bias") for key in report.unused) and len(report.unused) == (9 if "ocr" in name else 0)
    count = json.loads((MANIFESTS / "index.json").read_text())[name]["n_params"]
    assert sum(p.numel() for p in model.parameters()) == count - sum(tensors[key].numel() for key in report.unused)


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"key manifests not found at {MANIFESTS}")
def test_learned_frame_weights_are_never_dropped():
    with gzip.open(MANIFESTS / "vspw_clip_psp_r50.json.gz", "rt") as file:
        tensors = {key: torch.empty(shape, device="meta") for key, shape in json.load(file).items()}
    config = config_from_preset("st-ppm-resnet50", id2label={i: str(i) for i in range(124)})
    with torch.device("meta"):
        model = model_class(config.model_type)(config)
    with pytest.raises(ValueError, match="unexpected: pspweight_conv.0.weight"):
        load_reference_state_dict(model, tensors, "vspw_baseline")
