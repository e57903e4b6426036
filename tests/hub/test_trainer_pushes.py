"""The Trainer's pushes against a Hub on this machine: our model folder, at each save and at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from folders import contents
from hub_server import TOKEN
from safetensors.torch import load
from tiny import make_default_data, make_trainer, state_of, write_recipe

from vss_hf import OCRNetForSemanticSegmentation
from vss_hf.hub_cards import PushError
from vss_hf.training.recipe import load_recipe
from vss_hf.training.run import train


NAME = "alice/tiny-run"
MODEL = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_recipe.yaml"}
REPORTS = {
    "eval_results.json", "overlay.jpg", "train_results.json", "training_curve.png", "training_log.json",
    "confusion.png", ".eval_results/data-val.yaml",
}  # fmt: skip


@pytest.fixture
def data(tmp_path) -> Path:
    return make_default_data(tmp_path / "data")


def run(tmp_path, data, **training) -> Path:
    """A run of 4 steps with saves at 2 and 4; its model folder."""
    settings = {"push_to_hub": True, "hub_model_id": NAME, "hub_always_push": True, **training}
    path = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "tiny-run", training=settings)
    return train(load_recipe(path))


def snapshots(hub) -> list[tuple[str, set[str]]]:
    """(message, paths) of each commit, the oldest first."""
    repo, found = hub.repo(NAME), []
    oid = repo.branches["main"]
    while oid is not None:
        commit = repo.commits[oid]
        found.append((commit.message, set(commit.tree) - {".gitattributes"}))
        oid = commit.parent
    return found[::-1][1:]


def everything_sent(hub) -> list[tuple[str, bytes]]:
    """Names, without folders, and contents of all files in all commits."""
    commits = [commit for repo in hub.repos.values() for commit in repo.commits.values()]
    entries = [item for commit in commits for item in commit.tree.items()]
    return [(path.split("/")[-1], hub.storage[e.sha256] if e.sha256 else e.content) for path, e in entries]


def no_leftovers(output_dir) -> bool:
    return not [path for path in output_dir.iterdir() if path.name.startswith((".", "pushing-"))]


SLOW = pytest.mark.slow
STRATEGIES = [
    "checkpoint",
    *(pytest.param(name, marks=SLOW) for name in ("end", "every_save", "all_checkpoints")),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(hub, data, tmp_path, strategy):
    token = "hf_" + "Recipe" * 6  # also in the recipe; must not be published with it
    hub.users[token] = "alice"
    folder = run(tmp_path, data, hub_strategy=strategy, hub_token=token, ema_decay=0.5)
    commits = snapshots(hub)
    saves = ["Training in progress, step 2", "Training in progress, step 4"]
    assert [message for message, _ in commits] == ([] if strategy == "end" else saves) + ["End of training"]
    assert hub.repo(NAME).private is True

    # The last one is the model folder, which is also here. Only there the recipe names folders of this machine.
    final = hub.files(NAME)
    checkpoints = {name for name in final if name.startswith(("checkpoint-", "last-checkpoint"))}
    recipe = final["training_recipe.yaml"]
    here = {**contents(folder), "training_recipe.yaml": recipe}
    assert {name: data for name, data in final.items() if name not in checkpoints} == here
    assert not [name for name, content in everything_sent(hub) if tmp_path.name.encode() in content]
    assert str(tmp_path) in (folder / "training_recipe.yaml").read_text()
    (tmp_path / "pulled.yaml").write_bytes(recipe)
    pulled, own = (load_recipe(path).to_dict() for path in (tmp_path / "pulled.yaml", folder / "training_recipe.yaml"))
    assert (pulled["data"]["root"], pulled["training"]["output_dir"]) == ("data", "tiny-run")
    for section, field, value in (("data", "root", str(data)), ("training", "output_dir", str(tmp_path / "tiny-run"))):
        pulled[section][field] = value
    assert pulled == own
    assert set(contents(folder)) == MODEL | REPORTS
    # What goes up on the way is the same, as far as it exists.
    for message, paths in commits[:-1]:
        assert {path for path in paths if "checkpoint-" not in path and "last-" not in path} == MODEL, message
    where = {path.split("/")[0] for path in checkpoints}
    wanted = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-2", "checkpoint-4"}}
    assert where == wanted.get(strategy, set())
    for name in where:
        assert {f"{name}/{file}" for file in ("optimizer.pt", "trainer_state.json", "ema.safetensors")} <= checkpoints

    assert "training_args.bin" not in dict(everything_sent(hub))
    assert not [name for name, content in final.items() if token.encode() in content]
    assert "hub_token" not in (folder / "training_recipe.yaml").read_text()
    assert no_leftovers(tmp_path / "tiny-run")
    assert {request.authorization for request in hub.seen("/api/models")} == {f"Bearer {token}"}


def test_the_average_is_pushed(hub, data, tmp_path):
    """At each save, the weights in the repository are the averaged ones of that moment."""
    trainer = make_trainer(
        data, tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=1, ema_decay=0.9,
        load_best_model_at_end=False, save_total_limit=None, push_to_hub=True, hub_model_id=NAME, hub_always_push=True,
    )  # fmt: skip
    averages = []
    real = trainer._save_checkpoint

    def save(model, trial):
        averages.append({name: tensor.clone() for name, tensor in state_of(trainer.ema.module).items()})
        real(model, trial)

    trainer._save_checkpoint = save
    trainer.train()
    repo = hub.repo(NAME)
    pushed, oid = [], repo.branches["main"]
    while "model.safetensors" in repo.commits[oid].tree:
        pushed.insert(0, load(hub.storage[repo.commits[oid].tree["model.safetensors"].sha256]))
        oid = repo.commits[oid].parent
    assert len(averages) == len(pushed) == 2
    for average, weights in zip(averages, pushed, strict=True):
        assert all(torch.equal(average[name], weights[name]) for name in weights)
    raw = state_of(trainer.unwrapped())
    assert any(not torch.equal(raw[name], pushed[-1][name]) for name in raw)

    # trainer.push_to_hub(): the same layout, with a card that takes options.
    result = trainer.push_to_hub("By hand", license="mit")
    assert set(hub.files(NAME)) == MODEL - {"training_recipe.yaml"}
    assert b"license: mit" in hub.files(NAME)["README.md"] and hub.history(NAME)[0] == "By hand"
    assert "model.safetensors" not in result.sent  # the average of the last save is still the average
    assert trainer.push_to_hub(blocking=False, revision="copy").result().sent == []
    assert hub.files(NAME, "copy") == hub.files(NAME)
    pulled = OCRNetForSemanticSegmentation.from_pretrained(tmp_path / "out" / "model").state_dict()
    assert all(torch.equal(pulled[name], averages[-1][name]) for name in pulled)


@pytest.mark.slow
def test_a_run_goes_on_from_the_pushed_checkpoint(hub, data, tmp_path):
    """The last-checkpoint of a run of 2 steps, pulled elsewhere, leads to the weights of an unbroken run of 4."""
    run(tmp_path, data, hub_strategy="checkpoint", max_steps=2, lr_scheduler_type="constant")
    pulled = tmp_path / "pulled"
    for name, content in hub.files(NAME).items():
        if name.startswith("last-checkpoint/"):
            path = pulled / Path(name).relative_to("last-checkpoint")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    settings = {"push_to_hub": False, "lr_scheduler_type": "constant"}
    unbroken = run(tmp_path, data, output_dir=str(tmp_path / "unbroken"), **settings)
    resumed = run(tmp_path, data, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(pulled), **settings)
    assert (resumed / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_failure_on_the_way_does_not_stop_the_training(hub, data, tmp_path, caplog):
    """Both saves fail; the end succeeds and sends all of it."""
    hub.fail("PUT /storage/", times=12)
    with caplog.at_level("WARNING", logger="vss_hf.training.hub"):
        folder = run(tmp_path, data)
    told = [record.getMessage() for record in caplog.records if "was not pushed" in record.getMessage()]
    assert len(told) == 2 and "step 2 was not pushed to alice/tiny-run, the training goes on: sending" in told[0]
    assert "the Hub answered 500 after 6 tries" in told[0]
    assert [message for message, _ in snapshots(hub)] == ["End of training"]
    there = hub.files(NAME)
    assert there == {**contents(folder), "training_recipe.yaml": there["training_recipe.yaml"]}
    assert no_leftovers(tmp_path / "tiny-run")


@pytest.mark.slow
def test_a_failure_at_the_end_leaves_the_folder(hub, data, tmp_path):
    hub.fail("POST .*/commit/", times=float("inf"))
    with pytest.raises(PushError) as failure:
        run(tmp_path, data, hub_strategy="end")
    folder = tmp_path / "tiny-run" / "model"
    assert set(contents(folder)) == MODEL | REPORTS
    assert str(failure.value).endswith(f"to go on: vss-hf push {folder} {NAME} --message 'End of training'")
    assert TOKEN not in str(failure.value)


def test_nothing_is_trained_when_pushing_is_impossible(hub, data, tmp_path, monkeypatch):
    """A wrong token shows before hours of work, not after them."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Wrong" * 7)
    with pytest.raises(PushError, match="tiny-run is not ready for pushing, looking for the repository: the Hub"):
        run(tmp_path, data)
    assert not list((tmp_path / "tiny-run").glob("checkpoint-*"))


