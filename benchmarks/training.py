"""One optimisation step of UperNet on Swin-T: this package against transformers, and against the plain loss.

    python benchmarks/training.py [--sizes 480x853] [--rounds 3] [--steps 1] [--batch 2] [--json OUT]
        [--device cuda] [--dtype bf16] [--threads 2] [--quick]

- transformers: its UperNetForSemanticSegmentation in its Trainer; the model's own loss (logits and auxiliary logits
  upsampled to the image, cross entropy).
- plain: this package's model in `VSSTrainer`, with that loss.
- vss_hf: this package's model in `VSSTrainer`, as `vss-hf train` runs it.
- checkpointing: the same with `--activation_checkpointing true`, which transformers' UperNet does not offer; once.

All start from the same random weights, 124 classes, auxiliary head of weight 0.4, no dropout and no stochastic depth,
and both Trainers keep their defaults (AdamW, gradients clipped to norm 1): the first line tells how far logits, loss
and gradients are apart. The losses of the runs are compared, too.

Each measurement is a fresh process, the sides in turn. Time: from the end of one step to the end of the next, after
one that warms up, on a batch in memory; ratios are of neighbouring processes. Memory: the peak of the process above
what it holds before training (weights, libraries), so gradients and AdamW's moments count; on a GPU of what torch
allocates.
Batch 2, because transformers' pyramid pooling cannot train on one image (BatchNorm of a single value).

Where the time goes: each part by itself, in the first round's processes after their steps. `loss` is the loss with its
gradient by the logits, `forward` and `backward` the network without it, `data` one batch from JPEG and PNG files, read
by the training process: ours with flip and colours (`TrainTransform`), transformers' with ColorJitter and its image
processor, as in its guide; neither resizes.
"""

import argparse
import contextlib
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

import transformers  # noqa: E402
from transformers import SegformerImageProcessor, SwinConfig, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from benchmarks.video_segmenter import peak_memory  # noqa: E402
from vss_hf.data import load_split, make_sample_dataset, open_split  # noqa: E402
from vss_hf.data.transforms import AugmentationConfig, TrainTransform  # noqa: E402
from vss_hf.data.vspw import read_image  # noqa: E402
from vss_hf.modeling.architectures import config_from_preset  # noqa: E402
from vss_hf.modeling.configuration_upernet import UperNetConfig  # noqa: E402
from vss_hf.modeling.losses import dense_segmentation_loss  # noqa: E402
from vss_hf.modeling.modeling_upernet import UperNetForSemanticSegmentation  # noqa: E402
from vss_hf.training.arguments import VSSTrainingArguments  # noqa: E402
from vss_hf.training.cpu_memory import keep_freed_memory  # noqa: E402
from vss_hf.training.draws import Source, TrainingDraws  # noqa: E402
from vss_hf.training.losses import SummedLoss  # noqa: E402
from vss_hf.training.trainer import VSSTrainer  # noqa: E402


SIDES = ("transformers", "plain", "vss_hf", "checkpointing")
PARTS = ("data", "forward", "loss", "backward", "optimizer")
NUM_LABELS, IGNORED = 124, 255
TINY = dict(embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)  # for --quick


# --- the models, with the same weights


def build_model(side: str, quick: bool = False) -> Any:
    """The model of one side; the weights do not depend on the side."""
    torch.manual_seed(0)
    config = our_config(quick)
    ours = UperNetForSemanticSegmentation(config)
    if side != "transformers":
        return ours
    theirs = transformers.UperNetForSemanticSegmentation(their_config(config))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all("backbone.swin.layernorm" in name for name in missing)  # which no map passes through
    return theirs


def our_config(quick: bool) -> UperNetConfig:
    """Swin-T with the preset's widths, or for --quick a tiny one."""
    fields: Any = dict(id2label={i: str(i) for i in range(NUM_LABELS)}, classifier_dropout=0.0)
    if quick:
        sizes: Any = dict(TINY, out_features=["stage1", "stage2", "stage3", "stage4"], drop_path_rate=0.0)
        return UperNetConfig(backbone_config=SwinConfig(**sizes), hidden_size=16, auxiliary_channels=16, **fields)
    config = config_from_preset("upernet-swin-tiny", **fields)
    config.backbone_config.drop_path_rate = 0.0
    return config


def their_config(config: UperNetConfig) -> transformers.UperNetConfig:
    """The same in transformers' class."""
    same = ("hidden_size", "pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels")
    same += ("auxiliary_num_convs", "auxiliary_concat_input", "id2label", "loss_ignore_index")
    backbone = copy.deepcopy(config.backbone_config)
    return transformers.UperNetConfig(backbone_config=backbone, **{name: getattr(config, name) for name in same})


