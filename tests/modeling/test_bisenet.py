"""BiSeNet: against a straight-line computation with mmsegmentation's names, training on one image, its configurations.

What every architecture must do alike (saving, half precision, compiling...) is in test_every_architecture.py.
"""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.configuration_bisenet import BiSeNetConfig
from vss_hf.modeling.modeling_bisenet import (
    AttentionRefinement,
    BiSeNetForSemanticSegmentation,
    ContextPath,
    FeatureFusion,
    SpatialPath,
)


NORM = dict(type="SyncBN", requires_grad=True)


def mmseg_model(base=8, spatial=(8, 6, 8, 12), width=4, out=20, channels=10, auxiliary=6, depth=18):
    """An mmsegmentation configuration; narrow, and no two widths alike where they may differ."""
    head = dict(type="FCNHead", num_convs=1, concat_input=False, num_classes=5, norm_cfg=NORM, align_corners=False)
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    head |= dict(loss_decode=loss, dropout_ratio=0.1)
    expansion = 1 if depth == 18 else 4
    resnet = dict(type="ResNet", depth=depth, norm_cfg=NORM, contract_dilation=True)
    if base != 64:
        resnet |= dict(base_channels=base, stem_channels=base)
    paths = dict(
        type="BiSeNetV1",
        context_channels=(width, 4 * base * expansion, 8 * base * expansion),
        spatial_channels=spatial,
        out_channels=out,
        backbone_cfg=resnet,
        norm_cfg=NORM,
        align_corners=False,
    )
    return dict(
        type="EncoderDecoder",
        backbone=paths,
        decode_head=dict(head, in_channels=out, in_index=0, channels=channels),
        auxiliary_head=[dict(head, in_channels=width, in_index=index, channels=auxiliary) for index in (1, 2)],
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )


TINY = mmseg_model(spatial=(8, 6, 8, 28))  # 28 + 4 = 4 * 8, as mmsegmentation wants it


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = BiSeNetForSemanticSegmentation(segmenter_config_from_mmseg(TINY)).eval()
    for norm in model.modules():  # new norms hide mistakes
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def reference_names(model):
    """The model's tensors under mmsegmentation's names, written down by hand."""
    context, parts = "backbone.context_path", {}
    for layer in range(4):
        parts[f"backbone.spatial_path.layer{layer + 1}"] = f"spatial_path.{layer}"
    for arm, own in (("arm16", "refine_fine"), ("arm32", "refine_coarse")):
        parts[f"{context}.{arm}.conv_layer"] = f"context_path.{own}.conv"
        parts[f"{context}.{arm}.atten_conv_layer.1"] = f"context_path.{own}.attention", 1
    parts[f"{context}.conv_head16"] = "context_path.conv_fine"
    parts[f"{context}.conv_head32"] = "context_path.conv_coarse"
    parts[f"{context}.gap_conv.1"] = "context_path.average.1"
    parts["backbone.ffm.conv1"] = "fusion.merge"
    parts["backbone.ffm.conv_atten.0"] = "fusion.attention.1"
    parts["decode_head.convs.0"] = "decode_head.convs.0"
    for index in range(2):
        parts[f"auxiliary_head.{index}.convs.0"] = f"auxiliary_heads.{index}.convs.0"
    own, names = model.state_dict(), {}
    for theirs, place in parts.items():
        ours, first = place if isinstance(place, tuple) else (place, 0)
        names[f"{theirs}.conv.weight"] = own[f"{ours}.{first}.weight"]
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{theirs}.bn.{kind}"] = own[f"{ours}.{first + 1}.{kind}"]
    for kind in ("weight", "bias"):
        names[f"decode_head.conv_seg.{kind}"] = own[f"decode_head.classifier.{kind}"]
        for index in range(2):
            names[f"auxiliary_head.{index}.conv_seg.{kind}"] = own[f"auxiliary_heads.{index}.classifier.{kind}"]
    for name, tensor in own.items():
        if name.startswith("backbone."):
            names[f"{context}.{name}"] = tensor
    return {name: tensor.clone() for name, tensor in names.items()}


