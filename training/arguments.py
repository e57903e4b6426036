"""Settings of a training run that transformers' TrainingArguments do not have."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy


LOSSES = ("cross_entropy", "ohem")
OHEM_REDUCTIONS = ("kept", "labelled", "all")
CLASS_WEIGHTING = ("none", "inverse_sqrt")
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
    learning_rate: float = field(default=6e-5, metadata={"help": "Peak learning rate of the decode heads."})
    backbone_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the backbone; empty: as the decode heads."}
    )
    backbone_modules: list[str] = field(
        default_factory=lambda: ["backbone"],
        metadata={"help": "Parts of the model that train at backbone_learning_rate; the others are 'decode heads'."},
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of the weights' moving average, 0..1, 0 = off. The average is evaluated and saved."},
    )
    loss: str = field(
        default="cross_entropy",
        metadata={"help": "cross_entropy, or ohem: cross entropy over the hard pixels of each micro-batch only."},
    )
    ohem_threshold: float = field(
        default=0.7, metadata={"help": "Hard: a true class's probability below this, 0..1; 0: ohem_min_kept alone."}
    )
    ohem_min_kept: int = field(
        default=100_000, metadata={"help": "Pixels per image that count as hard at least, over a micro-batch."}
    )
    ohem_reduction: str = field(
        default="kept",
        metadata={"help": "Divide by the number of: kept (hard) pixels, labelled ones, or all (mmsegmentation's)."},
    )
    class_weighting: str = field(
        default="none",
        metadata={"help": "none, or inverse_sqrt: sqrt(mean pixels per class / pixels of the class) in training."},
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

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers asks for it before it allows bf16; there is no other choice here
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if getattr(self, name) == IntervalStrategy.EPOCH:
                raise ValueError(f"--{name} epoch is not offered: give steps (e.g. --{name} steps --eval_steps 500)")
        super().__post_init__()
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least 1")
        if not self.ignore_data_skip:
            raise ValueError("--ignore_data_skip false: leave it on, the sampler itself starts where a run stopped")
        if self.label_smoothing_factor:
            raise ValueError(f"--label_smoothing_factor {self.label_smoothing_factor}: not offered, expected 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay {self.ema_decay}: expected 0 <= value < 1")
        for name, known in (
            ("loss", LOSSES),
            ("ohem_reduction", OHEM_REDUCTIONS),
            ("class_weighting", CLASS_WEIGHTING),
            ("on_nonfinite_loss", ON_NONFINITE_LOSS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} {getattr(self, name)}: expected one of {', '.join(known)}")
        if not 0 <= self.ohem_threshold <= 1:
            raise ValueError(f"--ohem_threshold {self.ohem_threshold}: expected 0 <= value <= 1")
        if self.ohem_min_kept < 0:
            raise ValueError(f"--ohem_min_kept {self.ohem_min_kept}: expected at least 0")
        if self.logging_nan_inf_filter:
            raise ValueError("--logging_nan_inf_filter true: leave it off, see --on_nonfinite_loss")
        if self.save_only_model and self.save_strategy != IntervalStrategy.NO:
            raise ValueError("--save_only_model true: leave it off, such a checkpoint cannot be resumed exactly")
        if self.backbone_learning_rate is not None and self.backbone_learning_rate < 0:
            raise ValueError(f"--backbone_learning_rate {self.backbone_learning_rate}: expected at least 0")
