"""ResNet and HRNet against mmsegmentation's own numbers (../shared/parity, README.md there).

Every folder of 03_cnn_heads whose backbone is one of ours is a case; configurations are read from its config.json.
Tolerances are that README's: the references' fp32 noise is below 7e-6, the smallest known mistake moves maps by 3e-3.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_config import RESNET_TYPES, mmseg_hrnet_config, mmseg_resnet_config
from vss_hf.modeling.configuration_hrnet import HRNET_SIZES, HRNetConfig
from vss_hf.modeling.configuration_resnet import RESNET_SIZES, DilatedResNetConfig
from vss_hf.modeling.modeling_hrnet import HRNetBackbone
from vss_hf.modeling.modeling_resnet import DilatedResNetBackbone


PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"
MANIFESTS = PARITY / "15_key_manifests"
BUILDERS = {
    **dict.fromkeys(RESNET_TYPES, lambda backbone: DilatedResNetBackbone(mmseg_resnet_config(backbone))),
    "HRNet": lambda backbone: HRNetBackbone(mmseg_hrnet_config(backbone)),
}

needs_manifests = pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"key manifests not found at {MANIFESTS}")


def settings_of(folder):
    return json.loads((folder / "config.json").read_text()).get("mmseg_cfg", {})


CASES = sorted(
    path.parent
    for path in PARITY.glob("03_cnn_heads/*/config.json")
    if settings_of(path.parent).get("backbone", {}).get("type") in BUILDERS
)


def part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.skipif(not CASES, reason=f"reference numbers not found at {PARITY}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_feature_maps(case):
    settings = settings_of(case)
    model = BUILDERS[settings["backbone"]["type"]](settings["backbone"]).eval()
    report = load_reference_state_dict(model, part(load_file(case / "weights.safetensors"), "backbone."), "mmseg")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused
    tensors = load_file(case / "tensors.safetensors")
    for pixels, prefix in ((tensors["input"], ""), (torch.zeros(1, 3, 64, 96), "zero_image_64x96_")):
        with torch.no_grad():
            maps = model(pixels).feature_maps
        assert len(maps) == 4 and all(m.isfinite().all() for m in maps)
        if "neck" in settings:
            continue  # its maps are those after the neck, which the heads' tests compare
        for index, feature_map in enumerate(maps):
            if f"{prefix}feat{index}" in tensors:
                torch.testing.assert_close(feature_map, tensors[f"{prefix}feat{index}"], rtol=1e-4, atol=2e-5)


def manifest(name, prefix):
    """Reference names and meta tensors of the shapes in a key manifest."""
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt") as file:
        return part({key: torch.empty(shape, device="meta") for key, shape in json.load(file).items()}, prefix)


def csail(name):
    return DilatedResNetConfig(**RESNET_SIZES[f"{name}c"], stem_channels=128, output_stride=8)


def dilated(name):
    return DilatedResNetConfig(**RESNET_SIZES[f"{name}c"], output_stride=8)


FULL_SIZES = [
    ("mmseg", "mmseg_ocrnet_hr18", lambda: HRNetConfig(**HRNET_SIZES["hrnet-w18"])),
    ("mmseg", "mmseg_ocrnet_hr48", lambda: HRNetConfig(**HRNET_SIZES["hrnet-w48"])),
    ("mmseg", "mmseg_ocrnet_r101_d8", lambda: dilated("resnet101")),
    ("mmseg", "mmseg_pspnet_r50_d8", lambda: dilated("resnet50")),
    ("mmseg", "mmseg_deeplabv3_r50_d8", lambda: dilated("resnet50")),
    ("mmseg", "mmseg_deeplabv3plus_r101_d8", lambda: dilated("resnet101")),
    ("mmseg", "mmseg_semfpn_r50", lambda: DilatedResNetConfig(**RESNET_SIZES["resnet50c"])),
    ("mmseg", "mmseg_upernet_r50", lambda: DilatedResNetConfig(**RESNET_SIZES["resnet50c"])),
    ("vspw_baseline", "vspw_ppm_deepsup_r50", lambda: csail("resnet50")),
    ("vspw_baseline", "vspw_ppm_deepsup_r101", lambda: csail("resnet101")),
    ("vspw_baseline", "vspw_ocrnet_r50", lambda: csail("resnet50")),
    ("vspw_baseline", "vspw_ocrnet_r101", lambda: csail("resnet101")),
    ("vspw_baseline", "vspw_clip_psp_r50", lambda: csail("resnet50")),
    ("vspw_baseline", "vspw_clip_ocr_r101", lambda: csail("resnet101")),
]


@needs_manifests
@pytest.mark.parametrize(("source", "name", "config"), FULL_SIZES, ids=[name for _, name, _ in FULL_SIZES])
def test_names_and_shapes_of_full_size_checkpoints(source, name, config):
    config = config()
    with torch.device("meta"):
        model = (HRNetBackbone if config.model_type == "vss_hrnet" else DilatedResNetBackbone)(config)
    reference = manifest(name, "backbone." if source == "mmseg" else "encoder.")
    report = load_reference_state_dict(model, reference, source)
    assert set(report.loaded) == set(model.state_dict()) and len(report.loaded) == len(reference)
    assert not report.unused and not report.kept
