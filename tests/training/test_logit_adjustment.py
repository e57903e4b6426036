"""`logit_adjustment` in `training.losses`: the loss, its prior, mask models, and whole runs."""

import json
import math

import numpy as np
import pytest
import tiny_mask_models
import torch
import yaml
from tiny import make_default_data, make_trainer, state_of, tiny_model, write_recipe
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.training.logit_adjustment import class_bias, logit_adjusted_cross_entropy, prior_of
from vss_hf.training.losses import LossData, build_losses, check_model_takes, parse_losses, query_class_bias
from vss_hf.training.run import main


PIXELS = np.array([600, 0, 300, 90, 10])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def entry(**fields):
    return [{"name": "logit_adjustment", **fields}]


def built(scale=1.0, **fields):
    """The loss of one head, and its entry."""
    (loss,) = parse_losses(entry(**fields))
    return loss, loss.build(LossData(5, CPU, PIXELS, scale), "training.losses[0]")


# --- the loss


def naive(logits, labels, tau, scale, prior):
    """Every pixel's own cross entropy from upsampled logits and priors, in float64; a mean over the labelled ones."""
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    total, count = 0.0, 0
    for image, y, x in (labels != 255).nonzero().tolist():
        scores = [upsampled[image, k, y, x] + scale * tau * math.log(prior[k]) for k in range(5)]
        total = total - scores[labels[image, y, x]] + torch.stack(scores).exp().sum().log()
        count += 1
    return total / count


@pytest.mark.parametrize(("tau", "scale"), [(1.0, 1.0), (0.03, 1.0), (0.5, 20.0), (0.0, 1.0)])
def test_value_and_gradient(tau, scale):
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    labels = torch.randint(0, 5, (2, 9, 11))
    labels[0, :4], labels[:, :, 2] = 255, 255
    exact = logits.detach().double().requires_grad_()
    expected = naive(exact, labels, tau, scale, np.maximum(PIXELS, 1) / 1000)
    expected.backward()
    _, loss = built(scale=scale, tau=tau)
    value = loss(logits, labels)
    value.backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)

    half = loss(logits.detach().bfloat16(), labels)
    rounded = naive(logits.detach().bfloat16().double(), labels, tau, scale, np.maximum(PIXELS, 1) / 1000)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(rounded.item(), rel=1e-5)

    count = (labels != 255).sum()
    parts = [loss(logits[i, None], labels[i, None], num_items_in_batch=count).item() for i in (0, 1)]
    assert sum(parts) == pytest.approx(value.item(), rel=1e-5)


def test_nothing_labelled():
    logits = torch.randn(1, 5, 3, 4, requires_grad=True)
    loss = logit_adjusted_cross_entropy(logits, torch.full((1, 6, 8), 255), bias=class_bias([1, 2, 3, 4, 5], 1.0))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_without_features_the_logits_become_uniform():
    """What frequency alone explains is in the bias: the optimum of logits without any evidence is 0 for each class."""
    counts = torch.tensor([80, 15, 4, 1])
    labels = torch.repeat_interleave(torch.arange(4), counts).view(1, 10, 10)
    logits, bias = torch.zeros(1, 4, 1, 1, requires_grad=True), class_bias(counts.numpy(), 1.0)
    logit_adjusted_cross_entropy(logits, labels, bias=bias).backward()
    assert logits.grad.abs().max() < 1e-6


# --- the prior


