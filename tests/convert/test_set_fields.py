"""`vss-hf convert --set FIELD=VALUE`: checkpoints of other sizes than a preset's."""

import json
import re

import pytest
import torch
from transformers import AutoModel

from vss_hf.cli import main
from vss_hf.convert.checkpoint import with_fields
from vss_hf.modeling.architectures import config_from_preset, model_class
from vss_hf.modeling.configuration_st_ppm import STPPMConfig
from vss_hf.modeling.configuration_tmanet import TMANetConfig


RESNET = {
    "model_type": "vss_resnet",
    "stem": "3x3x3",
    "stem_channels": 8,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 20],
    "output_stride": 8,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
NARROW = {"backbone_config": RESNET, "channels": 8, "auxiliary_channels": 8}
# Our names in the order in which they become the reference's.
VSPW_NAMES = (
    (r"backbone\.conv1\.0\.", "encoder.conv1."),
    (r"backbone\.conv1\.1\.", "encoder.bn1."),
    (r"backbone\.conv1\.3\.", "encoder.conv2."),
    (r"backbone\.conv1\.4\.", "encoder.bn2."),
    (r"backbone\.conv1\.6\.", "encoder.conv3."),
    (r"backbone\.bn1\.", "encoder.bn3."),
    (r"backbone\.", "encoder."),
    (r"decode_head\.pools\.(\d)\.1\.", r"ppm_conv.ppm.\1."),
    (r"decode_head\.merge\.", "ppm_conv.conv_last_."),
    (r"decode_head\.classifier\.", "ppm_conv.conv_last_.4."),
    (r"auxiliary_head\.convs\.0\.", "deepsup."),
    (r"auxiliary_head\.classifier\.", "deepsup.4."),
    (r"frame_score\.", "pspweight_conv.0."),
)
TMANET_NAMES = (
    (r"backbone\.conv1\.(\d)\.", r"backbone.stem.\1."),
    (r"backbone\.bn1\.", "backbone.stem.7."),
    (r"decode_head\.memory_(\w+)\.(\d)\.(\d)\.0\.", r"decode_head.memory_\1_conv.\3.\2.conv."),
    (r"decode_head\.memory_(\w+)\.(\d)\.(\d)\.1\.", r"decode_head.memory_\1_conv.\3.\2.bn."),
    (r"decode_head\.query_(\w+)\.(\d)\.0\.", r"decode_head.query_\1_conv.\2.conv."),
    (r"decode_head\.query_(\w+)\.(\d)\.1\.", r"decode_head.query_\1_conv.\2.bn."),
    (r"decode_head\.merge\.0\.", "decode_head.bottleneck.conv."),
    (r"decode_head\.merge\.1\.", "decode_head.bottleneck.bn."),
    (r"auxiliary_head\.convs\.0\.0\.", "auxiliary_head.convs.0.conv."),
    (r"auxiliary_head\.convs\.0\.1\.", "auxiliary_head.convs.0.bn."),
    (r"(\w+_head)\.classifier\.", r"\1.conv_seg."),
)


def reference_file(path, config, names):
    """A new model of a configuration, and its tensors in a file under a reference's names."""
    model = model_class(config.model_type)(config).eval()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "frame_score.weight":
            tensor = tensor[:, :, None, None]  # a 1x1 convolution in the original
        for ours, theirs in names:
            renamed = re.sub(f"^{ours}", theirs, name)
            if renamed != name:
                name = renamed
                break
        tensors[name] = tensor.clone()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return model


def convert(path, source, arch, out, *settings):
    """The command's exit code."""
    words = [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(path), "--source", source, "--arch", arch, "--out", str(out), *words])
    return ended.value.code


