"""Settings of a training run that transformers' TrainingArguments do not have."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from .batch_size import accumulation_steps
from .layer_decay import COUNTED_BY
from .losses import parse_losses
from .optimizer import NO_DECAY
from .schedule import parse_schedule


ON_NONFINITE_LOSS = ("raise", "skip")


@dataclass
class VSSTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with our defaults and a few more fields.

    The length of a run is given in optimisation steps (`max_steps`) or passes over the data (`num_train_epochs`);
    logging, evaluation and saving are always counted in steps.
    """

    output_dir: str = field(
        default="runs/default", metadata={"help": "Folder for checkpoints, logs and the model folder."}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Samples of an optimisation step over all devices; gradient_accumulation_steps follows."},
    )
    gradient_accumulation_steps: int = field(  # a number after __post_init__
        default=cast(int, None),
        metadata={"help": "Micro-batches of a step; empty: 1, or what global_batch_size needs."},
    )
    learning_rate: float = field(default=6e-5, metadata={"help": "Peak learning rate of the decode heads."})
    backbone_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the backbone; empty: as the decode heads."}
    )
    backbone_modules: list[str] = field(
        default_factory=lambda: ["backbone"],
        metadata={"help": "Parts of the model that train at backbone_learning_rate; the others are 'decode heads'."},
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Learning rate of a backbone's layer as a share of the next one's, above 0..1, 1 = off."},
    )
    layer_decay_by: str = field(
        default="block", metadata={"help": "What a layer is: block, stage, or internimage, as in layer_decay.py."}
    )
    layer_decay_layers: int | None = field(
        default=None, metadata={"help": "How many layers are counted; empty: as many as the backbone has."}
    )
    no_decay: list[str] = field(
        default_factory=lambda: list(NO_DECAY),
        metadata={"help": "Parts of names of parameters without weight decay; 1d: norms, biases, all of one axis."},
    )
    schedule: dict[str, Any] | None = field(
        default=None, metadata={"help": "Learning rate over the steps, as in schedule.py; empty: lr_scheduler_type."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of the weights' moving average, 0..1, 0 = off. The average is evaluated and saved."},
    )
    losses: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={"help": "Losses of every per-pixel head, summed, as in losses.py; empty: the model's own loss."},
    )
    swa_every: int = field(
        default=0,
        metadata={"help": "Steps between two snapshots whose mean (SWA) is evaluated and saved; 0: no SWA."},
    )
    swa_start: int = field(
        default=0, metadata={"help": "SWA takes snapshots after steps swa_start + 1, 2, 3, ... times swa_every."}
    )
    swa_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak of a cosine in each swa_every steps after swa_start; empty: the run's schedule."},
    )
    swa_batchnorm_batches: int = field(
        default=200, metadata={"help": "Training batches from which the statistics of SWA's BatchNorms are counted."}
    )
    logged_overlays: int = field(
        default=3,
        metadata={"help": "Frames drawn with predictions at each evaluation, for overlays/ and report_to; 0: off."},
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Keep convolutions in channels-last memory: same numbers, faster for CNN backbones."},
    )
    sync_batchnorm: bool = field(
        default=False,
        metadata={"help": "BatchNorm over the samples of all processes, as if they were one with a larger batch."},
    )
    on_nonfinite_loss: str = field(
        default="raise",
        metadata={"help": "NaN or infinite loss or gradient: raise (names the frames), or skip and count the step."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Kept off: a loss that is not finite is never hidden in a mean."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Kept off: the data set yields what is needed."}
    )
    eval_strategy: IntervalStrategy | str = field(default="steps", metadata={"help": "steps or no."})
    save_strategy: IntervalStrategy | str = field(default="steps", metadata={"help": "steps or no."})
    resume_from_checkpoint: str | bool | None = field(
        default=None, metadata={"help": "Checkpoint folder to go on from; true: the newest whole one in output_dir."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept beside the best one."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the checkpoint of the best mIoU."})
    metric_for_best_model: str | None = field(default="mean_iou", metadata={"help": "What 'best' means."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "More is better for mIoU."})
    ignore_data_skip: bool = field(
        default=True, metadata={"help": "Kept on: the sampler itself starts where a run stopped."}
    )
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that decode and augment."})

    @property
    def draw_seed(self) -> int:
        """Seed of the order and the augmentation of the training samples."""
        return self.seed if self.data_seed is None else self.data_seed

    def check_swa(self) -> None:
        """Raise for settings of SWA that cannot be meant."""
        for name in ("swa_every", "swa_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least 0")
        if self.swa_batchnorm_batches < 1:
            raise ValueError(f"--swa_batchnorm_batches {self.swa_batchnorm_batches}: expected at least 1")
        if self.swa_learning_rate is not None and self.swa_learning_rate <= 0:
            raise ValueError(f"--swa_learning_rate {self.swa_learning_rate}: expected a number above 0")
        if self.swa_learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--swa_learning_rate needs a --learning_rate above 0; found {self.learning_rate}")
        if self.swa_learning_rate is not None and self.warmup_steps > self.swa_start:
            raise ValueError(
                f"--warmup_steps {self.warmup_steps} with --swa_start {self.swa_start}: SWA's cycles would begin "
                "within the warm-up; lower the one or raise the other"
            )
        if not self.swa_every:
            for name, given in (("swa_start", self.swa_start), ("swa_learning_rate", self.swa_learning_rate)):
                if given:
                    raise ValueError(f"--{name} {given} without --swa_every: give the steps between two snapshots")
        elif self.ema_decay:
            raise ValueError(
                f"--swa_every {self.swa_every} with --ema_decay {self.ema_decay}: both would be the weights that are "
                "evaluated and saved; choose one"
            )

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers asks for it before it allows bf16; there is no other choice here
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if getattr(self, name) == IntervalStrategy.EPOCH:
                raise ValueError(f"--{name} epoch is not offered: give steps (e.g. --{name} steps --eval_steps 500)")
        given = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1 if given is None else given
        super().__post_init__()
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least 1")
        if self.global_batch_size is not None:
            devices = self.world_size * max(1, self.n_gpu)  # one process may have several GPUs
            self.gradient_accumulation_steps = accumulation_steps(
                self.global_batch_size, given, self.per_device_train_batch_size, devices
            )
        if not self.ignore_data_skip:
            raise ValueError("--ignore_data_skip false: leave it on, the sampler itself starts where a run stopped")
        if self.label_smoothing_factor:
            raise ValueError(f"--label_smoothing_factor {self.label_smoothing_factor}: not offered, expected 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay {self.ema_decay}: expected 0 <= value < 1")
        self.check_swa()
        parse_losses(self.losses)  # raises for what is wrong in it
        self.check_rates()
        if self.on_nonfinite_loss not in ON_NONFINITE_LOSS:
            known = ", ".join(ON_NONFINITE_LOSS)
            raise ValueError(f"--on_nonfinite_loss {self.on_nonfinite_loss}: expected one of {known}")
        if self.logging_nan_inf_filter:
            raise ValueError("--logging_nan_inf_filter true: leave it off, see --on_nonfinite_loss")
        if self.save_only_model and self.save_strategy != IntervalStrategy.NO:
            raise ValueError("--save_only_model true: leave it off, such a checkpoint cannot be resumed exactly")
        if self.logged_overlays < 0:
            raise ValueError(f"--logged_overlays {self.logged_overlays}: expected at least 0")

    def check_rates(self) -> None:
        """Raise for a wrong value in what decides the learning rates and weight decays."""
        for name in ("learning_rate", "backbone_learning_rate", "swa_learning_rate", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:  # of groups, torch checks neither
                raise ValueError(f"--{name} {value}: expected at least 0 and finite")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay {self.layer_decay}: expected 0 < value <= 1")
        if self.layer_decay_by not in COUNTED_BY:
            raise ValueError(f"--layer_decay_by {self.layer_decay_by}: expected one of {', '.join(COUNTED_BY)}")
        if self.layer_decay_layers is not None and self.layer_decay_layers < 1:
            raise ValueError(f"--layer_decay_layers {self.layer_decay_layers}: expected at least 1, or null")
        if not all(isinstance(word, str) and word for word in self.no_decay):
            raise ValueError(f"--no_decay {self.no_decay}: expected parts of names; [] decays every parameter")
        if self.schedule is not None:
            parse_schedule(self.schedule)  # raises for what is wrong in it
            if self.lr_scheduler_type != SchedulerType.LINEAR:  # the default
                kind = SchedulerType(self.lr_scheduler_type).value
                raise ValueError(f"--lr_scheduler_type {kind}: there is a training.schedule; leave one of them out")
            if self.lr_scheduler_kwargs:
                raise ValueError("--lr_scheduler_kwargs: training.schedule has its own fields; leave one of them out")
