"""OCRNetConfig: what it refuses, what it fills in, what it writes."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSemanticSegmentation, SwinConfig

from vss_hf.modeling.configuration_ocrnet import PRESETS, OCRNetConfig


TIMM = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3]}

# Swin backbone parameters in millions: fact sheet (measured on the official network) for L; Liu et al. 2021, Table 1,
# for T, S and B (28, 50, 88 M), minus the classifier: 768 or 1024 x 1000 + 1000.
SWIN_MILLIONS = {"tiny": 27.5, "small": 48.8, "base": 86.7, "large": 195.0}


@pytest.mark.parametrize(
    ("typo", "field"),
    [
        ("channel", "channels"),
        ("ocr_chanels", "ocr_channels"),
        ("auxilary_loss_weight", "auxiliary_loss_weight"),
        ("align_corner", "align_corners"),
        ("num_label", "num_labels"),
        ("backbone_cfg", "backbone_config"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_nearest_name(typo, field):
    with pytest.raises(ValueError, match=f"no field '{typo}'; did you mean '{field}'"):
        OCRNetConfig(backbone_config=TIMM, **{typo: 1})


def test_an_unknown_field_that_resembles_none_is_kept():
    # Folders may carry more than this version knows.
    assert OCRNetConfig(backbone_config=TIMM, temporal_window=3).to_dict()["temporal_window"] == 3


def test_a_misspelt_field_in_a_folder_is_refused_too(tmp_path):
    OCRNetConfig(backbone_config=TIMM).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["ocr_chanels"] = 128
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="ocr_channels"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"channels": 0}, "channels=0"),
        ({"ocr_channels": -1}, "ocr_channels=-1"),
        ({"coarse_channels": 0}, "coarse_channels=0"),
        ({"coarse_num_convs": 0}, "coarse_num_convs=0"),
        ({"coarse_kernel_size": 2}, "coarse_kernel_size=2"),
        ({"coarse_kernel_size": -1}, "coarse_kernel_size=-1"),
        ({"classifier_dropout": 1.0}, "classifier_dropout=1.0"),
        ({"classifier_dropout": -0.1}, "classifier_dropout=-0.1"),
        ({"auxiliary_loss_weight": -0.4}, "auxiliary_loss_weight=-0.4"),
        ({"ignore_index": 256}, "ignore_index=256"),
        ({"ignore_index": -100}, "ignore_index=-100"),
        ({"initializer_range": -0.01}, "initializer_range=-0.01"),
        ({"in_indices": [0, 3]}, r"in_indices=\[0, 3\].*0 to 2"),
        ({"in_indices": []}, r"in_indices=\[\]"),
        ({"coarse_in_indices": [-1]}, r"coarse_in_indices=\[-1\]"),
        ({"channels": "wide"}, "channels"),
        ({"in_indices": 1}, "in_indices"),
        ({"backbone_config": {"backbone": "resnet18"}}, "model_type"),
    ],
)
def test_values_out_of_range_are_refused(fields, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        OCRNetConfig(**{"backbone_config": TIMM, **fields})


def test_swin_tiny_is_the_default_backbone():
    config = OCRNetConfig()
    assert (config.backbone_config.model_type, config.backbone_config.embed_dim) == ("swin", 96)
    assert config.in_indices == config.coarse_in_indices == [0, 1, 2]
    assert config.num_labels == 2


@pytest.mark.parametrize("preset", [name for name in PRESETS if "swin" in name])
def test_presets_have_the_published_sizes(preset):
    size = preset.rsplit("-", 1)[1]
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(
            OCRNetConfig.from_preset(preset, id2label={i: str(i) for i in range(124)})
        )
    millions = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    assert millions == pytest.approx(SWIN_MILLIONS[size], abs=0.06)
    if size == "large":  # the fact sheet's OCR head 1024/512 with a 1x1 coarse head on 2688 channels
        heads = sum(p.numel() for m in (model.coarse_head, model.decode_head) for p in m.parameters()) / 1e6
        assert heads == pytest.approx(37.2, abs=0.05)


def test_presets_take_changes_and_refuse_unknown_names():
    config = OCRNetConfig.from_preset("ocrnet-swin-large", channels=256, id2label={0: "sky", 1: "sea", 2: "sand"})
    assert (config.channels, config.ocr_channels, config.num_labels) == (256, 512, 3)
    with pytest.raises(ValueError, match="'ocrnet-swin-huge'.*ocrnet-swin-large"):
        OCRNetConfig.from_preset("ocrnet-swin-huge")


@pytest.mark.parametrize("key", [int, str])
def test_label2id_follows_id2label(tmp_path, key):
    OCRNetConfig(backbone_config=TIMM, id2label={key(i): n for i, n in enumerate("abc")}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert saved["label2id"] == {"a": 0, "b": 1, "c": 2}
    # Another class list for an existing folder, as in fine-tuning.
    other = AutoConfig.from_pretrained(tmp_path, id2label={0: "sky", 1: "sea"})
    assert (other.num_labels, other.label2id) == (2, {"sky": 0, "sea": 1})
    counted = AutoConfig.from_pretrained(tmp_path, num_labels=4)
    assert counted.label2id == {f"LABEL_{i}": i for i in range(4)}


@pytest.mark.parametrize("backbone", ["swin", "resnet", "timm", "timm_dilated"])
def test_json_round_trip(tmp_path, tiny_ocrnet_config, backbone):
    config = tiny_ocrnet_config(backbone, coarse_num_convs=2, align_corners=True, classifier_dropout=0.1)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, OCRNetConfig)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.backbone_config.out_indices == config.backbone_config.out_indices
    assert "_commit_hash" not in (tmp_path / "config.json").read_text()


def test_a_backbone_config_object_may_be_given():
    swin = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], out_features=["stage1", "stage2"])
    config = OCRNetConfig(backbone_config=swin, in_indices=[0, 1])
    assert config.backbone_config is swin
    with pytest.raises(StrictDataclassError, match="0 to 1"):
        OCRNetConfig(backbone_config=swin)
