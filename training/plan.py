"""What a run would do, without data, weights or a GPU: `vss-hf train RECIPE --dry_run`.

    --dry_run           for the devices that there are
    --dry_run 8         for eight of them
    --json FILE         with it: also as JSON, for programs

A recipe is read and checked as for a real run. Models are built on torch's meta device, where tensors have a shape
and no contents; memory_estimate.py tells what a step of them needs. Data sets and models that are not on this machine
are named and passed over; nothing is downloaded and, but for that JSON, nothing written.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSemanticSegmentation, PreTrainedConfig, get_scheduler

from vss_hf.data.labels import VSPW, ClassList
from vss_hf.data.sources import usual_classes
from vss_hf.files import write_json
from vss_hf.inference.processes import is_first
from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.modeling.loading import stored_config
from vss_hf.scoring.ground_truth import open_ground_truth

from .batch_size import accumulation_steps
from .data_recipe import DataRecipe
from .deepening import put_off_depths
from .losses import SelfDistillation, check_model_takes, is_per_pixel, parse_losses
from .memory_estimate import Activations, MemoryEstimate, bytes_of, estimate_memory, fsdp_units, trace_step
from .optimizer import describe_groups, groups_of_run
from .recipe import ModelRecipe, Recipe, load_recipe, parse_overrides
from .run import changed_config
from .schedule import build_scheduler, parse_schedule
from .sources import OpenedSource, check_classes, check_clips, open_source, sample_order
from .stages import has_stages, load_stages
from .swa import add_cycles


DEVICES = (1, 2, 4, 8, 16)  # for which the batch is told
MANY = 8  # devices for which the memory is told, where one is planned for


@dataclass
class RunPlan:
    """What one run, or one stage, would do. What cannot be known without data or weights is None, and in `notes`."""

    name: str
    output_dir: str
    notes: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    fsdp_units: list[dict[str, Any]] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    precision: str = ""
    averaging: str = ""
    schedule: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, MemoryEstimate] = field(default_factory=dict)
    checkpoints: dict[str, Any] = field(default_factory=dict)


# --- from the command line


def dry_run(arguments: list[str]) -> bool:
    """Print the plan if the words after `train` ask for it; False if they do not.

    Raises:
        FileNotFoundError, ValueError: as a real run; or `--dry_run` and `--json` with something else than they take.
    """
    from .plan_tables import show_plans  # which imports this file

    path, words = arguments[0] if arguments else "", arguments[1:]
    given = {key.replace("-", "_"): value for key, value in parse_overrides(words)} if "dry" in " ".join(words) else {}
    devices, file = given.get("dry_run", False), given.get("json")
    if devices is False:
        return False
    if devices is not True and (not isinstance(devices, int) or devices < 1):
        raise ValueError(f"--dry_run {devices}: expected nothing, or a number of devices from 1")
    if file is True:
        raise ValueError("--json: give the file to write")
    plans = make_plans(path, without(words, ("dry_run", "json")), None if devices is True else devices)
    if is_first():
        show_plans(plans)
        if file is not None:
            write_json(Path(str(file)), [asdict(plan) for plan in plans])
    return True


def without(words: list[str], names: Sequence[str]) -> list[str]:
    """Words of a command line without some fields and their values."""
    left, inside = [], False
    for word in words:
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            gone = name.replace("-", "_") in names
            inside = gone and not equals  # its value may come next
        else:
            gone, inside = inside, False
        if not gone:
            left.append(word)
    return left


def make_plans(path: str, words: list[str], devices: int | None = None, memory: bool = True) -> list[RunPlan]:
    """The plan of a recipe, or those of its stages.

    Args:
        path: recipe file or name.
        words: overrides, as for `load_recipe`.
        devices: how many take part; None: those that there are.
        memory: also estimate the memory, which takes seconds for a large model.

    Raises:
        FileNotFoundError, ValueError: as a real run.
    """
    if has_stages(path):
        recipes = [(stage.name, stage.recipe, str(stage.model_folder)) for stage in load_stages(path, words)]
    else:
        recipe = load_recipe(path, words)
        recipes = [("", recipe, str(Path(recipe.training.output_dir) / "model"))]
    results: dict[str, PreTrainedConfig] = {}  # of earlier stages, by their model folders
    traced: dict[str, Activations] = {}
    plans = []
    for name, recipe, folder in recipes:
        try:
            plan, config = make_plan(name, recipe, results, devices, traced if memory else None)
        except ValueError as error:
            raise ValueError(f"stage '{name}': {error}" if name else str(error)) from error
        if config is not None:
            results[folder] = config
        plans.append(plan)
    return plans


# --- one run


def make_plan(
    name: str,
    recipe: Recipe,
    results: dict[str, PreTrainedConfig],
    devices: int | None,
    traced: dict[str, Activations] | None,
) -> tuple[RunPlan, PreTrainedConfig | None]:
    """The plan of a plain recipe or a stage, and the model's configuration where it is known.

    Args:
        name: of the stage, or "".
        recipe: what is to be done.
        results: configurations of the models that earlier stages leave, by their folders.
        devices: as for `make_plans`.
        traced: steps that were counted already, to be added to; None: do not count.
    """
    args = recipe.training
    devices = devices or args.world_size * max(1, args.n_gpu)
    plan = RunPlan(name, args.output_dir)
    sources = plan_data(plan, recipe.data)
    classes = planned_classes(plan, recipe.data, sources)
    config = planned_config(plan, recipe.model, classes, results)
    losses = parse_losses(args.losses)
    plan.losses = [dict(loss) for loss in args.losses]
    plan.precision, plan.averaging = described_precision(args), described_averaging(args)
    plan.samples = described_samples(recipe, config)
    plan.batch = described_batch(args, devices)
    plan.steps = described_steps(plan, args)
    if config is None:
        return plan, None

    check_model_takes(losses, config)
    if len(sources) == len(recipe.data.training_sources()):
        check_clips(recipe, config, sources)
    model = empty_model(config)
    groups = groups_of_run(model, args)
    plan.groups = describe_groups(groups)
    plan.model = described_model(recipe.model, model)
    units = fsdp_units(model)
    plan.fsdp_units = [{"class": u.name, "number": len(u.sizes), "largest": max(u.sizes)} for u in units]
    plan.schedule = described_schedule(args, groups, plan.steps["steps"])
    if traced is not None:
        plan.memory = planned_memory(model, losses, traced, recipe.augmentation.crop_size, plan, args)
        plan.checkpoints = described_checkpoints(args, plan, model)
    return plan, config


def empty_model(config: PreTrainedConfig) -> Any:
    """The model on the meta device."""
    with torch.device("meta"):
        kind = AutoModel if config.model_type in VIDEO_MODELS else AutoModelForSemanticSegmentation
        return kind.from_config(config)


def planned_config(
    plan: RunPlan, recipe: ModelRecipe, classes: ClassList, results: dict[str, PreTrainedConfig]
) -> PreTrainedConfig | None:
    """The model's configuration; None where it starts from a model that is not here."""
    labels: dict[str, Any] = {"id2label": classes.id2label, "label2id": classes.label2id}
    if not recipe.init_from:
        return recipe.build_config(**labels)
    source = str(recipe.init_from)
    if source in results:
        stored = results[source].to_dict()
    elif (Path(source) / "config.json").is_file():
        stored = stored_config(source)
    else:
        try:
            stored = PreTrainedConfig.get_config_dict(source, local_files_only=True)[0]
        except OSError:
            stored = {}
    if not stored:
        plan.notes.append(f"starts from {source}, which is not on this machine: model, schedule and memory not known")
        return None
    config = changed_config(stored, recipe, labels)
    depths = put_off_depths(config, stored, source)
    if depths:
        config.backbone_config.depths = depths
    return config


