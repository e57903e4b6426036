"""OCRNet on Swin against mmsegmentation 1.2.2's own numbers (../shared/parity/01_ocr_swin, README.md there).

Tolerances are that README's: the reference's fp32 noise is 1.3e-6, the smallest known mistake moves logits by 3e-4.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, SwinConfig

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_heads import OCRNET
from vss_hf.convert.state_dict import table_for
from vss_hf.convert.tables import rename
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig


PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"
CASE = PARITY / "01_ocr_swin/strides_8_16_32"
MANIFESTS = PARITY / "15_key_manifests"

needs_case = pytest.mark.skipif(not CASE.is_dir(), reason=f"reference numbers not found at {CASE}")
needs_manifests = pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"key manifests not found at {MANIFESTS}")


@pytest.fixture(scope="module")
def tensors():
    return load_file(CASE / "tensors.safetensors")


@pytest.fixture(scope="module")
def case():
    return json.loads((CASE / "config.json").read_text())


@pytest.fixture(scope="module")
def model(case):
    """The reference's configuration, read from its own config, and its weights."""
    backbone, (coarse, ocr) = case["mmseg_cfg"]["backbone"], case["mmseg_cfg"]["decode_head"]
    assert coarse["in_index"] == ocr["in_index"] == [1, 2, 3]
    swin = SwinConfig(
        embed_dim=backbone["embed_dims"],
        depths=backbone["depths"],
        num_heads=backbone["num_heads"],
        window_size=backbone["window_size"],
        out_features=[f"stage{i + 1}" for i in coarse["in_index"]],
    )
    config = OCRNetConfig(
        backbone_config=swin,
        channels=ocr["channels"],
        ocr_channels=ocr["ocr_channels"],
        coarse_channels=coarse["channels"],
        coarse_kernel_size=coarse["kernel_size"],
        align_corners=ocr["align_corners"],
        auxiliary_loss_weight=coarse["loss_decode"]["loss_weight"],
        id2label={i: f"class {i}" for i in range(ocr["num_classes"])},
    )
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    report = load_reference_state_dict(model, load_file(CASE / "weights.safetensors"), "mmseg")
    assert set(report.loaded) == set(model.state_dict())
    # What is left over: computed index tables, and the norm of the stride-4 map that no head reads.
    assert all(n.endswith("relative_position_index") or n.startswith("backbone.norm0.") for n in report.unused)
    return model


def assert_equal(ours, reference):
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-5)


def assert_same_gradient(ours, reference, relative):
    assert (ours - reference).abs().max() <= relative * reference.abs().max()


@needs_case
def test_features_logits_and_full_size_output(model, tensors):
    with torch.no_grad():
        output = model(tensors["input"], output_auxiliary_logits=True)
        maps = model.backbone(tensors["input"]).feature_maps
    for index, feature_map in enumerate(maps, start=1):
        assert_equal(feature_map, tensors[f"feat{index}"])
    assert_equal(output.logits, tensors["logits"])
    assert_equal(output.auxiliary_logits[0], tensors["aux_logits"])
    upsampled = F.interpolate(output.logits, size=tensors["input"].shape[-2:], mode="bilinear", align_corners=False)
    assert_equal(upsampled[..., ::3, ::3], tensors["logits_upsampled_s3"])


@needs_case
def test_zero_image_shows_the_eps_of_the_norms(model, tensors):
    zeros = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal(model(zeros).logits, tensors["zero_image_64x96_logits"])
        for index, feature_map in enumerate(model.backbone(zeros).feature_maps, start=1):
            assert_equal(feature_map, tensors[f"zero_image_64x96_feat{index}"])


@needs_case
def test_gradients(model, tensors):
    model.zero_grad()
    pixels = tensors["input"].clone().requires_grad_()
    (model(pixels).logits * tensors["grad_out"]).sum().backward()
    assert_same_gradient(pixels.grad, tensors["grad_input"], relative=1e-4)
    names = [name.removeprefix("grad_param/") for name in tensors if name.startswith("grad_param/")]
    assert len(names) == 4
    for name in names:
        (own,) = rename({name: tensors[f"grad_param/{name}"]}, table_for("mmseg", model.config)).tensors
        ours = model.get_parameter(own).grad
        assert_same_gradient(ours, tensors[f"grad_param/{name}"], relative=1e-3)


@needs_case
def test_losses(model, tensors, case):
    labels = tensors["labels"].long()
    reference = case["mmseg_loss_eval_mode"]
    # mmseg divides by all pixels, ignored ones included; so does num_items_in_batch = labels.numel() here.
    with torch.no_grad():
        loss = model(tensors["input"], labels=labels, num_items_in_batch=labels.numel()).loss
        model.config.auxiliary_loss_weight = 0.0
        main = model(tensors["input"], labels=labels, num_items_in_batch=labels.numel()).loss
        model.config.auxiliary_loss_weight = 0.4
    assert main.item() == pytest.approx(reference["decode_1.loss_ce"], rel=1e-5)
    assert (loss - main).item() == pytest.approx(reference["decode_0.loss_ce"], rel=1e-5)


@needs_case
def test_saved_and_loaded_model_still_agrees(model, tensors, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(tensors["input"]).logits, model(tensors["input"]).logits)


def manifest(name):
    """Reference names and meta tensors of the shapes in a key manifest."""
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt") as file:
        return {key: torch.empty(shape, device="meta") for key, shape in json.load(file).items()}


@needs_manifests
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mmseg_upernet_swin_t", dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])),
        (
            "mmseg_upernet_swin_l_w12",
            dict(embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12),
        ),
    ],
)
def test_names_and_shapes_of_full_size_swin_checkpoints(name, size):
    swin = SwinConfig(**size, out_features=[f"stage{i}" for i in (1, 2, 3, 4)])
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(OCRNetConfig(backbone_config=swin))
    reference = {key: tensor for key, tensor in manifest(name).items() if key.startswith("backbone.")}
    renamed = rename(reference, table_for("mmseg", model.config))
    assert {key: t.shape for key, t in renamed.tensors.items()} == shapes(model, "backbone.")
    assert all(key.endswith("relative_position_index") for key in renamed.unused)


@needs_manifests
def test_names_and_shapes_of_a_full_size_ocr_head():
    """mmseg's OCRNet-HRNet-W48 heads read 720 channels; a Swin with four maps of 48..384 channels gives as many."""
    swin = SwinConfig(
        embed_dim=48, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), out_features=[f"stage{i}" for i in (1, 2, 3, 4)]
    )
    config = OCRNetConfig(backbone_config=swin, in_indices=[0, 1, 2, 3], id2label={i: str(i) for i in range(124)})
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    reference = {key: t for key, t in manifest("mmseg_ocrnet_hr48").items() if key.startswith("decode_head.")}
    converted = {key: t.shape for key, t in rename(reference, OCRNET).tensors.items()}
    assert converted == shapes(model, ("coarse_head.", "decode_head."))


def shapes(model, prefix):
    return {key: tensor.shape for key, tensor in model.state_dict().items() if key.startswith(prefix)}
