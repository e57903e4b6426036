"""What ResNet and HRNet promise alike: shapes at any size, training, saving, half precision, compiling."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig

from vss_hf.modeling.configuration_hrnet import HRNetConfig
from vss_hf.modeling.configuration_resnet import DilatedResNetConfig


ALL_MAPS = ["stem", "stage1", "stage2", "stage3", "stage4"]
CONFIGS = {
    "basic": lambda: DilatedResNetConfig(
        block="basic", depths=[1, 2, 1, 1], hidden_sizes=[4, 6, 8, 10], stem_channels=8, out_features=ALL_MAPS
    ),
    "dilated": lambda: DilatedResNetConfig(
        depths=[1, 1, 2, 2],
        hidden_sizes=[8, 12, 16, 20],
        stem="3x3x3",
        stem_channels=8,
        output_stride=8,
        avg_down=True,
        out_features=ALL_MAPS,
    ),
    "hrnet": lambda: HRNetConfig(
        stage1_channels=4,
        hidden_sizes=[4, 6, 8, 10],
        num_modules=[1, 1, 2, 1],
        num_blocks=[[1], [1, 1], [1, 1, 1], [1, 2, 1, 1]],
        out_features=ALL_MAPS,
    ),
}
STRIDES = {"basic": [2, 4, 8, 16, 32], "dilated": [2, 4, 8, 8, 8], "hrnet": [2, 4, 8, 16, 32]}
each = pytest.mark.parametrize("name", list(CONFIGS))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name):
    """A small backbone in eval mode, whose every layer matters: no norm is at zero, statistics are not the initial."""
    backbone = AutoBackbone.from_config(CONFIGS[name]()).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return backbone


def weighted_sum(maps):
    """A loss that looks at every pixel of every map in its own way; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return sum((m.float() * torch.randn(m.shape, generator=generator)).mean() for m in maps)


@each
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 161), (8, 13)])
def test_maps_have_the_image_size_by_their_stride_rounded_up(name, size):
    backbone = build(name)
    with torch.no_grad():
        output = backbone(torch.randn(1, 3, *size))
    expected = [
        (1, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(backbone.channels, STRIDES[name], strict=True)
    ]
    assert [tuple(m.shape) for m in output.feature_maps] == expected
    assert output.hidden_states is None and all(m.isfinite().all() for m in output.feature_maps)


@each
def test_chosen_maps_and_plain_tuples(name):
    backbone, pixels = build(name), torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        every = backbone(pixels).feature_maps
        backbone.out_features = ["stage2", "stage4"]
        output = backbone(pixels, output_hidden_states=True)
        (maps,) = backbone(pixels, return_dict=False)
    assert [torch.equal(ours, every[i]) for ours, i in zip(output.feature_maps, (2, 4), strict=True)] == [True, True]
    assert len(output.hidden_states) == 5 and all(map(torch.equal, output.hidden_states, every))
    assert all(map(torch.equal, maps, output.feature_maps))
    assert backbone.channels == [every[2].shape[1], every[4].shape[1]]


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_odd_image_trains(name, dtype):
    backbone = build(name).train().to(dtype)
    maps = backbone(torch.randn(1, 3, 65, 47, dtype=dtype)).feature_maps
    assert all(m.dtype == dtype for m in maps)
    weighted_sum(maps).backward()
    for parameter, tensor in backbone.named_parameters():
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any(), parameter


@each
def test_images_of_a_batch_do_not_mix(name):
    backbone, pixels = build(name).double(), torch.randn(2, 3, 33, 47).double()
    with torch.no_grad():
        together = backbone(pixels).feature_maps
        apart = [backbone(image[None]).feature_maps for image in pixels]
    for index, both in enumerate(together):
        torch.testing.assert_close(both, torch.cat([maps[index] for maps in apart]), rtol=0, atol=1e-12)


@each
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing_else(name, use_reentrant):
    plain, pixels = build(name).train(), torch.randn(2, 3, 65, 47)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = count_calls(checkpointed)
    losses = []
    for backbone in (plain, checkpointed):
        loss = weighted_sum(backbone(pixels).feature_maps)
        loss.backward()
        losses.append(loss)
    assert max(calls.values()) == 2  # activations were computed again
    assert torch.equal(*losses)
    for (parameter, ours), theirs in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        limit = 1e-5 * ours.grad.abs().max().item()  # reentrant checkpointing adds gradients in another order
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=0, atol=limit, msg=parameter)
    # The second pass counts in no running statistics, and leaves the norms ready for the next step.
    for (buffer, ours), theirs in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(ours, theirs), buffer
    assert {m.momentum for m in checkpointed.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def count_calls(model):
    """Convolution -> how often it ran."""
    calls = {}
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            calls[module_name] = 0

            def count(*_, module_name=module_name):
                calls[module_name] += 1

            module.register_forward_hook(count)
    return calls


@each
def test_saved_and_loaded_backbone_is_the_same(name, tmp_path):
    backbone, pixels = build(name), torch.randn(1, 3, 33, 47)
    backbone.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(backbone.config) and config.out_features == ALL_MAPS
    loaded, report = type(backbone).from_pretrained(tmp_path, output_loading_info=True)
    loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    half = type(backbone).from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        maps = backbone(pixels).feature_maps
        assert all(map(torch.equal, loaded(pixels).feature_maps, maps))
        for ours, exact in zip(half(pixels.bfloat16()).feature_maps, maps, strict=True):
            assert ours.dtype == torch.bfloat16
            assert (ours - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(tensor.dtype == torch.bfloat16 for tensor in half.parameters())


@each
def test_new_backbones_keep_the_scale_of_the_image(name):
    backbone = AutoBackbone.from_config(CONFIGS[name]())
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not m.running_mean.any() and torch.equal(m.running_var, torch.ones_like(m.running_var)) for m in norms)
    maps = backbone.train()(torch.randn(2, 3, 64, 96)).feature_maps
    assert all(0.1 < m.std() < 10 for m in maps)


@each
def test_on_the_meta_device(name):
    with torch.device("meta"):
        backbone = AutoBackbone.from_config(CONFIGS[name]())
    assert {tensor.device.type for tensor in backbone.state_dict().values()} == {"meta"}
    maps = backbone(torch.empty(1, 3, 33, 47, device="meta")).feature_maps
    assert maps[-1].shape[1] == backbone.channels[-1]


@each
def test_compiled_and_exported_eval_forward(name):
    backbone, pixels = build(name), torch.randn(1, 3, 33, 47)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    exported = torch.export.export(backbone, (pixels,)).module()
    with torch.no_grad():
        maps = backbone(pixels).feature_maps
        for run in (compiled, exported):
            for ours, eager in zip(run(pixels).feature_maps, maps, strict=True):
                torch.testing.assert_close(ours, eager, rtol=0, atol=1e-5)
