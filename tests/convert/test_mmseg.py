"""The mmseg converter refuses everything that does not fit. Its numbers: tests/parity."""

import itertools
import re

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.swin import from_unfold_order


def conv_bn(name, out_channels, in_channels, kernel=1):
    """An mmcv ConvModule: convolution without bias and BatchNorm."""
    statistics = {f"{name}.bn.{kind}": (out_channels,) for kind in ("weight", "bias", "running_mean", "running_var")}
    return {
        f"{name}.conv.weight": (out_channels, in_channels, kernel, kernel),
        **statistics,
        f"{name}.bn.num_batches_tracked": (),
    }


def affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def reference_state_dict(dim=8, heads=(1, 2, 2), window=4, depth=2, num_labels=5, channels=16, ocr=8, coarse=12):
    """Random tensors under mmsegmentation's names for the tiny Swin of tests/conftest.py, written down by hand."""
    table = (2 * window - 1) ** 2
    shapes = {**affine("backbone.patch_embed.projection", dim, 3, 4, 4), **affine("backbone.patch_embed.norm", dim)}
    for stage, stage_heads in enumerate(heads):
        width = dim * 2**stage
        for block in range(depth):
            name = f"backbone.stages.{stage}.blocks.{block}"
            shapes |= affine(f"{name}.norm1", width) | affine(f"{name}.norm2", width)
            shapes |= affine(f"{name}.attn.w_msa.qkv", 3 * width, width)
            shapes |= affine(f"{name}.attn.w_msa.proj", width, width)
            shapes[f"{name}.attn.w_msa.relative_position_bias_table"] = (table, stage_heads)
            shapes[f"{name}.attn.w_msa.relative_position_index"] = (window**2, window**2)
            shapes |= affine(f"{name}.ffn.layers.0.0", 4 * width, width) | affine(
                f"{name}.ffn.layers.1", width, 4 * width
            )
        if stage < len(heads) - 1:
            shapes |= affine(f"backbone.stages.{stage}.downsample.norm", 4 * width)
            shapes[f"backbone.stages.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
        shapes |= affine(f"backbone.norm{stage}", width)
    read = sum(dim * 2**stage for stage in range(len(heads)))
    shapes |= conv_bn("decode_head.0.convs.0", coarse, read) | affine(
        "decode_head.0.conv_seg", num_labels, coarse, 1, 1
    )
    shapes |= conv_bn("decode_head.1.bottleneck", channels, read, 3)
    block = "decode_head.1.object_context_block"
    for kind in ("query", "key"):
        shapes |= conv_bn(f"{block}.{kind}_project.0", ocr, channels) | conv_bn(f"{block}.{kind}_project.1", ocr, ocr)
    shapes |= conv_bn(f"{block}.value_project", ocr, channels) | conv_bn(f"{block}.out_project", channels, ocr)
    shapes |= conv_bn(f"{block}.bottleneck", channels, 2 * channels)
    shapes |= affine("decode_head.1.conv_seg", num_labels, channels, 1, 1)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def model(tiny_ocrnet_config):
    return AutoModelForSemanticSegmentation.from_config(tiny_ocrnet_config("swin")).eval()


def test_every_tensor_is_filled(model):
    state_dict = reference_state_dict()
    report = load_reference_state_dict(model, state_dict, "mmseg")
    assert set(report.loaded) == set(model.state_dict())
    assert set(report.unused) == {name for name in state_dict if name.endswith("relative_position_index")}
    assert all(report.unused.values()) and not report.kept  # every reason is told
    qkv = state_dict["backbone.stages.1.blocks.0.attn.w_msa.qkv.weight"]  # (48, 16): queries, keys, values
    attention = model.backbone.swin.encoder.layers[1].blocks[0].attention
    assert torch.equal(attention.k_proj.weight, qkv[16:32]) and torch.equal(attention.v_proj.weight, qkv[32:])
    assert torch.equal(model.decode_head.classifier.bias, state_dict["decode_head.1.conv_seg.bias"])


def test_a_norm_that_no_head_reads_is_reported(tiny_ocrnet_config):
    config = tiny_ocrnet_config("swin", in_indices=[0, 1])
    config.backbone_config.out_features = ["stage2", "stage3"]
    model = AutoModelForSemanticSegmentation.from_config(config)
    state_dict = reference_state_dict()
    for name in ("decode_head.0.convs.0.conv.weight", "decode_head.1.bottleneck.conv.weight"):
        state_dict[name] = state_dict[name][:, 8:]  # without the channels of the first map
    report = load_reference_state_dict(model, state_dict, "mmseg")
    assert {name for name in report.unused if "index" not in name} == {"backbone.norm0.bias", "backbone.norm0.weight"}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("backbone.stages.0.blocks.1.norm2.bias", "backbone.swin.encoder.layers.0.blocks.1.layernorm_after.bias"),
        ("backbone.stages.1.downsample.norm.weight", "backbone.swin.encoder.layers.1.downsample.norm.weight"),
        ("backbone.norm2.weight", "backbone.hidden_states_norms.stage3.weight"),
        ("decode_head.0.convs.0.bn.running_var", "coarse_head.convs.0.1.running_var"),
        ("decode_head.1.conv_seg.weight", "decode_head.classifier.weight"),
    ],
)
def test_one_missing_key_is_named(model, name, own):
    state_dict = reference_state_dict()
    del state_dict[name]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"missing: {re.escape(own)}$"):
        load_reference_state_dict(model, state_dict, "mmseg")
    assert all(
        torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()
    )  # nothing was half filled


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "decode_head.1.conv_seg.scale",
            "unexpected: decode_head.1.conv_seg.scale .here decode_head.classifier.scale",
        ),
        ("backbone.stages.0.blocks.7.norm1.weight", r"unexpected: .*layers\.0\.blocks\.7"),
        ("decode_head.2.conv_seg.weight", r"no layer known here.*decode_head\.2\.conv_seg\.weight"),
        ("auxiliary_head.conv_seg.weight", r"no layer known here.*auxiliary_head"),
        ("module.backbone.norm0.weight", r"no layer known here.*module\.backbone"),
    ],
)
def test_one_extra_key_is_named(model, name, message):
    with pytest.raises(ValueError, match=message):
        load_reference_state_dict(model, {**reference_state_dict(), name: torch.zeros(8)}, "mmseg")


