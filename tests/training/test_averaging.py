"""Averaged model folders against float64 by hand; what differs between members is named; BatchNorm counted anew."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    FrozenNorms,
    make_data,
    make_default_data,
    state_of,
    tiny_clip_model,
    tiny_model,
    training_clips,
    training_data,
    write_recipe,
)
from torch import nn
from transformers import SwinConfig

from vss_hf import UperNetConfig, UperNetForSemanticSegmentation
from vss_hf.cli import main
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.layers import BatchNorm2d
from vss_hf.modeling.loading import load_segmentation_model
from vss_hf.training.averaging import average_models
from vss_hf.training.batchnorm import first_batches, has_batchnorm, recalibrate_batchnorm
from vss_hf.training.draws import DrawOrder
from vss_hf.training.recalibration import Recalibration
from vss_hf.training.recipe import load_recipe
from vss_hf.training.run import train as run_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def disturbed(model: nn.Module, seed: int) -> nn.Module:
    """The model with other weights, statistics and counters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                tensor.add_(seed)
    return model


def save(model: nn.Module, folder: Path, **settings) -> Path:
    model.save_pretrained(folder, **settings)
    VSSImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def members(root, tmp_path_factory):
    """Three models that differ in their weights."""
    base = tmp_path_factory.mktemp("members")
    return [save(disturbed(tiny_model(root), seed), base / f"model_{seed}") for seed in (1, 2, 3)]


def weighted_mean(models: list[nn.Module], weights: list[float]) -> dict[str, torch.Tensor]:
    """By the models' own names, in float64; whole numbers are the first one's."""
    states = [state_of(model) for model in models]
    expected = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = sum(w * state[name].double() for w, state in zip(weights, states, strict=True))
            expected[name] = (total / sum(weights)).to(first.dtype)
        else:
            expected[name] = first
    return expected


def assert_equal(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = state_of(model)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


# --- the mean


@pytest.mark.parametrize("weights", [None, [1, 1, 2], [0.3, 0.1, 7.0]])
def test_equals_the_mean_in_float64(members, tmp_path, weights):
    result = average_models(members, tmp_path / "average", weights=weights)
    models = [load_segmentation_model(folder) for folder in members]
    average = load_segmentation_model(tmp_path / "average")
    assert_equal(average, weighted_mean(models, weights or [1, 1, 1]))
    counters = [name for name in average.state_dict() if name.endswith("num_batches_tracked")]
    assert result.copied == len(counters) > 3 and int(average.state_dict()[counters[0]]) == 1
    assert result.averaged + result.copied == len(average.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [None, [0.1, 0.7, 1e-3, 3.3, 1 / 3]])
def test_copies_of_a_model_give_its_bits(root, tmp_path, weights, dtype):
    folder = save(disturbed(tiny_model(root).to(dtype), 1), tmp_path / "model")
    average_models([folder] * 5, tmp_path / "average", weights=weights)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "average", folder))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def swin_upernet(seed: int):
    sizes = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
    backbone = SwinConfig(**sizes, out_features=["stage1", "stage2"])
    heads = {"in_indices": [0, 1], "channels": 8, "auxiliary_in_index": 0, "auxiliary_channels": 8}
    names = {0: "road", 1: "sky"}
    torch.manual_seed(seed)
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, id2label=names, **heads))


def test_names_that_transformers_changes_and_parts(tmp_path):
    """Swin has other names in files than in memory, and index tables; one member's weights are in several files."""
    models = [disturbed(swin_upernet(seed), seed) for seed in (1, 2)]
    folders = [save(models[0], tmp_path / "whole"), save(models[1], tmp_path / "parts", max_shard_size="20KB")]
    assert len(list(folders[1].glob("model-*.safetensors"))) > 2 and not (folders[1] / "model.safetensors").exists()
    in_files = load_file(folders[0] / "model.safetensors").keys()
    assert in_files != models[0].state_dict().keys()  # or this tests nothing
    for order in (folders, folders[::-1]):
        out = tmp_path / f"average_{order[0].name}"
        average_models(order, out)
        assert_equal(load_segmentation_model(out), weighted_mean(models if order is folders else models[::-1], [1, 1]))
        assert load_file(out / "model.safetensors").keys() == in_files


