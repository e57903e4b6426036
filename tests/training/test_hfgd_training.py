"""HFGD's loss against its formulas in float64; shares of a step; the Trainer. Two processes: test_processes.py."""

import copy

import pytest
import torch
from test_every_architecture import FOUR_MAPS, build_config
from tiny import FrozenGuided, losses, make_default_data, make_trainer, tiny_guided_model
from torch import nn
from torch.nn import functional as F

from vss_hf.modeling.configuration_hfgd import ENCODINGS


K = 5
both_modes = pytest.mark.parametrize("faithful", [False, True])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def build(**changes):
    """A small model that trains, in float64; its norms have the statistics of `example`, and keep them."""
    torch.manual_seed(0)
    fields = {"encoding_channels": 12, "auxiliary_loss_weight": 0.7, "initializer_range": 0.5, **changes}
    model = FrozenGuided(build_config("vss_hfgd", **fields)).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model(example()[0])
    return model.train()


def example(images=2):
    """Images of 65 x 97 pixels, whose maps at stride 32 have 3 x 4 places; class 3 does not occur, some is void."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (images, 65, 97), generator=generator)
    labels[labels == 3] = 1
    labels[0, :40, :50] = 255
    return torch.randn(images, 3, 65, 97, generator=generator, dtype=torch.float64), labels


# --- the formulas


def cross_entropy(logits, labels):
    upsampled = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(upsampled, labels, ignore_index=255)


def class_aware(features, labels, faithful, num_labels=K):
    """CAR's three losses; `faithful`: absent classes and places without label count, and there are smallest values."""
    y = labels[:, ::32, ::32].flatten()  # corners are aligned: every 32nd pixel is the middle of a place
    x = features.movedim(1, -1).flatten(0, 2)  # (places, C)
    own = F.one_hot(y.where(y != 255, num_labels), num_labels + 1)[:, :-1].to(x.dtype)  # void: all zeros
    centers = own.T @ x / own.sum(dim=0).clamp(min=1)[:, None]
    if not faithful:
        there, labelled = own.sum(dim=0) > 0, y != 255
        x, own, centers = x[labelled], own[labelled][:, there], centers[there]
    classes, channels = centers.shape
    fixed = centers.detach()

    def above(likeness, threshold):
        total = (likeness - threshold / (classes - 1)).clamp(min=0).sum(dim=1)
        return (total.clamp(1e-7, 1 - 1e-7) if faithful else total).mean() ** 2

    valid = own.sum(dim=1, keepdim=True)
    intra = ((own @ fixed - x) * valid).abs().mean() ** 2
    intra = intra.clamp(min=1e-5) if faithful else intra
    between = (centers @ fixed.T / channels**0.5).softmax(dim=1) * (1 - torch.eye(classes))
    products = x @ fixed.T * (1 - own) + own * fixed.square().sum(dim=1)
    return intra + above(between, 0.5) + above((products / channels**0.5).softmax(dim=1) * (1 - own), 0.25)


def expected_loss(model, output, labels, faithful=False):
    """Cross entropies of the logits and of the auxiliary ones, and CAR, of what a model returned."""
    loss = cross_entropy(output.logits, labels)
    for logits in output.auxiliary_logits or ():
        loss = loss + model.config.auxiliary_loss_weight * cross_entropy(logits, labels)
    if output.regularised_features is not None:
        loss = loss + model.config.car_loss_weight * class_aware(output.regularised_features, labels, faithful)
    return loss


def gradients(loss, model):
    """Of all weights; None where there is none."""
    return dict(
        zip(
            (name for name, _ in model.named_parameters()),
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True),
            strict=True,
        )
    )


def assert_same(ours, theirs, rtol=1e-5):
    """Gradients of all weights agree, as exactly as the largest of each is known."""
    for name, gradient in theirs.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=rtol, atol=rtol * largest + 1e-9, msg=name)


# --- the model's loss


