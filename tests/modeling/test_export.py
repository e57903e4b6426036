"""Exported graphs give what the model gives, at any size; what cannot be exported says why."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_every_architecture import FOUR_MAPS, NAMES, TINY, build
from test_volo import SMALL as SMALL_VOLO
from test_volo import TAPS
from tiny_video_models import TINY as VIDEO
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from vss_hf import export
from vss_hf.cli import main
from vss_hf.export import export_model
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.architectures import MODELS
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


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
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    "model_type", [m if m == "vss_fcn" else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]
)
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
    metadata = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert metadata["class_names"] == NAMES and metadata["model_type"] == model_type
    assert path.stat().st_size < 8e6  # the weights, and not the picture that was traced


def test_a_picture_becomes_a_label_map(tmp_path, capsys):
    """As the documentation has it: with nothing but onnxruntime, numpy and PIL."""
    names = [f"class {i}" for i in range(37)]  # more than the classes of one block
    save(tmp_path / "model", "vss_bisenet", names)
    main_quietly(["export", str(tmp_path / "model"), "--out", str(tmp_path / "onnx"), "--labels"])
    printed = capsys.readouterr().out
    assert "1 x 3 x 65 x 97: largest difference from torch" in printed and "pixel_values -> labels" in printed

    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/model.onnx"))
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    image = np.random.default_rng(0).integers(0, 256, (53, 90, 3), dtype=np.uint8)
    pixels = (image * facts["rescale_factor"] - facts["image_mean"]) / facts["image_std"]
    pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    labels = session.run(None, {"pixel_values": pixels})[0][0]

    assert facts["class_names"][36] == "class 36" and facts["ignore_index"] == 255
    assert labels.dtype == np.uint8 and labels.shape == (53, 90) and len(np.unique(labels)) > 2 and labels.max() > 15
    expected = VideoSegmenter.from_pretrained(tmp_path / "model", "cpu").step(image)
    assert np.mean(labels == expected) > 0.999
    Image.fromarray(labels).save(tmp_path / "labels.png")


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


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    config = AutoConfig.for_model("vss_tmanet", **VIDEO["vss_tmanet"])
    AutoModel.from_config(config).save_pretrained(tmp_path / "video")
    with pytest.raises(ValueError, match="vss_tmanet is a video model, which remembers earlier frames"):
        export_model(tmp_path / "video", tmp_path / "out.onnx")
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/config.json").write_text('{"model_type": "vss_ensemble"}')
    with pytest.raises(ValueError, match="ensemble is several models"):
        export_model(tmp_path / "ensemble", tmp_path / "out.onnx")
    save(tmp_path / "mask", "vss_maskformer")
    with pytest.raises(ValueError, match="--labels: .*mask is a mask model"):
        export_model(tmp_path / "mask", tmp_path / "out.onnx", labels=True)
    monkeypatch.setattr(export, "LARGEST_FILE", 10)
    with pytest.raises(ValueError, match="at most 1.5 GiB; give a folder"):
        export_model(tmp_path / "mask", tmp_path / "out.onnx")


def test_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--format onxx: there is no format 'onxx'; did you mean 'onnx'"):
        export_model(tmp_path, tmp_path / "x", "onxx")
    with pytest.raises(ValueError, match=r"x\.pt2: a file of --format onnx ends on \.onnx"):
        export_model(tmp_path, tmp_path / "x.pt2")
    with pytest.raises(ValueError, match="expected a file in a folder that exists"):
        export_model(tmp_path, tmp_path / "nowhere/x.onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        export_model(tmp_path, tmp_path / "full")
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "onnxfoo"))
    with pytest.raises(ValueError, match=r"--format onnx needs onnxfoo: pip install 'vss-hf\[export\]'"):
        export_model(tmp_path, tmp_path / "x.onnx")
