"""Training in several processes is training in one; FSDP2 and DDP runs leave ordinary model folders; launch files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate.commands.config.config_args as config_args
import pytest
import torch
import two_processes
import yaml
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from tiny import (
    FrozenNorms,
    losses,
    make_data,
    make_default_data,
    make_trainer,
    tiny_model,
    training_data,
    write_recipe,
)
from two_processes import CONFIGS, EXACT, NORMS, STEPS, launched, norm_inputs

from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.loading import load_segmentation_model
from vss_hf.scoring.evaluation import evaluate_model
from vss_hf.training.batchnorm import first_batches, recalibrate_batchnorm
from vss_hf.training.draws import DrawOrder
from vss_hf.training.sharded import check_fsdp


TRAIN = Path(__file__).resolve().parents[2] / "train.py"
FRAMES = {("a", i) for i in range(4)} | {("b", i) for i in range(3)}  # seven: no batch size divides them
OTHER_FRAMES = {("v", i) for i in range(10)} | {("w", i) for i in range(9)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    splits = {"train": {"a": 4, "b": 3}, "val": {"v": 10, "w": 9}}  # both processes have a video to evaluate
    return make_data(tmp_path_factory.mktemp("data") / "videos", splits)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes have, so that numbers can be compared bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(launcher: list[str], *words: str | Path) -> subprocess.CompletedProcess:
    """Start something in several processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", *launcher, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


TORCHRUN = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()


def run_part(part: str, root: Path, out: Path) -> Path:
    """Carry out a part of two_processes.py; returns its folder."""
    done = start(TORCHRUN, two_processes.__file__, part, root, out)
    assert done.returncode == 0, done.stderr[-5000:]
    return out


def reports(out: Path) -> list[dict]:
    """What each process wrote."""
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def out(root, tmp_path_factory):
    """Where two processes left what they did."""
    return run_part("quick", root, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def ranks(out):
    return reports(out)


def global_sequence(by_rank: list[list], batch_size: int) -> list:
    """The draws of all processes in the order of the run: rank after rank within each micro-batch."""
    batches = [[seen[i : i + batch_size] for i in range(0, len(seen), batch_size)] for seen in by_rank]
    return [tuple(draw) for together in zip(*batches, strict=True) for batch in together for draw in batch]


# --- two processes against one


@pytest.mark.parametrize("case", EXACT)
def test_two_processes_equal_one(root, out, ranks, tmp_path, case):
    """The same global batch: the same draws, losses, weights, average and scores; micro-batches, an odd data size."""
    one, seen = two_processes.run(root, tmp_path, 4, case)
    assert (one.args.world_size, ranks[0][case]["world"]) == (1, 2)

    total = STEPS * 2 * 4
    together = global_sequence([rank[case]["seen"] for rank in ranks], 2)
    assert together == [tuple(draw) for draw in seen] and len(together) == total
    assert len({seed for *_, seed in together}) == total  # every draw is augmented in its own way
    for frames in (FRAMES, OTHER_FRAMES) if case == "mixed" else (FRAMES,):
        drawn, size = [draw[:2] for draw in together if draw[:2] in frames], len(frames)
        assert len(drawn) == total if case != "mixed" else abs(len(drawn) - total * (2 / 3, 1 / 3)[size > 7]) <= 8
        for first in range(0, len(drawn) - len(drawn) % size, size):  # each pass: every frame once, over both
            assert set(drawn[first : first + size]) == frames

    curve = losses(one)
    assert max(curve) - min(curve) > 1e-2 and len(curve) == STEPS  # something was learnt
    for rank in ranks:
        assert rank[case]["losses"] == pytest.approx(curve, abs=1e-5)
    for module, name in ((one.model, case), (one.ema, f"{case}_ema")):
        theirs = load_file(out / f"{name}.safetensors")
        assert module.state_dict().keys() == theirs.keys()
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-5, atol=1e-5, msg=key)

    scores = two_processes.report(one)["scores"]
    assert [entry["step"] for entry in scores] == [3, 6]
    for rank in ranks:
        for ours, theirs in zip(rank[case]["scores"], scores, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)  # weights differ in the last digits: a pixel may tip over


