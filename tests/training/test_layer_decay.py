"""Learning rates by layer, against the layers told from the modules and from the order in which they run."""

import pytest
import torch
from tiny import RESNET, make_default_data, make_trainer
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, TrainerCallback

from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.backbone import build_backbone
from vss_hf.training.layer_decay import LayerDecay, layer_numbers
from vss_hf.training.optimizer import NO_DECAY, describe_groups, parameter_groups


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def on_meta(preset, **fields):
    """A model of published size, without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForSemanticSegmentation.from_config(config_from_preset(preset, **fields))


class Model(nn.Module):
    """A backbone of two stages and a head."""

    def __init__(self, **fields):
        super().__init__()
        config = AutoConfig.for_model(**fields)
        self.backbone = build_backbone(config)
        self.head = nn.Linear(2, 2)


STAGES = {"out_features": ["stage1", "stage2"]}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2, **STAGES}
INTERNIMAGE = {"model_type": "vss_internimage", "channels": 8}
FAMILIES = {
    "swin": SWIN,
    "convnext": {"model_type": "convnext", "num_stages": 2, "depths": [1, 2], "hidden_sizes": [8, 16], **STAGES},
    "convnextv2": {"model_type": "convnextv2", "num_stages": 2, "depths": [1, 2], "hidden_sizes": [8, 16], **STAGES},
    "mit": {
        **{"model_type": "vss_mit", "num_encoder_blocks": 2, "depths": [1, 2], "hidden_sizes": [8, 16], **STAGES},
        **{"num_attention_heads": [1, 2], "sr_ratios": [2, 1], "strides": [4, 2], "patch_sizes": [7, 3]},
        "mlp_ratios": [2, 2],
    },
    "resnet": RESNET,
    "vss_resnet": {"model_type": "vss_resnet", "block": "basic", "depths": [1, 2], "hidden_sizes": [8, 16], **STAGES},
    "hrnet": {
        **{"model_type": "vss_hrnet", "hidden_sizes": [4, 8, 16, 32], "stage1_channels": 8},
        "num_modules": [1, 1, 2, 1],
        "num_blocks": [[2], [1, 1], [1, 1, 1], [1, 1, 1, 1]],
    },
    "internimage": {**INTERNIMAGE, "depths": [1, 2, 4], "groups": [2, 4, 8]},
    "internimage-norms": {
        **{**INTERNIMAGE, "depths": [1, 1, 4, 1], "groups": [2, 4, 8, 8], "center_feature_scale": True},
        **{"level2_post_norm": True, "level2_post_norm_block_ids": [1, 3], "dw_kernel_size": 5},
    },
    "volo": {
        **{"model_type": "vss_volo", "stem_channels": 8, "depths": [2, 1, 2], "hidden_sizes": [8, 16, 16]},
        **{"num_heads": [2, 2, 2], "mlp_ratios": [2, 2, 2], "image_size": 32, "tap_norm": True},
    },
    "swin3d": {
        **{"model_type": "vss_swin3d", "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], **STAGES},
        **{"window_size": [2, 2, 2], "patch_size": [1, 4, 4]},
    },
    "timm-convnext": {"model_type": "timm_backbone", "backbone": "convnext_atto", "out_indices": [0, 1, 2, 3]},
    "timm-resnet": {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]},
}


def layers_in_running_order(model) -> list[int]:
    """The layers of the modules that have parameters of their own, in the order in which they run."""
    numbers, last = layer_numbers(model, LayerDecay(0.9))
    order = []

    def hook(module, *_):
        order.extend(numbers.get(id(p), last) for p in list(module.parameters(recurse=False))[:1])

    for name, module in model.backbone.named_modules():
        # Norms of output maps run between the stages.
        if name and not name.split(".")[0].endswith("norms") and name.split(".")[-1] != "attn":
            module.register_forward_hook(hook)
    clip = (2, 3) if model.backbone.config.model_type == "vss_swin3d" else (3,)
    model.backbone.eval()(torch.randn(1, *clip, 64, 64))
    return order


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_numbered_as_they_run(family):
    """From the image on, no layer is left out, and each parameter that needs a gradient is in one group."""
    model = Model(**FAMILIES[family])
    order = layers_in_running_order(model)
    _, last = layer_numbers(model, LayerDecay(0.9))
    assert order == sorted(order) and set(range(last)) <= set(order) <= set(range(last + 1))
    for by in ("block", "stage"):
        _, last = layer_numbers(model, LayerDecay(0.9, by))
        groups = parameter_groups(model, 1e-3, 1e-4, 0.05, layer_decay=LayerDecay(0.9, by))
        grouped = [id(p) for group in groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())
        assert groups[0]["name"] == "heads" and {g["lr"] for g in groups if g["name"].startswith("heads")} == {1e-3}
        rates = sorted({g["lr"] for g in groups if g["name"].startswith("backbone_layer")})
        assert rates == pytest.approx([1e-4 * 0.9 ** (last - layer) for layer in range(last)], rel=1e-12)


def numbered(model, decay) -> dict[str, int]:
    numbers, last = layer_numbers(model, decay)
    return {name: numbers.get(id(p), last) for name, p in model.named_parameters()}


def number_modules(model, modules: list[tuple[nn.Module, int]], rest: int) -> dict[str, int]:
    """What `numbered` should say: the number of the module that holds a parameter."""
    found = {id(p): number for module, number in modules for p in module.parameters()}
    return {name: found.get(id(p), rest) for name, p in model.named_parameters()}


@pytest.mark.parametrize("preset", ["upernet-internimage-t", "mask2former-internimage-h"])
@pytest.mark.parametrize("by", ["block", "internimage"])
def test_internimage(preset, by):
    model = on_meta(preset)
    backbone, depths = model.backbone, {"t": [4, 4, 18, 4], "h": [6, 6, 32, 6]}[preset[-1]]
    starts, last = [1 + sum(depths[:i]) for i in range(5)], sum(depths) + 1
    modules: list = [(backbone.stem, 0)]
    for stage, start in zip(backbone.stages, starts, strict=False):
        modules += [(block, start + index) for index, block in enumerate(stage.blocks)]
    modules += [(module, starts[index + 1]) for index, module in enumerate(backbone.downsamples)]
    modules += [(stage.norm, starts[index + 1]) for index, stage in enumerate(backbone.stages)]
    ids = [5, 11, 17, 23, 29] if preset[-1] == "h" else []
    norms = backbone.stages[2].post_norms
    modules += [(norm, starts[2] + after) for norm, after in zip(norms, ids, strict=True)]
    if by == "internimage":  # the quirks of its constructor
        modules += [(backbone.stages[3].norm, starts[3])]
        modules += [(norm, starts[2] + index) for index, norm in enumerate(norms)]
        if preset[-1] == "h":
            decoder = model.model.transformer_module
            heads = [decoder.queries_embedder, decoder.queries_features, decoder.level_embed, model.class_predictor]
            modules += [(part, 0) for part in [*heads, decoder.decoder.mask_predictor.mask_embedder]]
    expected = number_modules(model, modules, last)
    assert numbered(model, LayerDecay(0.95, by)) == expected
    assert numbered(model, LayerDecay(0.95, by, sum(depths))) == expected  # the recipes' num_layers: 30 and 50
    # The constructor's: scale = rate ** (num_layers + 1 - id), and nothing of one axis decays.
    groups = parameter_groups(model, 2e-5, None, 0.05, layer_decay=LayerDecay(0.95, by))
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(2e-5 * 0.95 ** (last - expected[names[id(parameter)]]), rel=1e-12)
            assert group["weight_decay"] == 0 or parameter.ndim > 1


def test_convnext_by_stage():
    """mmsegmentation's recipe: num_layers 12, rate 0.9, all downsampling with the stem, output norms at full rate."""
    model = on_meta("upernet-convnext-xlarge")
    encoder = model.backbone.encoder
    modules = [(model.backbone.embeddings, 0)]
    for index, stage in enumerate(encoder.stages):
        modules += [(stage.layers, index + 1), (stage.downsampling_layer, 0)]
    assert numbered(model, LayerDecay(0.9, "stage", 12)) == number_modules(model, modules, 13)
    groups = parameter_groups(model, 8e-5, None, 0.05, layer_decay=LayerDecay(0.9, "stage", 12))
    shares = {group["name"].removesuffix("_no_decay"): group["lr"] / 8e-5 for group in groups}
    assert shares == pytest.approx(
        {
            **{"heads": 1, "backbone": 1, "backbone_layer_00": 0.9**13, "backbone_layer_01": 0.9**12},
            **{"backbone_layer_02": 0.9**11, "backbone_layer_03": 0.9**10, "backbone_layer_04": 0.9**9},
        }
    )