def described_model(recipe: ModelRecipe, model: Any) -> dict[str, Any]:
    """What the model is, and how large."""
    parameters = list(model.parameters())
    return {
        "model_type": model.config.model_type,
        "preset": recipe.preset,
        "backbone": model.backbone.config.model_type,
        "backbone_weights": recipe.backbone_weights,
        "init_from": recipe.init_from,
        "num_labels": model.config.num_labels,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "backbone_parameters": sum(p.numel() for p in model.backbone.parameters()),
    }


# --- data


def plan_data(plan: RunPlan, data: DataRecipe) -> list[OpenedSource]:
    """Write down the sources; returns those that are on this machine, opened."""
    opened = []
    for number, recipe in enumerate(data.training_sources()):
        told = {key: value for key, value in vars(recipe).items() if value is not None}
        told.update(videos=None, frames=None, samples=None)
        if Path(str(recipe.root)).is_dir():
            counted = DataRecipe(**{**vars(data), "streaming": False})
            unfiltered = type(recipe)(**{**vars(recipe), "min_labelled": 0.0})
            source = OpenedSource(
                f"source {number}", f"data.sources[{number}]", recipe, open_source(unfiltered, counted)
            )
            opened.append(source)
            told.update(videos=len(source.split.videos), frames=source.split.num_frames, samples=per_pass(source))
            if recipe.min_labelled:
                plan.notes.append(f"{recipe.root}: counted without min_labelled, which leaves out some frames")
        else:
            plan.notes.append(f"{recipe.root} ({recipe.split}) is not on this machine: not counted")
        plan.data.append(told)
    return opened


