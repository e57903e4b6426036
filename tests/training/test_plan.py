"""The dry run: its numbers are those of a real model, optimizer and step; it needs neither data nor a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_models
import torch
from accelerate.commands.launch import launch_command_parser
from tiny import arguments, make_default_data, make_trainer, write_recipe
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from vss_hf.cli import main
from vss_hf.modeling.architectures import VIDEO_MODELS, config_from_preset, model_class, presets
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.training.ema import EMA
from vss_hf.training.memory_estimate import estimate_memory, fsdp_units, optimizer_bytes, trace_step
from vss_hf.training.plan import dry_run, make_plans, rates_at, scheduler_of_run, without
from vss_hf.training.recipe_files import RECIPES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose data are nowhere."""
    return write_recipe(tmp_path / "recipe.yaml", tmp_path / "nowhere", tmp_path / "out")


# --- batch, steps, data


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_effective_batch(recipe, devices, accumulation):
    (plan,) = make_plans(str(recipe), ["--global_batch_size", "16"], devices, memory=False)
    assert plan.batch["effective"] == 16 and plan.batch["accumulation"] == accumulation
    assert plan.steps["samples"] == 4 * 16
    fits = [told.get("effective") for told in plan.batch["on_other_devices"]]
    assert fits == [16, 16, 16, 16, None]  # 16 devices with 2 samples each take 32


def test_without_a_global_batch_it_grows_with_the_devices(recipe):
    (plan,) = make_plans(str(recipe), ["--gradient_accumulation_steps", "3"], 8, memory=False)
    assert plan.batch["effective"] == 2 * 3 * 8


def test_frames_are_counted_where_they_are(root, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out")
    (plan,) = make_plans(str(recipe), ["--max_steps", "-1", "--num_train_epochs", "4"], memory=False)
    assert (plan.data[0]["videos"], plan.data[0]["frames"], plan.data[0]["samples"]) == (2, 7, 7)
    assert plan.steps["steps"] == 14 and plan.steps["passes"] == 4  # 28 samples, 2 at a time
    assert plan.model["num_labels"] == 3
    (plan,) = make_plans(str(recipe), ["--data.sampling", "one_per_video"], memory=False)
    assert plan.steps["samples_per_pass"] == 2


def test_nothing_is_read_or_written(recipe, tmp_path, capsys):
    assert dry_run([str(recipe), "--dry_run"]) is True
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "not on this machine" in words and "effective batch" in words and "FSDP units" in words
    assert max(map(len, shown.splitlines())) <= 100 and "\x1b" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_json(recipe, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["train", str(recipe), "--dry-run", "2", "--json", str(tmp_path / "plan.json"), "--max_steps", "8"])
    assert end.value.code == 0
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["steps"]["steps"] == 8 and plan["batch"]["devices"] == 2 and "2 FSDP2" in plan["memory"]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--dry_run", "--a", "1"], ["--a", "1"]),
        (["--a", "1", "--dry_run", "8", "--b"], ["--a", "1", "--b"]),
        (["--dry-run=8", "--json", "file", "--a=2"], ["--a=2"]),
    ],
)
def test_words_of_the_dry_run(words, left):
    assert without(words, ("dry_run", "json")) == left


def test_a_real_run_is_none(recipe):
    assert dry_run([str(recipe), "--max_steps", "3"]) is False and dry_run([]) is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_stepz", "3"], "did you mean 'max_steps'"),
        (["--warmup_steps", "4"], "--warmup_steps 4: expected fewer than the run's 4 steps"),
        (["--losses=[{name: ohemm}]"], "did you mean 'ohem'"),
        (["--swa_every", "9"], "--swa_start 0 --swa_every 9: the run ends after 4 steps"),
        (["--backbone_modules=[bakbone]"], "has no part 'bakbone'"),
    ],
)
def test_errors_are_those_of_a_run(recipe, words, message):
    with pytest.raises(ValueError, match=message):
        dry_run([str(recipe), "--dry_run", *words])


