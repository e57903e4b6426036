"""Run by test_processes.py under torchrun: a few steps in as many processes as there are."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from tiny import (
    FrozenNorms,
    arguments,
    losses,
    make_trainer,
    mixed_data,
    state_of,
    tiny_clip_model,
    tiny_guided_model,
    tiny_model,
    training_clips,
    training_data,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vss_hf.training
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.layers import BatchNorm2d
from vss_hf.training.sharded import is_sharded
from vss_hf.training.sync_batchnorm import with_synchronised_batchnorm
from vss_hf.training.trainer import VSSTrainer


CONFIGS = Path(vss_hf.training.__file__).parent / "accelerate_configs"
STEPS = 6
EXACT = {  # cases in which one process and two must agree
    "plain": {},
    "weighted": {
        "losses": [
            {"name": "cross_entropy", "class_weights": [0.5, 2.0, 7.0]},
            {"name": "confusion_focal", "matrix": "running", "momentum": 0.5},
        ]
    },
    "distilled": {"distilled": True},
    "class-aware": {"losses": [{"name": "car", "weight": 0.5}]},
    "guided": {"guided": True},
    "stream": {"streaming": True},
    "mixed": {"mixed": True},
    "clips": {"clips": True},
    "synchronised": {"sync_batchnorm": True},
}
SETTINGS = dict(
    max_steps=STEPS,
    gradient_accumulation_steps=2,
    optim="sgd",
    learning_rate=0.1,
    ema_decay=0.5,
    eval_strategy="steps",
    eval_steps=3,
)


class Recorder:
    """A transform that notes which samples pass, and with which random numbers."""

    def __init__(self, transform):
        self.transform, self.seen = transform, []

    def __call__(self, sample, seed):
        self.seen.append((sample["video"], sample["index"], seed))
        return self.transform(sample, seed)


def run(root: Path, output_dir: Path, batch_size: int, case: str):
    """(trainer after a few steps with `batch_size` samples per process, the samples that this process took)."""
    clips, synchronised = EXACT[case].get("clips", False), EXACT[case].get("sync_batchnorm", False)
    if EXACT[case].get("mixed", False):
        data = mixed_data(root)
    else:
        data = training_clips(root) if clips else training_data(root, streaming=EXACT[case].get("streaming", False))
    data.transform = recorder = Recorder(data.transform)
    if clips:
        model = tiny_clip_model(root)
    elif EXACT[case].get("guided", False):
        model = tiny_guided_model(root)
    else:
        model = tiny_model(root) if synchronised else tiny_model(root, FrozenNorms)
    entries = EXACT[case].get("losses", [])
    if EXACT[case].get("distilled", False):
        teacher = save_teacher(root, output_dir / "teacher")
        entries = [{"name": "self_distillation", "teacher": str(teacher)}]
    trainer = make_trainer(
        root,
        output_dir,
        model=model,
        data=data,
        losses=entries,
        per_device_train_batch_size=batch_size,
        sync_batchnorm=synchronised,
        **SETTINGS,
    )
    trainer.train()
    return trainer, recorder.seen


def save_teacher(root: Path, folder: Path) -> Path:
    """A model folder with other weights than those that the runs start from."""
    model = tiny_model(root)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)  # of several processes the first one writes
    PartialState().wait_for_everyone()
    return folder


def report(trainer) -> dict:
    """What a run logged."""
    scores = [entry for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    timing = ("runtime", "per_second")
    scores = [{k: v for k, v in entry.items() if not any(word in k for word in timing)} for entry in scores]
    return {"world": trainer.args.world_size, "losses": losses(trainer), "scores": scores}


def save_folder(trainer, folder: Path) -> dict:
    """The model folder as a run writes it, and what its model gives for a fixed input. All processes must come."""
    with trainer.averaged_weights() as model:
        training = model.training
        with torch.no_grad():
            logits = model.eval()(torch.linspace(-2, 2, 3 * 32 * 48).reshape(1, 3, 32, 48)).logits
        model.train(training)
        if trainer.args.should_save:
            model.save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
            save_file({"logits": logits}, folder / "logits.safetensors")
        return {"sharded": is_sharded(model), "class": type(model).__name__}


# --- batches of different sizes


def unequal_batches() -> list[dict]:
    """What two processes have at once: two images, and one of which little is labelled."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, 96, 128, generator=generator)
    labels = torch.randint(0, 3, (3, 96, 128), generator=generator)
    labels[0, :30] = 255
    labels[2, :, 40:] = 255
    return [{"pixel_values": pixels[part], "labels": labels[part]} for part in (slice(2), slice(2, 3))]