@both_modes
@pytest.mark.parametrize("name", ["cae", "sa_car"])
@pytest.mark.parametrize("changes", [{}, {"guidance": False}, {"upsampler": "none"}], ids=["guided", "plain", "FCN"])
def test_loss_and_gradients_are_those_of_the_formulas(name, changes, faithful):
    if changes:  # without guidance there is no auxiliary loss
        changes = {**changes, "auxiliary_loss_weight": 0.4}
    model = build(extra_encoding=name, car_loss_weight=3.0, car_faithful=faithful, **changes)
    pixels, labels = example()
    output = model(pixels, labels=labels)
    expected = expected_loss(model, output, labels, faithful)
    car = class_aware(output.regularised_features, labels, faithful)
    other = class_aware(output.regularised_features, labels, not faithful)
    assert len(output.auxiliary_logits or ()) == (not changes)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert 3 * car > 0.02 * expected and abs(car - other) > 0.01 * car  # it counts, and so does the switch
    assert_same(gradients(output.loss, model), gradients(expected, model))


def test_coarse_logits_have_a_loss_of_their_own():
    model, (pixels, labels) = build(extra_encoding="ocr"), example()
    output = model(pixels, labels=labels)
    assert len(output.auxiliary_logits) == 2 and output.regularised_features is None
    expected = expected_loss(model, output, labels)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same(gradients(output.loss, model), gradients(expected, model))


def test_evaluating_has_the_same_loss_and_returns_less():
    """Norms and dropout aside: a validation loss can be compared with a training loss."""
    model, (pixels, labels) = build(car_loss_weight=3.0), example()
    training = model(pixels, labels=labels)
    model.eval()
    with torch.no_grad():
        evaluating, without = model(pixels, labels=labels), model(pixels)
        wanted = model(pixels, output_auxiliary_logits=True)
    assert evaluating.loss.item() == pytest.approx(training.loss.item(), rel=1e-12)
    for output in (evaluating, without):
        assert output.auxiliary_logits is None and output.regularised_features is None
        assert torch.equal(output.logits, evaluating.logits)
    assert without.loss is None and wanted.regularised_features is not None and len(wanted.auxiliary_logits) == 1


# --- shares of an optimisation step


@both_modes
def test_micro_batches_share_a_step(faithful):
    """Cross entropies add up to those of one batch; CAR has centres of each micro-batch, by its labelled pixels."""
    model = build(car_loss_weight=3.0, car_faithful=faithful)
    pixels, labels = example(images=4)
    labels[1:3, 20:] = 255
    labels[3] = 255  # nothing is labelled: no loss and no share
    parts = [(pixels[i:j], labels[i:j]) for i, j in ((0, 1), (1, 3), (3, 4))]
    number = (labels != 255).sum()
    found, expected, cars = [], torch.zeros(()), []
    for some_pixels, some_labels in parts:
        output = model(some_pixels, labels=some_labels, num_items_in_batch=number)
        found.append(output.loss)
        labelled = (some_labels != 255).sum()
        if labelled:
            expected = expected + expected_loss(model, output, some_labels, faithful) * labelled / number
            cars.append(class_aware(output.regularised_features, some_labels, faithful) * labelled / number)
    total = sum(found)
    assert found[2] == 0 and total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same(gradients(total, model), gradients(expected, model))

    whole = model(pixels, labels=labels, num_items_in_batch=number)
    car = class_aware(whole.regularised_features, labels, faithful)
    entropies = whole.loss - 3 * car, total - 3 * sum(cars)
    assert entropies[0].item() == pytest.approx(entropies[1].item(), rel=1e-5)
    assert abs(car - sum(cars)) > 0.01 * car  # which is why several devices are told from several micro-batches


# --- the Trainer


def batch_of(root):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 65, 97), generator=generator)
    labels[0, :20] = 255
    return {"pixel_values": torch.randn(2, 3, 65, 97, generator=generator), "labels": labels}