@pytest.mark.parametrize("preset", ["upernet-swin-tiny", "maskformer-swin-large"])
def test_swin_by_block(preset):
    model = on_meta(preset)
    swin = model.backbone.swin if "upernet" in preset else model.backbone.model
    modules, number = [(swin.embeddings, 0)], 1
    for stage in swin.encoder.layers:
        modules += [(block, number + index) for index, block in enumerate(stage.blocks)]
        number += len(stage.blocks)
        modules += [(stage.downsample, number)] if stage.downsample is not None else []
    assert number == (13 if "tiny" in preset else 25)
    assert numbered(model, LayerDecay(0.9)) == number_modules(model, modules, number)


# --- no weight decay


def decayed(model, no_decay) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, None, 0.05, no_decay=no_decay)
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_no_decay():
    model = on_meta("mask2former-swin-large", backbone_config=None)
    every = dict(model.named_parameters())
    assert decayed(model, []) == set(every)
    matrices = {name for name, p in every.items() if p.ndim > 1}
    assert decayed(model, ["1d"]) == matrices
    # InternImage's constructor.
    words = ["relative_position", "norm", "sampling_offsets"]
    wanted = {name for name in matrices if not any(word in name for word in words)}
    assert decayed(model, ["1d", *words]) == wanted
    assert any("sampling_offsets.weight" in name for name in matrices - wanted)
    # The default: weights of layers, and nothing else.
    layers = (nn.Linear, nn.Conv2d)
    weights = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    weights |= {name for name in every if name.endswith("in_proj_weight")}  # of nn.MultiheadAttention
    assert decayed(model, NO_DECAY) == weights


