"""Recipes with stages: what each one is, that they are the same runs by hand, and that nothing is done twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from killed_runs import __file__ as killed_runs_file
from safetensors.torch import load_file
from test_processes import TORCHRUN, TRAIN, start
from tiny import make_data, make_default_data, write_recipe

from vss_hf.training import run
from vss_hf.training.recipe import load_recipe
from vss_hf.training.stages import has_stages, load_stages, train_stages


TWO = [
    {"name": "one", "training": {"learning_rate": 0.02}},
    {
        "name": "two",
        "model": {"config": {"classifier_dropout": 0.1}},
        "augmentation": {"hue": 0.1},
        "training": {"losses": [{"name": "ohem", "min_kept": 100}], "max_steps": 6},
    },
]


def write_stages(path, root, output_dir, stages=TWO, **changes):
    """The tiny recipe, with stages."""
    write_recipe(path, root, output_dir, **changes)
    path.write_text(path.read_text() + yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the killed processes have, so that numbers can be compared bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    """A finished run: (recipe file, output folder)."""
    folder = tmp_path_factory.mktemp("stages")
    recipe = write_stages(folder / "recipe.yaml", root, folder / "out")
    assert run.main([str(recipe)]) == folder / "out" / "model"
    return recipe, folder / "out"


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- the runs


def test_stages_are_the_runs_by_hand(root, done, tmp_path):
    """Bit for bit: a plain recipe, and another one that starts from its model folder."""
    plain = write_recipe(tmp_path / "plain.yaml", root, tmp_path / "one")
    one = run.main([str(plain), "--learning_rate", "0.02"])
    sections = yaml.safe_load(plain.read_text())
    sections["model"] = {"init_from": str(one), "config": {"classifier_dropout": 0.1}}
    plain.write_text(yaml.safe_dump(sections))
    words = ["--losses=[{name: ohem, min_kept: 100}]", "--max_steps", "6", "--hue", "0.1"]
    two = run.main([str(plain), *words, "--output_dir", str(tmp_path / "two")])

    _, out = done
    assert same(weights(out / "one" / "model"), weights(one)) and same(weights(out / "two" / "model"), weights(two))
    assert not same(weights(one), weights(two))
    ours, theirs = (json.loads((folder / "eval_results.json").read_text()) for folder in (out / "model", two))
    assert ours["mean_iou"] == theirs["mean_iou"] and ours["model"] == "out"


def test_model_folder_of_all_stages(done):
    """The last stage's, under the recipe's name; it tells of all stages, and each stage's recipe stands alone."""
    _, out = done
    assert same(weights(out / "model"), weights(out / "two" / "model"))
    assert {path.name for path in (out / "model").iterdir()} == {path.name for path in (out / "two/model").iterdir()}
    told = json.loads((out / "model" / "training_stages.json").read_text())
    assert [(name, stage["steps"]) for name, stage in told.items()] == [("one", 4), ("two", 6)]
    for name in told:
        saved = out / name / "model" / "training_recipe.yaml"
        assert load_recipe(saved).to_dict() == told[name]["recipe"] == yaml.safe_load(saved.read_text())
    assert told["two"]["recipe"]["model"]["init_from"] == str(out / "one" / "model")
    assert list(json.loads((out / "one" / "model" / "training_stages.json").read_text())) == ["one"]
    card = (out / "model" / "README.md").read_text()
    score = json.loads((out / "one" / "model" / "eval_results.json").read_text())["mean_iou"]
    assert f"| one | a new model | 4 | {score:.4f} |" in card and "| two | the result of one | 6 |" in card
    assert "# out\n" in card and "# two\n" in (out / "two" / "model" / "README.md").read_text()


