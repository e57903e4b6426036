"""Checkpoints: whole or not there, the newest whole one found, the wrong one refused, a full disk survived."""

import json
import os
import shutil

import pytest
import torch
from tiny import RESNET, losses, make_data, make_default_data, make_trainer, state_of, tiny_model

from vss_hf.training import checkpoints
from vss_hf.training.checkpoints import clean_up, damage, newest_checkpoint


SAVING = dict(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=None, ema_decay=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run of three steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(root, folder, **SAVING).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / "run")


def digest(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what a checkpoint holds


def test_whole_checkpoint(run):
    folder = run / "checkpoint-3"
    assert damage(folder) is None
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "ema.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert "training_args.bin" not in names  # a pickle
    assert json.loads((folder / "run_state.json").read_text()) == {
        "draws": 6,  # 3 steps of 2 samples
        "seed": 42,
        "num_samples": 7,
        "skipped_steps": 0,
    }
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert not list(run.glob(".*"))


def test_best_checkpoint_is_named_by_its_last_place(root, tmp_path):
    settings = {**SAVING, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer(root, tmp_path, **settings)
    trainer.train()
    best = checkpoints.checkpoint_path(tmp_path, trainer.state.best_global_step)
    assert trainer.state.best_model_checkpoint == str(best) and damage(best) is None
    saved = json.loads((best / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(best)
    assert saved["best_global_step"] == trainer.state.best_global_step


def test_old_checkpoints_are_removed(root, tmp_path):
    make_trainer(root, tmp_path, **{**SAVING, "max_steps": 5, "save_total_limit": 2}).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-5"]


def test_rotation_keeps_whole_ones_and_the_best(run):
    """A folder that a killed process half removed has the newest time of all; it goes first all the same."""
    (run / "checkpoint-1" / "optimizer.pt").unlink()
    checkpoints.rotate(run, limit=2, best_step=None)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    checkpoints.rotate(run, limit=1, best_step=2)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    checkpoints.rotate(run, limit=1, best_step=3)
    assert [path.name for path in run.iterdir()] == ["checkpoint-3"]
    checkpoints.rotate(run, limit=None, best_step=None)


# --- finding the newest whole one


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "optimizer.pt").unlink(),
        lambda folder: os.truncate(folder / "model.safetensors", 100),
        lambda folder: (folder / "checkpoint_files.json").unlink(),
        lambda folder: (folder / "checkpoint_files.json").write_text("{"),
        lambda folder: (folder / "checkpoint_files.json").write_text('{"files": [1], "written_ns": 1}'),
        lambda folder: (folder / "checkpoint_files.json").write_text('{"files": {}, "written_ns": null}'),
        lambda folder: (folder / "ema.safetensors").write_bytes(b""),
    ],
)
def test_damaged_checkpoint_is_passed_over(run, harm):
    assert newest_checkpoint(run).name == "checkpoint-3"
    harm(run / "checkpoint-3")
    assert damage(run / "checkpoint-3")
    assert newest_checkpoint(run).name == "checkpoint-2"


def test_newest_is_the_last_written_not_the_highest_number(root, run):
    """A run that went back to an earlier checkpoint must not be continued from what it left behind."""
    trainer = make_trainer(root, run, **{**SAVING, "max_steps": 2})
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert (run / "checkpoint-3").is_dir() and newest_checkpoint(run).name == "checkpoint-2"


def test_damaged_checkpoint_given_by_name(root, run):
    (run / "checkpoint-3" / "scheduler.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-3: not a whole checkpoint \(scheduler.pt is missing\)"):
        make_trainer(root, run, **SAVING).train(resume_from_checkpoint=str(run / "checkpoint-3"))


def test_what_a_killed_process_leaves_is_cleaned_up(run):
    (run / ".checkpoint-4.part" / "checkpoint-4").mkdir(parents=True)
    shutil.copytree(run / "checkpoint-3", run / ".checkpoint-3.old")  # it had its successor already
    os.rename(run / "checkpoint-2", run / ".checkpoint-2.old")  # it had not
    (run / ".checkpoint-1.removed").mkdir()
    for name in (".git.old", ".notes.part", ".model-of-mine.old", ".something"):
        (run / name).mkdir()  # not ours
    (run / ".model.part").mkdir()
    before = digest(run / "checkpoint-3")
    clean_up(run)
    whole = {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    others = {".git.old", ".notes.part", ".model-of-mine.old", ".something"}
    assert {p.name for p in run.iterdir()} == whole | others
    assert damage(run / "checkpoint-2") is None and digest(run / "checkpoint-3") == before


# --- resuming what does not belong together


def other_classes(tmp_path):
    names = {"others": 0, "water": 1, "sky": 2, "tree": 5}
    return make_data(tmp_path / "other", {"train": {"a": 7}, "val": {"v": 2}}, names)


def test_checkpoint_of_other_classes(run, tmp_path):
    trainer = make_trainer(other_classes(tmp_path), run, **SAVING)
    before = digest(run)
    with pytest.raises(ValueError, match="checkpoint-3: id2label is .*road.* there and .*water.* in this run"):
        trainer.train(resume_from_checkpoint=True)
    assert digest(run) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 24}, "channels is 16 there and 24 in this run"),
        (
            {"backbone_config": {**RESNET, "hidden_sizes": [8, 24]}},
            r"backbone_config.hidden_sizes is \[8, 16\] there and \[8, 24\] in this run",
        ),
    ],
)
def test_checkpoint_of_another_width(root, run, change, message):
    trainer = make_trainer(root, run, model=tiny_model(root, **change), **SAVING)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=True)