@pytest.mark.parametrize("faithful", [False, True])
def test_unequal_batches_are_one_batch(root, out, ranks, tmp_path, faithful):
    """HFGD with a loss whose centres are of all processes, of two images and one: losses, and every gradient."""
    parts = two_processes.unequal_batches()
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss, gradients = two_processes.guided_step(root, tmp_path, whole, faithful)
    shares = [rank[f"guided, faithful {faithful}"] for rank in ranks]  # times the number of processes, as DDP wants it
    assert sum(shares) / 2 == pytest.approx(loss, rel=1e-5) and shares[0] > 2 * shares[1]
    theirs = load_file(out / f"guided_gradients_{faithful}.safetensors")
    assert theirs.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        assert largest > 1e-4 or name.endswith("key.bias")  # which no softmax feels
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-6, msg=name)


def test_processes_log_the_same(ranks):
    for case in EXACT:
        assert ranks[0][case]["losses"] == ranks[1][case]["losses"]
        assert ranks[0][case]["scores"] == ranks[1][case]["scores"]


def test_all_evaluate_the_model_that_is_saved(root, out, ranks):
    """BatchNorm statistics differ between processes; before they were shared, so did what each of them evaluated."""
    first, second = (rank["batchnorm"] for rank in ranks)
    assert first["own"].keys() == second["own"].keys() and first["own"] != second["own"]
    alone = evaluate_model(VideoSegmenter.from_pretrained(out / "ddp_model", "cpu"), root, "val", batch_size=8)
    for metrics in (first["metrics"], second["metrics"]):
        for key in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8"):
            assert metrics[f"eval_{key}"] == alone[key], key


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_a_synchronised_norm_is_the_norm_of_all_samples(ranks, name, single):
    """Maps of different sizes, or one value in each process: against one BatchNorm over all values, in float64."""
    inputs = [norm_inputs(rank, single).double() for rank in range(2)]
    norm, first = NORMS[name]().double().train(), [norm_inputs(rank).double() - 50 for rank in range(2)]

    def joined(maps):
        return torch.cat([each.reshape(1, 3, 1, -1) for each in maps], dim=-1)  # (1, 3, 1, all values)

    norm(joined(first))
    values = joined(inputs).requires_grad_()
    output = norm(values)
    pattern = joined([torch.arange(each.numel()).view(each.shape).cos() for each in inputs])
    (output * pattern).sum().backward()
    found = [rank["norms"][name + (", one value" if single else "")] for rank in ranks]
    close = {"rtol": 1e-4, "atol": 1e-4}
    for key, expected in (("output", output), ("gradient", values.grad)):
        ours = joined([torch.tensor(each[key], dtype=torch.float64) for each in found])
        torch.testing.assert_close(ours, expected, **close, msg=key)
    for key, expected in norm.state_dict().items():
        for each in found:
            ours = torch.tensor(each[f"0.{key}"], dtype=expected.dtype)
            torch.testing.assert_close(ours, expected, **close, msg=key)
    for key, parameter in norm.named_parameters():  # DDP adds up what the processes have
        ours = sum(torch.tensor(each[f"gradient of 0.{key}"], dtype=torch.float64) for each in found)
        torch.testing.assert_close(ours, parameter.grad, **close, msg=key)


# --- what is left by runs in several processes


@pytest.mark.parametrize("folder", ["ddp_model", "sharded_model", "synchronised_model"])
def test_one_process_loads_the_folder(root, out, ranks, folder):
    """With from_pretrained, and it gives the very numbers that the model gave in training."""
    segmenter = VideoSegmenter.from_pretrained(out / folder, "cpu")
    kind = "FrozenNorms" if folder == "sharded_model" else "OCRNetForSemanticSegmentation"
    assert json.loads((out / folder / "config.json").read_text())["architectures"] == [kind]
    with torch.no_grad():
        logits = segmenter.model(torch.linspace(-2, 2, 3 * 32 * 48).reshape(1, 3, 32, 48)).logits
    assert torch.equal(logits, load_file(out / folder / "logits.safetensors")["logits"])
    assert evaluate_model(segmenter, root, "val")["frames"] == 19


