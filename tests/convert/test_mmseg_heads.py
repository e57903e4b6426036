"""Reading mmsegmentation's and VSPW_baseline's models: configurations, other spellings, and heads by formula.

The numbers of the original code, and names of full-size files: tests/parity.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation, ConvNextConfig, ConvNextForImageClassification

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import backbone_config_from_mmseg, segmenter_config_from_mmseg
from vss_hf.convert.tables import rename
from vss_hf.convert.vspw_heads import OCRNET
from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.backbone import build_backbone


PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"

# --- other spellings of the same weights

SWIN = PARITY / "02_upernet_swin_convnext/swin"


@pytest.mark.skipif(not SWIN.is_dir(), reason=f"reference numbers not found at {SWIN}")
def test_microsofts_swin_names_are_the_same_network():
    backbone = json.loads((SWIN / "config.json").read_text())["mmseg_cfg"]["backbone"]
    state_dict = load_file(SWIN / "weights_original_swin_naming.safetensors")
    state_dict = {n.removeprefix("backbone."): t for n, t in state_dict.items() if "_head." not in n}
    tensors = load_file(SWIN / "tensors.safetensors")
    model = build_backbone(backbone_config_from_mmseg(backbone)).eval()
    report = load_reference_state_dict(model, state_dict, "microsoft")
    assert set(report.loaded) | set(report.kept) == set(model.state_dict())
    with torch.no_grad():
        maps = model(tensors["input"]).feature_maps
    for index, feature_map in enumerate(maps):
        torch.testing.assert_close(feature_map, tensors[f"feat{index}"], rtol=1e-4, atol=2e-5)


def test_facebooks_convnext_classifier_becomes_a_backbone():
    """Written from the original names; transformers' own classifier of the same weights tells the numbers."""
    torch.manual_seed(0)
    config = ConvNextConfig(
        hidden_sizes=[8, 12],
        depths=[1, 2],
        num_stages=2,
        layer_scale_init_value=1.0,
        out_features=["stage1", "stage2"],
    )
    classifier = ConvNextForImageClassification(config).eval()
    spelled = {"dwconv": "dwconv", "layernorm": "norm", "pwconv1": "pwconv1", "pwconv2": "pwconv2"}
    reference = {"norm.weight": torch.ones(12), "head.weight": torch.ones(1000, 12)}
    for name, tensor in classifier.convnext.state_dict().items():
        parts = name.split(".")
        if parts[0] == "embeddings":
            reference[f"downsample_layers.0.{int(parts[1] == 'layernorm')}.{parts[2]}"] = tensor
        elif "downsampling_layer" in parts:
            reference[f"downsample_layers.{parts[2]}.{parts[4]}.{parts[5]}"] = tensor
        elif "layer_scale_parameter" in parts:
            reference[f"stages.{parts[2]}.{parts[4]}.gamma"] = tensor
        elif parts[0] == "encoder":
            reference[f"stages.{parts[2]}.{parts[4]}.{spelled[parts[5]]}.{parts[6]}"] = tensor
    backbone = build_backbone(copy.deepcopy(config)).eval()
    report = load_reference_state_dict(backbone, reference, "facebook")
    assert set(report.unused) == {"norm.weight", "head.weight"} and len(report.kept) == 4
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        hidden = backbone(pixels, output_hidden_states=True).hidden_states[-1]
        expected = classifier.convnext(pixels).last_hidden_state
    assert torch.equal(hidden, expected)


# --- heads without a fixture, computed from mmsegmentation's names by their definition

RESNET = dict(type="ResNetV1c", depth=18, base_channels=8, stem_channels=8, strides=(1, 2, 1, 1))
RESNET |= dict(dilations=(1, 1, 2, 4), contract_dilation=True, out_indices=(0, 1, 2, 3))
WIDTHS = (8, 16, 32, 64)
HEAD = dict(in_index=3, in_channels=64, channels=12, num_classes=5, dropout_ratio=0.1, align_corners=False)
HEAD |= dict(norm_cfg=dict(type="SyncBN", requires_grad=True), loss_decode=dict(type="CrossEntropyLoss"))
AUXILIARY = {**HEAD, "type": "FCNHead", "in_index": 2, "in_channels": 32, "num_convs": 1, "concat_input": False}


