"""The Trainer's pushes to the Hub: a model folder as `vss-hf push` sends it, instead of the bare output folder.

`--push_to_hub true` makes the repository before training (private, unless `--hub_private_repo false`) and pushes the
model folder at the end. `--hub_strategy` says what goes up on the way, at each save: `end` nothing; `every_save` the
model as it is now; `checkpoint` also the checkpoint, as `last-checkpoint`; `all_checkpoints` all of them, by their
names. A push on the way that fails is logged and does not stop the training.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from vss_hf.files import write_json, write_text
from vss_hf.hub_cards import PushError, PushResult, prepare_repo, push_folder, write_card
from vss_hf.inference.processes import failing_together, largest

from .checkpoints import MANIFEST, replacing_files
from .recipe_yaml import to_yaml


logger = logging.get_logger(__name__)

PUSHING = "pushing-{step}"  # what a push on the way sends, beside the checkpoints; removed when it is done


class PushesModelFolder:
    """What a Trainer does with the Hub; comes before `transformers.Trainer` in the bases of its class.

    Args of the run that count: push_to_hub, hub_model_id, hub_strategy, hub_token, hub_private_repo, hub_always_push,
    hub_revision.
    """

    # Of the Trainer.
    args: Any
    state: Any
    control: Any
    callback_handler: Any
    processing_class: Any
    hub_model_id: str | None
    push_in_progress: Any
    averaged_weights: Callable[[], Any]
    is_world_process_zero: Callable[[], bool]
    _finish_current_push: Callable[[], None]

    recipe: dict[str, Any] | None = None  # for the training_recipe.yaml of pushes on the way

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make sure that the repository and the branch are there and may be written to.

        Args:
            token: default: `--hub_token`, then the one of `hf auth login` or HF_TOKEN.
            private: default: `--hub_private_repo`, and true where that is empty.

        Raises:
            PushError: they are not, or the repository is public and was to be private.
        """
        if not self.is_world_process_zero():
            return
        for left in Path(self.args.output_dir).glob(PUSHING.format(step="*")):
            shutil.rmtree(left)  # of a run that was killed
        self.hub_model_id = prepare_repo(
            self.args.hub_model_id or Path(self.args.output_dir).resolve().name,
            private=self.is_private(private),
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
        )
        self.push_in_progress = None

    def is_private(self, private: bool | None = None) -> bool:
        """Whether a new repository is private: unless somebody said otherwise."""
        return (self.args.hub_private_repo if private is None else private) is not False

    # --- at the end, or when asked for

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card_options: Any,
    ) -> PushResult | Future | None:
        """Save the model as it is now into `<output_dir>/model` and push that folder.

        Args:
            commit_message: of the commit.
            blocking: wait for the end of the push.
            token: default: `--hub_token`, then the one of `hf auth login` or HF_TOKEN.
            revision: branch; default: `--hub_revision`, then the main one.
            private: whether a new repository is private; default: yes, unless `--hub_private_repo false`.
            card_options: for the model card, as in `vss_hf.hub_cards.render_card`: license, title ...

        Returns:
            What was sent; with `blocking=False` a Future of it; None in all processes but the first.

        Raises:
            PushError: the folder is saved, but the push did not succeed.
        """
        folder = Path(self.args.output_dir) / "model"
        self.save_model_folder(folder)
        if not self.is_world_process_zero():
            return None  # without waiting: a long upload would outlast the patience of a process group
        if self.hub_model_id is None:  # a run without --push_to_hub
            self.init_hf_repo(token, private)
        if card_options:
            write_card(folder, repo_id=self.hub_model_id, **card_options)
        settings = {"token": token, "revision": revision, "private": private, "message": commit_message}
        job = self.push_model_folder(folder, **settings)
        return job.result() if blocking else job

    def push_model_folder(
        self,
        folder: Path,
        *,
        message: str | None = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Future:
        """Begin to push a model folder that is complete, in the first process only; arguments as in `push_to_hub`."""
        assert self.hub_model_id is not None  # `init_hf_repo` was here before
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        return self.later(
            push_folder,
            folder,
            self.hub_model_id,
            private=self.is_private(private),
            revision=revision or self.args.hub_revision,
            commit_message=message,
            token=token or self.args.hub_token,
        )

    def save_model_folder(self, folder: Path) -> None:
        """Save weights (averaged, if there is an average), processor and recipe; all processes must come here."""
        with self.averaged_weights() as model, failing_together():
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                with replacing_files(folder) as partial:
                    model.save_pretrained(partial)
                    self.processing_class.save_pretrained(partial)
                    if self.recipe is not None:
                        write_text(partial / "training_recipe.yaml", to_yaml(self.recipe))

    # --- on the way

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """After a save: push the model as it is now, without keeping the training waiting."""
        if getattr(self, "staging", None) is not None or self.args.hub_strategy == HubStrategy.END:
            return  # "staging": the checkpoint is not whole yet, and this is called again
        busy = getattr(self, "push_in_progress", None) is not None and not self.push_in_progress.is_done()
        if largest(float(busy and not self.args.hub_always_push)):
            return  # the first process is still busy with the last one, and all have to know
        folder = Path(self.args.output_dir) / PUSHING.format(step=self.state.global_step)
        self.save_model_folder(folder)
        if not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        files = self.held(Path(checkpoint_folder), folder)
        job = self.later(self.push_on_the_way, folder, files, self.state.global_step)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress(cast(Any, [job]))

    def held(self, checkpoint: Path, folder: Path) -> dict[str, Path]:
        """The checkpoint's files by their path in the repository; second names, so that none is deleted too early."""
        if self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            return {}
        name = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        files = {}
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file() and path.name != TRAINING_ARGS_NAME:  # a pickle, with the token in it
                second = folder.with_name(f"{folder.name}-checkpoint") / path.relative_to(checkpoint)
                second.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, second)
                files[f"{name}/{path.relative_to(checkpoint).as_posix()}"] = second
        without_output_dir(folder.with_name(f"{folder.name}-checkpoint"))
        return files

    def push_on_the_way(self, folder: Path, also: dict[str, Path], step: int) -> PushResult | None:
        """Push a folder that was made for it, and remove it; a failure is logged."""
        assert self.hub_model_id is not None
        try:
            return push_folder(
                folder,
                self.hub_model_id,
                private=self.is_private(),
                revision=self.args.hub_revision,
                commit_message=f"Training in progress, step {step}",
                token=self.args.hub_token,
                also=also,
            )
        except Exception as error:  # whatever it is: nobody would ask the Future for it, and the training goes on
            what = error.what if isinstance(error, PushError) else f"{type(error).__name__}: {error}"
            logger.warning(f"step {step} was not pushed to {self.hub_model_id}, the training goes on: {what}")
            return None
        finally:
            for used in (folder, folder.with_name(f"{folder.name}-checkpoint")):
                shutil.rmtree(used, ignore_errors=True)

    def later(self, function: Callable, *arguments: Any, **settings: Any) -> Future:
        """Call a function beside the training, after those that were asked for before."""
        if not hasattr(self, "pusher"):
            self.pusher = ThreadPoolExecutor(1, thread_name_prefix="push")
        return self.pusher.submit(function, *arguments, **settings)


def without_output_dir(checkpoint: Path) -> None:
    """Reduce the folder of the best checkpoint, which the Trainer's state names, to its name; files are made anew."""
    path = checkpoint / TRAINER_STATE_NAME
    state = json.loads(path.read_text(encoding="utf-8"))
    if not state.get("best_model_checkpoint"):
        return
    state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    write_json(path, state)
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path.name] = path.stat().st_size
    write_json(checkpoint / MANIFEST, manifest)


def link_or_copy(path: Path, second: Path) -> None:
    """A second name for a file, or a copy where the disk knows no such thing."""
    try:
        os.link(path, second)
    except OSError:
        shutil.copy2(path, second)
