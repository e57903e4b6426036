"""Whole runs, from recipe to scored model folder, of architectures that differ in what the Trainer sees."""

import copy
import json
import math

import pytest
import yaml
from tiny import make_default_data, write_recipe
from transformers import AutoModelForSemanticSegmentation

from vss_hf.training.run import main


STAGES = ["stage1", "stage2", "stage3", "stage4"]
INTERNIMAGE = {
    "model_type": "vss_internimage",
    "channels": 8,
    "depths": [1, 1, 1, 1],
    "groups": [1, 2, 2, 4],
    "out_features": STAGES,
}
RESNET = {
    "model_type": "vss_resnet",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 8, 8],
    "stem_channels": 8,
    "block": "basic",
    "out_features": STAGES,
}
MODELS = {
    "an auxiliary head": {
        "model_type": "vss_upernet",
        "backbone_config": INTERNIMAGE,
        "hidden_size": 8,
        "auxiliary_channels": 8,
    },
    "no auxiliary head": {
        "model_type": "vss_semantic_fpn",
        "backbone_config": RESNET,
        "channels": 8,
        "pyramid_channels": 8,
        "use_auxiliary_head": False,
    },
    "masks": {
        "model_type": "vss_mask2former",
        "backbone_config": RESNET,
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "num_queries": 7,
        "train_num_points": 100,
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def recipe_file(folder, root, config, **training):
    """The tiny recipe with another model."""
    path = write_recipe(folder / "recipe.yaml", root, folder / "out", training=training)
    sections = yaml.safe_load(path.read_text())
    sections["model"] = {"config": copy.deepcopy(config)}
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_leaves_a_scored_model_folder(root, tmp_path, kind):
    config = MODELS[kind]
    folder = main([str(recipe_file(tmp_path, root, config, ema_decay=0.5, gradient_accumulation_steps=2))])
    results = json.loads((folder / "eval_results.json").read_text())
    assert math.isfinite(results["mean_iou"]) and results["frames"] == 10
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.config.model_type == config["model_type"] and model.config.num_labels == 3
    log = json.loads((folder / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses and all(0 < loss < 1000 for loss in losses)
    card = (folder / "README.md").read_text()
    assert config["model_type"] in card and "(backbone)" in card  # the papers of both are named

    # Fine-tuning with the same classes starts from these weights, and resumes where it was.
    path = write_recipe(tmp_path / "more.yaml", root, tmp_path / "more")
    sections = yaml.safe_load(path.read_text())
    sections["model"] = {"init_from": str(folder)}
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    assert (main([str(path), "--max_steps", "2"]) / "model.safetensors").is_file()


def test_class_weights_need_pixels(root, tmp_path):
    path = recipe_file(tmp_path, root, MODELS["masks"])
    weighted = "--losses=[{name: cross_entropy, class_weights: inverse_sqrt}]"
    with pytest.raises(ValueError, match=r"training.losses\[0\]: vss_mask2former classifies masks"):
        main([str(path), weighted])
    recipe_file(tmp_path, root, MODELS["no auxiliary head"])
    assert main([str(path), weighted, "--max_steps", "2"]).is_dir()
