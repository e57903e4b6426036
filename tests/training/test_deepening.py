"""A run that starts from a Swin with fewer blocks, as BetterThing's second part does."""

import json
import re

import pytest
import torch
import yaml
from tiny import HEADS, make_default_data, tiny_model, write_recipe
from transformers import AutoModelForSemanticSegmentation

from vss_hf.data.labels import ClassList
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.training.recipe import ModelRecipe
from vss_hf.training.run import build_model, main


SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [2, 2, 4],
    "num_heads": [1, 1, 2],
    "window_size": 4,
    "drop_path_rate": 0.2,
    "out_features": ["stage1", "stage3"],
}
DEEPER = [4, 2, 6]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def first_part(root, tmp_path_factory):
    """The folder of a model whose parameters all differ from those of a new one."""
    model = tiny_model(root, backbone_config=SWIN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("part1") / "model"
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return folder


def deeper(first_part, root, depths=DEEPER, **config):
    fields = {"backbone_config": {"depths": depths}, **config}
    return build_model(ModelRecipe(init_from=str(first_part), config=fields), ClassList.from_root(root))


@pytest.mark.parametrize("size", [(64, 96), (45, 61)])
def test_same_logits_before_training(first_part, root, size):
    model, before = deeper(first_part, root).eval(), AutoModelForSemanticSegmentation.from_pretrained(first_part)
    assert list(model.config.backbone_config.depths) == DEEPER
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, before.eval()(pixels).logits)
    assert list(before.config.backbone_config.depths) == SWIN["depths"]


def test_shifted_windows_alternate(first_part, root):
    for stage in deeper(first_part, root).backbone.swin.encoder.layers:
        assert [block.shift_size for block in stage.blocks] == [(0, 2)[i % 2] for i in range(len(stage.blocks))]


def test_drop_path_grows_over_all_blocks(first_part, root):
    blocks = [b for stage in deeper(first_part, root).backbone.swin.encoder.layers for b in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) or 0.0 for block in blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


def test_other_fields_of_the_backbone_change_with_it(first_part, root):
    model = build_model(
        ModelRecipe(
            init_from=str(first_part),
            config={"backbone_config": {"depths": DEEPER, "drop_path_rate": 0.4}, "classifier_dropout": 0.3},
        ),
        ClassList.from_root(root),
    )
    assert model.backbone.swin.encoder.layers[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.4)
    assert model.config.classifier_dropout == 0.3


def test_a_run_trains_the_new_blocks(first_part, root, tmp_path):
    """And its model folder is one of the deeper model, which another run takes as it is."""
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training={"max_steps": 2})
    sections = yaml.safe_load(recipe.read_text())
    sections["model"] = {"init_from": str(first_part), "config": {"backbone_config": {"depths": DEEPER}}}
    recipe.write_text(yaml.safe_dump(sections))
    folder = main([str(recipe)])
    assert json.loads((folder / "config.json").read_text())["backbone_config"]["depths"] == DEEPER
    again = deeper(folder, root)
    for place in ((0, 2), (0, 3), (2, 4), (2, 5)):
        block = again.backbone.swin.encoder.layers[place[0]].blocks[place[1]]
        assert block.attention.o_proj.weight.any() and block.mlp.fc2.weight.any()


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([2, 2, 2], "holds a swin with depths [2, 2, 4]: depths=[2, 2, 2]: stage3 has 4 blocks already, expected a"),
        ([2, 3, 4], "depths=[2, 3, 4]: stage2 has 2 blocks and would end with a block without shifted windows; exp"),
        ([2, 2, 4, 2], "depths=[2, 2, 4, 2]: this Swin has 3 stages"),
    ],
)
def test_depths_that_do_not_fit(first_part, root, depths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        deeper(first_part, root, depths)


def test_other_backbones_keep_their_depths(root, tmp_path):
    tiny_model(root, **HEADS).save_pretrained(tmp_path / "model")
    message = r"model.config.backbone_config: .*model holds a resnet with depths \[1, 1\], and only swin takes more"
    with pytest.raises(ValueError, match=message):
        deeper(tmp_path / "model", root, [1, 2])
