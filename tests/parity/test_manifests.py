"""Names and shapes of full-size checkpoints: all key manifests of ../shared/parity convert, on the meta device.

A manifest holds key -> shape of a reference model with 124 classes; index.json tells its number of parameters.
"""

import gzip
import json
import re

import pytest
import torch
from rows import PARITY

from vss_hf.convert import load_reference_state_dict
from vss_hf.modeling.architectures import ALL, config_from_preset, configuration_class, model_class
from vss_hf.modeling.backbone_presets import backbone_fields, known_backbones


FOLDER = PARITY / "15_key_manifests"
INDEX = json.loads((FOLDER / "index.json").read_text()) if FOLDER.is_dir() else {}
NAMES = {i: str(i) for i in range(124)}
SIZES = {"t": "tiny", "b": "base", "l": "large", "xl": "xlarge"}

# manifest -> (source, preset or model type or backbone, fields beside)
MODELS = {
    **{f"mmseg_upernet_swin_{s}": ("mmseg", f"upernet-swin-{SIZES[s[0]]}", {}) for s in ("t", "b_w12", "l_w12")},
    **{f"mmseg_upernet_convnext_{s}": ("mmseg", f"upernet-convnext-{SIZES[s]}", {}) for s in SIZES},
    **{f"internimage_{s}_upernet": ("mmseg", f"upernet-internimage-{s}", {}) for s in "t s b l xl h g".split()},
    "mmseg_upernet_r50": ("mmseg", "upernet-resnet50", {}),
    "mmseg_ocrnet_hr18": ("mmseg", "ocrnet-hrnet-w18", {}),
    "mmseg_ocrnet_hr48": ("mmseg", "ocrnet-hrnet-w48", {}),
    "mmseg_ocrnet_r101_d8": ("mmseg", "ocrnet-resnet101", {}),
    "mmseg_pspnet_r50_d8": ("mmseg", "pspnet-resnet50", {}),
    "mmseg_deeplabv3_r50_d8": ("mmseg", "deeplabv3-resnet50", {}),
    "mmseg_deeplabv3plus_r101_d8": ("mmseg", "deeplabv3plus-resnet101", {}),
    "mmseg_semfpn_r50": ("mmseg", "semantic-fpn-resnet50", {}),
    "mmseg_segformer_b2": ("mmseg", "segformer-b2", {}),
    "mmseg_segformer_b5": ("mmseg", "segformer-b5", {}),
    "mmseg_bisenetv1_r18": ("mmseg", "bisenet-resnet18", {}),
    "mmseg_bisenetv1_r50": ("mmseg", "bisenet-resnet50", {}),
    **{f"volo_d{i}": ("volo", f"volo-d{i}", {"image_size": 224}) for i in range(1, 6)},
    **{f"vspw_ppm_deepsup_r{d}": ("vspw_baseline", f"pspnet-resnet{d}-vspw", {}) for d in (50, 101)},
    **{f"vspw_ocrnet_r{d}": ("vspw_baseline", f"ocrnet-resnet{d}-vspw", {}) for d in (50, 101)},
    **{
        f"vspw_clip_psp_r{d}": ("vspw_baseline", f"st-ppm-resnet{d}", {"frame_weights": "published"})
        for d in (50, 101)
    },
    **{f"vspw_clip_ocr_r{d}": ("vspw_baseline", f"tcb-ocr-resnet{d}", {}) for d in (50, 101)},
    "cascadepsp_refinement": ("cascadepsp", "vss_cascade_psp", {}),
}
# source -> what stands before the names of the backbone
BACKBONE_PREFIXES = {"mmseg": "backbone.", "vspw_baseline": "encoder."}
NO_PARAMETER = r".*\.(relative_position_index|running_mean|running_var|num_batches_tracked)"

pytestmark = pytest.mark.skipif(not INDEX, reason=f"no key manifests at {FOLDER}")


def manifest(name):
    """The reference's names with meta tensors of its shapes."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        return {key: torch.empty(shape, device="meta") for key, shape in json.load(file).items()}


def build(name, **fields):
    """Our model or backbone on the meta device."""
    if name in ALL:
        config = configuration_class(name)(**fields)
    elif name in known_backbones():
        fields = {**backbone_fields(name), **fields}
        config = configuration_class(fields.pop("model_type"))(**fields)
    else:
        config = config_from_preset(name, id2label=NAMES, **fields)
    with torch.device("meta"):
        return model_class(config.model_type)(config)


def parameters(tensors):
    """How many parameters a state dict has."""
    return sum(tensor.numel() for name, tensor in tensors.items() if not re.fullmatch(NO_PARAMETER, name))


@pytest.mark.parametrize("name", INDEX)
def test_full_size_checkpoint_converts_completely(name):
    assert name in MODELS, f"no model of ours for the manifest {name}"
    source, preset, fields = MODELS[name]
    reference, model = manifest(name), build(preset, **fields)
    report = load_reference_state_dict(model, reference, source)
    # Every tensor of ours is filled, every one of theirs is used or named with the reason why not.
    assert set(report.loaded) == set(model.state_dict()) and not report.kept
    assert all(report.unused.values()) and set(report.unused) < set(reference)
    unused = parameters({key: reference[key] for key in report.unused})
    assert sum(p.numel() for p in model.parameters()) == INDEX[name]["n_params"] - unused
    # Only buffers, biases that a BatchNorm takes over, and VOLO's classifier have no place.
    if source in ("mmseg", "cascadepsp"):
        assert unused == 0
    elif source == "vspw_baseline":
        assert all(key.endswith(".bias") for key in report.unused)
        assert len(report.unused) == (9 if "_ocr" in name else 0)
    if source in BACKBONE_PREFIXES:
        load_backbone_alone(model, reference, source)


def load_backbone_alone(model, reference, source):
    """The model's backbone takes its part of the checkpoint by itself."""
    prefix = BACKBONE_PREFIXES[source] + ("context_path.backbone." if model.config.model_type == "vss_bisenet" else "")
    part = {key.removeprefix(prefix): tensor for key, tensor in reference.items() if key.startswith(prefix)}
    report = load_reference_state_dict(model.backbone, part, source)
    assert set(report.loaded) == set(model.backbone.state_dict()) and not report.kept
    assert all(re.fullmatch(NO_PARAMETER, key) for key in report.unused)


def test_cascadepsp_with_the_prefix_of_its_file():
    reference = {f"module.{key}": tensor for key, tensor in manifest("cascadepsp_refinement").items()}
    model = build("vss_cascade_psp")
    report = load_reference_state_dict(model, reference, "cascadepsp")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept


def test_learned_frame_weights_are_never_dropped():
    reference, model = manifest("vspw_clip_psp_r50"), build("st-ppm-resnet50")  # which averages all frames alike
    with pytest.raises(ValueError, match="unexpected: pspweight_conv.0.weight"):
        load_reference_state_dict(model, reference, "vspw_baseline")