def per_pass(source: OpenedSource) -> int:
    """Samples of a pass over a source, before frames without their clip are left out."""
    if (
        source.recipe.sampling == "class_balanced"
    ):  # as many as there are frames, of which the rare classes' come often
        return source.split.num_frames
    return sample_order(source, (), 1, "raise").num_samples


def planned_classes(plan: RunPlan, data: DataRecipe, sources: list[OpenedSource]) -> ClassList:
    """The class list of the data set that is evaluated on; where that is not here, the one that its kind has."""
    if Path(str(data.root)).is_dir():
        split = open_ground_truth(data.root, data.eval_split, data.source, data.table).split
        check_classes(sources, split)
        return split.classes
    classes = VSPW if data.table else usual_classes(data.source)
    if classes is None:
        plan.notes.append(f"{data.root} is not on this machine: counted with VSPW's {VSPW.num_labels} classes")
    return classes or VSPW


def described_samples(recipe: Recipe, config: Any) -> dict[str, Any]:
    """What a sample is, and how it is augmented."""
    offsets = list(getattr(config, "frame_offsets", ()))
    return {"frames": len(offsets) + 1, "frame_offsets": offsets, **vars(recipe.augmentation)}


def described_precision(args: Any) -> str:
    """In what is computed."""
    half = "bf16" if args.bf16 else "fp16" if args.fp16 else ""
    words = f"{half} by autocast, weights and losses in fp32" if half else "fp32"
    return words + (", activation checkpointing" if args.activation_checkpointing else "")


def described_averaging(args: Any) -> str:
    """What is averaged."""
    if args.ema_decay:
        return f"EMA, decay {args.ema_decay:g}"
    if args.swa_every:
        return f"SWA, every {args.swa_every} steps after {args.swa_start}"
    return "none"


# --- batch and steps


def described_batch(args: Any, devices: int) -> dict[str, Any]:
    """The effective batch, how it comes about, and what other numbers of devices make of it."""

    def on(number: int) -> dict[str, Any]:
        accumulation, per_device = args.gradient_accumulation_steps, args.per_device_train_batch_size
        if args.global_batch_size is not None:
            accumulation = accumulation_steps(args.global_batch_size, None, per_device, number)
        return {
            "devices": number,
            "per_device": per_device,
            "accumulation": accumulation,
            "effective": per_device * accumulation * number,
        }

    others = []
    for number in DEVICES:
        try:
            others.append(on(number))
        except ValueError as error:
            others.append({"devices": number, "error": str(error)})
    return {"global_batch_size": args.global_batch_size, **on(devices), "on_other_devices": others}


def described_steps(plan: RunPlan, args: Any) -> dict[str, Any]:
    """How long the run is. `steps` is None where that depends on data that are not here."""
    known = bool(plan.data) and all(told["samples"] is not None for told in plan.data)
    per_pass_of_all = sum(told["samples"] for told in plan.data) if known else None
    batch, steps = plan.batch["effective"], args.max_steps
    if steps <= 0:
        steps = None if per_pass_of_all is None else max(1, round(args.num_train_epochs * per_pass_of_all / batch))
        if steps is None:
            plan.notes.append(f"{args.num_train_epochs:g} passes over data that are not here: steps not known")
    if steps is not None and args.warmup_steps >= steps:
        raise ValueError(f"--warmup_steps {args.warmup_steps}: expected fewer than the run's {steps} steps")
    if steps is not None and args.swa_every and args.swa_start + args.swa_every > steps:
        raise ValueError(
            f"--swa_start {args.swa_start} --swa_every {args.swa_every}: the run ends after {steps} steps, before the "
            f"first snapshot; expected at most {steps} in sum"
        )
    samples = None if steps is None else steps * batch
    return {
        "steps": steps,
        "samples": samples,
        "samples_per_pass": per_pass_of_all,
        "passes": samples / per_pass_of_all if samples and per_pass_of_all else None,
        "evaluations": times(args.eval_strategy, args.eval_steps, steps),
        "seed": args.seed,
    }


def times(strategy: Any, every: float | None, steps: int | None) -> int | None:
    """How often something happens that a strategy asks for every so many steps; below 1 a share of the run."""
    if getattr(strategy, "value", strategy) == "no":
        return 0
    if steps is None or not every:
        return None
    return steps // max(1, int(every if every >= 1 else every * steps))


