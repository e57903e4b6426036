"""`car` in `training.losses`: which features it takes, what it adds, whole runs. Two processes: test_processes.py."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import test_every_architecture as image_models
import tiny_video_models as video_models
import torch
from safetensors.torch import load_file
from tiny import (
    CALM,
    FrozenNorms,
    losses,
    make_default_data,
    make_trainer,
    tiny_clip_model,
    tiny_model,
    training_clips,
    training_data,
)
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig

from vss_hf.modeling.architectures import MODELS, VIDEO_MODELS, configuration_class
from vss_hf.modeling.car import car_loss
from vss_hf.modeling.classifier_features import classifier_features
from vss_hf.training.car import regularisation
from vss_hf.training.losses import CAR, LossData, build_losses, parse_losses


DATA = LossData(num_labels=3, device=torch.device("cpu"))
PER_PIXEL = [name for name in (*MODELS, *VIDEO_MODELS) if hasattr(configuration_class(name), "auxiliary_loss_weight")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def has_hooks(model):
    return any(module._forward_pre_hooks for module in model.modules())


# --- the entry


def test_the_entry_and_its_fields():
    (entry,) = parse_losses([{"name": "car", "weight": 0.5, "intra": 2, "inter_c2p": 0, "faithful": True}])
    assert entry == CAR(weight=0.5, intra=2.0, inter_c2c=1.0, inter_c2p=0.0, faithful=True)
    config = AutoConfig.for_model("vss_ocrnet", num_labels=3)
    assert build_losses([entry], config, DATA) is None  # beside it the model's own loss stays
    both = build_losses([entry, *parse_losses([{"name": "ohem", "weight": 3}])], config, DATA)
    assert [weight for weight, _ in both.terms] == [3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inter": 1}, r"training.losses\[0\] has no field 'inter'; did you mean 'intra'"),
        ({"inter_c2x": 1}, r"training.losses\[0\] has no field 'inter_c2x'; did you mean 'inter_c2[cp]'"),
        ({"intra": -1}, r"training.losses\[0\].intra: -1: expected a number of at least 0"),
        ({"inter_c2c": "1"}, r"training.losses\[0\].inter_c2c: expected a number; found '1'"),
        ({"faithful": 1}, r"training.losses\[0\].faithful: expected true or false; found 1"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_losses([{"name": "car", **fields}])
    with pytest.raises(ValueError, match="there is no loss 'cars'; did you mean 'car'"):
        parse_losses([{"name": "cars"}])


@pytest.mark.parametrize("model_type", ["vss_maskformer", "vss_mask2former"])
def test_mask_models_have_no_features_of_pixels(model_type):
    with pytest.raises(ValueError, match=rf"training.losses\[0\]: {model_type} classifies masks, not pixels"):
        build_losses(parse_losses([{"name": "car"}]), AutoConfig.for_model(model_type), DATA)


# --- the features


@pytest.mark.parametrize("model_type", PER_PIXEL)
def test_features_are_what_the_classifier_reads(model_type):
    """Of the decode head only, first at the logits' size, and with gradients; dropout has not touched them."""
    module = video_models if model_type in VIDEO_MODELS else image_models
    model = module.build(model_type)
    shape = (3, 33, 47) if model.main_input_name == "pixel_values" else (3, 3, 33, 47)
    pixels = torch.randn(1, *shape)
    with classifier_features(model) as features:
        logits = model(pixels, output_auxiliary_logits=True).logits
    assert len(features) == 1 + (model_type == "vss_hfgd")  # which classifies what guides its upsampler, too
    assert torch.equal(model.decode_head.classifier(features[0]), logits)
    assert features[0].requires_grad and not has_hooks(model)

    for part in model.modules():  # only this one dropout works
        part.train(isinstance(part, nn.modules.dropout._DropoutNd) or part is model.decode_head.classifier)
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    reader = model.decode_head.classifier
    if hasattr(model.decode_head, "dropout"):
        model.decode_head.dropout.p = 0.9
    else:
        reader.dropout = 0.9
    with classifier_features(model) as again:
        dropped = model(pixels).logits
    assert torch.equal(again[0], features[0]) and not torch.equal(dropped, logits)


def test_the_hook_goes_when_a_forward_fails(root):
    model = tiny_model(root)
    with pytest.raises(ValueError, match="expected"), classifier_features(model):
        model(torch.zeros(1, 3, 8, 8))
    assert not has_hooks(model)