@pytest.mark.parametrize("words", [["--dry_run", "0"], ["--dry_run", "many"], ["--dry_run", "--json"]])
def test_what_dry_run_takes(recipe, words):
    with pytest.raises(ValueError, match="--dry_run|--json"):
        dry_run([str(recipe), *words])


def test_stages(recipe, tmp_path):
    path = tmp_path / "staged.yaml"
    path.write_text(
        f"base: {recipe}\nstages:\n  - {{name: one, training: {{max_steps: 3}}}}\n"
        "  - {name: two, model: {config: {coarse_channels: 32}}, training: {max_steps: 5, learning_rate: 0.5}}\n"
    )
    one, two = make_plans(str(path), [], memory=False)
    assert (one.name, one.steps["steps"], two.name, two.steps["steps"]) == ("one", 3, "two", 5)
    assert two.model["init_from"].endswith("one/model") and two.model["parameters"] > one.model["parameters"]
    assert two.groups[0]["learning_rate"] == 0.5
    with pytest.raises(ValueError, match="stage 'two': --warmup_steps 5"):
        make_plans(str(path), ["--stages.two.warmup_steps", "5"], memory=False)


def test_a_model_that_is_not_there(recipe):
    path = recipe.with_name("from.yaml")
    path.write_text(f"base: {recipe.name}\nmodel: {{init_from: runs/not/there}}\n")
    (plan,) = make_plans(str(path), [], memory=False)
    assert plan.model == {} and any("runs/not/there" in note for note in plan.notes)
    assert plan.batch["effective"] == 2


# --- against a real model and optimizer


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adamw_torch", "ema_decay": 0.9, "layer_decay": 0.9},
        {"optim": "sgd", "optim_args": "momentum=0.9", "backbone_learning_rate": 1e-4},
        {"optim": "sgd"},
        {"optim": "adafactor"},
    ],
)
def test_parameters_groups_and_state_are_those_of_a_run(root, tmp_path, settings):
    trainer = make_trainer(root, tmp_path / "out", max_steps=1, **settings)
    trainer.train()
    model, args = trainer.unwrapped(), trainer.args
    optimizer = trainer.optimizer.optimizer
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
    assert optimizer_bytes(model, args)[0] == state

    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training={"max_steps": 1, **settings})
    (plan,) = make_plans(str(recipe), ["--warmup_steps", "0"])
    assert plan.model["parameters"] == sum(p.numel() for p in model.parameters())
    found = {row["name"]: (row["tensors"], row["parameters"]) for row in plan.groups}
    assert found == {
        group["name"]: (len(group["params"]), sum(p.numel() for p in group["params"]))
        for group in optimizer.param_groups
    }
    memory = plan.memory["1"]
    tensors = [*model.parameters(), *model.buffers()]
    assert memory.weights == sum(t.nbytes for t in tensors) and memory.optimizer == state
    assert memory.gradients == sum(p.nbytes for p in model.parameters())
    averaged = EMA(model, 0.9).module.state_dict() if args.ema_decay else {}
    assert memory.averages == sum(t.nbytes for t in averaged.values())
    sharded = plan.memory["8 FSDP2"]
    assert sharded.optimizer == state // 8 and sharded.averages == memory.averages


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 0.9}, "warmup_steps": 3},
        {"schedule": {"name": "poly", "power": 1.0}, "warmup_steps": 2, "lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "linear", "swa_every": 2, "swa_start": 4, "swa_learning_rate": 0.02},
    ],
)
def test_learning_rates_are_those_of_the_trainer(root, tmp_path, settings):
    trainer = make_trainer(root, tmp_path / "out", max_steps=10, backbone_learning_rate=1e-3, **settings)
    trainer.create_optimizer_and_scheduler(10)
    ours = scheduler_of_run(trainer.args, trainer.optimizer.param_groups, 10)
    for step in range(10):
        rates = [base * f(step) for base, f in zip(ours.base_lrs, trainer.lr_scheduler.lr_lambdas, strict=True)]
        assert rates_at(ours, step) == pytest.approx(rates)


# --- activations