def test_checkpoints_of_a_run(root, tmp_path):
    """Checkpoints are members; the recipe of their run tells how samples for the statistics are augmented."""
    run = tmp_path / "run"
    training = {"eval_steps": 1, "save_steps": 1, "save_total_limit": 9}
    recipe = write_recipe(tmp_path / "recipe.yaml", root, run, training=training)
    run_recipe(load_recipe(recipe))
    folders = [run / f"checkpoint-{step}" for step in (2, 3, 4)]
    samples = Recalibration(str(root), batches=3, num_workers=0)
    result = average_models(folders, tmp_path / "average", recalibrate=samples)
    assert result.batches == 3
    expected = weighted_mean([load_segmentation_model(folder) for folder in folders], [1, 1, 1])
    model = tiny_model(root)
    model.load_state_dict(expected)
    recalibrate_batchnorm(model, first_batches(training_data(root, seed=42), DrawOrder(2), 3))
    assert_equal(load_segmentation_model(tmp_path / "average"), state_of(model))
    told = json.loads((tmp_path / "average" / "averaging.json").read_text())
    assert [member["model"] for member in told["members"]] == [f"run/checkpoint-{step}" for step in (2, 3, 4)]
    assert told["batchnorm"] == {"data": "videos", "split": None, "batches": 3}
    assert [member["trained_on"] for member in told["members"]] == [["videos"]] * 3  # as the run's model folder says


# --- the folder


def test_tells_the_members_and_no_results_of_theirs(members, tmp_path):
    own = []
    for number, folder in enumerate(members[:2]):
        own.append(shutil.copytree(folder, tmp_path / f"m{number}"))
        (own[-1] / "eval_results.json").write_text('{"mean_iou": 0.123}')
        (own[-1] / "train_results.json").write_text(json.dumps({"dataset": "VSPW_480p"}))
    out = tmp_path / "average"
    average_models(own, out, weights=[1, 3])
    names = {"config.json", "preprocessor_config.json", "model.safetensors", "averaging.json", "README.md"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "config.json").read_text() == (own[0] / "config.json").read_text()
    card = (out / "README.md").read_text()
    assert "`m0` (weight 1), `m1` (weight 3)" in card and "0.123" not in card and "title: average" not in card
    assert "# average" in card and "non-commercial" in card  # the terms of the members' data
    average_models([out, own[0]], tmp_path / "again")
    assert "non-commercial" in (tmp_path / "again" / "README.md").read_text()
    assert str(tmp_path) not in (out / "averaging.json").read_text()


def changed(folder: Path, target: Path, **fields) -> Path:
    """A copy with other entries in config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


def with_tensors(folder: Path, target: Path, change) -> Path:
    """A copy with other tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


HEAD = "decode_head.classifier.weight"


def test_names_the_first_difference(members, tmp_path):
    first = members[0]
    names = {"0": "road", "1": "tree", "2": "sky"}
    processor = shutil.copytree(first, tmp_path / "processor")
    settings = json.loads((processor / "preprocessor_config.json").read_text())
    (processor / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.0, 0.0, 0.0]}))
    nan = with_tensors(first, tmp_path / "nan", lambda t: t[HEAD].fill_(float("nan")))
    cases = {
        "id2label is {0: 'road', 1: 'tree', 2: 'sky'}": changed(first, tmp_path / "classes", id2label=names),
        "channels is 17 in the one and 16 in the other": changed(first, tmp_path / "config", channels=17),
        "model_type is 'vss_fcn' in the one": changed(first, tmp_path / "type", model_type="vss_fcn"),
        "image_mean of the image processor is [0.0, 0.0, 0.0]": processor,
        f"has no tensor {HEAD}, which": with_tensors(first, tmp_path / "missing", lambda t: t.pop(HEAD)),
        "has no tensor zusatz, which": with_tensors(
            first, tmp_path / "more", lambda t: t.update(zusatz=torch.zeros(1))
        ),
        f"{HEAD} is F32 (3, 16, 1, 2)": with_tensors(
            first, tmp_path / "shape", lambda t: t.update({HEAD: torch.zeros(3, 16, 1, 2)})
        ),
        f"{HEAD} is F16 (3, 16, 1, 1)": with_tensors(
            first, tmp_path / "type_of_tensor", lambda t: t.update({HEAD: t[HEAD].half()})
        ),
        f"{nan}: {HEAD} holds values that are not finite": nan,
    }
    for text, folder in cases.items():
        with pytest.raises(ValueError) as raised:
            average_models([first, members[1], folder], tmp_path / "average")
        assert text in str(raised.value) and str(folder) in str(raised.value), raised.value
        assert not list(tmp_path.glob("average*"))  # whole, or not there


def test_how_a_model_is_run_does_not_matter(members, tmp_path):
    """Nor what transformers writes into the part of the backbone after loading it, its dtype for instance."""
    backbone = json.loads((members[1] / "config.json").read_text())["backbone_config"]
    fields = {"transformers_version": "4.0.0", "_name_or_path": "elsewhere", "dtype": "float32"}
    other = changed(members[1], tmp_path / "other", **fields, backbone_config={**backbone, **fields})
    average_models([members[0], other], tmp_path / "average")