def conv(reference, name, *shape):
    """An mmcv ConvModule of random numbers."""
    out_channels = shape[0]
    reference[f"{name}.conv.weight"] = torch.randn(shape)
    reference[f"{name}.bn.weight"] = torch.rand(out_channels) + 0.5
    reference[f"{name}.bn.bias"] = torch.randn(out_channels)
    reference[f"{name}.bn.running_mean"] = torch.randn(out_channels)
    reference[f"{name}.bn.running_var"] = torch.rand(out_channels) + 0.5


def separable(reference, name, out_channels, in_channels):
    conv(reference, f"{name}.depthwise_conv", in_channels, 1, 3, 3)
    conv(reference, f"{name}.pointwise_conv", out_channels, in_channels, 1, 1)


def classifier(reference, head):
    reference[f"{head}.conv_seg.weight"], reference[f"{head}.conv_seg.bias"] = torch.randn(5, 12, 1, 1), torch.randn(5)


def fcn_names():
    reference = {}
    conv(reference, "decode_head.convs.0", 12, 64, 3, 3)
    conv(reference, "decode_head.convs.1", 12, 12, 3, 3)
    conv(reference, "decode_head.conv_cat", 12, 76, 3, 3)
    return reference


def fcn_formula(apply, maps):
    output = apply("convs.1", apply("convs.0", maps[3]))
    return apply("conv_cat", torch.cat([maps[3], output], dim=1))


def pspnet_names():
    reference = {}
    for index in range(4):
        conv(reference, f"decode_head.psp_modules.{index}.1", 12, 64, 1, 1)
    conv(reference, "decode_head.bottleneck", 12, 64 + 4 * 12, 3, 3)
    return reference


def pspnet_formula(apply, maps):
    pooled = [apply(f"psp_modules.{i}.1", F.adaptive_avg_pool2d(maps[3], s)) for i, s in enumerate((1, 2, 3, 6))]
    upsampled = [F.interpolate(p, size=maps[3].shape[-2:], mode="bilinear") for p in pooled]
    return apply("bottleneck", torch.cat([maps[3], *upsampled], dim=1))


def deeplabv3plus_names():
    reference = {}
    conv(reference, "decode_head.image_pool.1", 12, 64, 1, 1)
    conv(reference, "decode_head.aspp_modules.0", 12, 64, 1, 1)
    for index in (1, 2):
        separable(reference, f"decode_head.aspp_modules.{index}", 12, 64)
    conv(reference, "decode_head.bottleneck", 12, 48, 3, 3)
    conv(reference, "decode_head.c1_bottleneck", 6, 8, 1, 1)
    separable(reference, "decode_head.sep_bottleneck.0", 12, 18)
    separable(reference, "decode_head.sep_bottleneck.1", 12, 12)
    return reference


def deeplabv3plus_formula(apply, maps):
    def both(name, features, dilation=1):
        depthwise = apply(f"{name}.depthwise_conv", features, dilation=dilation, groups=features.shape[1])
        return apply(f"{name}.pointwise_conv", depthwise)

    size = maps[3].shape[-2:]
    mean = apply("image_pool.1", maps[3].mean(dim=(2, 3), keepdim=True))
    branches = [F.interpolate(mean, size=size, mode="bilinear"), apply("aspp_modules.0", maps[3])]
    branches += [both("aspp_modules.1", maps[3], 2), both("aspp_modules.2", maps[3], 3)]
    output = apply("bottleneck", torch.cat(branches, dim=1))
    early = apply("c1_bottleneck", maps[0])
    output = F.interpolate(output, size=early.shape[-2:], mode="bilinear")
    return both("sep_bottleneck.1", both("sep_bottleneck.0", torch.cat([output, early], dim=1)))


