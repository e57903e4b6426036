"""Exported graphs give what the model gives, at any size; what cannot be exported says why."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from page_blocks import page_blocks
from PIL import Image
from test_docs import run_python
from test_every_architecture import FOUR_MAPS, NAMES, TINY, build
from test_volo import SMALL as SMALL_VOLO
from test_volo import TAPS
from tiny_models import moving_frames, write_video
from tiny_video_models import TINY as VIDEO
from torch.nn import functional as F
from torchvision.ops import deform_conv2d
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSemanticSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from vss_hf import export
from vss_hf.cli import main
from vss_hf.export import export_model
from vss_hf.modeling.architectures import BACKBONES, MODELS, REFINERS
from vss_hf.modeling.configuration_hfgd import UPSAMPLERS
from vss_hf.modeling.dense import upsampled_argmax
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.video_io import read_frames


pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
SIZES = ((1, 70, 121), (3, 77, 66))  # others than the export itself tries


def save(folder, model_type, names=NAMES, **fields):
    """A small model with its processor; the same weights for the same arguments."""
    if fields:
        torch.manual_seed(0)
        settings = {**json.loads(json.dumps(TINY[model_type])), **fields}
        config = AutoConfig.for_model(model_type, **settings, id2label=dict(enumerate(names)))
        model = AutoModelForSemanticSegmentation.from_config(config).eval()
    else:
        model = build(model_type, names)
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return model


def onnx_outputs(path, pixels):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"pixel_values": pixels.numpy()})]


def model_outputs(model, pixels):
    with torch.no_grad():
        output = model(pixels)
    if "masks_queries_logits" in output:
        return [output.class_queries_logits, output.masks_queries_logits]
    return [output.logits]


def check(model, folder, path, format="onnx"):
    export_model(folder, path, format)
    for size in SIZES:
        pixels = torch.randn(size[0], 3, *size[1:])
        if format == "onnx":
            outputs = onnx_outputs(path, pixels)
        else:
            with torch.no_grad():
                outputs = torch.export.load(path).module()(pixels)
        for found, expected in zip(outputs, model_outputs(model, pixels), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4 * expected.abs().max().item())


@pytest.mark.slow  # test_page has one that is quick
@pytest.mark.parametrize("model_type", MODELS)
def test_onnx_of_every_architecture(model_type, tmp_path):
    model = save(tmp_path / "model", model_type)
    check(model, tmp_path / "model", tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["vss_upernet", "vss_mask2former"])
@pytest.mark.parametrize("backbone", FOUR_MAPS)
def test_onnx_of_every_backbone(model_type, backbone, tmp_path):
    model = save(tmp_path / "model", model_type, backbone_config=json.loads(json.dumps(FOUR_MAPS[backbone])))
    check(model, tmp_path / "model", tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("pad_input", [True, False])
def test_volo(pad_input, tmp_path):
    """timm's layer takes `math.ceil` of a size, which a .pt2 file cannot hold and ONNX can."""
    backbone = {"model_type": "vss_volo", **SMALL_VOLO, "out_features": TAPS, "pad_input": pad_input}
    model = save(tmp_path / "model", "vss_ocrnet", backbone_config=backbone)
    check(model, tmp_path / "model", tmp_path / "model.onnx")
    with pytest.raises(
        ValueError, match=r"model\.pt2: torch\.export cannot save this model, --format onnx may: .*ceil"
    ):
        export_model(tmp_path / "model", tmp_path / "model.pt2", "torch")


@pytest.mark.parametrize(
    "model_type", [m if m == "vss_fcn" else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]
)
def test_programs_of_torch(model_type, tmp_path):
    model = save(tmp_path / "model", model_type)
    path = tmp_path / "model.pt2"
    check(model, tmp_path / "model", path, "torch")
    stored = {export.METADATA_FILE: ""}
    torch.export.load(path, extra_files=stored)
    metadata = json.loads(stored[export.METADATA_FILE])
    assert metadata["class_names"] == NAMES and metadata["model_type"] == model_type
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "model.pt2"]  # it is one file
    assert path.stat().st_size < 8e6  # the weights, and not the picture that was traced


