"""transformers' Trainer for dense labels: exact data order, streaming evaluation, averaged weights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import Trainer, TrainerCallback, TrainerState, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, speed_metrics

from vss_hf.inference.evaluation import evaluate_model
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.losses import dense_segmentation_loss

from .arguments import VSSTrainingArguments
from .draws import DrawOrder, EndlessSampler, TrainingStream
from .ema import EMA
from .optimizer import parameter_groups


EMA_FILE = "ema.safetensors"
STREAM_FILE = "data_position_{rank}.pt"


class AfterStep(TrainerCallback):
    """Follows the weights with the average, and tells the epoch as passes over the data."""

    def __init__(self, trainer: "VSSTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.ema is not None:
            self.trainer.ema.update_parameters(self.trainer.unwrapped())
        if self.trainer.samples_per_epoch:
            state.epoch = state.global_step * self.trainer.global_batch_size / self.trainer.samples_per_epoch


class VSSTrainer(Trainer):
    """Trains a model of this package.

    What differs from transformers.Trainer: training data is an endless, seekable sequence of draws (draws.py), so that
    resuming replays nothing; the loss is the mean over all labelled pixels of a step; evaluation counts a confusion
    matrix over whole videos instead of gathering logits; backbone and heads have their own learning rates; with
    `ema_decay` an average of the weights is kept, evaluated and saved.

    Args:
        model: the model.
        args: the run's settings.
        train_dataset: `TrainingDraws` or `TrainingStream`.
        eval_data: (data set folder, split) to evaluate on, or None.
        processing_class: the image processor.
        class_weights: (num_labels,) weights of the loss, or None.
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
        eval_data: tuple[str | Path, str] | None = None,
        processing_class: Any = None,
        class_weights: torch.Tensor | None = None,
    ):
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=cast(Any, eval_data),  # for our own `evaluate`
            processing_class=processing_class,
            data_collator=default_data_collator,
        )
        self.class_weights = None if class_weights is None else class_weights.to(args.device)
        self.ema = EMA(model, args.ema_decay) if args.ema_decay else None
        self.model_accepts_loss_kwargs = True  # compute_loss divides by a step's pixels; not by its micro-batches too
        streaming = isinstance(train_dataset, TrainingStream)
        self.samples_per_epoch = len(train_dataset.stream.dataset if streaming else train_dataset or ())
        self.resume_from: Path | None = None
        self.train_loader: DataLoader | StatefulDataLoader | None = None
        self.add_callback(AfterStep(self))

    # --- data

    @property
    def global_batch_size(self) -> int:
        """Samples per optimisation step over all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def get_train_dataloader(self) -> DataLoader | StatefulDataLoader:
        """An endless loader that begins where the run stopped. Not handed to accelerate, which would replay it."""
        done = self.steps_done()
        if done >= self.args.max_steps:
            # Nothing is left to do; with data the Trainer would take one step more.
            return DataLoader(TensorDataset(torch.empty(0)))
        # Its own generator: drawing from torch's global one would change the model's random numbers after a resume.
        generator = torch.Generator().manual_seed(self.args.draw_seed)
        common: dict[str, Any] = dict(
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=generator,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        if isinstance(self.train_dataset, TrainingStream):
            self.train_loader = StatefulDataLoader(self.train_dataset, **common)
            if self.resume_from is not None:
                position = self.resume_from / STREAM_FILE.format(rank=self.args.process_index)
                self.train_loader.load_state_dict(torch.load(position, weights_only=True))
            return self.train_loader
        order = DrawOrder(
            seed=self.args.draw_seed,
            batch_size=self.args.train_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            start=done * self.global_batch_size,
        )
        self.train_loader = DataLoader(
            self.train_dataset, sampler=EndlessSampler(len(self.train_dataset), order), **common
        )
        return self.train_loader

    def steps_done(self) -> int:
        """Optimisation steps of the checkpoint that is being resumed; 0 for a new run."""
        if self.resume_from is None:
            return 0
        return TrainerState.load_from_json(str(self.resume_from / "trainer_state.json")).global_step

    # --- optimisation

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train, or continue from a checkpoint folder (`True`: the newest in `output_dir`)."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise FileNotFoundError(f"--resume_from_checkpoint: no checkpoint in {self.args.output_dir}")
        self.resume_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self.resume_from is not None and not (self.resume_from / TRAINER_STATE_NAME).is_file():
            raise FileNotFoundError(
                f"--resume_from_checkpoint {self.resume_from}: no {TRAINER_STATE_NAME} there; "
                f"expected a folder such as {Path(self.args.output_dir) / PREFIX_CHECKPOINT_DIR}-500"
            )
        if self.resume_from is not None and self.ema is not None:
            self.load_ema(self.resume_from)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            # A stream's loader keeps its worker processes; garbage collection would wait for them for seconds.
            self.train_loader = self.callback_handler.train_dataloader = None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer named by `--optim`, with our parameter groups."""
        if self.optimizer is None:
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                model if model is not None else self.model,
                self.args.learning_rate,
                self.args.backbone_learning_rate,
                self.args.weight_decay,
            )
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

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
        """The model's own loss, or the same with class weights."""
        labels = inputs["labels"]
        if self.class_weights is None:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
            loss = outputs.loss
        else:
            outputs = model(**{k: v for k, v in inputs.items() if k != "labels"}, output_auxiliary_logits=True)
            config = self.unwrapped().config
            loss = dense_segmentation_loss(
                outputs.logits,
                outputs.auxiliary_logits,
                labels,
                auxiliary_loss_weight=config.auxiliary_loss_weight,
                ignore_index=config.ignore_index,
                align_corners=config.align_corners,
                class_weights=self.class_weights,
                num_items_in_batch=num_items_in_batch,
            )
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # gradients are averaged over ranks; the count is over all of them
        return (loss, outputs) if return_outputs else loss

    # --- evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """mIoU and video consistency of the (averaged) weights on the evaluation videos."""
        root, split = eval_dataset or self.eval_dataset
        model = self.unwrapped()
        start = time.time()
        training = model.training
        # A loader draws a seed from torch's global generator; without the fork evaluating would change the training.
        with self.averaged_weights(), torch.random.fork_rng(devices=[]):
            results = evaluate_model(
                VideoSegmenter(model, self.processing_class),
                root,
                split,
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
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the model carries the averaged weights, if there are any."""
        if self.ema is None:
            yield
        else:
            with self.ema.swapped_into(self.unwrapped()):
                yield

    def unwrapped(self) -> Any:
        """The model itself, without the wrappers of distributed training or compilation."""
        return self.accelerator.unwrap_model(self.model)

    # --- checkpoints: model, optimizer, scheduler, scaler, RNG and trainer state are the Trainer's; we add two

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.ema is not None and self.args.should_save:
            save_file({name: tensor.contiguous() for name, tensor in self.ema.state_dict().items()}, folder / EMA_FILE)
        if isinstance(self.train_loader, StatefulDataLoader):
            torch.save(self.train_loader.state_dict(), folder / STREAM_FILE.format(rank=self.args.process_index))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema is not None:
            assert self.state.best_model_checkpoint is not None  # the Trainer calls this only when there is one
            self.load_ema(Path(self.state.best_model_checkpoint))

    def load_ema(self, checkpoint: Path) -> None:
        """Take the average from a checkpoint."""
        assert self.ema is not None
        path = checkpoint / EMA_FILE
        if not path.is_file():
            decay = self.args.ema_decay
            raise FileNotFoundError(f"{path} is missing, but --ema_decay {decay} wants the averaged weights")
        self.ema.load_state_dict(load_file(path, device=str(self.args.device)))
