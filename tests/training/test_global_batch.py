"""`global_batch_size`: what each device does of it, and which numbers do not fit."""

import json

import pytest
from tiny import arguments, make_default_data, write_recipe

from vss_hf.training.arguments import VSSTrainingArguments
from vss_hf.training.run import main


@pytest.fixture
def devices(monkeypatch):
    """Sets how many processes there seem to be."""
    return lambda number: monkeypatch.setattr(VSSTrainingArguments, "world_size", property(lambda self: number))


@pytest.mark.parametrize(("number", "per_device", "steps"), [(1, 2, 8), (2, 2, 4), (8, 2, 1), (1, 16, 1), (16, 1, 1)])
def test_accumulation_follows(devices, tmp_path, number, per_device, steps):
    devices(number)
    args = arguments(tmp_path, global_batch_size=16, per_device_train_batch_size=per_device)
    assert args.gradient_accumulation_steps == steps
    same = {"global_batch_size": 16, "per_device_train_batch_size": per_device, "gradient_accumulation_steps": steps}
    assert arguments(tmp_path, **same).gradient_accumulation_steps == steps


def test_without_it(tmp_path):
    assert arguments(tmp_path).gradient_accumulation_steps == 1
    assert arguments(tmp_path, gradient_accumulation_steps=3).gradient_accumulation_steps == 3


@pytest.mark.parametrize(
    ("number", "fields", "message"),
    [
        (2, {"per_device_train_batch_size": 3}, "2 devices with .* 3 take 6 .*fits: --per_device_.* 1, 2, 4 or 8$"),
        (1, {"per_device_train_batch_size": 32}, "1 device with .* 32 take 32 .* --per_device.* 1, 2, 4, 8 or 16$"),
        (16, {"per_device_train_batch_size": 2}, "16 devices .* 2 take 32 .* fits: --per_device_train_batch_size 1$"),
        (3, {"per_device_train_batch_size": 1}, "fits: 1, 2, 4, 8 or 16 devices, or a global batch of 15 or 18 sam"),
        (32, {"per_device_train_batch_size": 1}, "1, 2, 4, 8 or 16 devices, or a global batch of 32 or 64 samples"),
        (2, {"gradient_accumulation_steps": 1}, "16 with 4 samples at once needs --gradient_acc.* 4, and 1 is given"),
        (1, {"global_batch_size": 0}, "--global_batch_size 0: expected at least 1"),
    ],
)
def test_numbers_that_do_not_fit(devices, tmp_path, number, fields, message):
    devices(number)
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **{"global_batch_size": 16, **fields})


def test_a_run_takes_as_many_samples(tmp_path):
    """And the saved recipe says the batch, not what one machine made of it."""
    root = make_default_data(tmp_path / "videos")
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training={"global_batch_size": 6})
    folder = main([str(recipe), "--max_steps", "2"])
    results = json.loads((folder / "train_results.json").read_text())
    assert (results["steps"], results["samples"]) == (2, 12)
    saved = (folder / "training_recipe.yaml").read_text()
    assert "global_batch_size: 6" in saved and "gradient_accumulation_steps" not in saved