# --- what it adds


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("others", [[], [{"name": "cross_entropy", "weight": 3.0}]], ids=["own", "others"])
def test_compute_loss_adds_the_regularisation(root, tmp_path, clips, others):
    model = tiny_clip_model(root) if clips else tiny_model(root, FrozenNorms, classifier_dropout=0.0)
    data = training_clips(root) if clips else training_data(root)
    batch = {name: torch.as_tensor(part)[None] for name, part in data[0].items()}
    entry = {"name": "car", "weight": 0.5, "intra": 0.3, "inter_c2p": 2.0}
    read = []
    model.decode_head.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    values = []
    for entries in (others, [*others, entry]):
        trainer = make_trainer(root, tmp_path, model=model, data=data, losses=entries)
        values.append(trainer.compute_loss(model, dict(batch)).item())
    features = read[-1].detach()
    expected = 0.5 * car_loss(features, batch["labels"], num_labels=3, intra=0.3, inter_c2p=2.0).item()
    assert expected > 1e-3 and values[1] - values[0] == pytest.approx(expected, rel=1e-3)


def test_a_micro_batch_weighs_as_much_as_it_has_labels():
    features, labels = torch.randn(2, 4, 3, 3), torch.randint(0, 3, (2, 6, 6))
    labels[0, :2] = 255  # 60 labelled pixels
    config = SimpleNamespace(num_labels=3, ignore_index=255, align_corners=False)
    entry = CAR(weight=2.0)
    alone = regularisation(entry, features, labels, config)
    assert alone.item() == pytest.approx(2 * car_loss(features, labels, num_labels=3).item())
    of_step = regularisation(entry, features, labels, config, torch.tensor(240))
    assert of_step.item() == pytest.approx(alone.item() / 4)
    void = torch.full_like(labels, 255)
    assert regularisation(entry, features, void, config, torch.tensor(0)) == 0
    assert regularisation(entry, features, void.to(torch.uint8), config, 240) == 0


# --- runs


def spread(model, data):
    """The variance of features within classes over the training images, and the share of pixels predicted right."""
    samples = [data[index] for index in range(6)]
    pixels, labels = (torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "labels"))
    with torch.no_grad(), classifier_features(model.eval()) as features:
        logits = model(pixels).logits
    features, logits = (F.interpolate(part, size=labels.shape[1:]) for part in (features[0], logits))
    x, y = features.transpose(0, 1).flatten(1), labels.flatten()  # (C, places), (places,)
    within = sum((x[:, y == k] - x[:, y == k].mean(dim=1, keepdim=True)).square().sum() for k in range(3))
    right = (logits.argmax(dim=1) == labels).sum()
    return (within / (y != 255).sum()).item(), (right / (y != 255).sum()).item()


def test_features_of_a_class_move_together(root, tmp_path):
    """Closer than without, and the classes are learnt all the same; nothing is left behind in model or average."""
    found = {}
    for name, entries in (("plain", []), ("car", [{"name": "car", "weight": 3.0}])):
        trainer = make_trainer(root, tmp_path, losses=entries, max_steps=45, logging_steps=45, ema_decay=0.5)
        trainer.train()
        assert not has_hooks(trainer.model) and not has_hooks(trainer.ema)
        found[name] = spread(trainer.model, training_data(root, **CALM))
    assert found["car"][0] < 0.5 * found["plain"][0] and found["car"][1] > 0.85, found


def test_resumed_run_is_the_uninterrupted_one(root, tmp_path):
    """Bit for bit, in bf16 with dropout and gradient accumulation."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "bf16": True}

    def run(folder, resume=None):
        model = tiny_model(root, classifier_dropout=0.1)
        entries = [{"name": "car"}, {"name": "cross_entropy"}]
        trainer = make_trainer(root, folder, model=model, losses=entries, gradient_accumulation_steps=2, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = run(tmp_path / "straight")
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path / "resumed", resume=True)
    ours, theirs = (load_file(tmp_path / name / "checkpoint-4/model.safetensors") for name in ("straight", "resumed"))
    assert ours.keys() == theirs.keys() == tiny_model(root).state_dict().keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert losses(straight)[2:] == losses(resumed)[2:]


SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2"],
}


def test_gradient_checkpointing_changes_nothing(root, tmp_path):
    curves = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            root,
            tmp_path,
            model=tiny_model(root, backbone_config=copy.deepcopy(SWIN)),
            losses=[{"name": "car"}],
            max_steps=3,
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        curves.append(losses(trainer))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