def allocated(step) -> int:
    """Bytes at the fullest moment of what `step` allocates, by torch's allocator itself."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    recorded: list = profiler.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((e for e in recorded if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"model_type": "swin", "embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 2], "window_size": 7}
RESNET = {**sharded_models.HRNET, "model_type": "vss_hrnet", "out_features": STAGES}
MEASURED = {
    "internimage": (
        "vss_upernet",
        {
            "backbone_config": {**sharded_models.INTERNIMAGE, "channels": 16, "out_features": STAGES},
            "hidden_size": 16,
            "auxiliary_channels": 16,
        },
    ),
    "hrnet": ("vss_ocrnet", {"backbone_config": RESNET, **sharded_models.OCR}),
    "masks": (
        "vss_mask2former",
        {"backbone_config": {**SWIN, "out_features": STAGES}, **sharded_models.MASKS, "num_queries": 20},
    ),
    "clips": (
        "vss_tbn_vit",
        {
            "backbone_config": {**SWIN, "out_features": ["stage3", "stage4"]},
            "spatial_channels": [16, 16, 32],
            "context_channels": 32,
            "fusion_channels": 32,
            "channels": 32,
            "auxiliary_channels": 32,
            "frame_offsets": [-2, -1],
        },
    ),
}


@pytest.mark.parametrize(
    ("name", "half", "checkpointing"),
    [
        ("internimage", True, True),
        ("hrnet", False, True),
        pytest.param("internimage", False, False, marks=pytest.mark.slow),
        pytest.param("masks", True, False, marks=pytest.mark.slow),
        pytest.param("clips", True, True, marks=pytest.mark.slow),
    ],
)
def test_activations_are_those_of_a_step(tmp_path, name, half, checkpointing):
    """At least 0.85 and at most 1.25 of what torch's allocator counts."""
    kind, fields = MEASURED[name]
    crop, batch, num_labels = (160, 200), 2, 20
    config = AutoConfig.for_model(kind, **json.loads(json.dumps(fields)), num_labels=num_labels)
    auto = AutoModel if kind in VIDEO_MODELS else AutoModelForSemanticSegmentation
    clip = len(config.frame_offsets) + 1 if kind in VIDEO_MODELS else 0
    args = arguments(tmp_path, bf16=half, activation_checkpointing=checkpointing)
    with torch.device("meta"):
        empty = auto.from_config(config)
    counted = trace_step(empty, args, batch, crop, clip=clip, device_type="cpu")
    memory = estimate_memory(empty, args, counted, crop, device_type="cpu")

    model = auto.from_config(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    pixels = torch.randn(batch, *([clip] if clip else []), 3, *crop)
    labels = (torch.arange(crop[0]) // 10).view(1, -1, 1).expand(batch, *crop).contiguous()  # 16 classes

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = model(**{"pixel_values_videos" if clip else "pixel_values": pixels}, labels=labels).loss
        loss.backward()

    step()  # what is made once
    model.zero_grad()
    ratio = (memory.activations + memory.loss + memory.gradients) / allocated(step)
    assert 0.85 < ratio < 1.25, ratio


def test_fused_attention_holds_no_matrix(tmp_path):
    """On GPUs; and autocast's norms in fp32 take more than the CPU's in bf16."""
    with torch.device("meta"):
        fields = {"backbone_config": {**SWIN, "out_features": STAGES}, **sharded_models.OCR, "num_labels": 3}
        model = OCRNetForSemanticSegmentation(OCRNetConfig(**fields))
    args = arguments(tmp_path)
    kept = {kind: trace_step(model, args, 1, (112, 112), device_type=kind).kept for kind in ("cpu", "cuda")}
    assert kept["cuda"] < kept["cpu"]  # which multiplies by hand where the bias has a gradient


# --- FSDP2


QUICK = {config.split("-")[0]: config for config in presets()}  # the last, which is a large one, of each architecture
NAMES = [name if name in QUICK.values() else pytest.param(name, marks=pytest.mark.slow) for name in presets()]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_blocks_to_wrap(name):
    """And the large ones, for which FSDP is, have nearly everything in them; small models have large heads."""
    with torch.device("meta"):
        config = config_from_preset(name)
        model = model_class(config.model_type)(config)
    *units, rest = fsdp_units(model)
    total = sum(p.numel() for p in model.parameters())
    assert sum(len(unit.sizes) for unit in units) >= 4
    assert sum(sum(unit.sizes) for unit in units) + rest.sizes[0] == total
    assert rest.sizes[0] < 0.2 * total or total < 150e6, rest
    assert max(size for unit in units for size in unit.sizes) < 0.15 * total or total < 150e6


@pytest.mark.slow
def test_sharded_and_checkpointed_models_compute_the_same(tmp_path):
    """In two processes; accelerate finds every block that a model names."""
    words = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", *words, sharded_models.__file__, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    for name in sharded_models.MODELS:
        assert found[name]["sharded"] == pytest.approx(found[name]["whole"], rel=1e-4), name
        assert found[name]["units"] >= 5, name


# --- docs/scale.md

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0].split() for line in PAGE.splitlines() if line.startswith(("accelerate ", "vss-hf "))]