def test_another_shape_is_named(model):
    state_dict = reference_state_dict(num_labels=6)
    with pytest.raises(ValueError, match=r"coarse_head.classifier.weight: \(6, 12, 1, 1\) for \(5, 12, 1, 1\)"):
        load_reference_state_dict(model, state_dict, "mmseg")


def test_an_unknown_source_is_refused_with_the_known_ones(model):
    with pytest.raises(ValueError, match="'mmsegmentation'.*known sources: mmseg, vspw_baseline$"):
        load_reference_state_dict(model, {}, "mmsegmentation")


def test_another_backbone_is_refused(tiny_ocrnet_config):
    model = AutoModelForSemanticSegmentation.from_config(tiny_ocrnet_config("resnet"))
    with pytest.raises(ValueError, match="'mmseg' to vss_ocrnet on resnet; backbones known: .*swin"):
        load_reference_state_dict(model, reference_state_dict(), "mmseg")


def test_patch_merging_reads_the_same_pixels_in_both_orders():
    """Merge one image by mmseg's nn.Unfold and by Swin's sub-grids, position by position, in a slow loop."""
    channels = 3
    weight, image = torch.randn(5, 4 * channels, dtype=torch.float64), torch.randn(channels, 4, 6, dtype=torch.float64)
    unfolded = torch.nn.functional.unfold(image[None], kernel_size=2, stride=2)[0]  # (4 C, positions)
    expected = weight @ unfolded
    own = from_unfold_order(weight)
    for position, (row, column) in enumerate(itertools.product(range(2), range(3))):
        # Swin: channels of the pixels (0,0), (1,0), (0,1), (1,1) one after the other.
        pixels = [image[:, 2 * row + dy, 2 * column + dx] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))]
        torch.testing.assert_close(own @ torch.cat(pixels), expected[:, position])
    vector = torch.arange(8.0)  # the norm's weight, 2 channels: c * 4 + (2 dy + dx)
    assert from_unfold_order(vector).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
