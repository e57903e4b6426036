"""UperNet: transformers' weights and configurations load unchanged; its backbones; its sizes.

What it shares with the baselines is tested in test_baselines.py.
"""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModelForSemanticSegmentation, ConvNextConfig, SwinConfig

from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.configuration_upernet import UperNetConfig
from vss_hf.modeling.loading import load_strictly
from vss_hf.modeling.modeling_upernet import UperNetForSemanticSegmentation


STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": lambda: SwinConfig(
        embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 2], window_size=4, out_features=STAGES
    ),
    "convnext": lambda: ConvNextConfig(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_scale_init_value=1.0, out_features=STAGES
    ),
}
each_backbone = pytest.mark.parametrize("backbone", BACKBONES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(backbone, **fields):
    fields = dict(hidden_size=16, auxiliary_channels=12, id2label={i: str(i) for i in range(5)}) | fields
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=BACKBONES[backbone](), **fields)).eval()


@each_backbone
def test_transformers_weights_and_config_load_unchanged(backbone, tmp_path):
    settings = dict(hidden_size=16, pool_scales=[1, 2, 4], auxiliary_channels=12, auxiliary_num_convs=2)
    settings |= dict(auxiliary_concat_input=True, auxiliary_loss_weight=0.3, auxiliary_in_channels=None)
    config = transformers.UperNetConfig(
        backbone_config=BACKBONES[backbone](), **settings, loss_ignore_index=254, num_labels=7
    )
    theirs = transformers.UperNetForSemanticSegmentation(config).eval()
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    ours = load_strictly(UperNetForSemanticSegmentation, tmp_path)
    assert {name: getattr(ours.config, name) for name in settings} == settings
    assert (ours.config.ignore_index, ours.config.loss_ignore_index, ours.config.num_labels) == (254, 254, 7)
    assert ours.config.model_type == "vss_upernet" and ours.config.classifier_dropout == 0.1

    pixels, labels = torch.randn(2, 3, 65, 97), torch.randint(0, 7, (2, 65, 97))
    labels[:, :9] = 254
    with torch.no_grad():
        expected, output = theirs(pixels, labels=labels), ours(pixels, labels=labels)
    assert output.logits.shape[-2:] < (65, 97)
    upsampled = F.interpolate(output.logits, size=(65, 97), mode="bilinear")
    torch.testing.assert_close(upsampled, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)

    ours.save_pretrained(tmp_path / "ours")
    stored = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert stored["model_type"] == "vss_upernet" and stored["ignore_index"] == 254
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    again = copy.deepcopy(again)  # a mapped file lies otherwise in memory, where sums may run in another order
    assert torch.equal(again(pixels).logits, ours(pixels).logits)


@each_backbone
def test_every_parameter_gets_a_gradient(backbone):
    """DistributedDataParallel waits for ever for one that does not."""
    model = make(backbone).train()
    labels = torch.randint(0, 5, (2, 49, 67))
    model(torch.randn(2, 3, 49, 67), labels=labels).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_gradient_checkpointing_on_swin():
    model = make("swin", classifier_dropout=0.0).train()
    pixels, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    for module in model.modules():  # stochastic depth would draw anew for every pass
        if type(module).__name__ == "SwinDropPath":
            module.drop_prob = 0.0
        if hasattr(module, "drop_path_rate"):
            module.drop_path_rate = 0.0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(pixels, labels=labels).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6, msg=name)


def test_the_norms_keep_their_place_in_transformers_modules():
    """The pooling blocks keep their layers in a list, too: what runs must be what is saved."""
    block = make("convnext").decode_head.psp_modules.blocks[0]
    assert block.layers[1] is block.get_submodule("1")
    assert isinstance(block.layers[1].batch_norm, nn.BatchNorm2d)


def test_an_auxiliary_head_for_another_backbone_is_refused():
    with pytest.raises(ValueError, match="auxiliary_in_channels=384, but map 2 of the backbone has 16 channels"):
        make("convnext", auxiliary_in_channels=384)


# As reported for 124 classes, in millions.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("upernet-swin-large", 233.9),
        ("upernet-convnext-large", 235.0),
        ("upernet-convnext-xlarge", 391.1),
        ("upernet-internimage-xl", 367.7),
        ("upernet-internimage-h", 1120.3),
    ],
)
def test_parameters_of_published_sizes(name, millions):
    config = config_from_preset(name, id2label={i: str(i) for i in range(124)})
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
