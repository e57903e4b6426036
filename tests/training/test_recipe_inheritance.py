"""`base:` in recipes: what is inherited, how it is changed, and every mistake named."""

import pytest
import yaml
from tiny import HEADS, RESNET, write_recipe

from vss_hf.training import recipe_files
from vss_hf.training.recipe import load_recipe


def write(path, **sections):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture
def base(tmp_path):
    """A whole recipe: what the others inherit from."""
    training = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 0.9, "lr_end": 0.1}}
    sources = {"sources": [{"weight": 2}, {"root": "other"}]}
    return write_recipe(
        tmp_path / "base.yaml", tmp_path / "videos", tmp_path / "run", training={**training, "seed": 7}, data=sources
    )


def child(tmp_path, **sections):
    """The recipe that inherits `base` and says this over it."""
    return load_recipe(write(tmp_path / "child.yaml", base="base.yaml", **sections))


# --- what is inherited


def test_a_recipe_that_says_nothing_is_its_base(base, tmp_path):
    ours, theirs = child(tmp_path).to_dict(), load_recipe(base).to_dict()
    assert ours == theirs and "base" not in ours and "stages" not in ours


def test_fields_come_over_those_of_the_base(base, tmp_path):
    recipe = child(
        tmp_path,
        model={"config": {"channels": 24, "backbone_config": {"depths": [1, 2]}}},
        data={"sources": [{"root": "alone"}]},
        training={"learning_rate": 0.5, "lr_scheduler_kwargs": {"power": 1.0}},
    )
    expected = {"backbone_config": {**RESNET, "depths": [1, 2]}, **HEADS, "channels": 24}
    assert recipe.model.config == expected
    assert recipe.data.sources == [{"root": "alone"}] and recipe.data.root == str(tmp_path / "videos")
    assert recipe.training.lr_scheduler_kwargs == {"power": 1.0, "lr_end": 0.1}
    assert (recipe.training.learning_rate, recipe.training.seed, recipe.training.max_steps) == (0.5, 7, 4)


def test_null_takes_inherited_values_away(base, tmp_path):
    """Back to the default; a field of which null is a value has that value."""
    fields = {"seed": None, "lr_scheduler_type": None, "lr_scheduler_kwargs": None, "save_total_limit": None}
    fields["learning_rate"] = None
    recipe = child(tmp_path, data={"sources": None}, training=fields)
    assert (recipe.training.seed, recipe.training.learning_rate) == (42, 6e-5)
    assert recipe.training.lr_scheduler_type == "linear" and not recipe.training.lr_scheduler_kwargs
    assert "save_total_limit" not in load_recipe(base).given["training"]
    assert recipe.data.sources == []
    limited = write(tmp_path / "limited.yaml", base="base.yaml", training={"save_total_limit": 5})
    assert load_recipe(limited).training.save_total_limit == 5
    unlimited = write(tmp_path / "unlimited.yaml", base="limited.yaml", training={"save_total_limit": None})
    assert load_recipe(unlimited).training.save_total_limit is None


def test_a_whole_backbone_replaces_the_inherited_one(base, tmp_path):
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}
    swin["out_features"] = ["stage1", "stage2"]
    assert child(tmp_path, model={"config": {"backbone_config": swin}}).model.config == {
        "backbone_config": swin,
        **HEADS,
    }


def test_another_beginning_replaces_the_inherited_one(tmp_path):
    """So that a fine-tuning recipe need not know whether its base starts from a preset or from a folder."""
    sections = {"data": {"root": "x"}, "augmentation": {"crop_size": [8, 8]}}
    preset = {"preset": "ocrnet-swin-tiny", "backbone_weights": "somewhere", "config": {"channels": 24}}
    write(tmp_path / "base.yaml", model=preset, **sections)
    model = child(tmp_path, model={"init_from": "folder"}).model
    assert (model.preset, model.backbone_weights, model.init_from, model.config) == (None, None, "folder", {})
    changed = {"init_from": "folder", "config": {"model_type": "vss_tcb_ocr"}}
    write(tmp_path / "base.yaml", model=changed, **sections)
    model = child(tmp_path, model={"init_from": "another"}).model
    assert (model.init_from, model.config) == ("another", changed["config"])
    model = child(tmp_path, model={"preset": "ocrnet-swin-tiny"}).model
    assert (model.preset, model.init_from, model.config) == ("ocrnet-swin-tiny", None, {})