def test_page(tmp_path, monkeypatch, capsys):
    """docs/export.md from top to bottom; what its code finds is what the model itself finds."""
    names = [f"class {i}" for i in range(37)]  # more than the classes of one block
    model = save(tmp_path / "path/to/model", "vss_fcn", names)
    monkeypatch.chdir(tmp_path)
    frames = moving_frames(3)
    write_video(tmp_path / "street.mp4", frames)
    found = {}
    for block in page_blocks("docs/export.md"):
        if block.language == "python":
            run_python(block, found)
        elif block.language == "bash" and block.needs is None:
            for command in block.commands:
                if command.startswith("vss-hf"):
                    main_quietly(command.split()[1:])
        if "def label_map" in block.text:
            labels = found["labels"]
    printed = capsys.readouterr().out
    assert "1 x 3 x 65 x 97: largest difference from torch" in printed and "pixel_values -> labels" in printed

    facts, pixels = found["facts"], found["prepared"](found["image"])
    assert facts["class_names"] == names and facts["ignore_index"] == 255 and facts["rescale_factor"] == 1 / 255
    assert pixels.shape == (1, 3, 128, 227)
    own = model_outputs(model, torch.from_numpy(pixels))[0]
    torch.testing.assert_close(found["logits"], own, rtol=1e-4, atol=1e-4 * own.abs().max().item())
    expected = np.asarray(upsampled_argmax(own, (128, 227))[0], np.uint8)
    shrunk = np.asarray(Image.fromarray(expected).resize((213, 120), Image.Resampling.NEAREST))
    assert np.mean(labels == shrunk) > 0.999 and len(np.unique(labels)) > 2 and labels.max() > 15
    scores = F.interpolate(own, (120, 213), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4 * np.abs(scores).max())
    classes, masks = torch.randn(2, 7, 6), torch.randn(2, 7, 3, 4)
    of_queries = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    np.testing.assert_allclose(found["mask_scores"](classes.numpy(), masks.numpy()), of_queries, rtol=1e-5)
    painted = [frame for _, frame in read_frames(tmp_path / "labelled.mp4")]
    assert [frame.shape for frame in painted] == [frame.shape for frame in frames]


def main_quietly(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


@pytest.mark.parametrize("sizes", [((13, 7), (3, 2)), ((5, 6), (6, 6)), ((4, 9), (1, 1)), ((12, 8), (4, 8))])
def test_pooling_without_torch_s_operator(sizes):
    from vss_hf.export_tracing import pooled_to

    size, parts = sizes
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(pooled_to(features, parts), F.adaptive_avg_pool2d(features, parts))


def test_deformable_convolution_without_torchvision_s_operator():
    from vss_hf.export_tracing import deformable_conv

    torch.manual_seed(0)
    features, offset = torch.randn(2, 3, 6, 9, dtype=torch.float64), 4 * torch.randn(2, 18, 6, 9, dtype=torch.float64)
    weight, bias = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    settings = dict(padding=(1, 1), mask=torch.rand(2, 9, 6, 9, dtype=torch.float64))
    expected = deform_conv2d(features, offset, weight, bias, **settings)
    torch.testing.assert_close(deformable_conv(features, offset, weight, bias, **settings), expected)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_upsamplers_of_hfgd(upsampler, format, tmp_path):
    model = save(tmp_path / "model", "vss_hfgd", upsampler=upsampler)
    for name, weight in model.named_parameters():
        if ".offset." in name:
            weight.data.normal_(0, 0.3)  # a new model's places do not move
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path / f"model{export.SUFFIX[format]}", format)


@pytest.mark.parametrize(("wrong", "kept"), [((0, 1, 5), True), (range(100), False)])
def test_masks_that_rounding_decides(wrong, kept, monkeypatch):
    """A masked attention looks at places above a threshold, so a picture may be on the edge; hardly several are."""
    masks = torch.zeros(1, 7, 16, 16)
    graph = export.MasksGraph(torch.nn.Identity())
    count = iter(range(100))

    def exact(*_):
        return [torch.ones(1, 7, 5), masks + (1.5 if next(count) in wrong else 1)]

    monkeypatch.setattr(export, "torch_runner", lambda path: lambda pixels: [torch.ones(1, 7, 5), masks + 1])
    monkeypatch.setattr(export, "expected_outputs", exact)
    if kept:
        assert set(export.compared(Path("g.pt2"), "torch", graph.model, graph).values()) == {0.0}
    else:
        with pytest.raises(ValueError, match="gives other class_queries_logits and masks_queries_logits than torch"):
            export.compared(Path("g.pt2"), "torch", graph.model, graph)
        assert next(count) == 5


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    save(tmp_path / "model", "vss_fcn")
    monkeypatch.setattr(export, "write_onnx", export.write_torch)  # no .onnx file at all
    with pytest.raises(ValueError, match=r"model\.onnx does not open"):
        export_model(tmp_path / "model", tmp_path / "out")
    monkeypatch.undo()
    exact = export.expected_outputs
    monkeypatch.setattr(export, "expected_outputs", lambda *args: [1.01 * one for one in exact(*args)])
    for out in ("model.pt2", "folder"):
        with pytest.raises(ValueError, match=r"gives other logits than torch for 65 x 97 pixels: .* 9\.9e-03"):
            export_model(tmp_path / "model", tmp_path / out, "torch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_of_transformers(format, tmp_path):
    sizes = dict(hidden_sizes=[8] * 4, depths=[1] * 4, decoder_hidden_size=8, num_labels=4)
    model = SegformerForSemanticSegmentation(SegformerConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "model")
    VSSImageProcessor().save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path / f"model{export.SUFFIX[format]}", format)


