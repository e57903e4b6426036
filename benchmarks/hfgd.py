"""One optimisation step of HFGD beside Semantic FPN and UperNet on the same ResNet-50: time and memory.

    python benchmarks/hfgd.py [--sizes 257x257] [--axial-size 513x513] [--rounds 3] [--steps 2] [--batch 2]
        [--device cuda] [--dtype bf16] [--threads 1] [--json OUT] [--quick]

All start from random weights, have 124 classes and their own losses (HFGD's: both branches' cross entropy and CAR;
UperNet's with its auxiliary head's) and are trained by `VSSTrainer` with its defaults (AdamW, gradients clipped) on
batches in memory. Ratios are to the paper's baseline, Semantic FPN of width 256 without anything, in the same round.

At the end, the axial attention alone, forward and backward on features of width 256 at stride 2 of an image of
--axial-size: as it is here, and naive, with the maps of all pairs of places of a column or row written out. The second
line tells how far the two are apart.

Each measurement is a fresh process, all models in turn, once a round. Time: median of the steps after one that warms
up; on the CPU the processor's own (of all threads), so that what else the machine does counts little, on a GPU by the
clock. Memory: the peak of the process above what it holds before training (weights, libraries), so gradients and
AdamW's moments count; on a GPU of what torch allocates.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from benchmarks.training import (  # noqa: E402
    NUM_LABELS,
    Clock,
    Samples,
    batches,
    held_mib,
    image_size,
    make_trainer,
    now,
    peak_mib,
    setting,
)
from vss_hf.modeling.architectures import config_from_preset, model_class  # noqa: E402
from vss_hf.modeling.attention import AxialAttention  # noqa: E402
from vss_hf.modeling.backbone_presets import backbone_fields  # noqa: E402
from vss_hf.training.cpu_memory import keep_freed_memory  # noqa: E402


BASELINE = "Semantic FPN, width 256"
# title -> preset
MODELS = {
    BASELINE: "hfgd-semantic-fpn-resnet50",
    "Semantic FPN of mmsegmentation": "semantic-fpn-resnet50",
    "UperNet": "upernet-resnet50",
    "HFGD, stride 4": "hfgd-resnet50",
    "HFGD, stride 2": "hfgd-resnet50-os2",
    "SA + CAR, dilated to stride 8": "hfgd-sa-car-resnet50-d8",
}
AXIAL = {"fused": "axial attention", "naive": "naive axial attention"}
WIDTH, KEY_CHANNELS, HEADS = 256, 64, 4  # the axial attention's in the paper's sizes
TINY = dict(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])  # for --quick


# --- what is measured


def build_model(name: str, quick: bool) -> Any:
    """A model with random weights on a plain ResNet-50, or for --quick on a tiny one."""
    torch.manual_seed(0)
    preset, fields = MODELS[name], {}
    if "sa-car" not in preset:  # whose backbone is dilated
        fields["backbone_config"] = backbone_fields("resnet50")
    config = config_from_preset(preset, id2label={i: str(i) for i in range(NUM_LABELS)}, **fields)
    if quick:
        for field, value in TINY.items():
            setattr(config.backbone_config, field, value)
    return model_class(config.model_type)(config)


def naive_axial_attention(attention: AxialAttention, features: torch.Tensor) -> torch.Tensor:
    """`AxialAttention.forward` with its maps (batch, heads, w, h, h) and (batch, heads, h, w, w) written out."""
    query, key, value = (
        projection(features).unflatten(1, (attention.num_heads, -1))  # (B, heads, c, h, w)
        for projection in (attention.query, attention.key, attention.value)
    )
    query = query * query.shape[2] ** -0.5
    columns = torch.einsum("bncix,bncjx->bnxij", query, key).softmax(-1)
    value = torch.einsum("bnxij,bncjx->bncix", columns, value)
    rows = torch.einsum("bncyi,bncyj->bnyij", query, key).softmax(-1)
    value = torch.einsum("bnyij,bncyj->bncyi", rows, value)
    return features + value.flatten(1, 2)


def axial_attention(side: str, attention: AxialAttention, features: torch.Tensor) -> torch.Tensor:
    """One side's attended features."""
    return attention(features) if side == "fused" else naive_axial_attention(attention, features)


def axial_difference() -> dict[str, float]:
    """How far the two attentions are apart: the largest differences as shares of the largest values."""
    torch.manual_seed(0)
    attention, found = AxialAttention(32, 16, HEADS), {}
    features = torch.randn(2, 32, 17, 23)
    for side in AXIAL:
        entering = features.clone().requires_grad_()
        attended = axial_attention(side, attention, entering)
        attended.square().sum().backward()
        found[side] = (attended.detach(), entering.grad)
    pairs = zip(("features", "gradient"), found["fused"], found["naive"], strict=True)
    return {name: float((fused - naive).abs().max() / naive.abs().max()) for name, fused, naive in pairs}


# --- one measurement, in a process of its own


def seconds_now(device: str) -> float:
    """The clock's seconds when the device has done all it was told; on the CPU the processor's own."""
    return time.process_time() if device == "cpu" else now(device)


class StepClock(Clock):
    """When each step ended, by `seconds_now`."""

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(seconds_now(self.device))