def test_checkpoint_of_another_architecture(root, run):
    config = run / "checkpoint-3" / "config.json"
    fields = json.loads(config.read_text())
    text = json.dumps({**fields, "model_type": "segformer"})
    config.write_text(text)
    manifest = run / "checkpoint-3" / "checkpoint_files.json"
    listed = json.loads(manifest.read_text())
    listed["files"]["config.json"] = len(text)
    manifest.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="model_type is 'segformer' there and 'vss_ocrnet' in this run"):
        make_trainer(root, run, **SAVING).train(resume_from_checkpoint=True)


def test_checkpoint_of_other_data(root, run, tmp_path):
    more = make_data(tmp_path / "more", {"train": {"a": 4, "b": 4}, "val": {"v": 2}})
    with pytest.raises(ValueError, match="number of training samples in a pass was 7 and is 8 now"):
        make_trainer(more, run, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="data_seed .* was 42 and is 5 now"):
        make_trainer(root, run, data_seed=5, **SAVING).train(resume_from_checkpoint=True)


def test_resuming_with_another_batch_size_goes_on_with_the_next_sample(root, run):
    """The position is a number of samples, so that a change of batch size or processes repeats and omits nothing."""
    trainer = make_trainer(root, run, **{**SAVING, "max_steps": 4, "per_device_train_batch_size": 3})
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))  # after 4 draws
    assert trainer.first_draw == 4
    assert json.loads((run / "checkpoint-4" / "run_state.json").read_text())["draws"] == 4 + 2 * 3


# --- a full disk


@pytest.mark.parametrize("told_before", [True, False])
def test_full_disk_while_a_checkpoint_is_saved(root, small_disk, told_before, monkeypatch):
    """The one before survives and can be resumed; the message says how much was needed."""
    make_trainer(root, small_disk / "run", **{**SAVING, "max_steps": 1}).train()
    before = digest(small_disk / "run")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 50_000))
    if not told_before:  # the disk fills while the files are being written
        usage = shutil.disk_usage(small_disk)
        plenty = usage._replace(free=10**9)
        answers = iter([plenty])
        monkeypatch.setattr("vss_hf.training.saving.shutil.disk_usage", lambda path: next(answers, usage))
    message = "checkpoint-2: .*[0-9,]+ bytes needed, [0-9,]+ bytes free; the previous one is untouched"
    with pytest.raises(OSError, match=message):
        make_trainer(root, small_disk / "run", **SAVING).train(resume_from_checkpoint=True)
    monkeypatch.undo()
    assert digest(small_disk / "run") == before

    (small_disk / "ballast").unlink()
    trainer = make_trainer(root, small_disk / "run", **SAVING)
    trainer.train(resume_from_checkpoint=True)
    straight = make_trainer(root, small_disk / "straight", **{**SAVING, "save_strategy": "no"})
    straight.train()
    for name, tensor in state_of(straight.model).items():
        assert torch.equal(tensor, state_of(trainer.model)[name]), name
    assert losses(trainer) == losses(straight)