def straight_line(weights, pixels):
    """mmsegmentation's BiSeNetV1 as its layers are written down there, in float64: logits and auxiliary logits."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x, name):
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv_module(x, name, stride=1):
        kernel = w[f"{name}.conv.weight"]
        return norm(F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2), f"{name}.bn")

    def mean(x):
        return x.mean(dim=(2, 3), keepdim=True)

    def head(x, name):
        x = conv_module(x, f"{name}.convs.0").relu()
        return F.conv2d(x, w[f"{name}.conv_seg.weight"], w[f"{name}.conv_seg.bias"])

    def arm(x, name):
        x = conv_module(x, f"{name}.conv_layer").relu()
        return x * conv_module(mean(x), f"{name}.atten_conv_layer.1").sigmoid()

    def up(x, like):  # nearest: output pixel i reads floor(i * in / out)
        for axis in (2, 3):
            size, source = like.shape[axis], x.shape[axis]
            x = x.index_select(axis, torch.tensor([i * source // size for i in range(size)]))
        return x

    x = pixels.double()
    spatial = conv_module(x, "backbone.spatial_path.layer1", stride=2).relu()
    spatial = conv_module(spatial, "backbone.spatial_path.layer2", stride=2).relu()
    spatial = conv_module(spatial, "backbone.spatial_path.layer3", stride=2).relu()
    spatial = conv_module(spatial, "backbone.spatial_path.layer4").relu()

    context = "backbone.context_path"
    resnet = f"{context}.backbone"
    x = norm(F.conv2d(x, w[f"{resnet}.conv1.weight"], stride=2, padding=3), f"{resnet}.bn1").relu()
    x, maps = F.max_pool2d(x, 3, stride=2, padding=1), []
    for stage in range(1, 5):
        for b in range(2):
            block, stride = f"{resnet}.layer{stage}.{b}", 2 if stage > 1 and b == 0 else 1
            y = F.conv2d(x, w[f"{block}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{block}.bn1").relu(), w[f"{block}.conv2.weight"], padding=1)
            if f"{block}.downsample.0.weight" in w:
                x = F.conv2d(x, w[f"{block}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{block}.downsample.1")
            x = (norm(y, f"{block}.bn2") + x).relu()
        maps.append(x)
    _, map_8, map_16, map_32 = maps
    summed = arm(map_32, f"{context}.arm32") + conv_module(mean(map_32), f"{context}.gap_conv.1").relu()
    context_16 = conv_module(up(summed, map_16), f"{context}.conv_head32").relu()
    summed = arm(map_16, f"{context}.arm16") + context_16
    context_8 = conv_module(up(summed, map_8), f"{context}.conv_head16").relu()

    fused = conv_module(torch.cat([spatial, context_8], dim=1), "backbone.ffm.conv1").relu()
    fused = fused * conv_module(mean(fused), "backbone.ffm.conv_atten.0").relu().sigmoid() + fused
    return head(fused, "decode_head"), head(context_8, "auxiliary_head.0"), head(context_16, "auxiliary_head.1")


@pytest.mark.parametrize("size", [(64, 96), (97, 161), (33, 47)])
def test_logits_are_those_of_the_layers_written_down(model, size):
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        output = model(pixels, output_auxiliary_logits=True)
        expected = straight_line(reference_names(model), pixels)
    assert output.logits.shape == (2, 5, -(-size[0] // 8), -(-size[1] // 8))
    assert output.auxiliary_logits[1].shape == (2, 5, -(-size[0] // 16), -(-size[1] // 16))
    for ours, theirs in zip((output.logits, *output.auxiliary_logits), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5)


def test_a_reference_checkpoint_gives_the_same_model(model):
    other = BiSeNetForSemanticSegmentation(model.config).eval()
    report = load_reference_state_dict(other, reference_names(model), "mmseg")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept
    pixels = torch.randn(1, 3, 33, 47)
    assert torch.equal(other(pixels).logits, model(pixels).logits)


def test_the_loss_counts_both_auxiliary_heads_in_full(model):
    pixels, labels = torch.randn(2, 3, 49, 67), torch.randint(0, 5, (2, 49, 67))
    labels[:, :7] = 255
    output = model(pixels, labels=labels, output_auxiliary_logits=True)
    assert len(output.auxiliary_logits) == 2
    expected = sum(
        F.cross_entropy(F.interpolate(logits.double(), size=(49, 67), mode="bilinear"), labels, ignore_index=255)
        for logits in (output.logits, *output.auxiliary_logits)
    )
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_one_odd_image_trains_every_parameter(model, precision):
    """Three averages over the whole image leave BatchNorm one value per channel, which torch refuses."""
    model, pixels = model.train(), torch.randn(1, 3, 49, 67)
    if precision == "bf16":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = model(pixels, labels=torch.randint(0, 5, (1, 49, 67))).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_auxiliary_heads(model):
    config = copy.deepcopy(model.config)
    config.use_auxiliary_heads = False
    other = BiSeNetForSemanticSegmentation(config).eval()
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("auxiliary_heads.")}
    other.load_state_dict(own)
    pixels, labels = torch.randn(1, 3, 64, 96), torch.randint(0, 5, (1, 64, 96))
    assert torch.equal(other(pixels).logits, model(pixels).logits)
    output = other.train()(pixels, labels=labels)
    assert output.auxiliary_logits is None and output.loss.isfinite()


def test_any_backbone_may_give_the_context():
    """Swin's maps at strides 4 to 32 need not have the sizes of the spatial path's."""
    swin = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
    swin |= dict(out_features=["stage1", "stage3", "stage4"])
    config = BiSeNetConfig(backbone_config=swin, in_indices=[1, 2], context_channels=8, fusion_channels=8)
    with torch.no_grad():
        logits = BiSeNetForSemanticSegmentation(config).eval()(torch.randn(1, 3, 33, 70)).logits
    assert logits.shape == (1, 2, 5, 9)


def test_the_parts_stand_alone():
    """Plain numbers build them; other models use them on maps of other backbones."""
    image, fine, coarse = torch.randn(2, 3, 50, 70), torch.randn(2, 10, 4, 5), torch.randn(2, 14, 2, 3)
    with torch.no_grad():
        spatial = SpatialPath((4, 5, 6, 7)).eval()(image)
        at_8, at_16 = ContextPath((10, 14), 9).eval()(fine, coarse, spatial.shape[-2:])
        fused = FeatureFusion(7 + 9, 11).eval()(spatial, at_8)
        refined = AttentionRefinement(10, 3).eval()(fine)
    shapes = [tuple(m.shape) for m in (spatial, at_8, at_16, fused, refined)]
    assert shapes == [(2, 7, 7, 9), (2, 9, 7, 9), (2, 9, 4, 5), (2, 11, 7, 9), (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bisenet-resnet18", dict(base=64, spatial=(64, 64, 64, 128), width=128, out=256, channels=256, auxiliary=64)),
        (
            "bisenet-resnet50",
            dict(
                base=64,
                spatial=(256, 256, 256, 512),
                width=512,
                out=1024,
                channels=1024,
                auxiliary=256,
                depth=50,
            ),
        ),
    ],
)
def test_presets_are_mmsegmentations_models(name, sizes):
    theirs = segmenter_config_from_mmseg(mmseg_model(**sizes))
    ours = config_from_preset(name, id2label={i: f"LABEL_{i}" for i in range(5)})
    assert ours.backbone_config.strides_and_dilations() == theirs.backbone_config.strides_and_dilations()
    # the same dilations, written down in one and following from the defaults in the other
    ours.backbone_config = theirs.backbone_config
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("backbone", dict(spatial_channels=(8, 6, 8, 27)), "middle one to be the sum"),
        (
            "backbone",
            dict(context_channels=(4, 32, 65)),
            r"expected the widths of the backbone's last two maps, \[32, 64\]",
        ),
        ("backbone", dict(out_indices=(0,)), r"out_indices=\(0,\), expected \(0, 1, 2\)"),
        ("backbone", dict(stages=4), "no counterpart here for stages"),
        ("decode_head", dict(num_convs=2), "num_convs=2, expected 1"),
        ("decode_head", dict(in_index=1), "in_index=1, expected 0 or -3"),
        ("decode_head", dict(num_classes=6), "num_classes=5, expected 6"),
    ],
)
def test_other_mmsegmentation_models_are_refused(part, changes, message):
    model = copy.deepcopy(TINY)
    model[part].update(changes)
    with pytest.raises(ValueError, match=message):
        segmenter_config_from_mmseg(model)


def test_auxiliary_heads_that_differ_are_refused():
    model = copy.deepcopy(TINY)
    model["auxiliary_head"][1]["channels"] = 7
    with pytest.raises(ValueError, match="channels=7, expected 6"):
        segmenter_config_from_mmseg(model)
    model["auxiliary_head"].pop()
    with pytest.raises(ValueError, match="1 auxiliary heads, expected 2 or none"):
        segmenter_config_from_mmseg(model)
    del model["auxiliary_head"]
    assert not segmenter_config_from_mmseg(model).use_auxiliary_heads


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(in_indices=[0, 2]), "in_indices=.*expected indices from 0 to 1"),
        (dict(in_indices=[1]), r"in_indices=\[1\]: expected two maps"),
        (dict(spatial_channels=[64, 128]), "spatial_channels=.*expected 3 numbers, or 4"),
        (dict(spatial_channels=[64, 64, 64, 64, 128]), "spatial_channels=.*expected 3 numbers, or 4"),
        (dict(spatial_channels=[64, 64, 0, 128]), "spatial_channels=.*expected one or more numbers from 1 up"),
        (dict(context_channels=0), "context_channels=0: expected at least 1"),
        (dict(context_chanels=8), "no field 'context_chanels'; did you mean 'context_channels'"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        BiSeNetConfig(**fields)
