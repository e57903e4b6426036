"""The U-Net neck, alone and between VOLO and OCRNet's heads."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from vss_hf.modeling.configuration_ocrnet import PRESETS, OCRNetConfig
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.modeling.necks import UNetNeck


VOLO = {
    "model_type": "vss_volo", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16], "num_heads": [2, 2, 2, 2],
    "stem_channels": 6, "image_size": 64, "out_features": ["stem", "stage1", "stage4"],
}  # fmt: skip
HEADS = {"channels": 16, "ocr_channels": 8, "id2label": {i: f"class {i}" for i in range(5)}}
UNET = {"neck": "unet", "neck_channels": [12, 10, 8]}
CONCAT = {"in_indices": [1, 2]}  # "volo + ocr": the maps at strides 8 and 16
D5 = (128, 384, 768)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**fields):
    return OCRNetForSemanticSegmentation(OCRNetConfig(backbone_config=dict(VOLO), **{**HEADS, **fields})).eval()


def batch(size=(48, 80), count=2):
    return torch.randn(count, 3, *size), torch.randint(0, 5, (count, *size))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# --- alone


@pytest.mark.parametrize(("widths", "millions"), [((512, 256, 256), 10.9), ((512, 256, 128), 10.0)])
def test_parameters_on_d5(widths, millions):
    with torch.device("meta"):
        neck = UNetNeck(D5, widths)
    pairs = [(768 + 384, widths[0]), (widths[0], widths[1]), (widths[1] + 128, widths[2])]
    assert parameters(neck) == sum(9 * (a * b + b * b) + 4 * b for a, b in pairs)
    assert round(parameters(neck) / 1e6, 1) == millions


@pytest.mark.parametrize(("out_stride", "size", "channels"), [(2, (49, 81), 8), (4, (25, 41), 10)])
@pytest.mark.parametrize("small", [((12, 20), (6, 10)), ((13, 21), (7, 11))])
def test_result_has_the_size_of_its_stride(out_stride, size, channels, small):
    neck = UNetNeck((6, 8, 16), (12, 10, 8), out_stride).eval()
    maps = [torch.randn(1, c, *s) for c, s in zip((6, 8, 16), ((49, 81), *small), strict=True)]
    result = neck(maps)
    assert result.shape == (1, channels, *size) and neck.out_channels == channels
    result.sum().backward()
    assert all(p.grad is not None for p in neck.parameters())  # no layer without use


@pytest.mark.parametrize("align_corners", [False, True])
def test_what_is_computed(align_corners):
    """The definition in float64, with the neck's own convolutions: BatchNorm by its formula."""
    neck = UNetNeck((3, 4, 5), (6, 7, 8), align_corners=align_corners).double().eval()
    for module in neck.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x2, x8, x16 = (torch.randn(2, c, *s).double() for c, s in ((3, (17, 23)), (4, (4, 6)), (5, (2, 3))))

    def convolved(x, block):
        for conv, norm, _ in block:
            y = F.conv2d(x, conv.weight, padding=1)
            scale = norm.weight / (norm.running_var + 1e-5).sqrt()
            x = (y * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]).clamp(min=0)
        return x

    def resized(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)

    y = convolved(torch.cat([resized(x16, (4, 6)), x8], dim=1), neck.conv_8)
    y = convolved(resized(y, (9, 12)), neck.conv_4)
    y = convolved(torch.cat([resized(y, (17, 23)), x2], dim=1), neck.conv_2)
    with torch.no_grad():
        torch.testing.assert_close(neck([x2, x8, x16]), y.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments", [dict(in_channels=(3, 4)), dict(channels=(3, 4)), dict(out_stride=8), dict(out_stride=1)]
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=r"expected three channels \(strides 2, 8, 16\)"):
        UNetNeck(**{"in_channels": (3, 4, 5), **arguments})


# --- between VOLO and OCRNet's heads


