"""InternImage: sizes, variants, shapes, gradients, initial weights, saving, half precision, compiling.

Numbers of the original implementation are in tests/parity.
"""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig

from vss_hf.modeling.configuration_internimage import INTERNIMAGE_SIZES, InternImageConfig
from vss_hf.modeling.dcnv3 import DCNv3
from vss_hf.modeling.modeling_internimage import InternImageBackbone, InternImageBlock


# The four orders of norms and factors: T's classifier, T for segmentation, S to XL, H, G.
VARIANTS = {
    "plain": {},
    "factors": dict(layer_scale=0.5),
    "post_norm": dict(layer_scale=0.5, post_norm=True, offset_scale=2.0),
    "huge": dict(res_post_norm=True, center_feature_scale=True, dw_kernel_size=5, level2_post_norm=True,
                 level2_post_norm_block_ids=[0, 2]),
    "giant": dict(post_norm=True, center_feature_scale=True, dw_kernel_size=5, level2_post_norm=True,
                  level2_post_norm_block_ids=[2]),
}  # fmt: skip
ALL_STAGES = [f"stage{index}" for index in (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def config(variant="plain", **fields):
    small = dict(channels=8, depths=[1, 2, 3, 1], groups=[1, 2, 4, 8], out_features=ALL_STAGES)
    return InternImageConfig(**{**small, **VARIANTS[variant], **fields})


def make(variant="plain", **fields):
    """A small backbone in eval mode whose weights are all random: fresh ones would sample at the same places."""
    model = InternImageBackbone(config(variant, **fields)).eval()
    for name, parameter in model.named_parameters():
        if not (name.endswith("norm.weight") or "layer_scale" in name):
            nn.init.normal_(parameter, std=0.2)
    return model


def total(output):
    """One number that depends on every map."""
    return sum((feature_map.float() * torch.linspace(-1, 1, 8 * 2**i)[:, None, None]).pow(2).mean()
               for i, feature_map in enumerate(output.feature_maps))  # fmt: skip


# --- sizes and configuration


@pytest.mark.parametrize(
    ("size", "millions"),  # measured with the original code
    [("t", 28.75), ("s", 48.50), ("b", 94.91), ("l", 218.95), ("xl", 328.97), ("h", 1073.12), ("g", 3052.78)],
)
def test_parameters_of_the_official_sizes(size, millions):
    fields = INTERNIMAGE_SIZES[f"internimage-{size}"]
    if size == "t":
        fields = {**fields, "layer_scale": None}  # the classifier, which was counted, has no factors
    with torch.device("meta"):
        model = InternImageBackbone(InternImageConfig(**fields))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_a_configuration_survives_saving(tmp_path):
    before = InternImageConfig(**INTERNIMAGE_SIZES["internimage-h"], out_indices=(1, 3))
    before.save_pretrained(tmp_path)
    after = InternImageConfig.from_pretrained(tmp_path)
    assert after.to_dict() == before.to_dict()
    assert (after.out_features, after.out_indices) == (["stage1", "stage3"], [1, 3])
    assert InternImageConfig().out_features == ["stage4"]
    assert InternImageConfig(depths=[1, 1], groups=[1, 1]).stage_names == ["stem", "stage1", "stage2"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(channels=7), "channels=7: expected an even number"),
        (dict(depths=[1, 0, 1, 1]), r"depths=\[1, 0, 1, 1\]: expected at least 1 block"),
        (dict(groups=[1, 2, 4]), r"groups=\[1, 2, 4\]: expected 4 numbers"),
        (dict(groups=[1, 2, 3, 8]), r"stage3 has 32 channels, which 3 groups"),
        (dict(groups=[0, 2, 4, 8]), r"stage1 has 8 channels, which 0 groups"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0: expected 0 <= value < 1"),
        (dict(mlp_ratio=0), "mlp_ratio=0: expected a finite number above 0"),
        (dict(offset_scale=float("nan")), "offset_scale=nan: expected a finite number above 0"),
        (dict(layer_scale=float("inf")), "layer_scale=inf"),
        (dict(layer_scale="yes"), "layer_scale"),
        (dict(dw_kernel_size=4), "dw_kernel_size=4: expected an odd number"),
        (dict(res_post_norm=True, post_norm=True), "res_post_norm=True with post_norm=True"),
        (dict(res_post_norm=True, layer_scale=1.0), "res_post_norm=True with layer_scale=1.0"),
        (dict(level2_post_norm=True), "level2_post_norm=True with level2_post_norm_block_ids=None"),
        (dict(level2_post_norm_block_ids=[0]), r"level2_post_norm=False with level2_post_norm_block_ids=\[0\]"),
        (dict(level2_post_norm=True, level2_post_norm_block_ids=[3]), "the third stage has 3 blocks"),
        (dict(level2_post_norm=True, level2_post_norm_block_ids=[1, 1]), "expected different numbers"),
        (dict(depth=[1, 1, 1, 1]), "no field 'depth'; did you mean 'depths'"),
        (dict(out_features=["stage5"]), "stage5"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        config(**fields)


# --- what is computed


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 161)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_size_gives_maps_at_strides_4_to_32_rounded_up(variant, size):
    model = make(variant)
    assert model.channels == [8, 16, 32, 64]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size)).feature_maps
    for feature_map, width, stride in zip(maps, model.channels, (4, 8, 16, 32), strict=True):
        assert feature_map.shape == (1, width, -(-size[0] // stride), -(-size[1] // stride))
        assert feature_map.isfinite().all()


def test_480x853_as_in_the_papers():
    with torch.device("meta"):
        model = InternImageBackbone(config()).eval()
        maps = model(torch.empty(1, 3, 480, 853)).feature_maps
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [(120, 214), (60, 107), (30, 54), (15, 27)]


def normalised(tensor, norm):
    return F.layer_norm(tensor, tensor.shape[-1:], norm.weight, norm.bias, eps=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_norms_factors_and_branches(variant):
    """The blocks and norms of the third stage, written out here once more."""
    model, settings = make(variant), VARIANTS[variant]
    stage = model.stages[2]
    x = hidden_states = torch.randn(1, 5, 6, 32)
    for index, block in enumerate(stage.blocks):
        perceptron = nn.Sequential(block.mlp.fc1, nn.GELU(), block.mlp.fc2)
        for layer, norm, outer, factor in (
            (block.dcn, block.norm1, block.res_post_norm1, block.layer_scale1),
            (perceptron, block.norm2, block.res_post_norm2, block.layer_scale2),
        ):
            if settings.get("post_norm"):
                branch = normalised(layer(x), norm)
            elif settings.get("res_post_norm"):
                branch = normalised(layer(normalised(x, norm)), outer)
            else:
                branch = layer(normalised(x, norm))
            x = x + branch * (1 if factor is None else factor)
        if index in settings.get("level2_post_norm_block_ids", []):
            x = normalised(x, stage.post_norms[settings["level2_post_norm_block_ids"].index(index)])
    if variant != "post_norm":
        x = normalised(x, stage.norm)
    torch.testing.assert_close(stage(hidden_states), x, rtol=1e-5, atol=1e-5)


def test_blocks_hand_their_settings_to_the_operator():
    block = make("huge", offset_scale=2.0).stages[2].blocks[0]
    hidden_states, outputs = torch.randn(1, 9, 8, 32), []
    for offset_scale in (2.0, 1.0):
        dcn = DCNv3(32, 4, dw_kernel_size=5, offset_scale=offset_scale, center_feature_scale=True)
        dcn.load_state_dict(block.dcn.state_dict())
        outputs.append(dcn(hidden_states))
    assert torch.equal(block.dcn(hidden_states), outputs[0])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_are_no_norms_that_nothing_applies(variant):
    """DistributedDataParallel waits for ever for the gradient of a parameter that is never used."""
    model = make(variant).train()
    total(model(torch.randn(2, 3, 64, 96))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_images_of_a_batch_do_not_mix():
    model, pixels = make(), torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        together = model(pixels).feature_maps
        apart = [model(image[None]).feature_maps for image in pixels]
    for index, feature_map in enumerate(together):
        torch.testing.assert_close(feature_map, torch.cat([maps[index] for maps in apart]), rtol=1e-4, atol=1e-5)


def test_chosen_maps_hidden_states_and_tuples():
    model, pixels = make(), torch.randn(1, 3, 32, 32)
    all_maps, states = model(pixels).feature_maps, model(pixels, output_hidden_states=True).hidden_states
    assert model(pixels).hidden_states is None and len(states) == 5 and states[0].shape == (1, 8, 8, 8)
    assert all(torch.equal(*pair) for pair in zip(all_maps, states[1:], strict=True))
    some = InternImageBackbone(config(out_features=["stem", "stage3"])).eval()
    some.load_state_dict(model.state_dict())
    assert some.channels == [8, 32]
    assert all(torch.equal(*pair) for pair in zip(some(pixels).feature_maps, (states[0], states[3]), strict=True))
    (maps,) = model(pixels, return_dict=False)
    assert torch.equal(maps[0], all_maps[0])
    assert len(model.forward_with_filtered_kwargs(pixels, output_attentions=True).feature_maps) == 4


def test_the_drop_path_rate_grows_linearly_and_drops_whole_branches():
    model = make(drop_path_rate=0.6)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    block, x = model.stages[3].blocks[0], torch.randn(200, 1, 1, 64)
    with torch.no_grad():
        kept = (block.train()(x) != x).flatten(1).any(dim=1).float().mean().item()
    assert kept == pytest.approx(1 - 0.6**2, abs=0.12)  # at least one of the two branches; 3.5 standard deviations
    assert torch.equal(block.eval()(x), block(x))


# --- precision, memory, compiling


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
@pytest.mark.parametrize("variant", ["factors", "huge"])
def test_half_precision_is_near_fp32_and_trains(variant, precision):
    model, pixels = make(variant), torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        expected = model(pixels).feature_maps
    if precision == "bf16":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model.train()(pixels)
    for ours, reference in zip(output.feature_maps, expected, strict=True):
        assert (ours.float() - reference).abs().mean() <= 0.05 * reference.abs().mean()
    total(output).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_gradient_checkpointing_changes_memory_only(drop_path_rate):
    model, pixels, calls = make("factors", drop_path_rate=drop_path_rate).train(), torch.randn(2, 3, 32, 32), []
    model.stages[0].blocks[0].dcn.register_forward_hook(lambda *_: calls.append(1))

    def step():
        torch.manual_seed(1)
        model.zero_grad()
        calls.clear()
        loss = total(model(pixels))
        loss.backward()
        return loss, {name: p.grad.clone() for name, p in model.named_parameters()}, len(calls)

    loss, gradients, once = step()
    model.gradient_checkpointing_enable()
    same_loss, same_gradients, twice = step()
    assert (once, twice) == (1, 2) and torch.equal(loss, same_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model, pixels = make("huge"), torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(pixels).feature_maps
        for ours, expected in zip(compiled, model(pixels).feature_maps, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


# --- initial weights, saving and loading


def test_initial_weights_are_the_originals():
    model = InternImageBackbone(
        config(channels=64, groups=[4, 8, 16, 32], layer_scale=1e-5, center_feature_scale=True)
    )
    for block in (module for module in model.modules() if isinstance(module, InternImageBlock)):
        for layer in (block.dcn.offset, block.dcn.mask, block.dcn.center_feature_scale_proj):
            assert not layer.weight.any() and not layer.bias.any()
        for layer in (block.dcn.input_proj, block.dcn.output_proj):
            bound = (6 / sum(layer.weight.shape)) ** 0.5  # Xavier, uniform
            assert not layer.bias.any() and 0.9 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        for layer in (block.mlp.fc1, block.mlp.fc2):
            assert not layer.bias.any() and layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (block.layer_scale1 == 1e-5).all() and (block.layer_scale2 == 1e-5).all()
        assert block.dcn.dw_conv.weight.abs().max() <= 1 / 3  # torch's own: 1 / sqrt(fan in)
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        assert norm.eps == 1e-6 and (norm.weight == 1).all() and not norm.bias.any()


@pytest.mark.parametrize("variant", ["factors", "huge"])
def test_save_and_load_are_exact(variant, tmp_path):
    AutoConfig.register(InternImageConfig.model_type, InternImageConfig, exist_ok=True)
    AutoBackbone.register(InternImageConfig, InternImageBackbone, exist_ok=True)
    model, pixels = make(variant), torch.randn(1, 3, 33, 47)
    model.save_pretrained(tmp_path)
    loaded, report = InternImageBackbone.from_pretrained(tmp_path, output_loading_info=True)
    loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
    assert not any(report.values()) and not loaded.training
    with torch.no_grad():
        for ours, expected in zip(loaded(pixels).feature_maps, model(pixels).feature_maps, strict=True):
            assert torch.equal(ours, expected)
    half = InternImageBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(pixels.to(torch.bfloat16)).feature_maps[0].dtype == torch.bfloat16
    auto = AutoBackbone.from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(auto) is InternImageBackbone
    assert {n: t.shape for n, t in auto.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_missing_tensors_get_their_initial_weights(tmp_path):
    """Loading T's classifier into T with factors: what is there is kept, what is missing starts as it should."""
    classifier = make("plain")
    classifier.save_pretrained(tmp_path)
    model = InternImageBackbone.from_pretrained(tmp_path, config=config("factors"))
    assert (model.stages[1].blocks[1].layer_scale2 == 0.5).all()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_copies_share_nothing():
    model = make()
    twin = copy.deepcopy(model)
    twin.stages[0].norm.weight.data.zero_()
    assert model.stages[0].norm.weight.any()
