"""The Trainer's checkpoints: whole or not there, with the data's position and the average of the weights in them.

Model, optimizer, scheduler, scaler, RNG and trainer state are written by transformers' Trainer; beside them stand the
position in the data (RUN_STATE), the average (EMA_FILE or SWA_FILE) and what losses have counted (LOSS_FILE).
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from vss_hf.files import full_disk_error, is_full_disk, write_json
from vss_hf.inference.processes import failing_together
from vss_hf.modeling.loading import load_strictly

from . import checkpoints
from .arguments import VSSTrainingArguments
from .batchnorm import first_batches, has_batchnorm, recalibrate_batchnorm
from .distillation import Distillation
from .draws import DrawOrder
from .ema import EMA, WeightAverage
from .schedule import keeping_settings
from .sharded import is_sharded, whole_copy
from .swa import SWA, SWA_FILE


logger = logging.get_logger(__name__)

EMA_FILE = "ema.safetensors"
LOSS_FILE = "loss.safetensors"  # what losses have counted so far


class SavesWholeCheckpoints(Trainer):
    """What a Trainer does with checkpoints and averaged weights; `VSSTrainer` adds the training.

    Args of the run that count: output_dir, save_total_limit, ema_decay, swa_every, swa_batchnorm_batches.
    """

    # transformers types these more narrowly than what we give, or more widely than what comes back.
    args: VSSTrainingArguments
    model: Any
    train_dataset: Any
    accelerator: Any
    optimizer: Any

    # Of the run.
    ema: EMA | None
    swa: SWA | None
    pixel_loss: Any
    distillations: list[Distillation]
    samples_per_epoch: int
    first_step: int
    first_draw: int
    skipped_steps: int
    staging: Path | None  # where a checkpoint is being written
    draw_order: Callable[[], DrawOrder]
    draws_done: Callable[[], int]
    _push_from_checkpoint: Callable[[str], None]

    # --- the weights that are evaluated and saved

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

    # --- where the run stands

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

    # --- writing

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

    # --- reading

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        try:
            with keeping_settings(self.optimizer, self.lr_scheduler):
                super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "group" not in str(error):
                raise
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint}: the optimizer's state there is of another --optim, or of "
                f"other groups (--layer_decay, --no_decay, --backbone_modules): {error}; set them back, or start a "
                f"new run with --model.init_from {checkpoint}"
            ) from error

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
