"""SWA: the mean of snapshots, taken at the ends of cycles, evaluated, saved and resumed as if nothing had happened."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    arguments,
    make_default_data,
    make_trainer,
    state_of,
    tiny_model,
    training_data,
    write_recipe,
)
from torch import nn

from vss_hf.modeling.loading import load_segmentation_model
from vss_hf.training.averaging import average_models
from vss_hf.training.batchnorm import first_batches, recalibrate_batchnorm
from vss_hf.training.draws import DrawOrder
from vss_hf.training.recipe import load_recipe
from vss_hf.training.run import train as run_recipe
from vss_hf.training.swa import SWA


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
CYCLES = {"swa_every": 2, "swa_start": 1, "swa_batchnorm_batches": 3, "optim": "sgd", "learning_rate": 0.1}
SAVED = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}


def is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS)


# --- the average


def test_is_the_mean_of_its_snapshots():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    swa, taken = SWA(model, start=3, every=4), []
    for step in range(1, 21):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)
        if step in (7, 11, 15, 19):
            taken.append(state_of(model))
        swa.follow(model, step)
        assert int(swa.n_averaged) == swa.snapshots(step) == len(taken)
    for name, tensor in swa.module.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(snapshot[name].double() for snapshot in taken) / 4
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
        else:
            assert name == "1.num_batches_tracked" and tensor.dtype == torch.int64 and int(tensor) == 19


def test_the_first_snapshot_is_taken_as_it_is():
    model = nn.Linear(4, 4)
    swa = SWA(nn.Linear(4, 4), start=0, every=1)
    swa.follow(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(swa.module.parameters(), model.parameters(), strict=True))


# --- a run


def test_a_run_ends_with_the_mean_of_its_checkpoints(root, tmp_path):
    """Steps 3, 5 and 7 of 8 end a cycle. `vss-hf average` of these checkpoints gives the same weights."""
    trainer = make_trainer(root, tmp_path / "run", max_steps=8, **CYCLES, **SAVED)
    trainer.train()
    own = state_of(trainer.model)
    trainer.save_model_folder(tmp_path / "swa")
    members = [tmp_path / "run" / f"checkpoint-{step}" for step in (3, 5, 7)]
    average_models(members, tmp_path / "average")
    found, expected = (state_of(load_segmentation_model(tmp_path / name)) for name in ("swa", "average"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not is_statistic(name):
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7, msg=name)

    # BatchNorm: counted anew from the run's first samples.
    model = tiny_model(root)
    model.load_state_dict(found)
    recalibrate_batchnorm(model, first_batches(training_data(root), DrawOrder(2), 3))
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name
        if "running" in name:
            assert not torch.equal(expected[name], tensor), name
    # The run's own weights are as they were.
    assert all(torch.equal(tensor, own[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_average_is_evaluated_from_the_first_snapshot_on(root, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 5, **CYCLES, "learning_rate": 0.5}
    with_swa = make_trainer(root, tmp_path / "with", **settings)
    without = make_trainer(root, tmp_path / "without", **{**settings, "swa_every": 0, "swa_start": 0})
    scores, losses = [], []
    for trainer in (with_swa, without):
        trainer.train()
        log = trainer.state.log_history
        scores.append([entry["eval_mean_iou"] for entry in log if "eval_mean_iou" in entry])
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert losses[0] == losses[1]  # neither snapshots nor BatchNorm statistics change the training
    assert scores[0][:2] == scores[1][:2] and scores[0][2:] != scores[1][2:]
    with with_swa.averaged_weights() as model:
        assert with_swa.evaluate()["eval_mean_iou"] == scores[0][-1]
        assert all(torch.equal(t, with_swa.swa.module.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_resumed_run_ends_with_the_same_bits(root, tmp_path):
    """Before the first snapshot, in the middle of a cycle when the first snapshot has been evaluated, at the end."""

    def run(folder, resume=None):
        settings = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 5, "swa_learning_rate": 0.3}
        model = tiny_model(root, classifier_dropout=0.1)
        trainer = make_trainer(root, folder, model=model, **CYCLES, **SAVED, **settings)
        trainer.train(resume_from_checkpoint=resume)
        trainer.average()
        return {**state_of(trainer.swa), **{f"own.{name}": t for name, t in state_of(trainer.model).items()}}

    straight = run(tmp_path / "straight")
    assert not (tmp_path / "straight" / "checkpoint-2" / "swa.safetensors").exists()
    assert int(load_file(tmp_path / "straight" / "checkpoint-5" / "swa.safetensors")["n_averaged"]) == 2
    for step in (2, 4, 5):
        resumed = run(tmp_path / f"from_{step}", tmp_path / "straight" / f"checkpoint-{step}")
        assert resumed.keys() == straight.keys()
        for name, tensor in straight.items():
            assert torch.equal(resumed[name], tensor), (step, name)


def test_a_run_without_swa_may_go_on_with_it(root, tmp_path):
    trainer = make_trainer(root, tmp_path, max_steps=4, **SAVED)
    trainer.train()
    later = make_trainer(root, tmp_path, max_steps=8, swa_start=4, swa_every=2, **SAVED)
    later.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert int(later.swa.n_averaged) == 2
    for step, start, found, wanted in ((4, 0, 0, 2), (6, 2, 1, 2)):
        other = make_trainer(root, tmp_path, max_steps=8, swa_start=start, swa_every=2)
        with pytest.raises(ValueError, match=f"-{step} holds {found} snapshots; .* there are {wanted} after"):
            other.train(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")


def test_the_best_checkpoint_brings_its_own_average(root, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 5}
    trainer = make_trainer(root, tmp_path, **CYCLES, **SAVED, **settings)
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.4])
    evaluate = trainer.evaluate

    def scored(*arguments, **options):
        metrics = evaluate(*arguments, **options)
        metrics["eval_mean_iou"] = next(scores)
        return metrics

    trainer.evaluate = scored
    trainer.train()
    assert trainer.state.best_global_step == 3 and int(trainer.swa.n_averaged) == 1
    stored = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    with trainer.averaged_weights() as model:
        name = "decode_head.classifier.weight"
        assert torch.equal(model.state_dict()[name], stored[name])  # one snapshot, the checkpoint itself


# --- learning rates


def rates(trainer) -> list[float]:
    """Of the heads in each step."""
    return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("start", [0, 4])
def test_learning_rate_goes_in_cycles(root, tmp_path, start):
    """The schedule ends where SWA starts; then each cycle falls from the peak along half a cosine."""
    trainer = make_trainer(
        root, tmp_path, max_steps=start + 6, swa_start=start, swa_every=3, swa_learning_rate=0.02,
        learning_rate=0.1, backbone_learning_rate=0.05, lr_scheduler_type="linear", optim="sgd",
    )  # fmt: skip
    seen = []
    step = trainer.create_optimizer().step

    def watched(*_, **__):
        seen.append({group["lr"] for group in trainer.optimizer.param_groups})
        return step()

    trainer.optimizer.step = watched
    trainer.train()
    heads = [0.1 * (1 - i / 4) for i in range(start)]
    heads += 2 * [0.02 * (0.01 + 0.99 * (1 + math.cos(math.pi * i / 3)) / 2) for i in range(3)]
    assert len(seen) == start + 6
    for found, expected in zip(seen, heads, strict=True):
        assert sorted(found) == pytest.approx([expected / 2, expected], rel=1e-6)


# --- settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"swa_every": 2, "ema_decay": 0.9}, "choose one"),
        ({"swa_every": -1}, "--swa_every -1: expected at least 0"),
        ({"swa_start": 5}, "--swa_start 5 without --swa_every"),
        ({"swa_learning_rate": 0.1}, "--swa_learning_rate 0.1 without --swa_every"),
        ({"swa_every": 2, "swa_learning_rate": 0.0}, "--swa_learning_rate 0.0: expected a number above 0"),
        ({"swa_every": 2, "swa_batchnorm_batches": 0}, "--swa_batchnorm_batches 0: expected at least 1"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        arguments(tmp_path, **settings)


def test_a_run_too_short_for_a_snapshot_does_not_start(root, tmp_path):
    trainer = make_trainer(root, tmp_path, max_steps=6, swa_start=5, swa_every=2)
    with pytest.raises(ValueError, match="the run ends after 6 steps, before the first snapshot"):
        trainer.train()


def test_a_recipe_with_swa(root, tmp_path):
    """From a recipe to a model folder whose card tells of it."""
    training = {"swa_every": 2, "swa_batchnorm_batches": 2, "load_best_model_at_end": False}
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "run", training=training)
    folder = run_recipe(load_recipe(recipe))
    assert "swa_every" in (folder / "README.md").read_text()
    swa = load_file(tmp_path / "run" / "checkpoint-4" / "swa.safetensors")
    model = load_segmentation_model(folder)
    assert int(swa["n_averaged"]) == 2
    name = "decode_head.classifier.weight"
    assert torch.equal(model.state_dict()[name], swa[f"module.{name}"])
