"""Deepening a trained Swin: what is kept, what the new blocks hold, and that they learn."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoBackbone,
    AutoModelForSemanticSegmentation,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
)

from vss_hf.modeling.backbone import build_backbone
from vss_hf.modeling.deepen import deepen_swin
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation


OLD, NEW = (2, 2, 4), (4, 2, 8)
NEW_BLOCKS = {(0, 2), (0, 3), (2, 4), (2, 5), (2, 6), (2, 7)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def swin_config(**fields):
    small = dict(embed_dim=8, num_heads=(1, 2, 2), window_size=4, out_features=["stage1", "stage3"])
    return SwinConfig(**{**small, "depths": OLD, "drop_path_rate": 0.7, **fields})


def trained(model):
    """As if trained: no tensor still at the start, where biases and position tables are 0."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def backbone():
    return trained(SwinBackbone(swin_config()))


@pytest.fixture
def segmenter(tiny_ocrnet_config):
    config = tiny_ocrnet_config("swin")
    config.backbone_config.depths = list(OLD)
    return trained(OCRNetForSemanticSegmentation(config))


def blocks_of(model):
    """(stage, block) -> block."""
    layers = getattr(model, "backbone", model).swin.encoder.layers
    return {(i, j): block for i, stage in enumerate(layers) for j, block in enumerate(stage.blocks)}


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_the_deeper_backbone_computes_the_same(backbone, size):
    deeper, pixels = deepen_swin(backbone, NEW), torch.randn(2, 3, *size)
    assert list(deeper.config.depths) == list(NEW) and list(backbone.config.depths) == list(OLD)
    assert set(blocks_of(deeper)) - set(blocks_of(backbone)) == NEW_BLOCKS
    with torch.no_grad():
        for ours, before in zip(deeper(pixels).feature_maps, backbone(pixels).feature_maps, strict=True):
            assert torch.equal(ours, before)


def test_the_deeper_segmenter_computes_the_same_also_after_saving(segmenter, tmp_path):
    deeper, pixels = deepen_swin(segmenter, NEW), torch.randn(1, 3, 64, 96)
    assert type(deeper) is OCRNetForSemanticSegmentation
    assert list(deeper.config.backbone_config.depths) == list(deeper.backbone.config.depths) == list(NEW)
    deeper.save_pretrained(tmp_path / "deeper")
    loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "deeper", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        before = segmenter(pixels, output_auxiliary_logits=True)
        for model in (deeper, loaded):
            output = model(pixels, output_auxiliary_logits=True)
            assert torch.equal(output.logits, before.logits)
            assert torch.equal(output.auxiliary_logits[0], before.auxiliary_logits[0])
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in deeper.state_dict().items())


def test_a_bare_backbone_can_be_saved_and_loaded(backbone, tmp_path):
    deeper, pixels = deepen_swin(backbone, NEW, fill="random"), torch.randn(1, 3, 33, 47)
    deeper.save_pretrained(tmp_path)
    loaded = SwinBackbone.from_pretrained(tmp_path)
    loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
    with torch.no_grad():
        for ours, expected in zip(loaded(pixels).feature_maps, deeper(pixels).feature_maps, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("fill", ["identity", "copy_last_pair", "random"])
def test_every_old_tensor_is_kept_and_shared_by_none(segmenter, fill):
    before = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    deeper = deepen_swin(segmenter, NEW, fill=fill)
    kept = deeper.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
    names = {f"backbone.swin.encoder.layers.{i}.blocks.{j}." for i, j in NEW_BLOCKS}
    assert all(any(name.startswith(new) for new in names) for name in set(kept) - set(before))
    for parameter in deeper.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in segmenter.state_dict().items())


def test_copies_repeat_the_last_pair_with_the_same_shift(backbone):
    deeper = deepen_swin(backbone, NEW, fill="copy_last_pair")
    blocks = blocks_of(deeper)
    for new, old in {(0, 2): (0, 0), (0, 3): (0, 1), (2, 4): (2, 2), (2, 7): (2, 3), (2, 6): (2, 2)}.items():
        assert blocks[new].shift_size == blocks[old].shift_size == (2 if new[1] % 2 else 0)
        for name, tensor in blocks[old].state_dict().items():
            assert torch.equal(blocks[new].state_dict()[name], tensor), name
    assert outputs_differ(deeper, backbone)