@pytest.mark.parametrize("words", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_of_the_page(words):
    """Launch files are where the page says, accelerate takes the words, and the recipe takes the rest."""
    if words[0] == "accelerate":
        launch = launch_command_parser().parse_args(words[2:])
        assert (Path(__file__).parents[2] / launch.config_file).is_file() and launch.training_script == "train.py"
        path, *rest = launch.training_script_args
        devices = {"one_gpu": 1, "ddp_2x8gpu": 16}.get(Path(launch.config_file).stem, 8)
    else:
        path, *rest = words[2:]
        rest, devices = without(rest, ("dry_run",)), 8
    (plan, *_) = make_plans(path, rest, devices, memory=False)
    assert plan.batch["devices"] == devices


# --- the shipped recipes

SHIPPED = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
SHIPPED = [name for name in SHIPPED if not name.startswith("bases/")]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_have_a_plan(name):
    plans = make_plans(name, ["--data.root", "path/to/VSPW_480p"], 8 if "camvid" not in name else 1, memory=False)
    for plan in plans:
        assert plan.batch["effective"] >= 1 and plan.data
        assert plan.groups or any("not on this machine" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("hfgd/pascal-usfpn-cae-hfgm", 59),
        ("hfgd/cityscapes-usfpn-cae-hfgm", 19),
        ("hfgd/ade20k-convnext", 150),
        ("hfgd/coco-stuff-10k-convnext", 171),
        ("demo-ocrnet", 124),
    ],
)
def test_classes_without_data_are_those_of_its_kind(name, number):
    (plan,) = make_plans(name, ["--data.root", "path/to/data"], 8, memory=False)
    assert plan.model["num_labels"] == number and not any("VSPW's" in note for note in plan.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_have_an_estimate(name):
    for plan in make_plans(name, ["--data.root", "path/to/VSPW_480p"], 8 if "camvid" not in name else 1):
        assert all(memory.total > 2**30 for memory in plan.memory.values())


@pytest.mark.slow
def test_the_same_data_and_model_train_in_earnest(root, tmp_path):
    """What was planned is what happens: steps, samples and checkpoints."""
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training={"global_batch_size": 4})
    (plan,) = make_plans(str(recipe), [])
    with pytest.raises(SystemExit) as end:
        main(["train", str(recipe)])
    assert end.value.code == 0
    results = json.loads((tmp_path / "out" / "model" / "train_results.json").read_text())
    assert (results["steps"], results["samples"]) == (plan.steps["steps"], plan.steps["samples"])
    folders = sorted(path for path in (tmp_path / "out").glob("checkpoint-*"))
    assert len(folders) == plan.checkpoints["written"] == 2
    size = sum(path.stat().st_size for path in folders[0].rglob("*") if path.suffix in (".safetensors", ".pt"))
    assert plan.checkpoints["bytes_each"] == pytest.approx(size, rel=0.5)  # and what names and shapes take