def network(model: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Logits and auxiliary logits at the heads' own resolution, of either class of model."""
    maps = model.backbone.forward_with_filtered_kwargs(pixels).feature_maps
    return [model.decode_head(maps), model.auxiliary_head(maps)]


# --- the losses


def plain_cross_entropy(logits, labels, *, ignore_index, align_corners, num_items_in_batch=None) -> torch.Tensor:
    """What the row blocks replace. The mean over a batch is that over the step here: one micro-batch, one process."""
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(upsampled, labels, ignore_index=ignore_index)


def loss_of(side: str, config: Any) -> Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]:
    """(logits of both heads, labels) -> the loss that this side trains with."""
    settings: Any = dict(auxiliary_loss_weight=config.auxiliary_loss_weight, ignore_index=IGNORED)
    if side in ("transformers", "plain"):  # transformers writes the same out in its model's forward
        settings["pixel_loss"] = plain_cross_entropy
    return lambda logits, labels: dense_segmentation_loss(logits[0], (logits[1],), labels, **settings)


# --- the data


class Samples(Dataset):
    """Noise and labels in squares, with some void: what they are costs no time."""

    def __init__(self, size: tuple[int, int], count: int):
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randint(0, NUM_LABELS, (count, 1, size[0] // 16, size[1] // 16), generator=generator).float()
        self.labels = F.interpolate(coarse, size=size, mode="nearest")[:, 0].long()
        self.labels[:, :8] = IGNORED
        self.pixels = torch.randn(count, 3, *size, generator=generator)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class TheirFiles(Dataset):
    """Frames and masks as transformers' guide to semantic segmentation reads them."""

    def __init__(self, folder: Path, size: tuple[int, int]):
        from torchvision.transforms import ColorJitter

        self.split = open_split(folder, "train")
        self.records = [record for video in self.split.videos for record in video.frames]
        self.jitter = ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.1)
        self.processor: Any = SegformerImageProcessor(size={"height": size[0], "width": size[1]}, do_resize=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        from PIL import Image

        record = self.records[index]
        assert record.mask_path is not None
        image = self.jitter(Image.fromarray(read_image(record.image_path)))
        inputs = self.processor(image, self.split.reader.labels(record.mask_path), return_tensors="pt")
        return {name: tensor[0] for name, tensor in inputs.items()}


def our_files(folder: Path, size: tuple[int, int], seed: int) -> TrainingDraws:
    """The same files through this package's own reading and augmentation, at their own scale."""
    transform = TrainTransform(AugmentationConfig(crop_size=size, scale_mode="none"))
    return TrainingDraws([Source(load_split(open_split(folder, "train")))], transform, seed)


# --- the Trainers


def make_trainer(side: str, model: Any, samples: Dataset | None, options: argparse.Namespace, folder: str) -> Any:
    """A Trainer that warms up for a step and then takes `options.steps`, and neither evaluates nor saves."""
    settings: Any = dict(
        output_dir=folder,
        max_steps=1 + options.steps,
        per_device_train_batch_size=options.batch,
        dataloader_num_workers=0,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
        bf16=options.dtype == "bf16",
    )
    if side == "transformers":
        arguments = TrainingArguments(**settings, remove_unused_columns=False)
        return Trainer(model=model, args=arguments, train_dataset=samples)
    settings["activation_checkpointing"] = side == "checkpointing"
    ours = VSSTrainingArguments(**settings, load_best_model_at_end=False)
    if isinstance(samples, Samples):
        samples = TrainingDraws([Source(samples)], lambda sample, seed: sample, ours.draw_seed)
    trainer = VSSTrainer(model, ours, train_dataset=samples)
    if side == "plain":
        trainer.pixel_loss = SummedLoss([(1.0, plain_cross_entropy)])
    return trainer


class Clock(TrainerCallback):
    """When each step ended, in seconds."""

    def __init__(self, device: str):
        self.device, self.ends = device, []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(now(self.device))


def now(device: str) -> float:
    """The time, when the device has done all it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def held_mib(device: str) -> float:
    """Memory that this process holds now: on a GPU what torch has allocated there."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return peak_memory()
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 2**10


def peak_mib(device: str) -> float:
    """The most that it ever held."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_memory()


# --- one measurement, in a process of its own


def measure_here(side: str, size: tuple[int, int], options: argparse.Namespace, files: Path | None) -> dict[str, Any]:
    """Seconds of each step, MiB above the start, mean loss of the run, and with `files` the seconds of the parts."""
    if options.device == "cpu" and side in ("plain", "vss_hf"):
        keep_freed_memory()  # as `vss-hf train` does, unless memory counts more than time
    model = build_model(side, options.quick).to(options.device)
    warm_up(model, loss_of(side, model.config), options)
    held = held_mib(options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(side, model, Samples(size, 2 * options.batch), options, folder)
        clock = Clock(options.device)
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
        measured: dict[str, Any] = {
            "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
            "extra_mib": peak_mib(options.device) - held,
            "loss": loss,
        }
        if files is not None:
            measured["parts"] = measure_parts(side, trainer, size, options, files)
    return measured


def warm_up(model: Any, loss: Callable, options: argparse.Namespace) -> None:
    """Forward and backward of a small batch: what the libraries load and keep is not the step's."""
    model.train()
    batch = next(batches(Samples((64, 96), options.batch), options))
    loss(network(model, batch["pixel_values"]), batch["labels"]).backward()
    model.zero_grad()


def batches(samples: Samples, options: argparse.Namespace) -> Iterator[dict[str, torch.Tensor]]:
    """The samples as batches on the device."""
    for pixels, labels in zip(samples.pixels.split(options.batch), samples.labels.split(options.batch), strict=True):
        yield {"pixel_values": pixels.to(options.device), "labels": labels.to(options.device)}


def measure_parts(side: str, trainer: Any, size: tuple[int, int], options: argparse.Namespace, files: Path) -> dict:
    """Seconds of every part of a step, with the Trainer's own model and optimizer, each part by itself."""
    model, loss = trainer.model, loss_of(side, trainer.model.config)
    batch = next(batches(Samples(size, options.batch), options))
    times = [now(options.device)]
    with trainer.accelerator.autocast():
        logits = network(model, batch["pixel_values"])
    times.append(now(options.device))
    leaves = [tensor.detach().requires_grad_() for tensor in logits]
    with trainer.accelerator.autocast():
        value = loss(leaves, batch["labels"])
    value.backward()
    del value
    times.append(now(options.device))
    torch.autograd.backward(logits, [leaf.grad for leaf in leaves])
    times.append(now(options.device))
    torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    times.append(now(options.device))
    parts = dict(zip(PARTS[1:], (end - start for start, end in zip(times, times[1:], strict=False)), strict=True))
    return {"data": data_seconds(side, trainer, size, options, files), **parts}


def data_seconds(side: str, trainer: Any, size: tuple[int, int], options: argparse.Namespace, files: Path) -> float:
    """Median seconds of one batch from files, as the side's Trainer gets it."""
    samples = TheirFiles(files, size) if side == "transformers" else our_files(files, size, trainer.args.draw_seed)
    trainer = make_trainer(side, trainer.model, samples, options, trainer.args.output_dir)
    seconds, loader = [], iter(trainer.get_train_dataloader())
    for _ in range(3):
        start = time.perf_counter()
        batch = next(loader)
        seconds.append(time.perf_counter() - start)
        assert batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:] == size, batch["labels"].shape
    return statistics.median(seconds)


def differences(options: argparse.Namespace) -> dict[str, float]:
    """How far this package's model is from transformers': the largest differences as shares of the largest values.

    In float32 on the CPU in training mode, at a size that no stride divides.
    """
    found = {}
    samples = Samples((99, 133), 2)
    for side in ("transformers", "vss_hf"):
        model = build_model(side, options.quick).train()
        logits = network(model, samples.pixels)
        loss = model(pixel_values=samples.pixels, labels=samples.labels).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[side] = (logits[0].detach(), loss.detach(), gradients)
    (logits, loss, gradients), (our_logits, our_loss, ours) = found["transformers"], found["vss_hf"]
    largest = max(gradient.abs().max() for gradient in gradients.values())
    apart = max((ours[name] - gradient).abs().max() for name, gradient in gradients.items())
    return {
        "logits": float((our_logits - logits).abs().max() / logits.abs().max()),
        "loss": float((our_loss - loss).abs() / loss),
        "gradient": float(apart / largest),
    }


# --- all measurements


def in_fresh_process(*what: Any) -> dict[str, Any]:
    """What `--child` with these arguments prints last."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_size(size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size, the sides in turn, and what follows from them."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        count = -(-3 * options.batch // 4)
        sizes: Any = dict(height=size[0], width=size[1], val_videos=1, val_frames_per_video=1, test_videos=0)
        make_sample_dataset(Path(folder) / "files", train_videos=count, frames_per_video=4, **sizes, progress=False)
        for number in range(options.rounds):
            sides = SIDES if number == 0 else SIDES[:-1]
            files = None if number else f"{folder}/files"
            rounds.append({side: in_fresh_process("measure", side, size, files) for side in sides})
    return summary(rounds, options.batch)


def summary(rounds: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Medians over the rounds, and ratios to transformers within each round."""
    results: dict[str, Any] = {"rounds": rounds}
    for side in SIDES:
        of = [(measured[side], measured["transformers"]) for measured in rounds if side in measured]
        parts, median = of[0][0]["parts"], statistics.median(step_seconds(ours) for ours, _ in of)
        faster = sorted(step_seconds(theirs) / step_seconds(ours) for ours, theirs in of)
        results[side] = {
            "images_per_second": batch / median,
            "images_per_second_from_files": batch / (median + parts["data"]),
            "seconds": median,
            "speed": statistics.median(faster),
            "speed_range": [faster[0], faster[-1]],
            "extra_mib": statistics.median(ours["extra_mib"] for ours, _ in of),
            "memory": statistics.median(ours["extra_mib"] / theirs["extra_mib"] for ours, theirs in of),
            "loss": of[0][0]["loss"],
            "parts": parts,
        }
    faster = sorted(step_seconds(measured["plain"]) / step_seconds(measured["vss_hf"]) for measured in rounds)
    memory = results["vss_hf"]["extra_mib"] / results["plain"]["extra_mib"]
    results["vss_hf_to_plain"] = {
        "speed": statistics.median(faster),
        "speed_range": [faster[0], faster[-1]],
        "memory": memory,
    }
    return results


def step_seconds(measured: dict[str, Any]) -> float:
    """Of one process."""
    return statistics.median(measured["seconds"])


def show(size: tuple[int, int], of: dict[str, Any]) -> None:
    """The tables of one size, as Markdown."""
    print(f"\n{size[0]}x{size[1]}\n")
    print("| | images/s | from files | seconds a step | speed | MiB beyond the weights | memory | loss |")
    print("|---|---|---|---|---|---|---|---|")
    for side in SIDES:
        row = of[side]
        rates = f"{row['images_per_second']:.3f} | {row['images_per_second_from_files']:.3f} | {row['seconds']:.2f}"
        print(
            f"| {side} | {rates} | {ratio(row)} | {row['extra_mib']:.0f} | {row['memory']:.2f} | {row['loss']:.4f} |"
        )
    to_plain = of["vss_hf_to_plain"]
    print(f"\nvss_hf to plain: speed {ratio(to_plain)}, memory {to_plain['memory']:.2f}")
    print("\n| seconds | " + " | ".join(PARTS) + " | all but data |\n|---|" + "---|" * (len(PARTS) + 1))
    for side in SIDES:
        parts = of[side]["parts"]
        cells = [f"{parts[name]:.3f}" for name in PARTS] + [f"{sum(parts.values()) - parts['data']:.3f}"]
        print(f"| {side} | " + " | ".join(cells) + " |", flush=True)


def ratio(row: dict[str, Any]) -> str:
    """A ratio of speeds with its range."""
    low, high = row["speed_range"]
    return f"{row['speed']:.2f}x ({low:.2f} to {high:.2f})"


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "batch": options.batch,
        "num_labels": NUM_LABELS,
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "rounds": options.rounds,
        "steps": options.steps,
        "optimizer": str(TrainingArguments.optim),
        "threads": options.threads,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def image_size(text: str) -> tuple[int, int]:
    """'480x853' as (480, 853)."""
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=image_size, nargs="+", default=[(480, 853)], metavar="HxW")
    parser.add_argument("--batch", type=int, default=2, help="at least 2")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side and size")
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed in each process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: under autocast")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on the CPU")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and one round at 64x96, to see that it runs"
    )
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.rounds = [(64, 96)], 1
    torch.set_num_threads(options.threads)
    if options.child is not None:
        what, *arguments = options.child
        print(json.dumps(differences(options) if what == "differences" else child_measurement(options, *arguments)))
        return

    found = setting(options)
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    apart = in_fresh_process("differences")
    print("vss_hf is apart from transformers by " + ", ".join(f"{key} {value:.1e}" for key, value in apart.items()))
    results = {}
    for size in options.sizes:
        results["{}x{}".format(*size)] = of = measure_size(size, options)
        show(size, of)
    if options.json:
        options.json.write_text(json.dumps({"setting": found, "differences": apart, "results": results}, indent=2))


def child_measurement(options: argparse.Namespace, side: str, size: list[int], files: str | None) -> dict[str, Any]:
    """`measure_here` with arguments as they come from JSON."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # the Trainers print their log
        return measure_here(side, (size[0], size[1]), options, Path(files) if files else None)


if __name__ == "__main__":
    main()
