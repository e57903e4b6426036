"""One run from a recipe to a model folder, as a user starts it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import CALM, NAMES, make_data, make_default_data, mask_values, training_data, write_recipe
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from vss_hf.data.labels import ClassList
from vss_hf.data.sample import make_sample_dataset
from vss_hf.data.splits import open_split
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.scoring.evaluation import evaluate_model
from vss_hf.training.recipe import ModelRecipe, load_recipe
from vss_hf.training.run import build_model, class_pixels, main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A finished run: (recipe file, output folder, model folder)."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder / "recipe.yaml", root, folder / "out")
    words = ["--ema_decay=0.5", "--model.config.classifier_dropout", "0.1"]
    words.append("--losses=[{name: cross_entropy, class_weights: inverse_sqrt}]")
    return recipe, folder / "out", main([str(recipe), *words])


# --- the model folder


def test_sample_videos_to_model_folder(tmp_path):
    """With the 124 classes of VSPW, a stream, a resized evaluation and every file that a folder should hold."""
    root = tmp_path / "sample"
    make_sample_dataset(
        root,
        height=64,
        width=96,
        train_videos=2,
        val_videos=1,
        test_videos=0,
        frames_per_video=3,
        val_frames_per_video=9,
        progress=False,
    )
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", data={"streaming": True})
    folder = main([str(recipe), "--data.shortest_edge", "48", "--max_steps", "2", "--bf16", "--channels_last"])
    assert folder == tmp_path / "out" / "model"
    files = "model.safetensors config.json preprocessor_config.json training_recipe.yaml train_results.json"
    files += " eval_results.json training_log.json training_curve.png confusion.png overlay.jpg README.md"
    assert {path.name for path in folder.iterdir()} == {*files.split(), ".eval_results"}
    assert list((folder / ".eval_results").glob("*.yaml"))
    assert (folder / "README.md").read_text().startswith("---\n")
    for picture in ("training_curve.png", "overlay.jpg"):
        with Image.open(folder / picture) as image:
            assert min(image.size) >= 64 and np.array(image).std() > 5
    results = json.loads((folder / "eval_results.json").read_text())
    assert (results["videos"], results["frames"], len(results["per_class_iou"])) == (1, 9, 124)
    segmenter = VideoSegmenter.from_pretrained(folder, "cpu")
    assert segmenter.processor.size["shortest_edge"] == 48 and segmenter.processor.do_resize
    again = evaluate_model(segmenter, root, "val")
    for key in ("mean_iou", "per_class_iou", "pixel_accuracy", "vc8", "vc16", "vc_clips"):
        assert again[key] == results[key], key


def test_folder_loads_and_scores_as_written(run, root):
    _, _, folder = run
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(model.config.id2label.values()) == ["road", "sky", "tree"]
    written = json.loads((folder / "eval_results.json").read_text())
    again = evaluate_model(VideoSegmenter(model, processor), root, "val", batch_size=3)
    timed = {"frames_per_second", "model"}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in written.items() if k not in timed}
    assert written["model"] == "out"


def test_folder_holds_the_average_of_the_best_checkpoint(run):
    _, out, folder = run
    best = json.loads((folder / "train_results.json").read_text())["best_step"]
    average = load_file(out / f"checkpoint-{best}" / "ema.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, average[f"module.{name}"]), name
    log = json.loads((folder / "training_log.json").read_text())
    scores = {entry["step"]: entry["eval_mean_iou"] for entry in log if "eval_mean_iou" in entry}
    assert scores[best] == max(scores.values())
    assert scores[best] == json.loads((folder / "eval_results.json").read_text())["mean_iou"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]


def test_training_results(run):
    results = json.loads((run[2] / "train_results.json").read_text())
    expected = {"steps": 4, "samples": 8, "train_frames": 7, "processes": 1, "seed": 42}
    assert {key: results[key] for key in expected} == expected
    source = {"dataset": "videos", "split": "train", "source": "vspw", "table": None, "frames": 7, "share": 1.0}
    assert results["sources"] == [source]
    assert results["train_loss"] > 0 and results["seconds"] > 0 and results["hardware"]
    assert {"torch", "transformers"} <= set(results["versions"])


def test_saved_recipe_trains_the_same_model(run, tmp_path):
    recipe, _, folder = run
    saved = folder / "training_recipe.yaml"
    assert yaml.safe_load(saved.read_text()) == load_recipe(saved).to_dict()
    again = main([str(saved), "--output_dir", str(tmp_path / "again")])
    ours, theirs = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("finished", [False, True])
def test_interrupted_run_goes_on_to_the_same_model(run, tmp_path, finished):
    """Stopped at half time, or after the last step but before the folder was written."""
    recipe, out, folder = run
    for step in (2, 4) if finished else (2,):
        shutil.copytree(out / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    words = ["--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint"]
    again = main([str(folder / "training_recipe.yaml"), *words])
    ours, theirs = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    results = json.loads((again / "train_results.json").read_text())
    assert results["steps"] == 4 and (results["train_loss"] is None) == finished
    assert "resume_from_checkpoint" not in (again / "training_recipe.yaml").read_text()


# --- fine-tuning


def test_another_class_list_gets_a_new_classifier(run, tmp_path):
    root = make_data(tmp_path / "videos", {"train": {"a": 2}, "val": {"v": 1}}, {"others": 0, "sky": 2, "tree": 5})
    source = AutoModelForSemanticSegmentation.from_pretrained(run[2])
    model = build_model(ModelRecipe(init_from=str(run[2])), ClassList.from_root(root))
    assert model.config.num_labels == 2 and list(model.config.id2label.values()) == ["sky", "tree"]
    ours, theirs = model.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert changed == {name for name in ours if ".classifier." in name} and len(changed) == 4
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - changed)
    for head in (model.coarse_head, model.decode_head):  # not left as memory came
        assert torch.count_nonzero(head.classifier.bias) == 0
        assert 0.003 < float(head.classifier.weight.detach().std()) < 0.03

    recipe = tmp_path / "fine.yaml"
    sections = yaml.safe_load(run[0].read_text())
    sections["model"] = {"init_from": str(run[2])}
    recipe.write_text(yaml.safe_dump(sections))
    folder = main([str(recipe), "--data.root", str(root), "--output_dir", str(tmp_path / "out"), "--max_steps=2"])
    assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.num_labels == 2


# --- what stops a run before it begins


def test_unwritable_output_dir_comes_first(tmp_path):
    """Before the data are even looked for."""
    (tmp_path / "file").write_text("in the way")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "no_data", tmp_path / "file" / "out")
    with pytest.raises(OSError, match="--output_dir .*file/out: cannot be written"):
        main([str(recipe)])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--data.root", "nowhere"], FileNotFoundError, "nowhere"),
        (["--train_split", "trian"], ValueError, "unknown split 'trian'.*found: train, val"),
        (["--eval_split", "test"], ValueError, "unknown split 'test'"),
        (["--warmup_steps", "4"], ValueError, "--warmup_steps 4: expected fewer than the run's 4 steps"),
        (["--resume_from_checkpoint"], FileNotFoundError, "--resume_from_checkpoint: no checkpoint in"),
        (["--resume_from_checkpoint", "nowhere"], FileNotFoundError, "nowhere: not a whole checkpoint"),
    ],
)
def test_what_cannot_be_trained(root, tmp_path, words, error, message):
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out")
    with pytest.raises(error, match=message):
        main([str(recipe), *words])
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_split_without_masks(tmp_path):
    root = make_default_data(tmp_path / "videos")
    shutil.rmtree(root / "data" / "v" / "mask")
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out")
    with pytest.raises(ValueError, match="split 'val' of .* has no masks"):
        main([str(recipe)])


def test_usage():
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit, match="usage: train.py RECIPE.yaml"):
            main(words)


def test_length_in_passes_over_the_data(root, tmp_path):
    """2 passes over 7 frames in steps of 2 x 2 samples are 3.5 steps: 4."""
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out")
    words = ["--max_steps", "-1", "--num_train_epochs", "2", "--gradient_accumulation_steps", "2"]
    folder = main([str(recipe), *words])
    results = json.loads((folder / "train_results.json").read_text())
    assert (results["steps"], results["samples"]) == (4, 16)


# --- class weights, labels


def test_class_pixels_against_a_slow_recount(root):
    names = [name for name in NAMES if name != "others"]
    pixels = dict.fromkeys(names, 0)
    for video, frames in (("a", 4), ("b", 3)):
        for number in range(frames):
            for value in mask_values(video, number).ravel().tolist():
                for name in names:
                    pixels[name] += NAMES[name] == value
    assert class_pixels([open_split(root, "train")]).tolist() == list(pixels.values())


def test_absent_class_has_no_pixels(tmp_path, root):
    with_absent = make_data(tmp_path / "videos", {"train": {"a": 4, "b": 3}}, {**NAMES, "ghost": 9, "spirit": 3})
    pixels = class_pixels([open_split(with_absent, "train")])
    by_name = dict(zip(ClassList.from_root(with_absent).names, pixels.tolist(), strict=True))
    assert by_name["ghost"] == by_name["spirit"] == 0
    present = class_pixels([open_split(root, "train")]).tolist()
    assert [by_name[name] for name in ("road", "sky", "tree")] == present


def test_nothing_to_weigh(tmp_path):
    root = make_data(tmp_path / "videos", {"train": {"a": 1}}, {"others": 0, "ghost": 9})
    with pytest.raises(ValueError, match="split 'train' of .*no labelled pixel"):
        class_pixels([open_split(root, "train")])


def test_values_outside_the_table_are_ignored(root):
    data = training_data(root, **CALM)
    disk = np.concatenate([mask_values("a", n) for n in range(4)] + [mask_values("b", n) for n in range(3)])
    labels = torch.cat([data.transform(data.sources[0].samples[index], 0)["labels"] for index in range(7)]).numpy()
    assert {0, 77, 255} <= set(disk.ravel().tolist())
    for value, label in ((1, 0), (2, 1), (5, 2), (0, 255), (77, 255), (255, 255)):
        assert (labels[disk == value] == label).all(), value


def test_recipe_survives_training(root, tmp_path):
    """`train` works out max_steps; the recipe that it saves says what the user said."""
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", root, tmp_path / "out"), ["--max_steps=-1"])
    before = recipe.to_dict()
    recipe.training.max_steps = 99
    assert recipe.to_dict() == before and dataclasses.asdict(recipe.data)["root"] == str(root)