def test_names_the_field_of_the_backbone(members, tmp_path):
    backbone = json.loads((members[1] / "config.json").read_text())["backbone_config"]
    other = changed(members[1], tmp_path / "other", backbone_config={**backbone, "hidden_act": "gelu"})
    with pytest.raises(ValueError, match="backbone_config.hidden_act is 'gelu' in the one and 'relu' in the other"):
        average_models([members[0], other], tmp_path / "average")


def test_does_not_touch_what_is_there(members, tmp_path):
    (tmp_path / "average").mkdir()
    (tmp_path / "average" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        average_models(members, tmp_path / "average")
    with pytest.raises(FileExistsError, match="not empty"):
        average_models(members, members[0])
    assert [path.name for path in (tmp_path / "average").iterdir()] == ["notes.txt"]


# --- BatchNorm


def float64_statistics(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means over batches of the mean and the unbiased variance of every BatchNorm's input, from hooks, in float64."""
    model = model.double().train()
    sums: dict[str, list] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def look(module, inputs, name=name):
                values = inputs[0].transpose(0, 1).flatten(1)
                sums.setdefault(name, []).append((values.mean(1), values.var(1, unbiased=True)))

            handles.append(module.register_forward_pre_hook(look))
    with torch.no_grad():
        for pixels in batches:
            model(pixels.double())
    for handle in handles:
        handle.remove()
    found = {}
    for name, pairs in sums.items():
        found[f"{name}.running_mean"] = torch.stack([mean for mean, _ in pairs]).mean(0)
        found[f"{name}.running_var"] = torch.stack([variance for _, variance in pairs]).mean(0)
    return found


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_statistics_equal_those_of_all_inputs(root, kind):
    if kind == "images":
        model, data = tiny_model(root, classifier_dropout=0.0), training_data(root)
    else:
        model, data = tiny_clip_model(root), training_clips(root)
        model.train = lambda mode=True: nn.Module.train(model, mode)  # FrozenClips keeps its statistics otherwise
    disturbed(model, 5)
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    batches = list(first_batches(data, DrawOrder(3), 4))
    assert len(batches) == 4
    model.eval()
    assert recalibrate_batchnorm(model, batches) == 4
    assert not model.training
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.named_parameters())
    found = state_of(model)
    expected = float64_statistics(model, [batch[model.main_input_name] for batch in batches])
    assert len(expected) == sum("running" in name for name in found) > 6
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-4, atol=1e-5, msg=name)
        if name.endswith("running_mean"):
            assert int(found[name.replace("running_mean", "num_batches_tracked")]) == 4