def test_part_of_a_presets_backbone(tmp_path):
    sections = {"data": {"root": "x"}, "augmentation": {"crop_size": [8, 8]}}
    write(tmp_path / "base.yaml", model={"preset": "ocrnet-swin-tiny"}, **sections)
    recipe = child(tmp_path, model={"config": {"backbone_config": {"drop_path_rate": 0.4}}})
    backbone = recipe.model.build_config().backbone_config
    assert (backbone.drop_path_rate, list(backbone.depths), backbone.embed_dim) == (0.4, [2, 2, 6, 2], 96)


def test_a_chain_over_folders_ends_in_a_shipped_recipe(tmp_path, monkeypatch):
    """Paths begin beside the file that says them; the command line has the last word."""
    write(tmp_path / "far" / "one.yaml", base="../near/two.yaml", training={"seed": 1})
    write(tmp_path / "near" / "two.yaml", base="demo-ocrnet", training={"seed": 2, "data_seed": 2, "max_steps": 2})
    recipe = load_recipe(tmp_path / "far" / "one.yaml", ["--data.root", "x", "--max_steps", "3"])
    assert (recipe.training.seed, recipe.training.data_seed, recipe.training.max_steps) == (1, 2, 3)
    assert recipe.augmentation == load_recipe("demo-ocrnet", ["--data.root", "x"]).augmentation


def test_shipped_recipes_in_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_files, "RECIPES", tmp_path / "shipped")
    write_recipe(write(tmp_path / "shipped" / "bases" / "vspw.yaml"), tmp_path, tmp_path / "run")
    write(tmp_path / "shipped" / "one.yaml", base="bases/vspw", training={"seed": 3})
    assert load_recipe("one").training.seed == 3 and load_recipe("bases/vspw").training.seed == 42
    with pytest.raises(FileNotFoundError, match="no recipe 'base/vspw': .*; did you mean bases/vspw"):
        load_recipe("base/vspw")


def test_saved_recipe_stands_alone(base, tmp_path):
    recipe = child(tmp_path, training={"seed": 9})
    saved = tmp_path / "elsewhere" / "training_recipe.yaml"
    write(saved, **recipe.to_dict())
    base.unlink()
    assert load_recipe(saved).to_dict() == recipe.to_dict()


# --- mistakes


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"base": "bse.yaml"}, "recipe .*child.yaml: base: no recipe 'bse.yaml': neither a file in .* shipped recipe"),
        ({"base": "demo-ocrnt"}, "recipe .*child.yaml: base: no recipe 'demo-ocrnt': .*did you mean demo-ocrnet"),
        ({"base": ["base.yaml"]}, "recipe .*child.yaml: base must name one recipe; found \\['base.yaml'\\]"),
        ({"base": "child.yaml"}, "recipe .*child.yaml: base goes round in a circle: .*child.yaml -> .*child.yaml"),
        ({"base": "loop.yaml"}, "recipe .*loop.yaml: base goes round in a circle: .*child.* -> .*loop.* -> .*child"),
        ({"base": "broken.yaml"}, "recipe .*broken.yaml is not valid YAML"),
        ({"base": "wrong.yaml"}, "recipe .*wrong.yaml has no section 'trainig'; did you mean 'training'"),
        ({"bas": "base.yaml"}, "recipe .*child.yaml has no section 'bas'; did you mean 'base'"),
        ({"base": "base.yaml", "training": 3}, "recipe .*child.yaml: section 'training' must hold fields; found 3"),
        ({"base": "base.yaml", "training": {"seeds": 3}}, "section 'training' has no field 'seeds'; did you mean 'se"),
        ({"base": "base.yaml", "model": {"config": {"chanels": 1}}}, "has no field 'chanels'; did you mean 'channels"),
        ({"base": "base.yaml", "augmentation": {"crop_size": None}}, "section 'augmentation': give crop_size"),
    ],
)
def test_mistakes(base, tmp_path, sections, message):
    write(tmp_path / "loop.yaml", base=str(tmp_path / "child.yaml"))
    write(tmp_path / "wrong.yaml", trainig={})
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_recipe(write(tmp_path / "child.yaml", **sections))
