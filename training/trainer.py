"""transformers' Trainer for dense labels: exact data order, streaming evaluation, averaged weights."""

import signal
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import speed_metrics
from transformers.utils import logging

from vss_hf.data.statistics import LabelStatistics
from vss_hf.data.workers import end_with_parent
from vss_hf.inference.processes import failing_together, take_from_first
from vss_hf.inference.segmenter import VideoSegmenter, is_out_of_memory
from vss_hf.modeling.classifier_features import classifier_features
from vss_hf.modeling.losses import dense_segmentation_loss
from vss_hf.scoring.evaluation import evaluate_model

from . import checkpoints
from .arguments import VSSTrainingArguments
from .car import regularisation
from .distillation import Distillation
from .draws import DrawOrder, EndlessSampler, TrainingStream
from .ema import EMA
from .eval_reports import log_picture, scores_to_log, write_evaluation
from .faults import explained
from .hub import PushesModelFolder
from .interruption import TrainingInterrupted, stop_request
from .losses import CAR, LossData, SelfDistillation, build_losses, is_per_pixel, parse_losses, query_class_bias
from .optimizer import groups_of_run
from .progress import RunProgress, without_bars_of_transformers
from .saving import SavesWholeCheckpoints
from .schedule import build_scheduler, parse_schedule
from .sharded import check_fsdp
from .sources import EvalData
from .swa import SWA, add_cycles
from .sync_batchnorm import with_synchronised_batchnorm


logger = logging.get_logger(__name__)

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


class VSSTrainer(PushesModelFolder, SavesWholeCheckpoints):
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
        class_statistics: of the training data, for the mIoU of head, medium and tail; None: of what is evaluated on.
    """

    eval_dataset: Any  # transformers types it more narrowly than what we give

    def __init__(
        self,
        model: Any,
        args: VSSTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_data: tuple | None = None,
        processing_class: Any = None,
        class_pixels: np.ndarray | None = None,
        class_statistics: LabelStatistics | None = None,
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
            Distillation(loss.teacher, config, args.device, loss.weight, loss.temperature, processing_class)
            for loss in losses
            if isinstance(loss, SelfDistillation)
        ]
        self.regularisations = [loss for loss in losses if isinstance(loss, CAR)]
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
        self.class_statistics = class_statistics
        self.eval_results: dict[str, Any] = {}  # of the last evaluation, with all that it says of single classes
        self.add_callback(AroundStep(self))
        self.progress = RunProgress(self)
        self.pop_callback(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)  # it shows the same
        self.add_callback(self.progress)

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
        with self.stop.listening(), explained(), without_bars_of_transformers(), closing(self.progress):
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
        """The loss of the heads, and what `training.losses` adds to it."""
        config = self.unwrapped().config
        with classifier_features(self.unwrapped()) if self.regularisations else nullcontext([]) as features:
            loss, outputs = self.loss_of_heads(model, inputs, num_items_in_batch)
        for entry in self.regularisations:
            loss = loss + regularisation(entry, features[0], inputs["labels"], config, num_items_in_batch)
        for distillation in self.distillations:
            with self.accelerator.autocast():  # as accelerate has it around the student
                teacher_logits = distillation.teacher_logits(inputs)
            loss = loss + distillation.loss(outputs, teacher_logits, inputs["labels"], num_items_in_batch)
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # gradients are averaged over ranks; the count is over all of them
        return (loss, outputs) if return_outputs else loss

    def loss_of_heads(self, model, inputs, num_items_in_batch) -> tuple[torch.Tensor, Any]:
        """The model's own loss, or those of `training.losses` from the same logits; and the model's outputs."""
        if self.pixel_loss is None:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
            return outputs.loss, outputs
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
        features = outputs.get("regularised_features")  # of models that have a further loss of their own
        if features is not None:
            loss = loss + self.unwrapped().regularisation_loss(features, labels, num_items_in_batch)
        return loss, outputs

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
        step, picture = self.state.global_step, None
        start = time.time()
        training = self.unwrapped().training
        # A loader draws a seed from torch's global generator; without the fork evaluating would change the training.
        with torch.random.fork_rng(devices=[]), self.averaged_weights() as model:
            take_from_first(model)  # every process has BatchNorm statistics of its own; the first one's are saved
            segmenter = VideoSegmenter(model, self.processing_class)
            results = evaluate_model(
                segmenter,
                **evaluated._asdict(),
                training=self.class_statistics,
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
                progress=self.progress.frames,
            )
            metrics = scores_to_log(results, metric_key_prefix)
            metrics.update(speed_metrics(metric_key_prefix, start, num_samples=results["frames"]))
            with failing_together():
                if self.args.should_save:
                    picture = write_evaluation(self.args, step, results, segmenter, evaluated)
            model.train(training)
        self.eval_results = results
        self.log(metrics)
        if picture is not None and self.is_world_process_zero():
            log_picture(picture, step, self.callback_handler.callbacks)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