def test_sharded_run_is_the_unsharded_one(out, ranks):
    """FSDP2 computes what DDP computes: losses, scores, averaged weights."""
    sharded, plain = ranks[0]["sharded"], ranks[0]["plain"]
    assert sharded["during"] and not sharded["saved"]["sharded"] and sharded["saved"]["class"] == "FrozenNorms"
    assert sharded["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    for ours, theirs in zip(sharded["scores"], plain["scores"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert ranks[0]["sharded"]["scores"] == ranks[1]["sharded"]["scores"]
    average = load_file(out / "plain_ema.safetensors")
    for name, tensor in load_file(out / "sharded_model" / "model.safetensors").items():
        torch.testing.assert_close(tensor, average[f"module.{name}"], rtol=1e-5, atol=1e-5, msg=name)
    weights = load_file(out / "plain.safetensors")
    for name, shape in sharded["shards"].items():  # halves, where a dimension can be halved
        rows = [rank["sharded"]["shards"][name][0] for rank in ranks]
        assert sum(rows) == weights[name].shape[0] and max(rows) - min(rows) <= max(1, rows[0]), (name, shape)


@pytest.mark.slow
def test_sharded_runs_resume_and_end_with_the_best_checkpoint(root, out, ranks, tmp_path):
    """Their checkpoints are model folders too; a resumed run is the uninterrupted one, bit for bit."""
    found = reports(run_part("more_sharded", root, tmp_path))
    assert found[0]["resumed"]["losses"][-3:] == found[0]["straight"]["losses"][-3:]
    ours, theirs = (load_file(tmp_path / f"{name}_model" / "model.safetensors") for name in ("straight", "resumed"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    model = VideoSegmenter.from_pretrained(tmp_path / "straight" / "checkpoint-3", "cpu").model
    assert model.config.id2label == {0: "road", 1: "sky", 2: "tree"}

    plain = found[0]["without average"]
    assert not plain["saved"]["sharded"] and plain["saved"]["class"] == "FrozenNorms"
    assert plain["losses"] == pytest.approx(ranks[0]["plain"]["losses"], abs=1e-5)
    best = max(plain["scores"], key=lambda entry: entry["eval_mean_iou"])
    folder = tmp_path / "sharded_plain_model"
    weights = load_file(tmp_path / "without_average" / f"checkpoint-{best['step']}" / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    alone = evaluate_model(VideoSegmenter.from_pretrained(folder, "cpu"), root, "val", batch_size=8)
    assert alone["mean_iou"] == best["eval_mean_iou"]


# --- settings of FSDP that would end in trouble


def plugin(**changes):
    fields = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}
    return FullyShardedDataParallelPlugin(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version 1: not supported, expected 2"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type SHARDED_STATE_DICT: not supported"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading True: not supported, expected False"),
    ],
)
def test_refused_settings_of_fsdp(monkeypatch, changes, message):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # accelerate writes it there, for transformers
    settings = plugin(**changes) if changes != {"fsdp_version": 1} else SimpleNamespace(
        fsdp_version=1, state_dict_type=plugin().state_dict_type, cpu_ram_efficient_loading=False
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        check_fsdp(settings)
    check_fsdp(plugin())


# --- the configuration files of accelerate

EXPECTED = {  # processes, machines, kind
    "one_gpu.yaml": (1, 1, DistributedType.NO),
    "ddp_8gpu.yaml": (8, 1, DistributedType.MULTI_GPU),
    "fsdp2_8gpu.yaml": (8, 1, DistributedType.FSDP),
    "ddp_2x8gpu.yaml": (16, 2, DistributedType.MULTI_GPU),
}


def test_all_files_are_known():
    assert {path.name for path in CONFIGS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_file(name):
    """By its own loader, which refuses unknown fields; those of FSDP, which it does not check, against its parser."""
    config = config_args.load_config_from_file(str(CONFIGS / name))
    assert (config.num_processes, config.num_machines, config.distributed_type) == EXPECTED[name]
    assert config.mixed_precision == "no" and config.use_cpu is False
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert set(config.fsdp_config) <= set(known)
    written = yaml.safe_load((CONFIGS / name).read_text())
    assert set(written) <= set(config_args.ClusterConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_launches_by_the_file(name, monkeypatch):
    """As far as it goes without a GPU: the arguments of torchrun and the environment of the processes."""
    args, environment = launched(name)
    assert args.training_script == "train.py" and args.training_script_args == ["recipe.yaml"]
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert args.multi_gpu == name.startswith("ddp") and args.use_fsdp == name.startswith("fsdp2")
    assert args.num_processes == EXPECTED[name][0]
    if name != "one_gpu.yaml":
        assert args.nproc_per_node == "8"
    assert ("FSDP_VERSION" in environment) == (name == "fsdp2_8gpu.yaml")


def test_two_machines():
    words = ["--main_process_ip", "10.1.2.3", "--machine_rank", "1", "--main_process_port", "29512"]
    args, _ = launched("ddp_2x8gpu.yaml", *words)
    assert (args.nnodes, args.node_rank, args.rdzv_endpoint) == ("2", 1, "10.1.2.3:29512")
    assert args.rdzv_backend == "static" and args.nproc_per_node == "8"
    unset, _ = launched("ddp_2x8gpu.yaml", "--machine_rank", "1")  # the failing connection will show this name
    assert unset.rdzv_endpoint.startswith("give-main_process_ip-on-the-command-line:")


def test_fsdp2_file_gives_a_plugin_that_we_accept(monkeypatch):
    for name, value in launched("fsdp2_8gpu.yaml")[1].items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    found = FullyShardedDataParallelPlugin()
    check_fsdp(found)
    assert found.reshard_after_forward is True and found.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not found.activation_checkpointing


# --- the real thing


def finished_run(done: subprocess.CompletedProcess, root: Path, folder: Path, processes: int) -> dict:
    """Check a model folder; returns its tensors."""
    assert done.returncode == 0, done.stderr[-4000:]
    written = json.loads((folder / "eval_results.json").read_text())
    again = evaluate_model(VideoSegmenter.from_pretrained(folder, "cpu"), root, "val", batch_size=8)
    same = ("mean_iou", "mean_iou_head", "per_class_iou", "per_class_pixels", "per_class_frames", "pixel_accuracy")
    for key in (*same, "class_groups", "vc8", "vc_clips", "videos", "frames"):
        assert again[key] == written[key], key
    results = json.loads((folder / "train_results.json").read_text())
    assert (results["steps"], results["samples"], results["processes"]) == (4, 4 * 2 * processes, processes)
    log = json.loads((folder / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    assert {path.name for path in folder.iterdir()} >= {"README.md", "overlay.jpg", "training_curve.png"}
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_train_py_in_two_processes(root, tmp_path, streaming):
    """The whole road under torchrun, and again from a checkpoint in the middle under accelerate: the same weights."""
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", data={"streaming": streaming})
    words = [TRAIN, recipe, "--ema_decay", "0.5", "--save_total_limit", "9", "--dataloader_num_workers", "1"]
    tensors = finished_run(start(TORCHRUN, *words), root, tmp_path / "out" / "model", 2)
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    config = ["--config_file", CONFIGS / "ddp_8gpu.yaml", "--num_processes", "2", "--main_process_port", "0"]
    launcher = ["accelerate.commands.accelerate_cli", "launch"]
    done = start(launcher, *config, *words, "--output_dir", tmp_path / "again", "--resume_from_checkpoint")
    resumed = finished_run(done, root, tmp_path / "again" / "model", 2)
    assert tensors.keys() == resumed.keys() and all(torch.equal(tensors[name], resumed[name]) for name in tensors)


@pytest.mark.slow
def test_a_damaged_training_frame_ends_all_processes(tmp_path):
    """One process meets it; none is left waiting."""
    root = make_default_data(tmp_path / "videos")
    bad = root / "data" / "b" / "origin" / "00000001.png"
    bad.write_bytes(bad.read_bytes()[:300])
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training={"max_steps": 8})
    done = start(TORCHRUN, TRAIN, recipe)
    assert done.returncode != 0 and "00000001.png" in done.stderr
    assert not (tmp_path / "out" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_swa_in_two_processes(root, tmp_path):
    """All count the same BatchNorm statistics, from the batches of both; a sharded run has the average of one process.

    Expected are the statistics that one process counts from the same four batches.
    """
    ranks = reports(run_part("swa", root, tmp_path))
    assert ranks[0]["statistics"] == ranks[1]["statistics"] and ranks[0]["scores"] == ranks[1]["scores"]
    folders = [tmp_path / name for name in ("swa_model", "swa_sharded_model")]
    model = load_segmentation_model(folders[0])
    counted = {name: torch.tensor(value) for name, value in ranks[0]["statistics"].items()}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in counted.items())
    recalibrate_batchnorm(model, first_batches(training_data(root), DrawOrder(2), 4))
    for name, tensor in counted.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)

    assert all(rank["sharded"]["during"] for rank in ranks)
    settings = {**two_processes.SETTINGS, "ema_decay": 0.0, "max_steps": 5, "swa_every": 2}
    model = tiny_model(root, FrozenNorms)
    one = make_trainer(root, tmp_path / "one", model=model, per_device_train_batch_size=4, **settings)
    one.train()
    sharded = load_segmentation_model(folders[1]).state_dict()
    with one.averaged_weights() as model:
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(sharded[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