FORMULAS = {
    "FCNHead": (dict(num_convs=2, concat_input=True), fcn_names, fcn_formula),
    "PSPHead": (dict(pool_scales=(1, 2, 3, 6)), pspnet_names, pspnet_formula),
    "DepthwiseSeparableASPPHead": (
        dict(dilations=(1, 2, 3), c1_in_channels=8, c1_channels=6),
        deeplabv3plus_names,
        deeplabv3plus_formula,
    ),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_heads_compute_their_formula(kind):
    torch.manual_seed(0)
    settings, names, formula = FORMULAS[kind]
    cfg = dict(type="EncoderDecoder", backbone=RESNET, decode_head={**HEAD, "type": kind, **settings})
    config = segmenter_config_from_mmseg({**cfg, "auxiliary_head": AUXILIARY})
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    reference = names()
    conv(reference, "auxiliary_head.convs.0", 12, 32, 3, 3)
    for head in ("decode_head", "auxiliary_head"):
        classifier(reference, head)
    # The backbone keeps its own tensors, under mmsegmentation's names.
    stem = {"conv1.0.": "stem.0.", "conv1.1.": "stem.1.", "conv1.3.": "stem.3.", "conv1.4.": "stem.4."}
    stem |= {"conv1.6.": "stem.6.", "bn1.": "stem.7."}
    for name, tensor in model.backbone.state_dict().items():
        prefix = next((prefix for prefix in stem if name.startswith(prefix)), "")
        reference["backbone." + stem.get(prefix, "") + name.removeprefix(prefix)] = tensor
    report = load_reference_state_dict(model, reference, "mmseg")
    assert set(report.loaded) | set(report.kept) == set(model.state_dict()) and not report.unused
    assert all(name.endswith("num_batches_tracked") for name in report.kept)

    def computed(head, function, maps):
        def apply(name, features, dilation=1, groups=1):
            own = {n.removeprefix(f"{head}.{name}."): t.double() for n, t in reference.items() if n.startswith(head)}
            weight = own["conv.weight"]
            padding = dilation * (weight.shape[-1] // 2)
            output = F.conv2d(features, weight, padding=padding, dilation=dilation, groups=groups)
            statistics = [own[f"bn.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
            return F.batch_norm(output, *statistics).relu()

        weight, bias = (reference[f"{head}.conv_seg.{kind}"].double() for kind in ("weight", "bias"))
        return F.conv2d(function(apply, maps), weight, bias)

    pixels = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        output = model(pixels, output_auxiliary_logits=True)
        maps = [m.double() for m in model.backbone(pixels).feature_maps]
    for ours, head, function in (
        (output.logits, "decode_head", formula),
        (output.auxiliary_logits[0], "auxiliary_head", lambda apply, maps: apply("convs.0", maps[2])),
    ):
        expected = computed(head, function, maps)
        assert ours.shape == expected.shape
        assert (ours.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_bias_before_batchnorm_moves_into_its_mean():
    """VSPW_baseline's OCRNet: one of its convolutions by formula, in evaluation."""
    torch.manual_seed(0)
    config = config_from_preset("ocrnet-resnet50-vspw")
    config.backbone_config.hidden_sizes = [8, 8, 8, 8]
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    layer = model.decode_head.attention.query[1]
    name = "decoder.spatial_ocr_head.object_context_block.f_pixel"
    reference = {f"{name}.3.weight": torch.randn(256, 256, 1, 1), f"{name}.3.bias": 10 * torch.randn(256)}
    for kind in ("weight", "running_var"):
        reference[f"{name}.4.{kind}"] = torch.rand(256) + 0.5
    for kind in ("bias", "running_mean"):
        reference[f"{name}.4.{kind}"] = torch.randn(256)
    renamed = rename(reference, OCRNET)
    assert set(renamed.unused) == {f"{name}.3.bias"}
    layer.load_state_dict(
        {n.removeprefix("decode_head.attention.query.1."): t for n, t in renamed.tensors.items()}, strict=False
    )
    features = torch.randn(1, 256, 5, 7)
    output = F.conv2d(features, reference[f"{name}.3.weight"], reference[f"{name}.3.bias"]).double()
    kinds = ("running_mean", "running_var", "weight", "bias")
    expected = F.batch_norm(output, *[reference[f"{name}.4.{kind}"].double() for kind in kinds]).relu()
    torch.testing.assert_close(layer(features).double(), expected, rtol=0, atol=2e-5)


# --- configurations


def encoder_decoder(head, **parts):
    return dict(type="EncoderDecoder", backbone=copy.deepcopy(RESNET), decode_head={**HEAD, **head}, **parts)


SWIN_T = dict(type="SwinTransformer", embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)


def test_a_map_counted_from_the_end_and_defaults():
    config = segmenter_config_from_mmseg(encoder_decoder(dict(type="FCNHead", in_index=-1)))
    assert (config.in_indices, config.num_convs, config.kernel_size, config.concat_input) == ([3], 2, 3, True)
    assert not config.use_auxiliary_head and config.classifier_dropout == 0.1 and config.num_labels == 5
    assert config.backbone_config.output_stride == 8
    config = segmenter_config_from_mmseg(
        encoder_decoder(dict(type="FCNHead", dropout_ratio=-1), auxiliary_head=AUXILIARY)
    )
    assert config.classifier_dropout == 0 and (config.auxiliary_in_index, config.auxiliary_channels) == (2, 12)


def test_maps_that_no_head_reads_are_left_out_where_they_have_a_norm():
    model = encoder_decoder(dict(type="PSPHead"), auxiliary_head=AUXILIARY)
    config = segmenter_config_from_mmseg({**model, "backbone": SWIN_T})
    assert config.backbone_config.out_features == ["stage3", "stage4"]
    assert (config.in_index, config.auxiliary_in_index) == (1, 0)
    fcn = dict(type="FCNHead", in_index=[1, 3], in_channels=[192, 768], input_transform="resize_concat", kernel_size=1)
    config = segmenter_config_from_mmseg({**encoder_decoder(fcn), "backbone": SWIN_T})
    assert config.backbone_config.out_features == ["stage2", "stage4"] and config.in_indices == [0, 1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dict(type="EncoderDecoder", backbone=dict(type="MobileNetV2"), decode_head=HEAD), "'MobileNetV2': expected"),
        (encoder_decoder(dict(type="UNetHead")), "decode head of type='UNetHead': expected UPerHead, FCNHead"),
        (encoder_decoder(dict(type="FCNHead", dilation=6)), "FCNHead: dilation=6, expected 1"),
        (encoder_decoder(dict(type="FCNHead", act_cfg=dict(type="GELU"))), "act_cfg={'type': 'GELU'}"),
        (
            encoder_decoder(dict(type="PSPHead", norm_cfg=dict(type="GN"))),
            "'GN'}, expected BatchNorm",
        ),
        (encoder_decoder(dict(type="PSPHead", scales=1)), "PSPHead: no counterpart here for scales"),
        (encoder_decoder(dict(type="PSPHead"), neck=dict(type="FPN")), "PSPHead with neck=.*expected none"),
        (encoder_decoder(dict(type="PSPHead"), auxiliary_head=[AUXILIARY, AUXILIARY]), "expected one FCNHead"),
        (encoder_decoder(dict(type="PSPHead"), refiner=1), "no counterpart here for refiner"),
        (
            encoder_decoder(dict(type="PSPHead"), auxiliary_head={**AUXILIARY, "align_corners": True}),
            "auxiliary FCNHead: align_corners=True, expected False",
        ),
        (encoder_decoder(dict(type="FPNHead", feature_strides=[4, 8, 16, 32])), "FPNHead: neck=None, expected an FPN"),
        (
            {**encoder_decoder({}), "type": "CascadeEncoderDecoder", "decode_head": [AUXILIARY, AUXILIARY]},
            "of FCNHead, FCNHead: expected FCNHead, OCRHead",
        ),
        ({**encoder_decoder(dict(type="PSPHead")), "type": "SAN"}, "type='SAN': expected EncoderDecoder"),
        (
            {**encoder_decoder(dict(type="PSPHead")), "backbone": {**SWIN_T, "use_abs_pos_embed": True}},
            "SwinTransformer: use_abs_pos_embed=True, expected False",
        ),
        (
            {**encoder_decoder(dict(type="PSPHead")), "backbone": dict(type="mmpretrain.ConvNeXt", arch="tiny")},
            "ConvNeXt: gap_before_final_norm=True, expected False",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        segmenter_config_from_mmseg(model)