def states(out):
    """Every file's time, to see what is written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_second_start_trains_nothing(done, monkeypatch):
    recipe, out = done
    monkeypatch.setattr(run, "train", None)
    before = states(out)
    words = ["--dataloader_num_workers", "1", "--resume_from_checkpoint"]  # neither changes the result
    assert run.main([str(recipe), *words]) == out / "model"
    assert states(out) == before


class Recorder:
    """Stands for `run.train`: notes the recipes and leaves what a run leaves, as far as stages look at it."""

    def __init__(self, fails_in=None):
        self.recipes, self.fails_in = [], fails_in

    def __call__(self, recipe, more_to_come=False):
        self.recipes.append((recipe, more_to_come))
        if recipe.stage == self.fails_in:
            raise RuntimeError("stopped")
        folder = Path(recipe.training.output_dir) / "model"
        folder.mkdir(parents=True, exist_ok=True)
        history = {**recipe.earlier_stages, recipe.stage: {}}
        results = {"mean_iou": 0.5, "dataset": "videos", "split": "val"}
        files = {"config.json": {}, "training_stages.json": history, "eval_results.json": results}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        return folder

    @property
    def names(self):
        return [recipe.stage for recipe, _ in self.recipes]


def trained(path, *words, restart=False, fails_in=None):
    """The names of the stages that are trained."""
    recorder = Recorder(fails_in)
    try:
        train_stages(load_stages(path, list(words)), restart, recorder)
    except RuntimeError:
        assert fails_in
    return recorder.names


@pytest.fixture
def three(tmp_path, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # nothing was trained that could be left
    stages = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    return write_stages(tmp_path / "recipe.yaml", tmp_path / "videos", tmp_path / "out", stages)


def test_only_unfinished_stages_are_trained(three, tmp_path):
    assert trained(three, fails_in="b") == ["a", "b"] and not (tmp_path / "out" / "model").exists()
    assert trained(three) == ["b", "c"] and (tmp_path / "out" / "model" / "training_stages.json").is_file()
    assert trained(three) == []
    (tmp_path / "out" / "c" / "left_over").touch()
    assert trained(three, restart="b") == ["b", "c"] and not (tmp_path / "out" / "c" / "left_over").exists()
    assert trained(three, "--learning_rate", "1", restart=True) == ["a", "b", "c"]
    (tmp_path / "out" / "model" / "config.json").unlink()  # killed before it was copied
    assert trained(three, "--learning_rate", "1") == [] and (tmp_path / "out" / "model" / "config.json").is_file()


def test_an_earlier_model_stays_until_a_stage_is_finished(three, tmp_path):
    """Of a plain run in the same folder, say: a start that fails at once must not cost it."""
    model = tmp_path / "out" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('"earlier"')
    assert trained(three, fails_in="a") == ["a"] and (model / "config.json").read_text() == '"earlier"'
    assert trained(three, fails_in="b") == ["a", "b"] and not model.exists()  # not to be taken for the stages'
    assert trained(three) == ["b", "c"] and (model / "training_stages.json").is_file()


def test_a_changed_recipe_is_an_error(three, tmp_path):
    assert trained(three, fails_in="c") == ["a", "b", "c"]
    message = "stage 'a' in .*/out/a was trained with other settings: training.learning_rate: 0.01 then, 0.5 now; set"
    with pytest.raises(ValueError, match=f"{message} .*or train .* again with --restart a$"):
        trained(three, "--learning_rate", "0.5")
    message = "stage 'b' .* settings: data.shortest_edge: not given then, 64 now; .* --restart b$"
    with pytest.raises(ValueError, match=message):
        trained(three, "--stages.b.shortest_edge", "64")
    with pytest.raises(ValueError, match="--restart: there is no stage 'bb'; did you mean 'b'"):
        trained(three, restart="bb")
    assert trained(three, "--stages.c.learning_rate", "0.5", "--logging_steps", "7") == ["c"]


def test_output_folder_may_move(three, tmp_path):
    """A stage is known by its settings, not by where it lies: the results of others are named, too."""
    trained(three)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert trained(three, "--output_dir", str(tmp_path / "moved")) == []


def test_what_is_resumed(three, tmp_path):
    """The stage that was interrupted; those that had not begun just begin."""
    recorder = Recorder()
    trained(three, fails_in="b")
    train_stages(load_stages(three, ["--resume_from_checkpoint"]), False, recorder)
    assert [recipe.training.resume_from_checkpoint for recipe, _ in recorder.recipes] == [None, None]
    assert [more for _, more in recorder.recipes] == [True, False]
    recorder = Recorder()
    train_stages(load_stages(three, ["--resume_from_checkpoint"]), True, recorder)
    assert recorder.recipes[0][0].training.resume_from_checkpoint is True  # so that a wrong folder is noticed


@pytest.mark.slow
@pytest.mark.parametrize("operation", [5, 25])
def test_killed_in_the_second_stage(root, done, tmp_path, operation):
    """Between its checkpoints, or before the first one; the first stage is not trained again."""
    recipe, out = done
    shutil.copytree(out / "one", tmp_path / "out" / "one")
    before = states(tmp_path / "out" / "one")
    here = Path(killed_runs_file).parent
    command = [sys.executable, here / "killed_stages.py", recipe, tmp_path / "out", str(operation)]
    path = os.pathsep.join(str(folder) for folder in (here, *here.parents[:2]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    assert ("checkpoint-2" in process.stdout) == (operation == 25), process.stdout
    assert same(weights(tmp_path / "out" / "model"), weights(out / "model"))
    assert states(tmp_path / "out" / "one") == before


@pytest.mark.slow
def test_stages_and_global_batch_in_two_processes(tmp_path):
    """4 samples a step, one at a time: 4 micro-batches in one process, 2 in each of two; the same losses come out.

    Micro-batches of one sample, because BatchNorm sees a micro-batch.
    """
    root = make_data(tmp_path / "videos", {"train": {"a": 4, "b": 3}, "val": {"v": 10, "w": 9}})
    training = {"global_batch_size": 4, "per_device_train_batch_size": 1, "optim": "sgd", "learning_rate": 0.02}
    training |= {"load_best_model_at_end": False}
    stages = [{"name": "one"}, {"name": "two", "augmentation": {"hue": 0.1}, "training": {"max_steps": 3}}]
    found = {}
    for processes, launcher in ((1, []), (2, TORCHRUN)):
        out = tmp_path / f"out{processes}"
        recipe = write_stages(tmp_path / "recipe.yaml", root, out, stages, training=training)
        if processes == 1:
            run.main([str(recipe)])
        else:
            done = start(launcher, TRAIN, recipe)
            assert done.returncode == 0, done.stderr[-4000:]
        found[processes] = out
        for stage, steps in (("one", 4), ("two", 3)):
            results = json.loads((out / stage / "model" / "train_results.json").read_text())
            assert (results["steps"], results["samples"], results["processes"]) == (steps, 4 * steps, processes)
    for stage in ("one", "two"):  # losses: in the weights BatchNorm over three values has made more of rounding
        logs = [json.loads((out / stage / "model" / "training_log.json").read_text()) for out in found.values()]
        ours, theirs = ([entry["loss"] for entry in log if "loss" in entry] for log in logs)
        assert ours == pytest.approx(theirs, rel=1e-3) and max(ours) - min(ours) > 5e-3
    again = start(TORCHRUN, TRAIN, tmp_path / "recipe.yaml")
    assert again.returncode == 0 and "stage 'two' is finished" in again.stderr


# --- what a stage is


def stages_of(tmp_path, stages, *words, **changes):
    path = write_stages(tmp_path / "recipe.yaml", tmp_path / "videos", tmp_path / "out", stages, **changes)
    return {stage.name: stage.recipe for stage in load_stages(path, list(words))}


PRESET = {"preset": "ocrnet-swin-tiny", "backbone_weights": "somewhere", "config": {"channels": 24}}


def test_a_stage_follows_the_one_before(tmp_path):
    stages = [{"name": "a"}, {"name": "b", "model": {"config": {"ocr_channels": 8}}}, {"name": "c"}]
    found = stages_of(tmp_path, stages, model={**PRESET, "config": {"channels": 24, "in_indices": [0, 1, 2]}})
    out = tmp_path / "out"
    assert found["a"].model.preset == "ocrnet-swin-tiny" and found["a"].model.backbone_weights == "somewhere"
    for name, before, config in (("b", "a", {"ocr_channels": 8}), ("c", "b", {})):
        model = found[name].model
        assert (model.preset, model.backbone_weights, model.config) == (None, None, config)
        assert model.init_from == str(out / before / "model")
    assert [recipe.training.output_dir for recipe in found.values()] == [str(out / name) for name in "abc"]
    assert found["c"].augmentation == found["a"].augmentation


def test_other_beginnings(tmp_path):
    """A new model as the recipe describes it, another preset, the result of an earlier stage, any folder."""
    stages = [
        {"name": "teacher"},
        {"name": "student", "model": {"init_from": None}},
        {"name": "small", "model": {"preset": "ocrnet-resnet50", "backbone_weights": None}},
        {"name": "back", "model": {"init_from": {"stage": "teacher"}}},
        {"name": "far", "model": {"init_from": "elsewhere"}},
    ]
    model = {"preset": "ocrnet-swin-tiny", "backbone_weights": "somewhere", "config": {"channels": 24}}
    sections = {"data": {"root": "x"}, "augmentation": {"crop_size": [8, 8]}, "model": model, "stages": stages}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    teacher, student, small, back, far = (stage.recipe.model for stage in load_stages(path))
    assert student == teacher and teacher.preset == "ocrnet-swin-tiny"
    assert (small.preset, small.backbone_weights, small.init_from) == ("ocrnet-resnet50", None, None)
    assert (back.init_from, back.preset) == ("runs/default/teacher/model", None)
    assert (far.init_from, far.preset, far.config) == ("elsewhere", None, {})


def test_results_of_earlier_stages_by_name(tmp_path):
    """Teacher and student, who begins anew."""
    losses = [{"name": "cross_entropy"}, {"name": "self_distillation", "teacher": {"stage": "teacher"}}]
    student = {"name": "student", "model": {"init_from": None}, "training": {"losses": losses}}
    found = stages_of(tmp_path, [{"name": "teacher"}, student])
    folder = str(tmp_path / "out" / "teacher" / "model")
    assert found["student"].training.losses[1] == {"name": "self_distillation", "teacher": folder}
    assert found["student"].model == found["teacher"].model
    with pytest.raises(ValueError, match=r"training.losses\[1\].teacher: there is no earlier stage 'teacher'"):
        stages_of(tmp_path, [student, {"name": "teacher"}])


def test_overrides(tmp_path):
    """For all stages, over what they say; for one, over that; how a model begins only where it is not the stage's."""
    stages = [*TWO, {"name": "three", "model": {"init_from": None}}]
    found = stages_of(
        tmp_path, stages, "--learning_rate", "0.5", "--stages.two.learning_rate=0.25", "--max_steps", "9",
        "--stages.two.training.max_grad_norm", "2", "--output_dir", str(tmp_path / "there"),
        "--model.backbone_weights", "folder", "--stages.three.model.config.channels", "24",
        "--stages.one.losses", "[{name: ohem}]", "--stages.one.losses.0.min_kept", "7",
    )  # fmt: skip
    assert [recipe.training.learning_rate for recipe in found.values()] == [0.5, 0.25, 0.5]
    assert [recipe.training.max_steps for recipe in found.values()] == [9, 9, 9]
    assert [recipe.training.max_grad_norm for recipe in found.values()] == [1, 2, 1]
    assert found["two"].model.init_from == str(tmp_path / "there" / "one" / "model")
    assert [recipe.model.backbone_weights for recipe in found.values()] == ["folder", None, "folder"]
    assert found["three"].model.config["channels"] == 24 and found["one"].model.config["channels"] == 16
    assert found["one"].training.losses == [{"name": "ohem", "min_kept": 7}]
    other = stages_of(tmp_path, TWO, "--stages.two.model.init_from", "other")["two"].model
    assert (other.init_from, other.config) == ("other", {"classifier_dropout": 0.1})