# --- schedule


def described_schedule(args: Any, groups: list[dict], steps: int | None) -> dict[str, Any]:
    """The learning rates at the steps that matter: of the first group, and as a share of the peak, which all have."""
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    told: dict[str, Any] = {
        "name": args.schedule["name"] if args.schedule else kind,
        "settings": args.schedule or args.lr_scheduler_kwargs or {},
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "warmup_steps": args.get_warmup_steps(steps) if steps else args.warmup_steps,
        "max_grad_norm": args.max_grad_norm,
        "milestones": [],
    }
    if steps is None:
        return told
    scheduler = scheduler_of_run(args, groups, steps)
    marks = {0, told["warmup_steps"], args.swa_start, *(steps * part // 4 for part in range(1, 4)), steps - 1}
    for step in sorted(mark for mark in marks if 0 <= mark < steps):
        rates = rates_at(scheduler, step)
        if rates is not None:
            told["milestones"].append({"step": step + 1, "lowest": min(rates), "highest": max(rates)})
    return told


def scheduler_of_run(args: Any, groups: list[dict], steps: int) -> Any:
    """The scheduler as `VSSTrainer.create_scheduler` makes it, of an optimizer that never takes a step."""
    optimizer = torch.optim.SGD([dict(group) for group in groups], lr=args.learning_rate)
    before_swa = max(1, args.swa_start) if args.swa_learning_rate is not None else steps
    warmup = args.get_warmup_steps(before_swa)
    if args.schedule is None:
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=before_swa,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    else:
        scheduler = build_scheduler(parse_schedule(args.schedule), optimizer, warmup, before_swa)
    if args.swa_learning_rate is not None:
        add_cycles(scheduler, args.swa_start, args.swa_every, args.swa_learning_rate / args.learning_rate)
    return scheduler


def rates_at(scheduler: Any, step: int) -> list[float] | None:
    """The groups' learning rates after `step` steps; None of a scheduler that decides as it goes."""
    if not hasattr(scheduler, "lr_lambdas"):
        return None
    return [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]


# --- memory and disk


def planned_memory(
    model: nn.Module,
    losses: Sequence[Any],
    traced: dict[str, Activations],
    crop: tuple[int, int],
    plan: RunPlan,
    args: Any,
) -> dict[str, MemoryEstimate]:
    """What each device needs alone, with a copy of the model on each of several, and with FSDP2."""
    config: Any = model.config
    clip = len(config.frame_offsets) + 1 if config.model_type in VIDEO_MODELS else 0
    batch = args.per_device_train_batch_size
    checkpointing = (args.activation_checkpointing, args.activation_checkpointing_kwargs)
    key = repr((config.to_json_string(use_diff=False), crop, clip, batch, args.bf16, args.fp16, checkpointing))
    if key not in traced:
        traced[key] = trace_step(model, args, batch, crop, clip=clip)
    teachers = sum(isinstance(loss, SelfDistillation) for loss in losses)
    terms = max(1, len(losses) - teachers) if is_per_pixel(config) else 0
    many = plan.batch["devices"] if plan.batch["devices"] > 1 else MANY
    single = plan.batch["accumulation"] * plan.batch["devices"] if args.global_batch_size else None
    found = {}
    for name, number, sharded in (("1", 1, False), (f"{many} DDP", many, False), (f"{many} FSDP2", many, True)):
        accumulation = args.gradient_accumulation_steps if single is None else max(1, single // number)
        settings: Any = dict(losses=terms, teachers=teachers, devices=number, accumulation=accumulation)
        found[name] = estimate_memory(model, args, traced[key], crop, sharded=sharded, **settings)
    return found


def described_checkpoints(args: Any, plan: RunPlan, model: nn.Module) -> dict[str, Any]:
    """How many checkpoints are written, and the disk that they need at the fullest moment."""
    alone = plan.memory["1"]
    model_bytes = bytes_of(model.state_dict().values())
    each = model_bytes + alone.optimizer + alone.averages
    written = times(args.save_strategy, args.save_steps, plan.steps["steps"])
    kept = written
    if written and args.save_total_limit:  # one more while the next is written
        kept = min(written, max(args.save_total_limit, 2 if args.load_best_model_at_end else 1) + 1)
    return {
        "every": args.save_steps if written != 0 else None,
        "written": written,
        "bytes_each": each,
        "model_folder": model_bytes,
        "disk": None if kept is None else kept * each + model_bytes,
    }
