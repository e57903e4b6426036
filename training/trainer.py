"""transformers' Trainer for dense labels: exact data order, streaming evaluation, averaged weights."""

import dataclasses
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset, default_collate
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import speed_metrics
from transformers.utils import logging

from vss_hf.data.workers import end_with_parent
from vss_hf.files import full_disk_error, is_full_disk, write_json
from vss_hf.inference.evaluation import evaluate_model
from vss_hf.inference.processes import failing_together, take_from_first
from vss_hf.inference.segmenter import VideoSegmenter, is_out_of_memory
from vss_hf.modeling.loading import load_strictly
from vss_hf.modeling.losses import dense_segmentation_loss

from . import checkpoints
from .arguments import VSSTrainingArguments
from .batchnorm import first_batches, has_batchnorm, recalibrate_batchnorm
from .distillation import Distillation
from .draws import DrawOrder, EndlessSampler, TrainingStream
from .ema import EMA, WeightAverage
from .faults import explained
from .hub import PushesModelFolder
from .interruption import TrainingInterrupted, stop_request
from .losses import LossData, SelfDistillation, build_losses, is_per_pixel, parse_losses, query_class_bias
from .optimizer import groups_of_run
from .schedule import build_scheduler, parse_schedule
from .sharded import check_fsdp, is_sharded, whole_copy
from .sources import EvalData
from .swa import SWA, SWA_FILE, add_cycles
from .sync_batchnorm import with_synchronised_batchnorm


logger = logging.get_logger(__name__)

EMA_FILE = "ema.safetensors"
LOSS_FILE = "loss.safetensors"  # what losses have counted so far
MOST_SKIPPED_IN_A_ROW = 10  # steps without a finite loss after which `on_nonfinite_loss: skip` gives up


class AroundStep(TrainerCallback):
    """Follows the weights with the average, tells the epoch as passes over the data, stops on request."""

    def __init__(self, trainer: "VSSTrainer"):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.micro_batches_done, self.trainer.not_finite = 0, []

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.ema is not None:
            self.trainer.ema.update_parameters(self.trainer.unwrapped())
        if self.trainer.swa is not None:
            self.trainer.swa.follow(self.trainer.unwrapped(), state.global_step)
        if self.trainer.pixel_loss is not None:
            self.trainer.pixel_loss.end_step(self.trainer.accelerator.reduce)  # which sums
        if self.trainer.samples_per_epoch:
            state.epoch = self.trainer.draws_done() / self.trainer.samples_per_epoch
        if self.trainer.stop_requested():
            control.should_save = control.should_training_stop = True