def test_table_of_groups():
    model = on_meta("upernet-convnext-tiny")
    rows = describe_groups(parameter_groups(model, 1e-3, 1e-4, 0.05, layer_decay=LayerDecay(0.9, "stage", 6)))
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert sum(row["tensors"] for row in rows) == len(list(model.parameters()))
    assert len({row["name"] for row in rows}) == len(rows)
    [stem] = [row for row in rows if row["name"] == "backbone_layer_00_no_decay"]
    assert stem["weight_decay"] == 0 and stem["learning_rate"] == pytest.approx(1e-4 * 0.9**7)


# --- what cannot be


@pytest.mark.parametrize(
    ("fields", "decay", "message"),
    [
        (SWIN, LayerDecay(0.9, "internimage"), "internimage: the backbone is of type 'swin'"),
        (SWIN, LayerDecay(0.9, "block", 2), "--layer_decay_layers 2: this backbone has 3"),
        (
            {"model_type": "timm_backbone", "backbone": "regnetx_002", "out_indices": [1]},
            LayerDecay(0.9),
            r"'timm_backbone' \(regnetx_002\) holds its parameter '_backbone.s1.b1",
        ),
        ({"model_type": "bit", "depths": [1], "hidden_sizes": [128]}, LayerDecay(0.9), "of type 'bit' are not known"),
    ],
)
def test_layers_that_cannot_be_told(fields, decay, message):
    model = Model(**fields)
    with pytest.raises(ValueError, match=message):
        parameter_groups(model, 1e-3, None, 0.05, layer_decay=decay)
    assert len(parameter_groups(model, 1e-3, None, 0.05)) == 4  # without layers, every backbone will do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_decay": 0.0}, "--layer_decay 0.0: expected 0 < value <= 1"),
        ({"layer_decay": 1.1}, "--layer_decay 1.1"),
        ({"layer_decay_by": "depth"}, "--layer_decay_by depth: expected one of block, stage, internimage"),
        ({"layer_decay_layers": 0}, "--layer_decay_layers 0"),
        ({"no_decay": [""]}, "--no_decay"),
    ],
)
def test_wrong_settings(root, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(root, tmp_path, **changes)


# --- a run


class Steps(TrainerCallback):
    """Notes of every step: parameters before, gradients, parameters afterwards."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({n: [p.detach().clone(), p.grad.clone()] for n, p in model.named_parameters()})

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        for name, parameter in model.named_parameters():
            self.steps[-1][name].append(parameter.detach().clone())


def test_a_run_moves_each_layer_at_its_rate(root, tmp_path):
    settings = {"optim": "sgd", "learning_rate": 0.05, "backbone_learning_rate": 0.02, "max_grad_norm": 0.0}
    trainer = make_trainer(root, tmp_path, max_steps=2, layer_decay=0.5, weight_decay=0.0, **settings)
    steps = Steps()
    trainer.add_callback(steps)
    trainer.train()
    rates = {"backbone.embedder": 0.02 * 0.5**3, "backbone.encoder.stages.0": 0.02 * 0.5**2}
    rates["backbone.encoder.stages.1"] = 0.02 * 0.5
    for step in steps.steps:
        for name, (before, gradient, after) in step.items():
            rate = next((rate for start, rate in rates.items() if name.startswith(start)), 0.05)
            assert torch.allclose(after.double(), before.double() - rate * gradient.double(), atol=1e-7), name
