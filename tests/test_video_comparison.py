"""The arithmetic of the comparison of video models: steps from a budget, finished runs, means, the table."""

import argparse
import json

import pytest

from benchmarks.video_models import (
    MODELS,
    SETTINGS,
    collect,
    finished_run,
    parse,
    recipe_words,
    run_python,
    shown,
    steps_within,
    summary,
    table,
    train,
)
from vss_hf.training.recipe import load_recipe


def test_steps_fill_the_budget():
    assert steps_within(100, 0.25) == 400
    assert steps_within(100, 0.3) == 333  # never more than the budget
    with pytest.raises(ValueError, match=r"--budget-seconds 2: 4 steps of 0.50 s; expected at least 20"):
        steps_within(2, 0.5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_model_gets_the_same_optimizer_and_data(settings, tmp_path):
    """The recipes as `train.py` will read them: only the model, the folder and the number of steps differ."""
    recipes = {}
    for model in MODELS:
        recipe, *overrides = recipe_words(model, settings, tmp_path, tmp_path / "run", steps=50, seed=7)
        recipes[model] = load_recipe(recipe, overrides)
    expected = recipes["bilateral"]
    for model, recipe in recipes.items():
        assert recipe.augmentation == expected.augmentation and recipe.data == expected.data, model
        different = {
            name
            for name in {**recipe.given["training"], **expected.given["training"]}
            if recipe.given["training"].get(name) != expected.given["training"].get(name)
        }
        assert not different, model
        assert (recipe.training.max_steps, recipe.training.warmup_steps, recipe.training.seed) == (50, 5, 7)
        config = recipe.model.build_config(num_labels=14)
        offsets = SETTINGS[settings][0] if MODELS[model][2] else None
        assert getattr(config, "frame_offsets", None) == offsets
        assert config.backbone_config.hidden_sizes == [32, 64, 128, 160] and config.backbone_config.depths == [
            1,
            2,
            3,
            2,
        ]


def made_run(folder, seed, mean_iou, steps=40, vc8=0.9):
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "train_results.json").write_text(json.dumps({"steps": steps, "seconds": 12.5, "seed": seed}))
    scores = {"mean_iou": mean_iou, "vc8": vc8, "vc16": None, "per_class_iou": {}, "vc_clips": {}}
    (model / "eval_results.json").write_text(json.dumps({**scores, "videos": 1, "frames": 9}))
    (model / "README.md").write_text("card")


def test_only_whole_runs_of_the_right_length_count(tmp_path):
    made_run(tmp_path / "run", 42, 0.5)
    run = finished_run(tmp_path / "run", 40)
    assert run is not None and run["mean_iou"] == 0.5
    assert finished_run(tmp_path / "run", 41) is None  # another budget
    (tmp_path / "run/model/README.md").unlink()  # killed while the reports were written
    assert finished_run(tmp_path / "run", 40) is None
    assert finished_run(tmp_path / "nothing", 40) is None


def test_mean_and_deviation():
    """Of 0.2, 0.3, 0.4 by hand: mean 0.3, sd sqrt((0.01 + 0 + 0.01) / 2) = 0.1."""
    runs = [{"mean_iou": value, "vc8": 0.9, "vc16": None, "seconds": 1.0} for value in (0.2, 0.3, 0.4)]
    found = summary(runs)
    assert found["mean_iou"] == pytest.approx({"mean": 0.3, "sd": 0.1}) and "vc16" not in found
    assert shown(found["mean_iou"]) == "0.300 ± 0.100"
    assert shown(summary(runs[:1])["mean_iou"]) == "0.200" and shown(None) == "-"


def test_collect_and_table(tmp_path):
    """Runs that are not there are told by the number of seeds; a model without any is left out."""
    made_run(tmp_path / "runs/bilateral-42", 42, 0.5)
    made_run(tmp_path / "runs/bilateral-43", 43, 0.6)
    made_run(tmp_path / "runs/tbn-vit-42", 42, 0.7, steps=20)
    made_run(tmp_path / "runs/st-ppm-42", 42, 0.7, steps=21)  # of another calibration
    words = ["--settings", "camvid", "--data", "data", "--out", str(tmp_path), "--budget-seconds", "10"]
    times = {"bilateral": 0.25, "tbn-vit": 0.5, "st-ppm": 0.5, "tmanet": 0.5}
    calibration = {model: {"seconds_per_step": seconds} for model, seconds in times.items()}
    speed = {"bilateral": {"ms_per_frame": 12.34, "fastest": 12.0, "parameters": 2_300_000}}
    results = collect(list(times), calibration, speed, parse(words))
    assert list(results["models"]) == ["bilateral", "tbn-vit"]
    assert [run["seed"] for run in results["models"]["bilateral"]["runs"]] == [42, 43]
    assert table(results)[2:] == [
        "| bilateral network, image model | 2.30 M | 0.250 | 40 | 2 | 0.550 ± 0.071 | 0.900 ± 0.000 | - | 12.3 |",
        "| TBN-ViT | - | 0.500 | 20 | 1 | 0.700 | 0.900 | - | - |",
    ]


def test_a_stopped_comparison_goes_on_and_a_failed_run_is_named(tmp_path, monkeypatch):
    """The outside, a training process, is replaced: one of them writes a run, another one fails."""
    made_run(tmp_path / "runs/bilateral-42", 42, 0.5)
    (tmp_path / "runs/bilateral-43/model").mkdir(parents=True)
    (tmp_path / "runs/bilateral-43/leftover").write_text("of a killed run")
    started = []

    def process(words, threads, log):
        folder = words[words.index("--output_dir") + 1]
        started.append((folder.rpartition("/")[2], threads))
        if folder.endswith("bilateral-43"):
            made_run(tmp_path / "runs/bilateral-43", 43, 0.6)
            return 0
        return 1

    monkeypatch.setattr("benchmarks.video_models.run_python", process)
    options = argparse.Namespace(settings="camvid", data=tmp_path, out=tmp_path, threads=2, jobs=1)
    failed = train(["bilateral", "tmanet"], [42, 43], {"bilateral": 40, "tmanet": 40}, options)
    assert started == [("tmanet-42", 2), ("bilateral-43", 2), ("tmanet-43", 2)] and failed == [
        "tmanet-42",
        "tmanet-43",
    ]
    assert not (tmp_path / "runs/bilateral-43/leftover").exists()


def test_processes_leave_a_log_and_their_exit_code(tmp_path):
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(3)"
    assert run_python(["-c", code], 2, tmp_path / "logs/run.log") == 3
    assert (tmp_path / "logs/run.log").read_text() == "2\n"