def test_stages_are_inherited_by_name(tmp_path):
    write_stages(tmp_path / "base.yaml", tmp_path / "videos", tmp_path / "out")
    child = tmp_path / "child.yaml"
    changes = [{"name": "two", "training": {"max_steps": 2}}, {"name": "three"}]
    child.write_text(yaml.safe_dump({"base": "base.yaml", "training": {"seed": 1}, "stages": changes}))
    one, two, three = (stage.recipe for stage in load_stages(child))
    assert (one.training.max_steps, two.training.max_steps, three.training.max_steps) == (4, 2, 4)
    assert two.training.losses == TWO[1]["training"]["losses"] and two.training.seed == 1
    child.write_text(yaml.safe_dump({"base": "base.yaml", "stages": None}))
    assert has_stages(child)  # an empty section says nothing, as everywhere
    assert has_stages(tmp_path / "base.yaml") and not has_stages("demo-ocrnet")


def test_only_the_last_stage_is_pushed(tmp_path):
    found = stages_of(tmp_path, TWO, "--push_to_hub")
    assert [recipe.training.push_to_hub for recipe in found.values()] == [False, True]
    assert found["two"].training.hub_model_id == "out"
    assert stages_of(tmp_path, TWO, "--push_to_hub", "--hub_model_id=me/it")["two"].training.hub_model_id == "me/it"


