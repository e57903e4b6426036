"""An official checkpoint file becomes a model folder: through the command that a user types."""

import hashlib
import json
import re

import pytest
import torch
from safetensors.torch import save_file
from test_mmseg import reference_state_dict
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from vss_hf.cli import main
from vss_hf.convert import checkpoint as module
from vss_hf.convert import read_reference_file
from vss_hf.hub_cards.card import render_card
from vss_hf.modeling import backbone_presets
from vss_hf.modeling.backbone import build_backbone, load_backbone_weights
from vss_hf.modeling.backbone_presets import backbone_fields
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.configuration_segmenter import backbone_config_from_dict


@pytest.fixture
def reference(monkeypatch, tiny_ocrnet_config):
    """Tensors under mmsegmentation's names; the preset is a tiny one here."""
    fields = tiny_ocrnet_config("swin").to_dict()
    fields = {k: fields[k] for k in ("backbone_config", "in_indices", "channels", "ocr_channels", "coarse_channels")}
    monkeypatch.setitem(OCRNetConfig.PRESETS, "ocrnet-swin-tiny", fields)
    return reference_state_dict(num_labels=5)


def convert(path, tmp_path, *more):
    out = tmp_path / "model"
    main(["convert", str(path), "--source", "mmseg", "--arch", "ocrnet-swin-tiny", "--out", str(out), *more])
    return out


@pytest.mark.parametrize("kind", ["mmseg file", "data parallel", "safetensors"])
def test_a_checkpoint_becomes_a_folder(reference, tmp_path, kind, capsys):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "iter_160000.pth")
    if kind == "safetensors":
        save_file(reference, path)
    elif kind == "mmseg file":
        torch.save({"meta": {"epoch": 3}, "state_dict": reference}, path)
    else:
        torch.save({f"module.{name}": tensor for name, tensor in reference.items()}, path)
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["sky", "sea", "sand", "tree", "road"]))
    with pytest.raises(SystemExit) as ended:
        convert(path, tmp_path, "--class-names", str(names))
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "not used: 6 tensors, computed from the window size: backbone.stages.0." in said
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert model.config.id2label == {0: "sky", 1: "sea", 2: "sand", 3: "tree", 4: "road"}
    assert torch.equal(model.decode_head.classifier.bias, reference["decode_head.1.conv_seg.bias"])
    origin = json.loads((tmp_path / "model/conversion.json").read_text())
    assert (origin["checkpoint"], origin["source"], len(origin["not_used"])) == (path.name, "mmseg", 6)
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    card = render_card(tmp_path / "model")
    assert f"converted from `{path.name}` (mmseg; SHA-256 {origin['sha256']})" in card and str(tmp_path) not in card
    mean = AutoImageProcessor.from_pretrained(tmp_path / "model").image_mean
    assert list(mean) == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class-names", "two.json"], "the classifier has 5 classes, but 2 names are given"),
        (["--arch", "ocrnet-swin-tyni"], "architecture 'ocrnet-swin-tyni' is not known; did you mean 'ocrnet-swin-t"),
        (["--source", "detectron"], "no converter from 'detectron' to vss_ocrnet; known sources: .*mmseg"),
        (["--class-names", "torn.json"], r"torn\.json: not valid JSON"),
        (["--class-names", "twins.json"], r"twins\.json: names 'sea' more than once"),
        (["--out", "full"], "full is already there and not empty; give another folder"),
        (["--out", "weights.pth"], r"weights\.pth is already there"),
    ],
)
def test_bad_input_is_one_line(reference, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.json").write_text('["a", "b"]')
    (tmp_path / "torn.json").write_text('["a", ')
    (tmp_path / "twins.json").write_text('["sky", "sea", "sand", "sea", "road"]')
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.safetensors").write_bytes(b"somebody's weights")
    torch.save({"state_dict": reference}, "weights.pth")
    with pytest.raises(SystemExit) as ended:
        convert("weights.pth", tmp_path, *more)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob("*.part"))
    assert (tmp_path / "full/model.safetensors").read_bytes() == b"somebody's weights"


def test_a_full_disk_leaves_nothing_half(reference, tmp_path, small_disk, capsys):
    big = {**reference, "decode_head.1.bottleneck.conv.weight": torch.zeros(16, 56, 3, 3)}
    torch.save({"state_dict": big}, tmp_path / "weights.pth")
    (small_disk / "filled").write_bytes(bytes(1000 * 2**10))
    with pytest.raises(SystemExit) as ended:
        convert(tmp_path / "weights.pth", tmp_path, "--out", str(small_disk / "model"))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "no space left on the disk" in error and "model" in error, error
    assert [path.name for path in small_disk.iterdir()] == ["filled"]