def test_the_prior_from_data_list_or_file(tmp_path):
    expected = np.array([0.6, 0.001, 0.3, 0.09, 0.01])
    np.testing.assert_allclose(prior_of(PIXELS), expected)
    loss, _ = built(tau=0.5)
    assert loss.needs_class_pixels
    data = LossData(5, CPU, PIXELS)
    bias = loss.class_bias(data, "x")
    np.testing.assert_allclose(bias.numpy(), 0.5 * np.log(expected / expected.sum()), rtol=1e-6)
    (tmp_path / "prior.json").write_text(json.dumps((7 * expected).tolist()))
    for prior in ((3 * expected).tolist(), str(tmp_path / "prior.json")):
        loss, _ = built(tau=0.5, prior=prior)
        assert not loss.needs_class_pixels
        torch.testing.assert_close(loss.class_bias(data._replace(class_pixels=None), "x"), bias)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": -1}, r"training\.losses\[0\]\.tau: -1: expected a number of at least 0"),
        ({"ta": 1}, r"training\.losses\[0\] has no field 'ta'; did you mean 'tau'"),
        (
            {"prior": "dota"},
            r"training\.losses\[0\]\.prior: neither a \.json file nor a source 'dota'; did you mean 'data'",
        ),
        ({"prior": [0.5, 0.0, 0.5]}, r"training\.losses\[0\]\.prior\[1\]: expected a number above 0"),
        ({"prior": [0.5, "x"]}, r"training\.losses\[0\]\.prior\[1\]: expected a number; found 'x'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_losses(entry(**fields))


def test_wrong_priors_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"losses\[0\]\.prior: 3 numbers; expected 5, one for each class"):
        built(prior=[0.2, 0.3, 0.5])
    (tmp_path / "prior.json").write_text("[1, 2, 3, 4, 0]")
    with pytest.raises(ValueError, match=r"prior\.json\[4\]: expected a number above 0"):
        built(prior=str(tmp_path / "prior.json"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        built(prior=str(tmp_path / "nothing.json"))


# --- mask models


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_mask_models_adjust_the_classes_of_queries_in_training_only(kind):
    """Equal to a class predictor whose bias holds the handicap; the matching and predictions know nothing of it."""
    losses = parse_losses(entry(tau=0.7))
    data = LossData(5, CPU, PIXELS)
    bias = query_class_bias(losses, data)
    assert bias.shape == (6,) and bias[-1] == 0
    model = tiny_mask_models.make(kind)
    pixels, labels = tiny_mask_models.batch()
    mask_labels = [torch.stack([image == k for k in (0, 3)]) for image in labels]
    classes = [torch.tensor([0, 3])] * 2
    with torch.no_grad():
        outputs = model(pixels)
    criterion, logits = model.criterion, outputs.class_queries_logits
    masks = outputs.masks_queries_logits
    pairs = criterion.match(masks, logits, mask_labels, classes, None)
    expected = criterion.loss_labels(logits + bias, classes, pairs)["loss_cross_entropy"]
    plain = criterion.loss_labels(logits, classes, pairs)["loss_cross_entropy"]

    names = model.state_dict().keys()
    criterion.class_bias = bias
    assert model.state_dict().keys() == names
    assert criterion.loss_labels(logits, classes, pairs)["loss_cross_entropy"] == plain  # in evaluation
    torch.testing.assert_close(criterion.train().loss_labels(logits, classes, pairs)["loss_cross_entropy"], expected)
    assert (expected - plain).abs() > 1e-3
    for ours, before in zip(criterion.match(masks, logits, mask_labels, classes, None), pairs, strict=True):
        assert all(map(torch.equal, ours, before))


def test_other_losses_are_still_refused_for_mask_models():
    config = tiny_mask_models.make("maskformer").config
    data = LossData(5, CPU, PIXELS)
    assert build_losses(parse_losses(entry()), config, data) is None
    assert query_class_bias([], data) is None
    with pytest.raises(ValueError, match=r"training\.losses\[1\]: vss_maskformer classifies masks"):
        check_model_takes(parse_losses(entry() + [{"name": "ohem"}]), config)
    with pytest.raises(ValueError, match=r"losses\[0\]\.weight: logit_adjustment changes vss_maskformer's own loss"):
        check_model_takes(parse_losses(entry(weight=2.0)), config)


# --- runs


def test_the_trainer_scales_with_the_cosine_classifier(root, tmp_path):
    """tau * log(prior) beside cosines: with scale s both are s times as large."""
    prior = [0.7, 0.2, 0.1]
    inputs = {"pixel_values": torch.randn(2, 3, 32, 48), "labels": torch.randint(0, 3, (2, 32, 48))}
    model = tiny_model(root, cosine_scale=8.0, auxiliary_loss_weight=0.0).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    trainer = make_trainer(root, tmp_path, model=model, losses=entry(tau=0.5, prior=prior))
    with torch.no_grad():
        logits = F.interpolate(model(inputs["pixel_values"]).logits, size=(32, 48), mode="bilinear")
        expected = F.cross_entropy(logits + 8 * 0.5 * torch.tensor(prior).log()[:, None, None], inputs["labels"])
        assert trainer.compute_loss(model, inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_plain_model_continued_with_cosines_and_logit_adjustment(root, tmp_path):
    """A whole run from a recipe: the prior is counted, the weights go on, the bias is gone, nothing else is new."""
    tiny_model(root).save_pretrained(tmp_path / "plain")
    path = write_recipe(
        tmp_path / "recipe.yaml",
        root,
        tmp_path / "out",
        training={"losses": entry(tau=0.03), "learning_rate": 0.0, "max_steps": 2, "eval_steps": 2},
    )
    recipe = yaml.safe_load(path.read_text())
    recipe["model"] = {"init_from": str(tmp_path / "plain"), "config": {"cosine_scale": 1.0}}
    path.write_text(yaml.safe_dump(recipe))
    model = AutoModelForSemanticSegmentation.from_pretrained(main([str(path)]))
    assert isinstance(model, OCRNetForSemanticSegmentation) and model.config.cosine_scale == 1.0
    before = {k: v for k, v in state_of(tiny_model(root)).items() if k != "decode_head.classifier.bias"}
    after = model.state_dict()
    assert before.keys() == after.keys()
    parameters = {name for name, _ in model.named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in parameters)


def test_the_trainer_tells_mask_models(root, tmp_path):
    """Their training loss changes, and neither what is saved nor the loss in evaluation."""
    pixels, labels = tiny_mask_models.batch()
    model, inputs, values = tiny_mask_models.make("maskformer"), {"pixel_values": pixels, "labels": labels}, {}
    for name, losses in (("plain", []), ("adjusted", entry(tau=1.0, prior=[0.9, 0.04, 0.03, 0.02, 0.01]))):
        trainer = make_trainer(root, tmp_path, model=model, losses=losses)
        with torch.no_grad():
            values[name] = [trainer.compute_loss(model.train(training), inputs).item() for training in (True, False)]
    assert values["adjusted"][1] == values["plain"][1] and abs(values["adjusted"][0] - values["plain"][0]) > 1e-3
    assert not any("bias" in name for name in model.criterion.state_dict())
