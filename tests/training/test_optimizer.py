"""Parameter groups of a tiny OCRNet on Swin."""

import pytest
import torch
from torch import nn

from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.training.optimizer import parameter_groups


SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
    "use_absolute_embeddings": True,
    "image_size": 32,
    "out_features": ["stage1", "stage2"],
}


@pytest.fixture(scope="module")
def model():
    config = OCRNetConfig(
        backbone_config=SWIN, in_indices=[0, 1], channels=8, ocr_channels=4, id2label={0: "a", 1: "b", 2: "c"}
    )
    return OCRNetForSemanticSegmentation(config)


def groups_by_name(model, *rates):
    groups = parameter_groups(model, *rates)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {g["name"]: {**g, "params": {names[id(p)] for p in g["params"]}} for g in groups}


def decay_by_module_type(model) -> dict[str, bool]:
    """Which parameters decay, told from the modules: weights of Linear and Conv2d, nothing else."""
    decays = {}
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            decays[f"{module_name}.{name}"] = isinstance(module, (nn.Linear, nn.Conv2d)) and name == "weight"
    return decays


def test_every_parameter_is_in_the_right_group(model):
    groups = groups_by_name(model, 1e-3, 1e-4, 0.05)
    assert set(groups) == {"backbone", "backbone_no_decay", "heads", "heads_no_decay"}
    expected = {name: set() for name in groups}
    for name, decays in decay_by_module_type(model).items():
        part = "backbone" if name.split(".")[0] == "backbone" else "heads"
        expected[part if decays else f"{part}_no_decay"].add(name)
    assert {name: group["params"] for name, group in groups.items()} == expected
    without = groups["backbone_no_decay"]["params"]
    for word in ("relative_position_bias_table", "position_embeddings", "layernorm"):
        assert any(word in name for name in without), word
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    for name, group in groups.items():
        assert group["lr"] == (1e-4 if name.startswith("backbone") else 1e-3)
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else 0.05)


def test_the_backbone_of_a_mask_model_is_found_inside_it():
    from transformers import AutoModelForSemanticSegmentation

    stages = {"depths": [1] * 4, "num_heads": [1] * 4, "out_features": [f"stage{i}" for i in range(1, 5)]}
    config = config_from_preset(
        "mask2former-swin-large", backbone_config={**SWIN, "use_absolute_embeddings": False, **stages}
    )
    config.hidden_dim = config.feature_size = config.mask_feature_size = 32
    model = AutoModelForSemanticSegmentation.from_config(config)
    groups = groups_by_name(model, 1e-3, 1e-4, 0.05)
    backbone = groups["backbone"]["params"] | groups["backbone_no_decay"]["params"]
    inside = "model.pixel_level_module.encoder."
    assert backbone == {name for name, _ in model.named_parameters() if name.startswith(inside)}
    embeddings = {name for name, p in model.named_parameters() if "embedder.weight" in name or "level_embed" in name}
    assert len(embeddings) >= 3 and embeddings <= groups["heads_no_decay"]["params"]


def test_no_backbone_rate_means_that_of_the_heads(model):
    assert {group["lr"] for group in parameter_groups(model, 1e-3, None, 0.05)} == {1e-3}


def test_backbone_rate_zero_keeps_the_backbone():
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    before = model["backbone"].weight.clone(), model["head"].weight.clone()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-1, 0, 0.5))
    model["head"](model["backbone"](torch.ones(1, 2))).square().sum().backward()
    optimizer.step()
    assert torch.equal(model["backbone"].weight, before[0])
    assert not torch.equal(model["head"].weight, before[1])


def test_frozen_parameters_are_left_out():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    model["backbone"].requires_grad_(False)
    groups = groups_by_name(model, 1e-3, 1e-4, 0.05)
    assert {name: group["params"] for name, group in groups.items()} == {
        "heads": {"head.weight"},
        "heads_no_decay": {"head.bias"},
    }


def test_the_first_group_is_the_heads(model):
    """The Trainer logs the learning rate of the first group: `learning_rate` should be what the log shows."""
    assert parameter_groups(model, 1e-3, 1e-4, 0.05)[0]["lr"] == 1e-3