def test_a_norm_that_sees_single_values_keeps_its_statistics():
    """Of a globally pooled map in batches of one sample, as in training: they stand in for the variance."""
    norm = BatchNorm2d(4)
    disturbed(norm, 3)

    class Pooled(nn.Sequential):
        main_input_name, device, dtype = "pixel_values", torch.device("cpu"), torch.float32

        def forward(self, pixel_values):
            return super().forward(pixel_values)

    model = Pooled(BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), norm)
    before = state_of(norm)
    batches = [{"pixel_values": torch.randn(1, 4, 5, 5) + 9} for _ in range(3)]
    recalibrate_batchnorm(model, batches)
    for name in ("running_mean", "running_var"):
        assert torch.equal(norm.state_dict()[name], before[name]), name
    means = torch.stack([batch["pixel_values"].mean((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(model[0].running_mean, means.mean(0))


def test_random_numbers_of_the_caller_stay_and_do_not_matter(root):
    """Dropout in the coarse head, which regions are gathered with, reaches the BatchNorms behind them."""
    model = tiny_model(root, classifier_dropout=0.5)
    batches = list(first_batches(training_data(root), DrawOrder(2), 2))
    before = torch.get_rng_state()
    recalibrate_batchnorm(model, batches)
    assert torch.equal(torch.get_rng_state(), before)
    found = state_of(model)
    torch.rand(1)
    recalibrate_batchnorm(model, batches)
    assert_equal(model, found)


def test_models_without_batchnorm_stay_as_they_are(root):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    assert not has_batchnorm(layers) and recalibrate_batchnorm(layers, []) == 0
    frozen = disturbed(tiny_model(root, FrozenNorms), 3)  # BatchNorms that do not learn in training either
    before = state_of(frozen)
    assert recalibrate_batchnorm(frozen, first_batches(training_data(root), DrawOrder(2), 1)) == 0
    assert_equal(frozen, before)


def test_statistics_that_make_no_sense_are_refused(root):
    model = disturbed(tiny_model(root), 1)
    with pytest.raises(ValueError, match="no batches"):
        recalibrate_batchnorm(model, [])
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    momenta = {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    with pytest.raises(ValueError, match="not finite"):
        recalibrate_batchnorm(model, first_batches(training_data(root), DrawOrder(2), 1))
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == momenta


@pytest.mark.parametrize("streaming", [False, True])
def test_first_batches_leave_the_data_set_where_it_is(root, streaming):
    data = training_data(root, streaming=streaming)
    data.order = own = DrawOrder(2, start=6)
    twice = [list(first_batches(data, DrawOrder(2), 3, num_workers=workers)) for workers in (0, 2)]
    assert data.order is own and len(twice[0]) == 3
    expected = [data.read(draw)["pixel_values"] for draw in range(6)]
    for batches in twice:
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), torch.stack(expected))


# --- the command line


def test_command_line(members, root, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "run")
    options = ["--weights", "1,1,2", "--recalibrate", recipe, "--split", "val", "--batches", 2, "--num-workers", 0]
    with pytest.raises(SystemExit) as stop:
        main(["average", *map(str, [*members, "--out", tmp_path / "average", *options])])
    told = capsys.readouterr().out
    assert stop.value.code in (0, None) and "3 models" in told and "2 batches" in told
    expected = weighted_mean([load_segmentation_model(folder) for folder in members], [1, 1, 2])
    found = state_of(load_segmentation_model(tmp_path / "average"))
    for name, tensor in expected.items():
        counted = name.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(found[name], tensor) != counted, name


def failure(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["average", *map(str, words)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_bad_input_in_a_process_of_its_own(members, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "vss_hf", "average", members[0], tmp_path / "nothing", "--out", tmp_path / "average"]
    done = subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert f"{tmp_path / 'nothing'}: no such model folder" in done.stderr


def test_bad_input_is_one_line(members, root, tmp_path, capsys):
    out = ["--out", tmp_path / "average"]
    assert "no such model folder" in failure(capsys, members[0], tmp_path / "nothing", *out)
    assert "at least 2 models; found 1" in failure(capsys, members[0], *out)
    assert "2 numbers for 3 models" in failure(capsys, *members, *out, "--weights", "1 1")
    for weights in ("1,-1,1", "1,0,1", "nan,1,1", "inf,1,1"):
        assert "expected numbers above 0" in failure(capsys, *members, *out, "--weights", weights)
    assert "add up to more than any number" in failure(capsys, *members, *out, "--weights", "1e308,1e308,1")
    assert "--split val: there is no --recalibrate" in failure(capsys, *members, *out, "--split", "val")
    assert "expected numbers with commas" in failure(capsys, *members, *out, "--weights", "1;1;1")
    assert "has no training_recipe.yaml" in failure(capsys, *members, *out, "--recalibrate", root)
    stages = write_recipe(tmp_path / "stages.yaml", root, tmp_path / "run")
    stages.write_text(f"{stages.read_text()}stages: [{{name: one}}]\n")
    assert "give the training_recipe.yaml in the model folder of one of them" in failure(
        capsys, *members, *out, "--recalibrate", stages
    )
    assert "no recipe 'nowhere'" in failure(capsys, *members, *out, "--recalibrate", "nowhere")
    damaged = shutil.copytree(members[0], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-50])
    assert "is damaged" in failure(capsys, members[0], damaged, *out)
    pickled = shutil.copytree(members[0], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "pickled weights are refused" in failure(capsys, members[0], pickled, *out)
    other = make_data(tmp_path / "other", {"train": {"a": 2}, "val": {"v": 8}}, {"others": 0, "road": 1, "sky": 2})
    recipe = write_recipe(tmp_path / "recipe.yaml", other, tmp_path / "run")
    assert "has 2 classes (road, sky ...); the model's are 3" in failure(
        capsys, *members, *out, "--recalibrate", recipe
    )
    assert not list(tmp_path.glob("average*"))


def test_members_of_the_hub(members, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    published = shutil.copytree(members[1], tmp_path / "published")
    (published / "train_results.json").write_text(json.dumps({"dataset": "VSPW_480p"}))

    def download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        for path in published.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copyfile(path, made_folder / path.name)
        return str(made_folder)

    made_folder = tmp_path / "downloaded"
    made_folder.mkdir()

    monkeypatch.setattr("vss_hf.training.averaging.snapshot_download", download)
    average_models([members[0], "someone/model"], tmp_path / "average")
    (repo, patterns), *more = asked
    assert repo == "someone/model" and not more and not any("bin" in pattern or pattern == "*" for pattern in patterns)
    members_told = json.loads((tmp_path / "average" / "averaging.json").read_text())["members"]
    assert members_told[1]["model"] == "someone/model"
    assert members_told[1]["trained_on"] == ["VSPW_480p"]  # whose terms the card tells
    assert {"training_recipe.yaml", "averaging.json"} <= set(patterns)