class VSSTrainer(PushesModelFolder, Trainer):
    """Trains a model of this package.

    What differs from transformers.Trainer: training data is an endless, seekable sequence of draws (draws.py), so that
    resuming replays nothing; the loss is the mean over all labelled pixels of a step; evaluation counts a confusion
    matrix over whole videos instead of gathering logits; backbone and heads have their own learning rates; with
    `ema_decay` or `swa_every` an average of the weights is kept, evaluated and saved; checkpoints are whole or not
    there (checkpoints.py), and Ctrl-C or SIGTERM saves one; a loss that is not finite stops the run, or is skipped
    and counted (`on_nonfinite_loss`).

    Args:
        model: the model.
        args: the run's settings.
        train_dataset: `TrainingDraws` or `TrainingStream`, with the seed `args.draw_seed`.
        eval_data: what to evaluate on: `EvalData`, or its beginning: (data set folder, split); or None.
        processing_class: the image processor.
        class_pixels: (num_labels,) training pixels of each class, for losses that ask for them (`needs_class_pixels`).
    """

    args: VSSTrainingArguments
    # transformers types these more narrowly than what we give, or more widely than what comes back.
    model: Any
    train_dataset: Any
    eval_dataset: Any
    accelerator: Any

    def __init__(
        self,
        model: Any,
        args: VSSTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_data: tuple | None = None,
        processing_class: Any = None,
        class_pixels: np.ndarray | None = None,
    ):
        if train_dataset is not None and train_dataset.seed != args.draw_seed:
            raise ValueError(
                f"train_dataset draws with seed {train_dataset.seed}, the run with {args.draw_seed} (--data_seed, or "
                "--seed); give both the same"
            )
        if args.sync_batchnorm:
            model = with_synchronised_batchnorm(model, args.world_size, args.device)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=cast(Any, None if eval_data is None else EvalData(*eval_data)),  # for our own `evaluate`
            processing_class=processing_class,
            data_collator=default_collate,  # transformers' own copies the batch of a worker once more
        )
        if self.is_fsdp_enabled:
            check_fsdp(self.accelerator.state.fsdp_plugin)
        losses, config = parse_losses(args.losses), model.config
        data = LossData(config.num_labels, args.device, class_pixels, getattr(config, "cosine_scale", None) or 1.0)
        self.pixel_loss = build_losses(losses, config, data)
        if not is_per_pixel(config):
            model.criterion.class_bias = query_class_bias(losses, data)
        self.distillations = [
            Distillation(loss.teacher, config, args.device, loss.weight, loss.temperature)
            for loss in losses
            if isinstance(loss, SelfDistillation)
        ]
        self.ema = EMA(model, args.ema_decay) if args.ema_decay else None
        self.swa = SWA(model, args.swa_start, args.swa_every) if args.swa_every else None
        self.model_accepts_loss_kwargs = True  # compute_loss divides by a step's pixels; not by its micro-batches too
        self.samples_per_epoch = train_dataset.num_samples if train_dataset is not None else 0
        self.resume_from: Path | None = None
        self.first_step = self.first_draw = 0  # where this session began
        self.stop = stop_request()
        self.staging: Path | None = None  # where a checkpoint is being written
        self.skipped_steps = self.skipped_in_a_row = 0
        self.micro_batches_done, self.not_finite = 0, []  # of the current step
        self.add_callback(AroundStep(self))

    # --- data

    @property
    def global_batch_size(self) -> int:
        """Samples per optimisation step over all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def get_train_dataloader(self) -> DataLoader:
        """An endless loader that begins where the run stopped. Not handed to accelerate, which would replay it."""
        if self.first_step >= self.args.max_steps:
            # Nothing is left to do; with data the Trainer would take one step more.
            return DataLoader(TensorDataset(torch.empty(0)))
        settings: dict[str, Any] = dict(
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            # Its own: drawing from torch's global generator would change the model's random numbers after a resume.
            generator=torch.Generator().manual_seed(self.args.draw_seed),
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=end_with_parent,
        )
        self.train_dataset.order = order = self.draw_order()
        if not isinstance(self.train_dataset, TrainingStream):
            settings["sampler"] = EndlessSampler(order)
        return DataLoader(self.train_dataset, **settings)

    def draw_order(self) -> DrawOrder:
        """Which draws this process takes in this session."""
        return DrawOrder(
            batch_size=self.args.train_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            start=self.first_draw,
            workers=max(1, self.args.dataloader_num_workers),
        )

    def draws_done(self) -> int:
        """Training samples that the whole run has consumed, over all sessions and processes."""
        return self.first_draw + (self.state.global_step - self.first_step) * self.global_batch_size

    def samples_by_source(self) -> dict[str, int]:
        """`draws_done` of each source, as `samples_SOURCE`; empty with one source."""
        if self.train_dataset is None or len(self.train_dataset.sources) == 1:
            return {}
        return {f"samples_{name}": n for name, n in self.train_dataset.counts(self.draws_done()).items()}

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """The Trainer's log; beside every loss how many samples each source has given."""
        super().log({**logs, **self.samples_by_source()} if "loss" in logs else logs, *arguments, **options)

    def sample_names(self, micro_batch: int) -> str:
        """The videos and frames in one micro-batch of the current step and this process, for messages."""
        size = self.args.train_batch_size
        first = self.draws_done() + (micro_batch * self.args.world_size + self.args.process_index) * size
        names = [self.train_dataset.name(draw) for draw in range(first, first + size)]
        return "; ".join(names[:8] + ([f"and {size - 8} more"] if size > 8 else []))

    # --- optimisation

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train, or continue from a checkpoint folder (`True`: the newest whole one in `output_dir`).

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint has been saved. It is a KeyboardInterrupt.
            FloatingPointError: the loss is not finite (`on_nonfinite_loss`).
            MemoryError: the memory does not suffice for a step.
            OSError: a checkpoint could not be written; the one before is untouched.
        """
        if self.args.should_save:
            checkpoints.clean_up(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self.resume_from = None
        self.first_step = self.first_draw = self.skipped_steps = 0
        self.train_dataset.order = self.draw_order()
        if resume_from_checkpoint:
            self.resume_from = checkpoints.find_checkpoint(resume_from_checkpoint, self.args.output_dir)
            self.read_position(self.resume_from)
        if self.swa is not None and not self.swa.snapshots(self.args.max_steps):
            raise ValueError(
                f"--swa_start {self.swa.start} --swa_every {self.swa.every}: the run ends after {self.args.max_steps} "
                f"steps, before the first snapshot; expected at most {self.args.max_steps} in sum"
            )
        with self.stop.listening(), explained():
            try:
                result = super().train(
                    resume_from_checkpoint=str(self.resume_from) if self.resume_from else None, **kwargs
                )
            except RuntimeError as error:  # in a step, `training_step` has said more already
                if not is_out_of_memory(error):
                    raise
                raise MemoryError(
                    "out of memory while batches are put together: lower --per_device_train_batch_size (now "
                    f"{self.args.per_device_train_batch_size}), --augmentation.crop_size or --dataloader_num_workers"
                ) from error
        if self.stop and self.state.global_step < self.args.max_steps:
            folder = checkpoints.checkpoint_path(self.args.output_dir, self.state.global_step)
            raise TrainingInterrupted(
                f"stopped after step {self.state.global_step} of {self.args.max_steps}; saved in {folder}; "
                "continue with the same command and --resume_from_checkpoint true",
                self.stop.signal_number or signal.SIGINT,
            )
        return result

    def read_position(self, checkpoint: Path) -> None:
        """Where the checkpoint's run stood, after making sure that it is this run."""
        checkpoints.check_same_model(checkpoint, self.unwrapped().config)
        saved = json.loads((checkpoint / checkpoints.RUN_STATE).read_text(encoding="utf-8"))
        checkpoints.check_same_data(checkpoint, saved, self.run_state())
        self.first_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        self.first_draw, self.skipped_steps = saved["draws"], saved["skipped_steps"]
        if self.ema is not None:
            self.load_ema(checkpoint)
        if self.swa is not None:
            self.swa.load(checkpoint, self.first_step)
        if (checkpoint / LOSS_FILE).is_file() and self.pixel_loss is not None:
            self.pixel_loss.load_state(load_file(checkpoint / LOSS_FILE))

    def run_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the Trainer's own state: the data position, and what was skipped."""
        order, data = self.train_dataset.described(), self.train_dataset.fingerprints()
        return {
            "draws": self.draws_done(),
            "seed": self.args.draw_seed,
            "num_samples": self.samples_per_epoch,
            **({"order": order} if order else {}),
            **({"teachers": list(self.teachers().values())} if self.distillations else {}),
            **({"data": data} if data else {}),
            "skipped_steps": self.skipped_steps,
        }

    def teachers(self) -> dict[str, str]:
        """Of self distillation: where each teacher is from, and a hash of its weights."""
        return {distillation.source: distillation.sha256 for distillation in self.distillations}

    def stop_requested(self) -> bool:
        """Whether any process was asked to stop: all must leave after the same step."""
        if self.args.world_size == 1:
            return bool(self.stop)
        asked = torch.tensor([bool(self.stop)], dtype=torch.int32, device=self.args.device)
        asked = bool(self.accelerator.gather(asked).any())
        if asked and not self.stop:
            self.stop.signal_number = signal.SIGTERM
        return asked

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer named by `--optim`, with our parameter groups."""
        if self.optimizer is None:
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if {"params", "model", "optimizer_dict"} & settings.keys():  # GaLore, APOLLO, LOMO
                raise ValueError(f"--optim: {optimizer_class.__name__} makes parameter groups of its own; not offered")
            groups = groups_of_run(model if model is not None else self.model, self.args)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler of `training.schedule`, or without one transformers'; SWA's cycles come behind it."""
        args = self.args
        if self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        if args.swa_learning_rate is not None:
            num_training_steps = max(1, args.swa_start)  # what comes after are cycles
        if args.schedule is None:
            super().create_scheduler(num_training_steps, optimizer)
        else:
            schedule, warmup_steps = parse_schedule(args.schedule), args.get_warmup_steps(num_training_steps)
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = build_scheduler(schedule, optimizer, warmup_steps, num_training_steps)
            self._created_lr_scheduler = True  # transformers' mark of a scheduler that the next `train` makes anew
        if args.swa_learning_rate is not None:
            add_cycles(self.lr_scheduler, args.swa_start, args.swa_every, args.swa_learning_rate / args.learning_rate)
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Labelled pixels of all micro-batches and processes of a step: what the loss is divided by."""
        if not batch_samples:
            return None
        ignore_index = self.unwrapped().config.ignore_index
        count = torch.stack([(batch["labels"] != ignore_index).sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, or those of `training.losses` from the same logits."""
        if self.pixel_loss is None:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
            loss = outputs.loss
        else:
            config, images = self.unwrapped().config, dict(inputs)
            labels, reference_labels = images.pop("labels"), images.pop("reference_labels", None)
            outputs = model(**images, output_auxiliary_logits=config.auxiliary_loss_weight != 0)
            loss = dense_segmentation_loss(
                outputs.logits,
                outputs.auxiliary_logits or (),
                labels,
                reference_labels if getattr(config, "wants_reference_labels", False) else None,
                auxiliary_loss_weight=config.auxiliary_loss_weight,
                ignore_index=config.ignore_index,
                align_corners=config.align_corners,
                num_items_in_batch=num_items_in_batch,
                pixel_loss=self.pixel_loss,
            )
        for distillation in self.distillations:
            with self.accelerator.autocast():  # as accelerate has it around the student
                teacher_logits = distillation.teacher_logits(inputs)
            loss = loss + distillation.loss(outputs, teacher_logits, inputs["labels"], num_items_in_batch)
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # gradients are averaged over ranks; the count is over all of them
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of one micro-batch; says what to turn down when the memory does not suffice."""
        is_clip = "pixel_values_videos" in inputs
        may_detach = is_clip and not getattr(self.unwrapped().config.backbone_config, "takes_clips", False)
        shape = tuple(inputs["pixel_values_videos" if is_clip else "pixel_values"].shape)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"out of memory in step {self.state.global_step + 1} with input {shape} (batch, "
                f"{'frames, ' if is_clip else ''}channels, height, width) on {self.args.device}: lower "
                f"--per_device_train_batch_size (now {self.args.per_device_train_batch_size}; raise "
                "--gradient_accumulation_steps to match) or --augmentation.crop_size, or turn on --bf16, "
                f"--gradient_checkpointing{' or --model.config.detach_references' if may_detach else ''}"
            ) from error
        if not torch.isfinite(loss):
            self.not_finite.append(self.micro_batches_done)
            loss = torch.zeros_like(loss)  # for the log's mean; the gradients are dropped below
        self.micro_batches_done += 1
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The Trainer's gradient norm, called once before each optimizer step; drops gradients that are not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        # With a gradient scaler (fp16) infinite gradients are expected: it skips the step itself and lowers its scale.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        bad = bool(self.not_finite) or (not scaled and not torch.isfinite(torch.as_tensor(norm)))
        if self.args.world_size > 1:
            flag = torch.tensor([bad], dtype=torch.int32, device=self.args.device)
            bad = bool(self.accelerator.gather(flag).any())
        if not bad:
            self.skipped_in_a_row = 0
            return norm
        self.skip_step()
        return 0.0

    def skip_step(self) -> None:
        """Raise for a step without finite loss and gradients, or drop and count it (`on_nonfinite_loss`)."""
        step, where = self.state.global_step + 1, [self.sample_names(m) for m in self.not_finite]
        what = "the loss" if where else "the gradient"
        if not where:
            where = [self.sample_names(m) for m in range(self.micro_batches_done)]
        message = f"{what} of step {step} is not finite; its samples on process {self.args.process_index}: "
        message += "; ".join(where)
        self.skipped_in_a_row += 1
        if self.args.on_nonfinite_loss == "raise" or self.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
            advice = "lower --learning_rate, look at these frames, or give --on_nonfinite_loss skip"
            if self.args.on_nonfinite_loss == "skip":
                advice = f"and so were the {MOST_SKIPPED_IN_A_ROW} before: lower --learning_rate"
            raise FloatingPointError(f"{message}; {advice}; the last checkpoint is untouched")
        self.skipped_steps += 1
        logger.warning(f"{message}; step skipped ({self.skipped_steps} in this run)")
        self.optimizer.zero_grad()  # no gradients: the optimizer's step leaves weights and moments as they are

    # --- evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """mIoU and video consistency of the (averaged) weights on the evaluation videos, which the processes share."""
        evaluated = EvalData(*(eval_dataset or self.eval_dataset))
        start = time.time()
        training = self.unwrapped().training
        # A loader draws a seed from torch's global generator; without the fork evaluating would change the training.
        with torch.random.fork_rng(devices=[]), self.averaged_weights() as model:
            take_from_first(model)  # every process has BatchNorm statistics of its own; the first one's are saved
            results = evaluate_model(
                VideoSegmenter(model, self.processing_class),
                **evaluated._asdict(),
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
            )
            model.train(training)
        wanted = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8", "vc16")
        metrics = {f"{metric_key_prefix}_{key}": results[key] for key in wanted if results[key] is not None}
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=results["frames"]))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def averaged_weights(self) -> Iterator[Any]:
        """Within this context: the model to evaluate and save, with the averaged weights if there are any, and whole.

        It is the model itself; of a sharded one (FSDP) a copy, for which all processes must come here.
        """
        model, average = self.unwrapped(), self.average()
        if is_sharded(model):
            yield whole_copy(model) if average is None else average.module
        elif average is None:
            yield model
        else:
            with average.swapped_into(model):
                yield model

    def average(self) -> WeightAverage | None:
        """The average as it is evaluated and saved, if there is one; all processes must come here.

        SWA's BatchNorm statistics are counted anew after each snapshot, from the run's first training samples.
        """
        if self.swa is None or not self.swa.n_averaged:
            return self.ema
        if self.swa.recalibrated != int(self.swa.n_averaged) and has_batchnorm(self.swa.module):
            order = dataclasses.replace(self.draw_order(), start=0)
            number = math.ceil(self.args.swa_batchnorm_batches / self.args.world_size)
            batches = first_batches(self.train_dataset, order, number, self.args.dataloader_num_workers)
            recalibrate_batchnorm(self.swa.module, batches)
            self.swa.recalibrated = int(self.swa.n_averaged)
        return self.swa

    def unwrapped(self) -> Any:
        """The model itself, without the wrappers of distributed training or compilation."""
        return self.accelerator.unwrap_model(self.model)

    # --- checkpoints: model, optimizer, scheduler, scaler, RNG and trainer state are the Trainer's; we add two files

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self.staging is None else str(self.staging)

    def _save_checkpoint(self, model, trial) -> None:
        """The Trainer's checkpoint and our files; it gets its name when all of it is on the disk."""
        folder = checkpoints.checkpoint_path(self.args.output_dir, self.state.global_step)
        if self.state.best_global_step:
            best = checkpoints.checkpoint_path(self.args.output_dir, self.state.best_global_step)
            if best == folder or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.staging = checkpoints.partial_path(folder)
        try:
            needed = checkpoints.checkpoint_bytes(self.unwrapped(), self.optimizer, self.ema or self.swa)
            with failing_together():
                # A block of its own: a process that fails between two exchanges of sharded weights hangs the others.
                if self.args.should_save:
                    Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
                    if shutil.disk_usage(self.args.output_dir).free < needed:
                        raise full_disk_error(folder, needed)
            with failing_together():
                self.write_checkpoint(folder, model, trial, needed)
            with failing_together():
                if self.args.should_save:  # now that all have written their part
                    checkpoints.write_manifest(self.staging / folder.name)
                    checkpoints.commit_folder(self.staging / folder.name, folder)
        finally:
            if self.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            checkpoints.rotate(self.args.output_dir, self.args.save_total_limit, self.state.best_global_step)

    def write_checkpoint(self, folder: Path, model, trial, needed: int) -> None:
        """Write this process's part of a checkpoint, of about `needed` bytes in all, into the staging folder."""
        assert self.staging is not None
        partial = self.staging / folder.name
        partial.mkdir(parents=True, exist_ok=True)
        try:
            # The Trainer looks for the best checkpoint where it writes this one; `_save_checkpoint` knows better.
            best_step, self.state.best_global_step = self.state.best_global_step, None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.state.best_global_step = best_step
            if self.args.should_save:
                (partial / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
                for average, file in ((self.ema, EMA_FILE), (self.swa, SWA_FILE)):
                    if average is not None and average.n_averaged:
                        tensors = {name: tensor.contiguous() for name, tensor in average.state_dict().items()}
                        save_file(tensors, partial / file)
                if self.pixel_loss is not None and (counted := self.pixel_loss.state()):
                    save_file(counted, partial / LOSS_FILE)
                write_json(partial / checkpoints.RUN_STATE, self.run_state())
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch.save does not say why it could not write.
            if is_full_disk(error) or shutil.disk_usage(partial).free < needed:
                shutil.rmtree(self.staging, ignore_errors=True)
                raise full_disk_error(folder, needed) from error
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None  # the Trainer calls this only when there is one
        best = Path(self.state.best_model_checkpoint)
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self.load_weights(best)
        if self.ema is not None:
            self.load_ema(best)
        if self.swa is not None:
            assert self.state.best_global_step is not None  # as above
            self.swa.load(best, self.state.best_global_step)
            if not self.swa.n_averaged:
                logger.warning(f"{best}, the best checkpoint, has no snapshot yet: the run ends with its own weights")

    def load_weights(self, checkpoint: Path) -> None:
        """Take the weights from a checkpoint.

        transformers writes some tensors, Swin's among them, under the names of its older versions. Its Trainer reads
        them back by their names in the file, finds no such tensors in the model, and goes on without them.
        """
        model = self.unwrapped()
        model.load_state_dict(load_strictly(type(model), checkpoint).state_dict())

    def load_ema(self, checkpoint: Path) -> None:
        """Take the average from a checkpoint."""
        assert self.ema is not None
        path = checkpoint / EMA_FILE
        if not path.is_file():
            decay = self.args.ema_decay
            raise FileNotFoundError(f"{path} is missing, but --ema_decay {decay} wants the averaged weights")
        self.ema.load_state_dict(load_file(path))  # to the CPU: safetensors does not know accelerate's device "cpu:0"