def test_public_only_when_asked_for(hub, data, tmp_path):
    settings = {"max_steps": 1, "save_strategy": "no", "load_best_model_at_end": False}
    for private, name in ((None, "alice/a"), (True, "alice/b"), (False, "alice/c")):
        trainer = make_trainer(
            data, tmp_path / "out", push_to_hub=True, hub_model_id=name, hub_private_repo=private, **settings
        )
        assert hub.repo(name).private is (private is not False)
    assert trainer.hub_model_id == "alice/c"
    with pytest.raises(PushError, match="--hub_private_repo false"):
        make_trainer(data, tmp_path / "out", push_to_hub=True, hub_model_id="alice/c", **settings)
    # By default the repository has the name of the output folder, in the user's account.
    make_trainer(data, tmp_path / "street_7", push_to_hub=True, hub_revision="try", **settings)
    assert "try" in hub.repo("alice/street_7").branches


@pytest.mark.slow
def test_two_processes(hub, data, tmp_path):
    """The first process pushes, on the way and at the end; the second waits for nothing."""
    settings = {"push_to_hub": True, "hub_model_id": NAME, "hub_always_push": True, "hub_strategy": "checkpoint"}
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "tiny-run", training=settings)
    launch = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    train_py = Path(__file__).parents[2] / "train.py"
    done = subprocess.run([sys.executable, "-m", *launch, train_py, recipe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [message for message, _ in snapshots(hub)][-1] == "End of training" and len(snapshots(hub)) == 3
    final = {name: data for name, data in hub.files(NAME).items() if not name.startswith("last-checkpoint")}
    here = {**contents(tmp_path / "tiny-run" / "model"), "training_recipe.yaml": final["training_recipe.yaml"]}
    assert final == here and set(final) == MODEL | REPORTS
    assert f"{hub.url}/{NAME}" in done.stdout


def test_a_recipe_keeps_its_secret(data, tmp_path):
    path = write_recipe(tmp_path / "r.yaml", data, tmp_path / "out", training={"hub_token": "hf_" + "a" * 34})
    kept = load_recipe(path).to_dict()
    assert "hub_token" not in kept["training"] and "hf_aaa" not in json.dumps(kept)
    assert yaml.safe_load(path.read_text())["training"]["hub_token"]