def test_what_a_killed_process_left_is_replaced(reference, tmp_path):
    torch.save({"state_dict": reference}, tmp_path / "weights.pth")
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part/model.safetensors").write_bytes(b"half")
    with pytest.raises(SystemExit) as ended:
        convert(tmp_path / "weights.pth", tmp_path)
    assert ended.value.code == 0 and not (tmp_path / "model.part").exists()
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")


def test_a_damaged_pickle_is_named_once(tmp_path):
    (tmp_path / "model_final.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(ValueError, match="model_final.pkl: refused") as caught:
        read_reference_file(tmp_path / "model_final.pkl")
    assert str(caught.value).count("model_final.pkl") == 1


def test_an_mmsegmentation_configuration_instead_of_a_preset(tmp_path):
    """As `Config.fromfile(path).dump("config.json")` writes it: the model beside settings of data and schedule."""
    swin = dict(
        type="SwinTransformer", embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4], window_size=4,
        out_indices=[0, 1, 2], strides=[4, 2, 2, 2], patch_size=4,
    )  # fmt: skip
    reads = dict(in_channels=[8, 16, 32], in_index=[0, 1, 2], input_transform="resize_concat", num_classes=5)
    reads |= dict(dropout_ratio=-1)
    coarse = dict(type="FCNHead", channels=12, kernel_size=1, num_convs=1, concat_input=False, **reads)
    ocr = dict(type="OCRHead", channels=16, ocr_channels=8, **reads)
    model = dict(type="CascadeEncoderDecoder", num_stages=2, backbone=swin, decode_head=[coarse, ocr])
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": model, "data": {"samples_per_gpu": 2}}))
    weights = reference_state_dict(heads=(1, 2, 2, 4))
    weights = {name: t for name, t in weights.items() if not name.startswith("backbone.norm3")}
    read = 8 + 16 + 32
    for name in ("decode_head.0.convs.0.conv.weight", "decode_head.1.bottleneck.conv.weight"):
        weights[name] = weights[name][:, :read]
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    converted = module.convert_checkpoint(tmp_path / "weights.pth", "mmseg", str(path), tmp_path / "model")
    assert converted.num_labels == 5 and not converted.report.kept
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.decode_head.classifier.bias, weights["decode_head.1.conv_seg.bias"])


def test_a_backbone_alone(monkeypatch, tmp_path):
    """A classifier's checkpoint in Microsoft's names becomes a folder that a model starts from."""
    tiny = dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4)
    monkeypatch.setitem(backbone_presets.SIZES, "swin-tiny", tiny)
    features = dict(out_features=["stage1", "stage2"])
    monkeypatch.setattr(module, "backbone_fields", lambda name: backbone_fields(name, **features))
    config = backbone_config_from_dict(backbone_fields("swin-tiny", **features))
    backbone = build_backbone(config)
    inverse = {
        "swin.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "swin.embeddings.norm": "patch_embed.norm",
        "swin.encoder.layers": "layers",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    }
    original, own = {}, dict(backbone.state_dict())
    for name, tensor in own.items():
        if "hidden_states_norms" in name or ".k_proj." in name or ".v_proj." in name or "index" in name:
            continue
        reference_name = name
        for ours, theirs in inverse.items():
            reference_name = reference_name.replace(ours, theirs)
        if ".q_proj." in name:
            parts = [own[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensor, reference_name = torch.cat(parts), reference_name.replace("attention.q_proj", "attn.qkv")
        original[reference_name] = tensor.clone()
    original |= {"head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3)}
    torch.save({"model": original}, tmp_path / "swin.pth")
    converted = module.convert_checkpoint(tmp_path / "swin.pth", "microsoft", "swin-tiny", tmp_path / "backbone")
    assert set(converted.report.unused) == {"head.weight", "head.bias"}
    assert all("norms" in name for name in converted.report.kept)

    other = build_backbone(config)
    load_backbone_weights(other, str(tmp_path / "backbone"))
    pixels = torch.randn(1, 3, 33, 47)
    for ours, theirs in zip(other.eval()(pixels).feature_maps, backbone.eval()(pixels).feature_maps, strict=True):
        assert torch.equal(ours, theirs)