def assert_same(folder, model):
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    clip = torch.randn(1, len(model.config.frame_offsets) + 1, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(loaded(clip).logits, model(clip).logits, rtol=1e-5, atol=1e-6)
    return loaded.config


def test_learned_frame_weights_of_vspw_baseline(tmp_path, monkeypatch, capsys):
    """psp_weight: a preset averages frames alike, and refuses the layer that it would drop."""
    monkeypatch.setitem(STPPMConfig.PRESETS, "st-ppm-resnet50", NARROW)
    config = STPPMConfig(**NARROW, frame_weights="published", id2label={i: str(i) for i in range(7)})
    model = reference_file(tmp_path / "psp.pth", config, VSPW_NAMES)
    assert convert(tmp_path / "psp.pth", "vspw_baseline", "st-ppm-resnet50", tmp_path / "plain") == 2
    assert "unexpected: pspweight_conv.0.weight" in capsys.readouterr().err and not (tmp_path / "plain").exists()
    settings = ("frame_weights=published", "frame_offsets=[-6, -3]")
    assert convert(tmp_path / "psp.pth", "vspw_baseline", "st-ppm-resnet50", tmp_path / "model", *settings) == 0
    converted = assert_same(tmp_path / "model", model)
    assert (converted.frame_weights, converted.frame_offsets, converted.num_labels) == ("published", [-6, -3], 7)
    origin = json.loads((tmp_path / "model/conversion.json").read_text())
    assert origin["fields"] == {"frame_weights": "published", "frame_offsets": [-6, -3]} and not origin["kept_new"]


def test_tmanet_of_other_widths_lengths_and_backbones(tmp_path, monkeypatch, capsys):
    narrow = {**NARROW, "key_channels": 4, "value_channels": 6}
    monkeypatch.setitem(TMANetConfig.PRESETS, "tmanet-resnet50", narrow)
    changes = {"key_channels": 5, "value_channels": 9, "frame_offsets": [-3, -1]}
    changes["backbone_config"] = {**RESNET, "depths": [1, 2, 1, 1]}
    model = reference_file(tmp_path / "t.pth", TMANetConfig(**{**narrow, **changes}, num_labels=3), TMANET_NAMES)
    settings = ["key_channels=5", "value_channels=9", "backbone_config.depths=[1,2,1,1]", "frame_offsets=[-3,-1]"]
    for missing in range(len(settings)):
        some = settings[:missing] + settings[missing + 1 :]
        assert convert(tmp_path / "t.pth", "tmanet", "tmanet-resnet50", tmp_path / "model", *some) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "does not fit TMANetForVideoSemanticSegmentation" in error
    assert convert(tmp_path / "t.pth", "tmanet", "tmanet-resnet50", tmp_path / "model", *settings) == 0
    assert assert_same(tmp_path / "model", model).backbone_config.depths == [1, 2, 1, 1]


@pytest.mark.parametrize(
    "settings, message",
    [
        (["frame_wieghts=published"], "vss_st_ppm has no field 'frame_wieghts'.*; did you mean 'frame_weights'?"),
        (["backbone_config.depth=[1]"], "has no field 'backbone_config.depth'.*; did you mean 'depths'?"),
        (["backbone_confg.depths=[1]"], "no field 'backbone_confg.depths'.*; did you mean 'backbone_config'?"),
        (["channels.width=1"], "vss_st_ppm has no field 'channels.width': there are none below 'channels'"),
        (["id2label={0: sky}"], "has no field 'id2label' that can be set"),
        (["frame_weights"], "--set frame_weights: expected FIELD=VALUE"),
        (["=3"], "--set =3: expected FIELD=VALUE"),
        (["channels=[1"], r"--set channels=\[1 is not valid YAML"),
        (["channels=8", "channels=9"], "--set channels=9: channels is already set"),
        (["frame_weights=softmax"], "frame_weights='softmax': expected one of"),
        (["channels=many"], "channels.*many"),
        (["backbone_config.hidden_sizes=[8, 8]"], "hidden_sizes=.*expected 4 widths"),
    ],
)
def test_what_cannot_be_set_is_one_line(tmp_path, capsys, settings, message):
    """Before the checkpoint is read."""
    assert convert(tmp_path / "no.pth", "vspw_baseline", "st-ppm-resnet50", tmp_path / "model", *settings) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
    assert not (tmp_path / "model").exists()


def test_other_fields_stay():
    config = config_from_preset(
        "tmanet-resnet50", frame_offsets=[-2], clip_start="mirror", id2label={0: "sky", 1: "sea"}
    )
    changed = with_fields(
        config,
        {"channels": 64, "backbone_config.out_features": ["stage3", "stage4"], "in_index": 1, "auxiliary_in_index": 0},
    )
    assert type(changed) is TMANetConfig and type(changed.backbone_config) is type(config.backbone_config)
    assert changed.backbone_config.out_indices == [3, 4]
    ours, before = changed.to_dict(), config.to_dict()
    assert {name for name in ours if ours[name] != before[name]} == {
        "channels",
        "backbone_config",
        "in_index",
        "auxiliary_in_index",
    }
    assert config.channels == 512 and config.backbone_config.out_indices == [1, 2, 3, 4]
