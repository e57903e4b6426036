"""SegFormer in mmsegmentation's form: against a straight-line computation, saving, half precision, odd sizes."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoModelForSemanticSegmentation

import vss_hf  # noqa: F401  (registration)
from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.modeling.configuration_segformer import MiTConfig, SegFormerConfig
from vss_hf.modeling.modeling_segformer import SegFormerForSemanticSegmentation


TINY = {
    "model_type": "vss_mit",
    "depths": [1, 2, 1, 1],
    "hidden_sizes": [8, 16, 20, 24],
    "num_attention_heads": [1, 2, 4, 4],
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = SegFormerConfig(backbone_config=dict(TINY), channels=12, id2label={i: str(i) for i in range(5)})
    model = SegFormerForSemanticSegmentation(config).eval()
    for norm in model.modules():  # new norms hide mistakes
        if isinstance(norm, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def reference_names(model):
    """The model's tensors under mmsegmentation's names and layouts, written down by hand."""
    own, names = model.state_dict(), {}
    for stage, depth in enumerate(TINY["depths"]):
        ours, theirs = f"backbone.encoder.stages.{stage}", f"backbone.layers.{stage}"
        for kind in ("weight", "bias"):
            names[f"{theirs}.0.projection.{kind}"] = own[f"{ours}.patch_embeddings.proj.{kind}"]
            names[f"{theirs}.0.norm.{kind}"] = own[f"{ours}.patch_embeddings.layer_norm.{kind}"]
            names[f"{theirs}.2.{kind}"] = own[f"{ours}.layer_norm.{kind}"]
            for b in range(depth):
                block, their = f"{ours}.blocks.{b}", f"{theirs}.1.{b}"
                names[f"{their}.norm1.{kind}"] = own[f"{block}.layernorm_before.{kind}"]
                names[f"{their}.norm2.{kind}"] = own[f"{block}.layernorm_after.{kind}"]
                qkv = [own[f"{block}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
                names[f"{their}.attn.attn.in_proj_{kind}"] = torch.cat(qkv)
                names[f"{their}.attn.attn.out_proj.{kind}"] = own[f"{block}.attention.o_proj.{kind}"]
                if stage < 3:
                    reduction = f"{block}.attention.sequence_reduction"
                    names[f"{their}.attn.sr.{kind}"] = own[f"{reduction}.sequence_reduction.{kind}"]
                    names[f"{their}.attn.norm.{kind}"] = own[f"{reduction}.layer_norm.{kind}"]
                for layer, part in ((0, "fc1"), (4, "fc2")):
                    tensor = own[f"{block}.mlp.{part}.{kind}"]
                    names[f"{their}.ffn.layers.{layer}.{kind}"] = (
                        tensor[..., None, None] if kind == "weight" else tensor
                    )
                names[f"{their}.ffn.layers.1.{kind}"] = own[f"{block}.mlp.dwconv.dwconv.{kind}"]
    heads = {f"decode_head.convs.{i}": f"decode_head.convs.{i}" for i in range(4)}
    for ours, theirs in {**heads, "decode_head.merge": "decode_head.fusion_conv"}.items():
        names[f"{theirs}.conv.weight"] = own[f"{ours}.0.weight"]
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{theirs}.bn.{kind}"] = own[f"{ours}.1.{kind}"]
    for kind in ("weight", "bias"):
        names[f"decode_head.conv_seg.{kind}"] = own[f"decode_head.classifier.{kind}"]
    return {name: tensor.clone() for name, tensor in names.items()}


def straight_line(weights, pixels):
    """mmsegmentation's SegFormer as its layers are written down there, in float64, with torch's own attention."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def conv(x, name, **how):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **how)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def conv_module(x, name):
        x = conv(x, f"{name}.conv")
        mean, variance = w[f"{name}.bn.running_mean"], w[f"{name}.bn.running_var"]
        return F.batch_norm(x, mean, variance, w[f"{name}.bn.weight"], w[f"{name}.bn.bias"]).relu()

    x, maps = pixels.double(), []
    for stage, (depth, heads) in enumerate(zip(TINY["depths"], TINY["num_attention_heads"], strict=True)):
        name = f"backbone.layers.{stage}"
        x = conv(x, f"{name}.0.projection", stride=4 if stage == 0 else 2, padding=3 if stage == 0 else 1)
        size = x.shape[-2:]
        x = norm(x.flatten(2).transpose(1, 2), f"{name}.0.norm")
        for b in range(depth):
            block = f"{name}.1.{b}"
            query = norm(x, f"{block}.norm1")
            context = query
            if stage < 3:
                ratio = (8, 4, 2)[stage]
                context = conv(query.transpose(1, 2).unflatten(2, size), f"{block}.attn.sr", stride=ratio)
                context = norm(context.flatten(2).transpose(1, 2), f"{block}.attn.norm")
            attention = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True).double()
            prefix = f"{block}.attn.attn."
            attention.load_state_dict({n.removeprefix(prefix): t for n, t in w.items() if n.startswith(prefix)})
            x = x + attention(query, context, context)[0]
            hidden = norm(x, f"{block}.norm2").transpose(1, 2).unflatten(2, size)
            hidden = conv(hidden, f"{block}.ffn.layers.0")
            hidden = conv(hidden, f"{block}.ffn.layers.1", padding=1, groups=hidden.shape[1])
            hidden = conv(F.gelu(hidden), f"{block}.ffn.layers.4")
            x = x + hidden.flatten(2).transpose(1, 2)
        x = norm(x, f"{name}.2").transpose(1, 2).unflatten(2, size)
        maps.append(x)
    maps = [conv_module(feature_map, f"decode_head.convs.{i}") for i, feature_map in enumerate(maps)]
    size = maps[0].shape[-2:]
    maps = [F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False) for feature_map in maps]
    return conv(conv_module(torch.cat(maps, dim=1), "decode_head.fusion_conv"), "decode_head.conv_seg")