def test_random_blocks_start_like_those_of_a_new_swin(backbone):
    deeper = deepen_swin(backbone, NEW, fill="random")
    for place in NEW_BLOCKS:
        block = blocks_of(deeper)[place]
        assert (block.layernorm_before.weight == 1).all() and not block.mlp.fc2.bias.any()
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert outputs_differ(deeper, backbone)


def outputs_differ(model, other):
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        return not torch.allclose(model(pixels).feature_maps[-1], other(pixels).feature_maps[-1], atol=1e-3)


def test_silent_blocks_learn(segmenter):
    deeper = deepen_swin(segmenter, NEW).train()
    labels = torch.randint(0, 5, (2, 64, 96))
    pixels = torch.randn(2, 3, 64, 96)
    deeper(pixels, labels=labels).loss.backward()
    for place in NEW_BLOCKS:
        block = blocks_of(deeper)[place]
        for layer in (block.attention.o_proj, block.mlp.fc2):
            assert not layer.weight.any() and not layer.bias.any()
            assert layer.weight.grad.any() and layer.bias.grad.any()
    torch.optim.SGD(deeper.parameters(), lr=0.1).step()
    deeper.zero_grad()
    deeper(pixels, labels=labels).loss.backward()  # and from the second step on the layers before them
    assert all(blocks_of(deeper)[place].attention.q_proj.weight.grad.any() for place in NEW_BLOCKS)


def test_drop_path_rates_grow_over_the_new_total(backbone):
    def rates(model):
        return [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks_of(model).values()]

    assert rates(backbone) == pytest.approx([0.1 * i for i in range(8)])
    assert rates(deepen_swin(backbone, NEW)) == pytest.approx([0.7 * i / 13 for i in range(14)])


@pytest.mark.parametrize("mode", [True, False])
def test_device_precision_and_mode_stay(backbone, mode):
    deeper = deepen_swin(backbone.to(torch.bfloat16).train(mode), NEW)
    assert {p.dtype for p in deeper.parameters()} == {torch.bfloat16} and deeper.training is mode
    with torch.device("meta"):
        large = build_backbone(SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)))
    larger = deepen_swin(large, (4, 6, 20, 4))  # BetterThing's
    assert all(p.is_meta for p in larger.parameters()) and isinstance(larger.swin.layernorm, nn.Identity)
    assert sum(p.numel() for p in larger.parameters()) / 1e6 == pytest.approx(273.9, abs=0.1)


def test_equal_depths_give_a_copy(backbone):
    copied = deepen_swin(backbone, OLD)
    assert all(torch.equal(tensor, copied.state_dict()[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ((2, 2, 2), "stage3 has 4 blocks already"),
        ((2, 3, 4), r"stage2 has 2 blocks and would end with a block without shifted windows; expected 4"),
        ((2, 2, 4, 2), r"this Swin has 3 stages, with \[2, 2, 4\] blocks"),
    ],
)
def test_depths_that_do_not_fit(backbone, depths, message):
    with pytest.raises(ValueError, match=message):
        deepen_swin(backbone, depths)


def test_other_errors(backbone, tiny_ocrnet_config):
    with pytest.raises(ValueError, match="fill='zeros': expected one of identity, copy_last_pair, random"):
        deepen_swin(backbone, NEW, fill="zeros")
    with pytest.raises(ValueError, match="stage1 has a single block"):
        deepen_swin(SwinBackbone(swin_config(depths=(1, 2, 4))), (3, 2, 4))
    small = dict(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    with pytest.raises(TypeError, match="ResNetBackbone is neither"):
        deepen_swin(ResNetBackbone(ResNetConfig(**small)), NEW)
    with pytest.raises(TypeError, match="OCRNetForSemanticSegmentation has a ResNetBackbone"):
        deepen_swin(OCRNetForSemanticSegmentation(tiny_ocrnet_config("resnet")), NEW)
    with pytest.raises(TypeError, match="SwinForImageClassification is neither"):
        deepen_swin(SwinForImageClassification(swin_config()), NEW)
    assert isinstance(deepen_swin(AutoBackbone.from_config(swin_config()), NEW), SwinBackbone)
