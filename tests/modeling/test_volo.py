"""VOLO as a backbone: sizes, maps, gradients, saving, half precision, compiling, with small random networks.

Numbers of the original implementation are in tests/parity.
"""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.volo import VOLO
from torch import nn
from transformers import AutoBackbone, AutoConfig

from vss_hf.modeling.backbone import load_backbone_weights
from vss_hf.modeling.configuration_volo import VOLO_SIZES, VOLOConfig
from vss_hf.modeling.modeling_volo import VOLOBackbone, resize_position_embedding


SMALL = dict(
    depths=(2, 1, 2, 1), hidden_sizes=(8, 16, 16, 16), num_heads=(2, 4, 4, 4), stem_channels=6, image_size=(64, 96)
)
TAPS = ["stem", "stage1", "stage2", "stage4"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def make():
    """A small backbone in eval mode whose BatchNorms have seen a batch."""

    def build(**fields):
        model = VOLOBackbone(VOLOConfig(**{**SMALL, "out_features": TAPS, **fields})).train()
        with torch.no_grad():
            for _ in range(20):
                model.patch_embed.conv(torch.randn(2, 3, 32, 32))
        return model.eval()

    return build


# --- sizes


@pytest.mark.parametrize("size", VOLO_SIZES)
def test_full_sizes_are_timms_without_the_classifier(size):
    with torch.device("meta"):
        ours = VOLOBackbone(VOLOConfig(**VOLO_SIZES[size]))
        theirs = timm.create_model(f"{size.replace('-', '_')}_224", img_size=VOLO_SIZES[size]["image_size"])
    classifier = ("post_network.", "cls_token", "norm.", "head.", "aux_head.")
    expected = {n: p.shape for n, p in theirs.state_dict().items() if not n.startswith(classifier)}
    assert {n: p.shape for n, p in ours.state_dict().items()} == expected


def test_parameters_of_d5():
    """The challenge's backbone: 295.5 M of the classifier, less 14.2 M of class attention and 1.5 M of heads."""
    with torch.device("meta"):
        model = VOLOBackbone(VOLOConfig(**{**VOLO_SIZES["volo-d5"], "image_size": 224}))
    class_attention = 2 * (2 * 768 * 2 + 4 * 768**2 + 768 + 2 * 4 * 768**2 + 5 * 768)
    heads = 2 * (1000 * 769) + 2 * 768 + 768  # both classifiers, the norm before them, the class token
    assert sum(p.numel() for p in model.parameters()) == 295_455_584 - class_attention - heads


# --- maps


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (46, 62), (97, 161), (104, 168)])
@pytest.mark.parametrize("pad_input", [True, False])
def test_map_sizes(make, size, pad_input):
    model = make(pad_input=pad_input)
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size)).feature_maps
    half = [-(-side // 2) for side in size]
    if pad_input:
        expected = [half, *([-(-side // stride) for side in size] for stride in (8, 16, 16))]
    else:  # 7x7 stride 2 with padding rounds up; 4x4 stride 4 and 2x2 stride 2 round down
        expected = [half, *([side // stride for side in half] for stride in (4, 8, 8))]
    assert [(m.shape[1], *m.shape[2:]) for m in maps] == [
        (channels, *side) for channels, side in zip(model.channels, expected, strict=True)
    ]
    assert all(m.isfinite().all() for m in maps)


def test_padding_is_zeros_at_the_bottom_and_right(make):
    model, pixels = make(), torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        maps = model(pixels).feature_maps
        whole = model(F.pad(pixels, (0, 3, 0, 3))).feature_maps
    for found, expected in zip(maps, whole, strict=True):
        assert torch.equal(found, expected[..., : found.shape[-2], : found.shape[-1]])
    assert [m.shape[-1] - f.shape[-1] for m, f in zip(whole, maps, strict=True)] == [1, 0, 0, 0]


def test_maps_are_those_of_timm(make):
    model = make(mlp_ratios=(2, 3, 3, 4), qkv_bias=True, out_features=["stage1", "stage2", "stage3", "stage4"])
    theirs = VOLO(
        layers=[2, 1, 2, 1], embed_dims=[8, 16, 16, 16], num_heads=[2, 4, 4, 4], stem_hidden_dim=6, img_size=(64, 96),
        mlp_ratio=(2, 3, 3, 4), qkv_bias=True, num_classes=4,
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_intermediates(pixels, intermediates_only=True)
        found = model(pixels).feature_maps
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)


def test_images_of_a_batch_do_not_mix(make):
    model, pixels = make(), torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        together = model(pixels).feature_maps[-1]
        apart = torch.cat([model(image[None]).feature_maps[-1] for image in pixels])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_hidden_states_are_all_maps_and_come_on_request(make):
    model, pixels = make(tap_norm=True, out_features=["stage2"]), torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert model(pixels).hidden_states is None
        output = model(pixels, output_hidden_states=True)
        (feature_map,), hidden_states = model(pixels, output_hidden_states=True, return_dict=False)
    assert [m.shape[1] for m in hidden_states] == model.num_features
    expected = F.layer_norm(output.hidden_states[2].permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(feature_map, expected, rtol=0, atol=1e-5)
    assert torch.equal(feature_map, output.feature_maps[0])


def test_tap_norm_leaves_the_stem(make):
    model, plain = make(tap_norm=True), make()
    assert not plain.norms and list(model.norms) == TAPS[1:]
    plain.load_state_dict(model.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        maps, plain_maps = model(pixels).feature_maps, plain(pixels).feature_maps
    assert torch.equal(maps[0], plain_maps[0])
    for m in maps[1:]:
        torch.testing.assert_close(m.mean(dim=1), torch.zeros_like(m[:, 0]), rtol=0, atol=1e-5)
        assert (m.var(dim=1, unbiased=False) - 1).abs().max() < 0.1


# --- positions


def test_positions_keep_their_place_when_resized():
    """A ramp stays one, up to the waves of the cubic kernel; half a pixel of displacement would be 0.25."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    embedding = torch.stack([rows, columns, torch.ones_like(rows)], dim=-1)[None]
    assert resize_position_embedding(embedding, (8, 6)) is embedding
    resized = resize_position_embedding(embedding, (16, 18))[0]
    expected_rows = (torch.arange(16) + 0.5) / 2 - 0.5
    expected_columns = (torch.arange(18) + 0.5) / 3 - 0.5
    torch.testing.assert_close(resized[4:-4, 0, 0], expected_rows[4:-4], rtol=0, atol=0.05)
    torch.testing.assert_close(resized[0, 6:-6, 1], expected_columns[6:-6], rtol=0, atol=0.05)
    torch.testing.assert_close(resized[..., 2], torch.ones(16, 18))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_resized_in_fp32(dtype):
    embedding = torch.randn(1, 5, 7, 4).to(dtype)
    resized = resize_position_embedding(embedding, (9, 8))
    assert resized.dtype == dtype
    assert torch.equal(resized, resize_position_embedding(embedding.float(), (9, 8)).to(dtype))


def test_positions_are_learned_at_any_size(make):
    model = make()
    model(torch.randn(1, 3, 80, 48)).feature_maps[-1].square().sum().backward()
    assert model.pos_embed.grad.abs().sum(dim=-1).min() > 0


# --- training


def training_step(model, pixels, autocast=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = model(pixels).feature_maps
    loss = sum(m.float().square().mean() for m in maps)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_every_parameter_gets_a_gradient(make, precision):
    model, pixels = make(tap_norm=True, qkv_bias=True, drop_path_rate=0.0).train(), torch.randn(1, 3, 33, 47)
    if precision == "bf16":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    for norm in model.norms.values():
        nn.init.normal_(norm.weight)  # the mean square of an evenly weighted norm is a constant
    loss, gradients = training_step(model, pixels, autocast=precision == "autocast")
    assert loss.isfinite()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_half_precision_gives_the_maps_of_fp32(make, precision):
    model, pixels = make(), torch.randn(2, 3, 64, 80)
    for module in model.modules():  # attention that chooses, not the near mean of a new network
        if isinstance(module, nn.Linear):
            module.weight.data *= 8
    with torch.no_grad():
        expected = model(pixels).feature_maps
        if precision == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                found = model(pixels).feature_maps
        else:
            found = copy.deepcopy(model).to(torch.bfloat16)(pixels.to(torch.bfloat16)).feature_maps
    for ours, other in zip(found, expected, strict=True):
        assert (ours.float() - other).abs().max() <= 0.05 * other.abs().max()


def test_gradient_checkpointing_changes_memory_only(make):
    model, pixels = make().train(), torch.randn(2, 3, 33, 47)
    counter = model.patch_embed.conv[1].num_batches_tracked
    blocks = [block for index in (0, 2, 3, 4) for block in model.network[index]]
    calls = []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss, gradients = training_step(model, pixels)
    once, counted = len(calls), int(counter)
    calls.clear()
    model.gradient_checkpointing_enable()
    same_loss, same_gradients = training_step(model, pixels)
    assert (once, len(calls)) == (len(blocks), 2 * len(blocks))
    assert int(counter) == counted + 1
    assert torch.equal(loss, same_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=0, atol=1e-7, msg=name)


def test_drop_path_grows_over_the_transformer_blocks_only(make):
    model = make(drop_path_rate=0.5)
    rates = [[getattr(block.drop_path1, "drop_prob", 0.0) for block in model.network[index]] for index in (0, 2, 3, 4)]
    assert rates == [[0, 0], [0.2], [pytest.approx(0.3), 0.4], [0.5]]
    assert sum(isinstance(module, DropPath) for module in model.modules()) == 2 * 4
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels).feature_maps[-1], model(pixels).feature_maps[-1])


def test_initial_weights():
    model = AutoBackbone.from_config(VOLOConfig(hidden_sizes=(60, 120, 120, 120), tap_norm=True, out_features=TAPS))
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear and not any(module.bias.any() for module in linear if module.bias is not None)
    for module in linear:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 5
    for module in convolutions:  # PyTorch's default: uniform with standard deviation 1 / sqrt(3 fan_in)
        fan_in = module.weight[0].numel()
        assert module.weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
        assert module.bias is None or 0 < module.bias.abs().max() <= fan_in**-0.5
    for norm in model.norms.values():
        assert (norm.weight == 1).all() and not norm.bias.any()


# --- saving, loading, construction


@pytest.mark.parametrize("tap_norm", [True, False])
def test_save_and_load_are_exact(make, tmp_path, tap_norm):
    model, pixels = make(tap_norm=tap_norm, qkv_bias=True), torch.randn(1, 3, 33, 47)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is VOLOConfig and config.to_dict() == VOLOConfig(**config.to_dict()).to_dict()
    assert (config.out_features, config.out_strides, config.grid) == (TAPS, [2, 8, 16, 16], (4, 6))
    loaded, report = VOLOBackbone.from_pretrained(tmp_path, output_loading_info=True)
    loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
    assert not any(report.values()) and not loaded.training
    with torch.no_grad():
        for ours, theirs in zip(loaded(pixels).feature_maps, model(pixels).feature_maps, strict=True):
            assert torch.equal(ours, theirs)
    half = VOLOBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(pixels.to(torch.bfloat16)).feature_maps[-1].isfinite().all()


def test_weights_of_a_timm_classifier(make, monkeypatch):
    pretrained = VOLO(
        layers=[2, 1, 2, 1], embed_dims=[8, 16, 16, 16], num_heads=[2, 4, 4, 4], stem_hidden_dim=6, img_size=(64, 96)
    )
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pretrained)  # the world outside
    model = make()
    assert load_backbone_weights(model, "volo_d1_224") == []
    theirs = pretrained.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_position_embeddings_of_a_timm_classifier_of_another_size_are_resized(make, monkeypatch):
    sizes = dict(layers=[2, 1, 2, 1], embed_dims=[8, 16, 16, 16], num_heads=[2, 4, 4, 4], stem_hidden_dim=6)
    pretrained = VOLO(**sizes, img_size=(128, 128))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pretrained)
    model = make()
    assert load_backbone_weights(model, "volo_d1_224") == []
    theirs = pretrained.pos_embed.permute(0, 3, 1, 2)
    expected = F.interpolate(theirs, size=model.pos_embed.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
    assert model.pos_embed.shape != pretrained.pos_embed.shape and torch.equal(model.pos_embed, expected)


def test_both_attention_implementations_agree(make, tmp_path):
    model, pixels = make(), torch.randn(1, 3, 48, 64)
    model.save_pretrained(tmp_path)
    for implementation in ("eager", "sdpa"):
        loaded = VOLOBackbone.from_pretrained(tmp_path, attn_implementation=implementation)
        fused = {block.attn.fused_attn for index in (2, 3, 4) for block in loaded.network[index]}
        assert fused == {implementation == "sdpa"}
        for ours, theirs in zip(loaded(pixels).feature_maps, model(pixels).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_on_the_meta_device():
    with torch.device("meta"):
        model = VOLOBackbone(VOLOConfig(**SMALL))
        maps = model(torch.empty(2, 3, 50, 70)).feature_maps
    assert [m.shape for m in maps] == [(2, 16, 4, 5)]


@pytest.mark.slow
def test_compiled_eval_forward_has_no_graph_break(make):
    model = make(tap_norm=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size in ((33, 47), (48, 64)):  # the second one with symbolic sizes
        pixels = torch.randn(1, 3, *size)
        with torch.no_grad():
            for ours, theirs in zip(compiled(pixels).feature_maps, model(pixels).feature_maps, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# --- errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(depths=(2,), hidden_sizes=(8,), num_heads=(2,), mlp_ratios=(3,)), r"depths=\[2\].*two stages"),
        (dict(depths=(2, 0, 2, 1)), r"depths=\[2, 0, 2, 1\].*two stages"),
        (dict(depths=(2, 2, 2000, 1)), "1 to 1000 blocks"),
        (dict(hidden_sizes=(8, 16)), r"hidden_sizes=\[8, 16\]: expected 4 positive"),
        (dict(hidden_sizes=(8, 16, 16, 32)), r"hidden_sizes=\[8, 16, 16, 32\].*one width"),
        (dict(hidden_sizes=(8, 2**17, 2**17, 2**17)), "at most 65536"),
        (dict(num_heads=(3, 4, 4, 4)), r"num_heads=\[3, 4, 4, 4\]: expected divisors of \[8, 16, 16, 16\]"),
        (dict(mlp_ratios=(3, 3, 3, float("nan"))), "mlp_ratios=.*nan"),
        (dict(stem_channels=0), "stem_channels=0"),
        (dict(image_size=16), "image_size=16.*32 to 8192"),
        (dict(image_size=(64, 64, 64)), "image_size"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0"),
        (dict(drop_path_ratio=0.1), "no field 'drop_path_ratio'; did you mean 'drop_path_rate'"),
        (dict(out_features=["stage5"]), "stage5"),
    ],
)
def test_wrong_configurations_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        VOLOConfig(**{**SMALL, **fields})


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_too_small_an_image_is_named(make, size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels; VOLO needs at least 32 x 32"):
        make()(torch.randn(1, 3, *size))