def guided_step(root: Path, output_dir: Path, batch: dict, faithful: bool) -> tuple[float, dict]:
    """Loss and gradients of a process's batch, of the whole step's labelled pixels; in DDP where there are several."""
    model = tiny_guided_model(root, car_faithful=faithful).train()
    trainer = make_trainer(root, output_dir, model=model)
    several = trainer.args.world_size > 1
    wrapped = DistributedDataParallel(model) if several else model
    number = sum((each["labels"] != 255).sum() for each in unequal_batches())
    for _ in range(2):  # DDP complains in the second step of parameters that have missed the first
        model.zero_grad()
        loss = trainer.compute_loss(wrapped, dict(batch), num_items_in_batch=number)
        loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


# --- BatchNorm over processes

NORMS = {
    "plain": lambda: BatchNorm2d(3),
    "with activation": lambda: BatchNormAct2d(3),
    "mean of all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "no affine": lambda: nn.BatchNorm2d(3, affine=False),
}


def norm_inputs(rank: int, single: bool = False) -> torch.Tensor:
    """What a process puts into a BatchNorm: maps of another size in each, or one value per channel."""
    shape, mean = ((1, 3, 1, 1), 0) if single else ((1, 3, 2 + rank, 5), 100)
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)) * (1 + rank) + mean