@pytest.mark.parametrize(
    "entries",
    [[], [{"name": "cross_entropy", "class_weights": [0.5, 2.0, 7.0]}]],
    ids=["own", "weighted"],
)
@pytest.mark.parametrize("auxiliary", [None, 0.0], ids=["guided", "no auxiliary loss"])
def test_the_trainer_adds_the_regularisation_once(root, tmp_path, entries, auxiliary):
    """Beside the model's own losses, and beside others that stand in their place."""
    values = {}
    fields = {} if auxiliary is None else {"auxiliary_loss_weight": auxiliary, "guidance": False}
    weights = torch.tensor([0.5, 2.0, 7.0] if entries else [1.0, 1.0, 1.0])
    for weight in (0.0, 1.5):
        model = tiny_guided_model(root, car_loss_weight=weight, **fields).train()
        trainer, batch = make_trainer(root, tmp_path, model=model, losses=entries), batch_of(root)
        number = torch.tensor(20_000)
        values[weight] = trainer.compute_loss(model, dict(batch), num_items_in_batch=number).item()
    output, labels = model(batch["pixel_values"]), batch["labels"]
    labelled = (labels != 255).sum().item()
    car = class_aware(output.regularised_features.double(), labels, faithful=False, num_labels=3).item()
    assert values[1.5] - values[0.0] == pytest.approx(1.5 * car * labelled / 20_000, rel=1e-3)
    entropies = 0
    for part, logits in ((1.0, output.logits), *((1.0, logits) for logits in output.auxiliary_logits or ())):
        upsampled = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True).movedim(1, -1)
        each = F.cross_entropy(upsampled[labels != 255], labels[labels != 255], reduction="none")
        entropies += part * (weights[labels[labels != 255]] * each).sum().item() / 20_000
    assert len(output.auxiliary_logits or ()) == (auxiliary is None)
    assert values[0.0] == pytest.approx(entropies, rel=1e-4)


def test_a_run_learns(root, tmp_path):
    """In bf16, with micro-batches and activation checkpointing."""
    settings = {"max_steps": 6, "gradient_accumulation_steps": 2, "bf16": True, "gradient_checkpointing": True}
    trainer = make_trainer(root, tmp_path, model=tiny_guided_model(root), learning_rate=0.02, **settings)
    trainer.train()
    curve = losses(trainer)
    assert sum(curve[-2:]) < 0.8 * sum(curve[:2])


# --- ways to train


@pytest.mark.parametrize("name", ["vss_resnet", "swin"])
def test_activation_checkpointing_changes_nothing(name):
    found = []
    for checkpointing in (False, True):
        model, (pixels, labels) = build(backbone_config=copy.deepcopy(FOUR_MAPS[name])), example()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        found.append((loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    (plain, expected), (checkpointed, gradients_) = found
    assert checkpointed == pytest.approx(plain, rel=1e-9)
    assert_same(gradients_, expected, rtol=1e-9)


def test_a_frozen_backbone_leaves_the_heads_what_they_learn():
    model, (pixels, labels) = build(), example()
    expected = gradients(model(pixels, labels=labels).loss, model)
    model.backbone.requires_grad_(False)
    model(pixels, labels=labels).loss.backward()
    heads = {name: parameter.grad for name, parameter in model.named_parameters() if "decode_head" in name}
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert_same(heads, {name: expected[name] for name in heads}, rtol=1e-9)


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_parameter_takes_part(name, guidance):
    """DistributedDataParallel waits for a gradient of each, also where its loss weighs nothing."""
    weights = {"auxiliary_loss_weight": 0.0, "stop_gradient": False}
    if name in ("sa_car", "cae"):
        weights["car_loss_weight"] = 0.0
    model, (pixels, labels) = build(extra_encoding=name, guidance=guidance, **weights), example()
    found = gradients(model(pixels, labels=labels).loss, model)
    assert [name for name, gradient in found.items() if gradient is None] == []
