"""Recipes: every mistake has a message that names it, and a saved recipe is the run that it came from."""

import dataclasses
import random

import pytest
import yaml
from tiny import HEADS, RESNET, write_recipe

from vss_hf.training.recipe import SECTIONS, load_recipe, parse_overrides
from vss_hf.training.recipe_files import shipped_recipes
from vss_hf.training.stages import has_stages, load_stages


@pytest.fixture
def recipe_file(tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", tmp_path / "videos", tmp_path / "run")


def load(path, *words):
    return load_recipe(path, list(words))


# --- what is read


def test_full_file(recipe_file, tmp_path):
    recipe = load(recipe_file)
    assert recipe.model.config == {"backbone_config": RESNET, **HEADS}
    assert recipe.model.init_from is None and recipe.model.preset is None
    assert recipe.data.root == str(tmp_path / "videos")
    assert (recipe.data.train_split, recipe.data.eval_split, recipe.data.streaming) == ("train", "val", False)
    assert recipe.augmentation.crop_size == (32, 48)
    assert recipe.training.max_steps == 4 and recipe.training.learning_rate == 0.01
    assert recipe.training.per_device_train_batch_size == 2


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith("bases/")])
def test_shipped_recipes(name):
    words = ["--data.root", "videos"]
    recipes = [stage.recipe for stage in load_stages(name, words)] if has_stages(name) else [load(name, *words)]
    for recipe in recipes:
        assert recipe.training.max_steps > 0
        assert recipe.training.output_dir == f"runs/{name}" + (f"/{recipe.stage}" if recipe.stage else "")


def test_overrides_by_bare_and_dotted_name(recipe_file):
    recipe = load(
        recipe_file,
        "--learning_rate", "1e-4",
        "--training.max_grad_norm=.5",
        "--training.weight-decay", "0",
        "--seed", "7",
        "--root", "elsewhere",
        "--crop_size", "[40, 64]",
        "--augmentation.hue", "0.05",
        "--streaming",
        "--gradient_checkpointing",
        "--eval_strategy", "no",
        "--save_strategy=no",
        "--load_best_model_at_end", "false",
        "--model.config.channels", "24",
        "--model.config.backbone_config.depths", "[1, 2]",
        "--model.config.initializer_range", "2e-2",
        "--lr_scheduler_type", "polynomial",
        "--training.lr_scheduler_kwargs.lr_end", "1e-6",
        "--max_steps", "-1",
        "--num_train_epochs=2",
    )  # fmt: skip
    training = recipe.training
    assert training.learning_rate == 1e-4 and isinstance(training.learning_rate, float)
    assert training.max_grad_norm == 0.5 and training.weight_decay == 0 and training.seed == 7
    assert recipe.data.root == "elsewhere" and recipe.data.streaming is True
    assert recipe.augmentation.crop_size == (40, 64) and recipe.augmentation.hue == 0.05
    assert training.activation_checkpointing is True
    assert training.eval_strategy == training.save_strategy == "no" and training.load_best_model_at_end is False
    assert recipe.model.config["channels"] == 24 and recipe.model.config["initializer_range"] == 0.02
    assert recipe.model.config["backbone_config"] == {**RESNET, "depths": [1, 2]}
    assert training.lr_scheduler_kwargs == {"lr_end": 1e-6}
    assert training.max_steps == -1 and training.num_train_epochs == 2


def test_words_of_overrides():
    words = ["--a", "-3", "--b=-2.5", "--c", "--d.e", "[1, x]", "--f=", "--g", "1e-4", "--h", "a=b", "--i=c=d", "--j"]
    assert parse_overrides(words) == [
        ("a", -3), ("b", -2.5), ("c", True), ("d.e", [1, "x"]), ("f", None), ("g", 1e-4), ("h", "a=b"), ("i", "c=d"),
        ("j", True),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "1.e-4", ".1e-3", "+1e-4", "0.0001"])
def test_every_way_to_write_a_small_number(text, recipe_file, tmp_path):
    """PyYAML alone reads 1e-4 as text, because it has no dot."""
    assert load(recipe_file, "--learning_rate", text).training.learning_rate == 1e-4
    file = tmp_path / "number.yaml"
    file.write_text(f"data: {{root: x}}\naugmentation: {{crop_size: [8, 8]}}\ntraining: {{learning_rate: {text}}}\n")
    assert load(file).training.learning_rate == 1e-4