def single_norms() -> dict:
    """Outputs, gradients and statistics of single layers, each after two steps."""
    rank, found = int(os.environ["RANK"]), {}
    for name, build in NORMS.items():
        for single in (False, True):
            norm = with_synchronised_batchnorm(nn.Sequential(build()), 2, torch.device("cpu")).train()
            norm(norm_inputs(rank) - 50)
            values = norm_inputs(rank, single).requires_grad_()
            output = norm(values)
            (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
            parts = {"output": output, "gradient": values.grad, **norm.state_dict()}
            parts |= {f"gradient of {key}": parameter.grad for key, parameter in norm.named_parameters()}
            found[f"{name}{', one value' if single else ''}"] = {key: part.tolist() for key, part in parts.items()}
    return found


# --- FSDP2


def launched(config: str, *words: str):
    """(arguments, environment) of `accelerate launch --config_file CONFIG ... train.py recipe.yaml`."""
    launch = ["--config_file", str(CONFIGS / config), "--main_process_port", "0", *words, "train.py", "recipe.yaml"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(launch))
    if args.multi_gpu or args.use_fsdp:
        return args, prepare_multi_gpu_env(args)
    return args, prepare_simple_launcher_cmd_env(args)[1]


class ShardedTrainer(VSSTrainer):
    """With FSDP2 on CPUs, where accelerate takes DDP without a word.

    torch's FSDP2 does run there, and so does everything that accelerate and transformers do with it: this one switch
    is set by hand.
    """

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        # As AcceleratorState does where it finds GPUs.
        state = self.accelerator.state
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


def sharded_run(root: Path, output_dir: Path, resume: str | None = None, **changes):
    """A run with the settings of the shipped FSDP2 configuration."""
    trainer = ShardedTrainer(
        tiny_model(root, FrozenNorms),
        arguments(output_dir, per_device_train_batch_size=2, **{**SETTINGS, **changes}),
        train_dataset=training_data(root),
        eval_data=(root, "val"),
        processing_class=VSSImageProcessor(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def use_settings_of_fsdp() -> None:
    """What accelerate tells its processes by the shipped configuration."""
    _, environment = launched("fsdp2_8gpu.yaml")
    os.environ.update({name: value for name, value in environment.items() if name.startswith("FSDP_")})


# --- all in one start, because starting takes seconds


def quick(root: Path, out: Path) -> dict:
    """What one process must give as well, BatchNorm that learns, and a sharded model."""
    found = {}
    for case in EXACT:
        trainer, seen = run(root, out / "run", 2, case)
        found[case] = {**report(trainer), "seen": seen}
        if trainer.args.should_save:
            save_file(state_of(trainer.unwrapped()), out / f"{case}.safetensors")
            save_file(state_of(trainer.ema), out / f"{case}_ema.safetensors")
        if case == "synchronised":
            found[case]["saved"] = save_folder(trainer, out / "synchronised_model")
    batch = unequal_batches()[int(os.environ["RANK"])]
    for faithful in (False, True):
        found[f"guided, faithful {faithful}"], gradients = guided_step(root, out / "run", batch, faithful)
        if int(os.environ["RANK"]) == 0:
            save_file(gradients, out / f"guided_gradients_{faithful}.safetensors")
    found["norms"] = single_norms()
    # Every process has BatchNorm statistics of its own, and still all evaluate the model that is saved.
    model = tiny_model(root)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9  # statistics of the last few samples, which differ much
    trainer = make_trainer(root, out / "run", model=model, per_device_train_batch_size=2, max_steps=8)
    trainer.train()
    own = {name: float(t.sum()) for name, t in trainer.unwrapped().state_dict().items() if "running_mean" in name}
    found["batchnorm"] = {"metrics": trainer.evaluate(), "own": own, "saved": save_folder(trainer, out / "ddp_model")}
    use_settings_of_fsdp()
    trainer = sharded_run(root, out / "sharded")
    shards = {name: list(p.to_local().shape) for name, p in trainer.model.named_parameters()}
    found["sharded"] = {**report(trainer), "during": is_sharded(trainer.model), "shards": shards}
    found["sharded"]["saved"] = save_folder(trainer, out / "sharded_model")
    return found


def more_sharded(root: Path, out: Path) -> dict:
    """A sharded run resumed in the middle, and one without the average that ends with its best checkpoint."""
    found = {}
    use_settings_of_fsdp()
    # torch cannot load the state of plain SGD there, because it has none.
    saving = {"optim": "adamw_torch", "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 3}
    for name, checkpoint in (("straight", None), ("resumed", str(out / "straight" / "checkpoint-3"))):
        trainer = sharded_run(root, out / name, resume=checkpoint, **saving)
        found[name] = {**report(trainer), "saved": save_folder(trainer, out / f"{name}_model")}
    plain = {"ema_decay": 0.0, "save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True}
    trainer = sharded_run(root, out / "without_average", **plain)
    found["without average"] = {**report(trainer), "saved": save_folder(trainer, out / "sharded_plain_model")}
    return found


def swa(root: Path, out: Path) -> dict:
    """Snapshots after steps 2 and 4 of 5, of a model with BatchNorms that learn and of a sharded one."""
    settings = {**SETTINGS, "ema_decay": 0.0, "max_steps": 5, "swa_every": 2, "swa_batchnorm_batches": 4}
    trainer = make_trainer(root, out / "run", per_device_train_batch_size=2, **settings)
    trainer.train()
    found = {"scores": report(trainer)["scores"], "saved": save_folder(trainer, out / "swa_model")}
    found["statistics"] = {k: t.tolist() for k, t in trainer.swa.module.state_dict().items() if "running" in k}
    use_settings_of_fsdp()
    trainer = sharded_run(root, out / "sharded", **settings)
    found["sharded"] = {"during": is_sharded(trainer.model), "saved": save_folder(trainer, out / "swa_sharded_model")}
    return found


PARTS = {"quick": quick, "more_sharded": more_sharded, "swa": swa}


def main(part: str, root: Path, out: Path) -> None:
    """Every process writes what it logged, the first one weights and folders too."""
    found = PARTS[part](root, out)
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    PartialState().wait_for_everyone()  # a process that leaves while another still works can abort at exit
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