@pytest.mark.slow
def test_a_model_for_one_size_only(tmp_path):
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=4, depth_multiplier=0.35))
    model.save_pretrained(tmp_path / "model")
    VSSImageProcessor().save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"model: mobilenet_v2 cannot be exported for all image sizes; torch\.export: "
    ):
        export_model(tmp_path / "model", tmp_path / "model.onnx")


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    config = AutoConfig.for_model("vss_tmanet", **VIDEO["vss_tmanet"])
    AutoModel.from_config(config).save_pretrained(tmp_path / "video")
    with pytest.raises(ValueError, match="vss_tmanet is a video model, which remembers earlier frames"):
        export_model(tmp_path / "video", tmp_path / "out.onnx")
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/config.json").write_text('{"model_type": "vss_ensemble"}')
    with pytest.raises(ValueError, match="ensemble is several models"):
        export_model(tmp_path / "ensemble", tmp_path / "out.onnx")
    for model_type in (*BACKBONES, *REFINERS):
        (tmp_path / model_type).mkdir()
        (tmp_path / model_type / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(ValueError, match=rf"{model_type} is .* can be exported are image models: vss_ocrnet, "):
            export_model(tmp_path / model_type, tmp_path / "out.onnx")
    save(tmp_path / "mask", "vss_maskformer")
    with pytest.raises(ValueError, match="--labels: .*mask is a mask model"):
        export_model(tmp_path / "mask", tmp_path / "out.onnx", labels=True)
    monkeypatch.setattr(export, "LARGEST_FILE", 10)
    with pytest.raises(ValueError, match="at most 1.5 GiB; give a folder"):
        export_model(tmp_path / "mask", tmp_path / "out.onnx")


def test_metadata_hold_what_is_done_to_images():
    """One formula for all: what the processor leaves out is written as numbers that change nothing."""
    model = build("vss_fcn")
    graph = export.LogitsGraph(model)
    plain = json.loads(json.dumps(export.described(model, VSSImageProcessor(), graph)))
    assert (plain["rescale_factor"], plain["image_std"]) == (1 / 255, [0.229, 0.224, 0.225])
    bare = export.described(model, VSSImageProcessor(do_rescale=False, do_normalize=False), graph)
    assert (bare["rescale_factor"], bare["image_mean"], bare["image_std"]) == (1, [0, 0, 0], [1, 1, 1])
    resized = export.described(model, VSSImageProcessor(do_resize=True, size={"height": 64, "width": 96}), graph)
    assert resized["do_resize"] and resized["size"] == {"height": 64, "width": 96}


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_full_disk(format, tmp_path, fill_up):
    """The file that was there survives, and nothing else is left."""
    save(tmp_path / "model", "vss_fcn")
    path = tmp_path / f"graph{export.SUFFIX[format]}"
    path.write_text("old")
    fill_up(path)
    with pytest.raises(OSError, match=r"graph\.\w+: no space left on the disk .*; the previous one is untouched"):
        export_model(tmp_path / "model", path, format)
    assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == [path.name, "model"]


@pytest.mark.slow
def test_a_graph_without_a_folder_is_one_file(tmp_path, monkeypatch):
    """torch puts the weights of a large graph beside it, under a name that would not outlive the renaming."""
    save(tmp_path / "model", "vss_fcn")
    monkeypatch.setattr(torch.onnx._internal.exporter._onnx_program, "_LARGE_MODEL_THRESHOLD", 10)
    export_model(tmp_path / "model", tmp_path / "graph.onnx")
    assert sorted(os.listdir(tmp_path)) == ["graph.onnx", "model"]
    export_model(tmp_path / "model", tmp_path / "folder")
    assert sorted(os.listdir(tmp_path / "folder")) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize(
    ("out", "format", "error"),
    [
        ("x.pt2", "onnx", r"x\.pt2: a file of --format onnx ends on \.onnx"),
        ("x.onnx", "torch", r"x\.onnx: a file of --format torch ends on \.pt2"),
        ("x.pt", "torch", r"x\.pt: a file of --format torch ends on \.pt2, and a folder's name on nothing"),
        ("x.ONNX", "onnx", r"x\.ONNX: a file of --format onnx ends on \.onnx"),
        ("nowhere/x.onnx", "onnx", "there is no folder .*nowhere"),
        ("file/x.onnx", "onnx", "there is no folder .*file"),
        ("folder.onnx", "onnx", r"folder\.onnx: is a folder; give a file in it"),
        ("full", "onnx", "full is already there and not empty"),
        ("file/x", "onnx", "file is no folder"),
        ("file", "onnx", "file is already there"),
        (".", "onnx", "a new folder needs a name"),
        ("..", "onnx", "a new folder needs a name"),
    ],
)
def test_places_are_looked_at_first(out, format, error, tmp_path, monkeypatch):
    """Before the model is: there is none here."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    for file in ("full/file", "file"):
        (tmp_path / file).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=error):
        export_model("no model", out if out.startswith(".") else tmp_path / out, format)
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--format onxx: there is no format 'onxx'; did you mean 'onnx'"):
        export_model(tmp_path, tmp_path / "x", "onxx")
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "onnxfoo"))
    with pytest.raises(ValueError, match=r"--format onnx needs onnxfoo: pip install .*\[export\]"):
        export_model(tmp_path, tmp_path / "x.onnx")