@pytest.mark.parametrize(
    ("stages", "words", "message"),
    [
        ({"one": {}}, [], "recipe .*: stages must be a list such as .*; found {'one': {}}"),
        (["one"], [], r"recipe .*: stages\[0\] must have a name and sections, {name: part1}; found 'one'"),
        ([{"name": 1}], [], r"stages\[0\] must have a name"),
        ([{"name": "a"}, {"name": "a"}], [], r"stages\[1\]: there are two stages with the name 'a'"),
        ([{"name": "a", "trainig": {}}], [], r"stages\[0\] \('a'\) has no section 'trainig'; did you mean 'training'"),
        ([{"name": "a", "training": 3}], [], r"stages\[0\] \('a'\): section 'training' must hold fields; found 3"),
        ([{"name": "a", "training": {"seeds": 3}}], [], "stage 'a': section 'training' has no field 'seeds'; did you"),
        ([{"name": "a"}, {"name": "b", "training": {"seed": "x"}}], [], "stage 'b': training.seed: expected a whole"),
        ([{"name": "part-1"}], [], "a stage cannot be called 'part-1'; expected a letter, then"),
        ([{"name": "model"}], [], "a stage cannot be called 'model'"),
        ([{"name": "../x"}], [], "a stage cannot be called '../x'"),
        ([{"name": "a", "training": {"output_dir": "x"}}], [], "stage 'a': training.output_dir is for all stages"),
        ([{"name": "a", "model": {"init_from": {"stage": ["a"]}}}], [], "init_from: there is no earlier stage '..a"),
        (TWO, ["--stages.one.output_dir", "x"], "stage 'one': training.output_dir is for all stages"),
        (TWO, ["--stages.tow.seed", "1"], "--stages.tow.seed: there is no stage 'tow'; did you mean 'two'"),
        (TWO, ["--stages", "1"], "--stages: there is no stage ''"),
        (TWO, ["--stages.two", "1"], "--stages.two is a stage; name a field of it"),
        (TWO, ["--stages.two.sed", "1"], "no section has the field 'sed'; did you mean 'seed'"),
        (TWO, ["--resume_from_checkpoint", "x/checkpoint-2"], "a folder belongs to one stage; give true, or --stages"),
        ([{"name": "a", "model": {"init_from": {"stage": "b"}}}, {"name": "b"}], [], "model.init_from: there is no e"),
    ],
)
def test_mistakes(tmp_path, stages, words, message):
    with pytest.raises(ValueError, match=message):
        stages_of(tmp_path, stages, *words)


def test_the_right_function_for_the_recipe(tmp_path):
    path = write_stages(tmp_path / "recipe.yaml", "x", "y")
    with pytest.raises(ValueError, match="recipe .* has stages, each with settings of its own; read it with load_sta"):
        load_recipe(path)
    with pytest.raises(ValueError, match="recipe demo-ocrnet has no stages; read it with load_recipe"):
        load_stages("demo-ocrnet")