# --- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle.preset", "x"], "there is no section 'modle'; did you mean 'model'"),
        (["--learning_rat", "1"], "no section has the field 'learning_rat'; did you mean 'learning_rate'"),
        (["--training.max_step", "1"], "section 'training' has no field 'max_step'; did you mean 'max_steps'"),
        (["--data.rot", "x"], "section 'data' has no field 'rot'; did you mean 'root'"),
        (["--augmentation.crop_sizes", "[8, 8]"], "section 'augmentation' .*'crop_sizes'; did you mean 'crop_size'"),
        (["--model.presets", "x"], "section 'model' has no field 'presets'; did you mean 'preset'"),
        (["--model.config.chanels", "8"], "model.config has no field 'chanels'; did you mean 'channels'"),
        (
            ["--model.config.backbone_config.hiden_sizes", "[8, 8]"],
            "model.config.backbone_config has no field 'hiden_sizes'; did you mean 'hidden_sizes'",
        ),
        (["--model.config.backbone_config.model_type", "resnt"], "'resnt' is not known; did you mean 'resnet'"),
        (["--model.config.model_type", "segformer"], "model_type: recipes train no 'segformer'; .*vss_"),
        (["--model.config.num_labels", "3"], "model.config.num_labels comes from the data set"),
        (["--data", "x"], "--data is a section; name a field of it"),
        (["x"], "'x' follows no field"),
        (["--max_steps", "1", "2"], "'2' follows no field"),
        (["--lr_scheduler_type", "linear", "--lr_scheduler_type.power", "1"], "'lr_scheduler_type' holds 'linear'"),
        (["--x", "[1,"], "--x is not valid YAML"),
        (["--x=!!python/object/apply:os.getcwd []"], "--x is not valid YAML"),
    ],
)
def test_wrong_names(recipe_file, words, message):
    with pytest.raises(ValueError, match=message):
        load(recipe_file, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "many"], "training.max_steps: expected a whole number; found 'many'"),
        (["--max_steps", "2.5"], "training.max_steps: expected a whole number; found 2.5"),
        (["--max_steps", "true"], "training.max_steps: expected a whole number; found True"),
        (["--learning_rate", "[1]"], r"training.learning_rate: expected a number; found \[1\]"),
        (["--learning_rate", "'1e-4'"], "training.learning_rate: expected a number; found '1e-4'"),
        (["--bf16", "maybe"], "training.bf16: expected true or false; found 'maybe'"),
        (["--output_dir", "null"], "training.output_dir: expected text; found null"),
        (["--backbone_learning_rate", "slow"], "training.backbone_learning_rate: expected a number or null"),
        (["--data.root", "5"], "data.root: expected text; found 5"),
        (["--data.root", ""], "data.root: expected text; found null"),
        (["--data.shortest_edge", "large"], "data.shortest_edge: expected a whole number or null"),
        (["--data.shortest_edge", "16"], "data.shortest_edge=16: expected at least 32"),
        (["--crop_size", "8"], "augmentation.crop_size: expected a list; found 8"),
        (["--crop_size", "[8]"], "crop_size"),
        (["--scale_mode", "foo"], "scale_mode"),
        (["--model.config", "[1]"], "model.config: expected fields"),
        (["--model.config.channels", "wide"], "model.config: .*channels"),
        (["--model.config.in_indices", "[7]"], "in_indices"),
        (["--model.preset", "ocrnet-swin-huge"], "there is no preset 'ocrnet-swin-huge'; did you mean 'ocrnet-swin-"),
        (["--model.init_from", "x", "--model.preset", "ocrnet-swin-tiny"], "model.init_from is a whole model"),
        (["--model.init_from", "x", "--backbone_weights", "y"], "model.init_from is a whole model; leave out preset"),
        (["--ema_decay", "1"], "--ema_decay 1: expected 0 <= value < 1"),
        (["--losses", "[{name: ohm}]"], r"training.losses\[0\].name: there is no loss 'ohm'; did you mean 'ohem'"),
        (["--losses", "[{name: ohem}, {name: ohem, min_keep: 1}]"], r"losses\[1\] has no field 'min_keep'; did"),
        (["--backbone_learning_rate", "-1"], "--backbone_learning_rate -1: expected at least 0"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: expected at least 1"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0: expected at least 1"),
        (["--eval_strategy", "epoch"], "--eval_strategy epoch is not offered"),
        (["--save_strategy", "epoch"], "--save_strategy epoch is not offered"),
        (["--logging_strategy", "epoch"], "--logging_strategy epoch is not offered"),
        (["--ignore_data_skip", "false"], "--ignore_data_skip"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor"),
    ],
)
def test_wrong_values(recipe_file, words, message):
    with pytest.raises(ValueError, match=message):
        load(recipe_file, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig: {max_steps: 1}", "no section 'trainig'; did you mean 'training'"),
        ("training: {max_step: 1}", "section 'training' has no field 'max_step'; did you mean 'max_steps'"),
        ("training: 3", "section 'training' must hold fields; found 3"),
        ("training: [max_steps]", "section 'training' must hold fields"),
        ("- a\n- b", "expected the sections model, data, augmentation, training; found a list"),
        ("just words", "found a str"),
        ("a: [1,", "is not valid YAML"),
        ("1: {a: b}", "no section '1'"),
        ("augmentation: {crop_size: [8, 8]}", "data.root is empty: give a folder"),
        ("", "data.root is empty"),
        ("data: {root: x}", "section 'augmentation': give crop_size"),
        ("data: {root: x}\naugmentation: {crop_size: [8, 8], hues: 1}", "no field 'hues'; did you mean 'hue'"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(file)


def test_ambiguous_name(recipe_file, monkeypatch):
    """No two sections share a field today; a later field must not be taken from one of them by chance."""
    everything = [field.name for section in SECTIONS.values() for field in dataclasses.fields(section)]
    assert len(everything) == len(set(everything))

    @dataclasses.dataclass
    class Twin:
        root: str = ""

    monkeypatch.setitem(SECTIONS, "model", Twin)
    with pytest.raises(ValueError, match="--root is a field of several sections; write --model.root or --data.root"):
        load(recipe_file, "--root", "x")


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(FileNotFoundError, match="no recipe 'camvid': neither a file nor a .*; did you mean camvid-"):
        load("camvid")


# --- round trip


def test_saved_recipe_is_the_same_run(recipe_file, tmp_path):
    words = [
        "--learning_rate", "3e-5", "--crop_size", "[40, 64]", "--base_size", "0.5", "--brightness", "1e-1",
        "--model.config.channels", "24", "--lr_scheduler_kwargs", "{power: 0.9}", "--lr_scheduler_type", "polynomial",
        "--ema_decay", "0.9", "--streaming", "--bf16", "--resume_from_checkpoint",
    ]  # fmt: skip
    first = load(recipe_file, *words)
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(first.to_dict()))
    second = load(saved)
    assert second.to_dict() == first.to_dict()
    for section in ("model", "data", "augmentation"):
        assert getattr(second, section) == getattr(first, section)
    assert isinstance(second.augmentation.crop_size, tuple)
    ours, theirs = first.training.to_dict(), second.training.to_dict()
    assert ours.pop("resume_from_checkpoint") is True
    assert theirs.pop("resume_from_checkpoint") is None  # the same run, not its continuation
    for timestamped in ("logging_dir", "run_name"):
        ours.pop(timestamped, None), theirs.pop(timestamped, None)
    assert ours == theirs


def test_tuples_given_from_python_can_be_saved(recipe_file):
    recipe = load(recipe_file)
    recipe.model.config["in_indices"] = (0, 1)
    assert yaml.safe_load(yaml.safe_dump(recipe.to_dict()))["model"]["config"]["in_indices"] == [0, 1]


# --- anything at all


PIECES = [
    "--", "---", "-", "=", ".", "..", "--=", "--.", "--model", "--model.", "--model..x", "--model.config.",
    "--data.root", "--training", "--training.learning_rate.x.y", "--learning_rate", "--augmentation.crop_size.0",
    "--\0", "--é", "",
    " ", "[", "]", "{", "}", "{a: b}", "[[1]]", "!!set {a}", "!!python/name:os.system", "&a *a", "*a", "? [x] : y",
    "2001-99-99", "2001-01-01", ".nan", "-.inf", "0x1F", "1_000", "~", "null", "--null", "yes", "%", "@", "`", "'",
    '"', "- - -", "a: b: c", "\t", "\n", "--config", "--model.config.backbone_config",
    "--model.config.backbone_config.x.y",
    "--lr_scheduler_kwargs.a.b.c", "--report_to.x", "1" * 400, "[" * 1500,
]  # fmt: skip


def test_weird_words_raise_only_readable_errors(recipe_file):
    pairs = [[a, b] for a in PIECES if a[:2] == "--" for b in PIECES]
    for words in [[word] for word in PIECES] + random.Random(0).sample(pairs, 100):
        try:
            load(recipe_file, *words)
        except (ValueError, OSError) as error:
            assert str(error), words


def test_weird_files_raise_only_readable_errors(tmp_path):
    file = tmp_path / "weird.yaml"
    for word in PIECES:
        for text in (word, f"training: {word}", f"training:\n  max_steps: {word}", f"model: {{config: {word}}}"):
            file.write_text(text)
            with pytest.raises((ValueError, OSError)):
                load(file)
