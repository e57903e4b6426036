"""Parameter groups of a tiny OCRNet on Swin."""

import pytest
import torch
from tiny import RESNET, make_default_data, make_trainer
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, TrainerCallback

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


def test_a_context_path_is_more_than_the_backbone():
    """BiSeNet's paper calls the refinements on top of the backbone so, too; TBN-ViT trains all of it at one rate."""
    backbone = {**RESNET, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    backbone["out_features"] = ["stage3", "stage4"]
    fields = dict(backbone_config=backbone, spatial_channels=[8, 8, 8, 8], context_channels=8, fusion_channels=8)
    config = AutoConfig.for_model("vss_bisenet", **fields, channels=8, auxiliary_channels=8)
    model = AutoModelForSemanticSegmentation.from_config(config)
    groups = groups_by_name(model, 5e-4, 2e-4, 1e-4, ["backbone", "context_path"])
    slow = groups["backbone"]["params"] | groups["backbone_no_decay"]["params"]
    assert slow == {n for n, _ in model.named_parameters() if n.split(".")[0] in ("backbone", "context_path")}
    assert any("refine_fine" in name for name in slow) and {g["lr"] for g in groups.values()} == {2e-4, 5e-4}


def test_unknown_part_of_the_model(model):
    with pytest.raises(ValueError, match="no part 'context_path'; it has backbone, .*decode_head"):
        parameter_groups(model, 1e-3, 1e-4, 0.05, ["backbone", "context_path"])


# --- optimizers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


class Recorder(TrainerCallback):
    """Notes every parameter before a step, its gradient, and the parameter afterwards, in float64."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = list(model.named_parameters())
        self.steps.append({n: [p.detach().double(), p.grad.double()] for n, p in named if p.grad is not None})

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.steps[-1][name].append(parameter.detach().double())


def test_sgd_with_momentum_decay_and_polynomial_rate(root, tmp_path):
    """Every step of a run against the formulas: buffer = 0.9 buffer + gradient + decay * weight, and so on."""
    trainer = make_trainer(
        root,
        tmp_path,
        max_steps=5,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.05,
        backbone_learning_rate=0.02,
        weight_decay=0.1,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 0.9, "lr_end": 0.0},
        max_grad_norm=0.0,
    )
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    decays, buffers = decay_by_module_type(trainer.model), {}
    assert len(recorder.steps) == 5
    for step, parameters in enumerate(recorder.steps):
        for name, (before, gradient, after) in parameters.items():
            rate = (0.02 if name.startswith("backbone") else 0.05) * (1 - step / 5) ** 0.9
            update = gradient + (0.1 * before if decays[name] else 0)
            buffers[name] = 0.9 * buffers.get(name, 0) + update
            expected = before - rate * buffers[name]
            assert (after - expected).abs().max() <= 1e-6 * max(1, expected.abs().max()), (step, name)
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([0.05 * (1 - step / 5) ** 0.9 for step in range(5)], rel=1e-9)


def test_clipping_is_by_the_norm_over_all_groups(root, tmp_path):
    """MaskFormer's "full model" clipping at 0.01; the log has the norm before."""
    settings = {"optim": "sgd", "learning_rate": 0.5, "backbone_learning_rate": 0.5, "weight_decay": 0.0}
    trainer = make_trainer(root, tmp_path, max_steps=1, max_grad_norm=0.01, **settings)
    before = [parameter.detach().double() for parameter in trainer.model.parameters()]
    trainer.train()
    moved = [(p.detach().double() - b).square().sum() for p, b in zip(trainer.model.parameters(), before, strict=True)]
    assert torch.stack(moved).sum().sqrt() == pytest.approx(0.5 * 0.01, rel=1e-3)
    [norm] = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert norm > 0.01


def test_nesterov(root, tmp_path):
    trainer = make_trainer(root, tmp_path, optim="sgd", optim_args="momentum=0.9,nesterov=true")
    assert {(g["momentum"], g["nesterov"]) for g in trainer.create_optimizer().param_groups} == {(0.9, True)}


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_groups_with_every_optimizer(root, tmp_path, name):
    trainer = make_trainer(
        root, tmp_path, optim=name, learning_rate=0.03, backbone_learning_rate=0.01, weight_decay=0.2
    )
    groups = trainer.create_optimizer().param_groups
    assert {(g["name"], g["lr"], g["weight_decay"]) for g in groups} == {
        ("heads", 0.03, 0.2), ("heads_no_decay", 0.03, 0), ("backbone", 0.01, 0.2), ("backbone_no_decay", 0.01, 0),
    }  # fmt: skip


def test_optimizers_that_group_by_themselves(root, tmp_path, monkeypatch):
    """GaLore and LOMO, which are packages of their own, answer like this."""
    trainer = make_trainer(root, tmp_path, optim="galore_adamw")
    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", lambda *_: (torch.optim.AdamW, {"params": []}))
    with pytest.raises(ValueError, match="--optim: AdamW makes parameter groups of its own"):
        trainer.create_optimizer()