def measure_training(name: str, size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step, MiB above the start, parameters and mean loss of the run."""
    if options.device == "cpu":
        keep_freed_memory()  # as `vss-hf train` does, unless memory counts more than time
    model = build_model(name, options.quick).to(options.device)
    small = next(batches(Samples((65, 97), options.batch), options))
    model.train()(**small).loss.backward()  # what the libraries load and keep is not the step's
    model.zero_grad()
    held = held_mib(options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer("vss_hf", model, Samples(size, 2 * options.batch), options, folder)
        clock = StepClock(options.device)
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
    return {
        "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
        "extra_mib": peak_mib(options.device) - held,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": loss,
    }


def measure_axial(side: str, size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each forward and backward at stride 2 of an image of `size`, and MiB above its input."""
    torch.manual_seed(0)
    attention = AxialAttention(WIDTH, KEY_CHANNELS, HEADS).to(options.device)
    height, width = ((side + 1) // 2 for side in size)
    features = torch.randn(options.batch, WIDTH, height, width, device=options.device, requires_grad=True)

    def step(entering: torch.Tensor) -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bf16"):
            attended = axial_attention(side, attention, entering)
        attended.sum().backward()
        attention.zero_grad()
        features.grad = None

    step(features[:, :, :9, :9])
    held, times = held_mib(options.device), []
    for _ in range(1 + options.steps):
        began = seconds_now(options.device)
        step(features)
        times.append(seconds_now(options.device) - began)
    return {"seconds": times[1:], "extra_mib": peak_mib(options.device) - held}


# --- all measurements


def in_fresh_process(what: str, size: tuple[int, int]) -> dict[str, Any]:
    """What `--child` with these arguments prints last."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", json.dumps([what, size])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict[str, Any]], baseline: str) -> dict[str, Any]:
    """Medians over the rounds, and ratios to the baseline within each round."""
    results = {}
    for name in rounds[0]:
        pairs = [(measured[name], measured[baseline]) for measured in rounds]
        times = sorted(step_seconds(ours) / step_seconds(theirs) for ours, theirs in pairs)
        results[name] = {
            "seconds": statistics.median(step_seconds(ours) for ours, _ in pairs),
            "time": statistics.median(times),
            "time_range": [times[0], times[-1]],
            "extra_mib": statistics.median(ours["extra_mib"] for ours, _ in pairs),
            "memory": statistics.median(ours["extra_mib"] / theirs["extra_mib"] for ours, theirs in pairs),
        }
        results[name] |= {key: pairs[0][0][key] for key in ("parameters", "loss") if key in pairs[0][0]}
    return results


def step_seconds(measured: dict[str, Any]) -> float:
    """Of one process."""
    return statistics.median(measured["seconds"])


def measure_all(names: Iterable[str], size: tuple[int, int], rounds: int, baseline: str) -> dict[str, Any]:
    """All rounds at one size, and what follows from them."""
    measured = [{name: in_fresh_process(name, size) for name in names} for _ in range(rounds)]
    return {"size": size, "rounds": measured, "summary": summary(measured, baseline)}


def show_models(results: dict[str, Any]) -> None:
    """The table of one size, as Markdown."""
    height, width = results["size"]
    print(f"\n{height}x{width}\n\n| | parameters | seconds a step | ratio | MiB beyond the weights | ratio |")
    print("|---|---|---|---|---|---|")
    for name, row in results["summary"].items():
        print(f"| {name} | {row['parameters'] / 1e6:.1f} M | {cells(row)} |", flush=True)


def show_axial(results: dict[str, Any]) -> None:
    """The axial attentions' table, as Markdown."""
    height, width = results["size"]
    print(f"\n| stride 2 of {height}x{width}, forward and backward | seconds | ratio | MiB beyond the input | ratio |")
    print("|---|---|---|---|---|")
    for name, row in results["summary"].items():
        print(f"| {AXIAL[name]} | {cells(row)} |", flush=True)


def cells(row: dict[str, Any]) -> str:
    """Time and memory with their ratios."""
    low, high = row["time_range"]
    ratio = f"{row['time']:.2f} ({low:.2f} to {high:.2f})"
    return f"{row['seconds']:.3g} | {ratio} | {row['extra_mib']:.0f} | {row['memory']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=image_size, nargs="+", default=[(257, 257)], metavar="HxW")
    parser.add_argument("--axial-size", type=image_size, default=(513, 513), metavar="HxW")
    parser.add_argument("--batch", type=int, default=2, help="at least 2, for UperNet's pooling to one place")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each model and size")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed in each process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: under autocast")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--quick", action="store_true", help="tiny backbones and one round at 65x97")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.axial_size, options.rounds = [(65, 97)], (65, 97), 1
    torch.set_num_threads(options.threads)
    if options.child is not None:
        warnings.simplefilter("ignore")
        name, (height, width) = options.child
        with contextlib.redirect_stdout(sys.stderr):  # the Trainers print their log
            measure = measure_axial if name in AXIAL else measure_training
            measured = measure(name, (height, width), options)
        print(json.dumps(measured))
        return

    found = setting(options) | {"clock": "processor" if options.device == "cpu" else "wall"}
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    apart = axial_difference()
    print("the two attentions are apart by " + ", ".join(f"{key} {value:.1e}" for key, value in apart.items()))
    results = []
    for size in options.sizes:
        results.append(measure_all(MODELS, size, options.rounds, BASELINE))
        show_models(results[-1])
    axial = measure_all(AXIAL, options.axial_size, options.rounds, "fused")
    show_axial(axial)
    if options.json:
        kept = {"setting": found, "axial_difference": apart, "models": results, "axial": axial}
        options.json.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