@pytest.mark.parametrize(("fields", "stride"), [(CONCAT, 8), (UNET, 2), ({**UNET, "neck_out_stride": 4}, 4)])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 161)])
def test_any_size_gives_logits_and_a_gradient_for_every_parameter(fields, stride, size):
    model, (pixels, labels) = make(**fields).train(), batch(size, count=1)
    output = model(pixels, labels=labels)
    shape = (1, 5, *(-(-side // stride) for side in size))
    assert output.logits.shape == output.auxiliary_logits[0].shape == shape
    output.loss.backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == set() and output.loss.isfinite()


@pytest.mark.parametrize("fields", [CONCAT, UNET])
def test_save_and_load_are_exact(tmp_path, fields):
    model, (pixels, labels) = make(**fields), batch((33, 47))
    with torch.no_grad():
        model.train()(pixels)
        expected = model.eval()(pixels, labels=labels)
        model.save_pretrained(tmp_path)
        loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
        output = loaded(pixels, labels=labels)
    assert not any(report.values())
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert loaded.config.to_dict()["neck_channels"] == model.config.neck_channels


@pytest.mark.parametrize("fields", [CONCAT, UNET])
def test_half_precision_trains(fields):
    model, (pixels, labels) = make(**fields).train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(pixels, labels=labels).loss
    model = model.to(torch.bfloat16)
    loss = model(pixels.to(torch.bfloat16), labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, under_autocast, rtol=0.02, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_gradient_checkpointing_reaches_the_backbone():
    model, (pixels, labels) = make(**UNET).train(), batch()
    calls, losses, gradients = [], [], []
    model.backbone.network[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        losses.append(model(pixels, labels=labels).loss)
        losses[-1].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert len(calls) == 3 and torch.equal(*losses)
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=1e-6)


def test_the_model_initialises_neck_and_backbone():
    model = make(neck="unet", neck_channels=[64, 64, 64])
    weight = model.neck.conv_4[1][0].weight  # He et al. 2015, fan out
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert model.backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("preset", "reads", "backbone", "head", "neck"),
    [
        # Millions of parameters with 124 classes; the backbone of D5 at 512 pixels.
        ("ocrnet-volo-d5", 1152, 280.4, 8.0, None),
        ("ocrnet-volo-d5-unet", 256, 280.4, 2.5, 10.9),
        ("ocrnet-volo-d1", 576, None, None, None),
        ("ocrnet-volo-d1-unet", 256, None, None, None),
    ],
)
def test_presets(preset, reads, backbone, head, neck):
    assert preset in PRESETS
    with torch.device("meta"):
        model = OCRNetForSemanticSegmentation(
            OCRNetConfig.from_preset(preset, id2label={i: str(i) for i in range(124)})
        )
        logits = model(torch.empty(1, 3, 480, 853)).logits
    assert logits.shape[-2:] == ((240, 427) if "unet" in preset else (60, 107))
    assert model.decode_head.pixel_conv[0].in_channels == model.coarse_head.convs[0][0].in_channels == reads
    if backbone:
        assert round(parameters(model.backbone) / 1e6, 1) == backbone
        assert round((parameters(model.coarse_head) + parameters(model.decode_head)) / 1e6, 1) == head
        assert neck is None or round(parameters(model.neck) / 1e6, 1) == neck


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(neck="fpn"), "neck='fpn': expected None or 'unet'"),
        (dict(neck="unet", in_indices=[1, 2]), r"in_indices=\[1, 2\] of vss_volo are at strides \[8, 16\]"),
        (dict(neck="unet", in_indices=[2, 1, 0]), r"at strides \[16, 8, 2\]; expected in_indices=\[0, 1, 2\]"),
        (dict(neck="unet", in_indices=[0, 1, 3]), r"in_indices=\[0, 1, 3\]: expected indices from 0 to 2"),
        (dict(neck="unet", coarse_in_indices=[1]), r"coarse_in_indices=\[1\]: with a neck both heads"),
        (dict(neck="unet", neck_channels=[8, 8]), r"neck_channels=\[8, 8\]: expected 3 numbers"),
        (dict(neck="unet", neck_channels=[8, 0, 8]), r"neck_channels=\[8, 0, 8\]"),
        (dict(neck="unet", neck_out_stride=8), "neck_out_stride=8: expected 2 or 4"),
    ],
)
def test_wrong_configurations_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        OCRNetConfig(backbone_config=dict(VOLO), **{**HEADS, **fields})


def test_another_backbone_is_refused(tiny_ocrnet_config):
    with pytest.raises(Exception, match="of swin are at strides unknown; expected .* of vss_volo"):
        tiny_ocrnet_config("swin", neck="unet")