@pytest.mark.parametrize("size", [(64, 96), (97, 161), (33, 47)])
def test_logits_are_those_of_the_layers_written_down(model, size):
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(pixels).logits
        expected = straight_line(reference_names(model), pixels)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=2e-5)


def test_zero_image_shows_the_eps_of_the_norms(model):
    pixels = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixels).logits.double(), straight_line(reference_names(model), pixels), rtol=1e-4, atol=2e-5
        )


def test_a_reference_checkpoint_gives_the_same_model(model):
    other = SegFormerForSemanticSegmentation(model.config).eval()
    report = load_reference_state_dict(other, reference_names(model), "mmseg")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept
    pixels = torch.randn(1, 3, 33, 47)
    assert torch.equal(other(pixels).logits, model(pixels).logits)


def test_mmsegmentations_configuration_is_read():
    backbone = dict(
        type="MixVisionTransformer",
        embed_dims=8,
        num_stages=4,
        num_layers=[1, 2, 1, 1],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.1,
    )
    norm = dict(type="SyncBN", requires_grad=True)
    head = dict(
        type="SegformerHead", in_channels=[8, 16, 40, 64], in_index=[0, 1, 2, 3], channels=12, dropout_ratio=0.1,
        num_classes=5, norm_cfg=norm, align_corners=False, loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    )  # fmt: skip
    config = segmenter_config_from_mmseg(dict(type="EncoderDecoder", backbone=backbone, decode_head=head))
    assert isinstance(config, SegFormerConfig) and config.backbone_config.hidden_sizes == [8, 16, 40, 64]
    assert (config.channels, config.num_labels, config.in_indices) == (12, 5, [0, 1, 2, 3])
    assert config.backbone_config.layer_norm_eps == 1e-6
    with pytest.raises(ValueError, match="SegformerHead.*interpolate_mode"):
        head["interpolate_mode"] = "nearest"
        segmenter_config_from_mmseg(dict(type="EncoderDecoder", backbone=backbone, decode_head=head))


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 33, 47)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    # Weights mapped from a file lie otherwise in memory, where matrix products add up in another order.
    torch.testing.assert_close(again(pixels).logits, model(pixels).logits, rtol=1e-5, atol=1e-6)
    half = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits = half(pixels.bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(pixels).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_small_odd_image_trains(model, dtype):
    model = model.to(dtype).train()
    labels = torch.randint(0, 5, (1, 33, 47))
    loss = model(torch.randn(1, 3, 33, 47, dtype=dtype), labels=labels).loss
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradient_checkpointing_changes_nothing(model):
    pixels, labels = torch.randn(1, 3, 64, 96), torch.randint(0, 5, (1, 64, 96))
    model.config.classifier_dropout = 0.0
    model.decode_head.dropout.p = 0.0
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        gradients.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_compiles_without_graph_breaks(model):
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(pixels).logits
        torch.testing.assert_close(compiled, model(pixels).logits, rtol=1e-4, atol=1e-4)


def test_the_backbone_alone_returns_the_maps_asked_for():
    backbone = AutoBackbone.from_config(MiTConfig(**{**TINY, "out_features": ["stage2", "stage4"]})).eval()
    maps = backbone(torch.randn(1, 3, 33, 47)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, 5, 6), (1, 24, 2, 2)]
    assert backbone.channels == [16, 24]


def test_wrong_fields_are_named():
    with pytest.raises((ValueError, StrictDataclassError), match=r"hidden_sizes=\[8, 16\]: expected 4 numbers"):
        MiTConfig(**{**TINY, "hidden_sizes": [8, 16]})
    with pytest.raises((ValueError, StrictDataclassError), match=r"in_indices=\[0, 4\].*0 to 3"):
        SegFormerConfig(backbone_config=dict(TINY), in_indices=[0, 4])
    with pytest.raises((ValueError, StrictDataclassError), match="channels=0"):
        SegFormerConfig(backbone_config=dict(TINY), channels=0)
