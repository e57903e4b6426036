"""Checkpoint folders that are whole or not there.

A checkpoint is written into a hidden neighbour (`.checkpoint-500.part`) and renamed when everything is on the disk;
the last file in it lists all others with their sizes. So a process that is killed at any moment leaves either the new
checkpoint or none, and a folder that lost files later (an aborted copy, a half-done deletion) is told from a whole
one.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from vss_hf.files import full_disk_error, is_full_disk, write_json


logger = logging.get_logger(__name__)

MANIFEST = "checkpoint_files.json"
RUN_STATE = "run_state.json"
# What transformers writes into every part of a configuration: how it is run and where it came from. The class list of
# a part means nothing; what kind it is does.
OF_ANY_MODEL = {*PreTrainedConfig().to_dict(), *PreTrainedConfig.__dataclass_fields__} - {"model_type"}
LEFT_BEHIND = re.compile(rf"\.(?P<folder>{PREFIX_CHECKPOINT_DIR}-\d+|model)\.(?P<ending>part|old|removed)")


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimisation steps."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


# --- writing


def partial_path(folder: Path) -> Path:
    """Where a folder is written before it gets its name."""
    return folder.with_name(f".{folder.name}.part")


def commit_folder(partial: Path, folder: Path) -> None:
    """Put a folder that was written as `partial` on the disk and give it its name, which another one may have."""
    for path in [*sorted(partial.rglob("*")), partial]:
        flush(path)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)  # two renames, as a folder with files in it cannot be replaced; see `clean_up`
    os.rename(partial, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yields an empty neighbour of a model folder; what is saved there replaces the files of the same names.

    Until everything is saved the folder is as it was. Weights in files of other names (another number of shards) go.

    Raises:
        OSError: the disk is full.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        new = sorted(partial.iterdir())
        for path in new:
            flush(path)
        for path in new:
            os.replace(path, folder / path.name)
        for stale in set(folder.glob("model*.safetensors*")) - {folder / path.name for path in new}:
            stale.unlink()
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_full_disk(error):
            shutil.rmtree(partial)
            raise full_disk_error(folder) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """List all files of a checkpoint; the last thing to be written into it."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    write_json(folder / MANIFEST, {"written_ns": time.time_ns(), "files": files})


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may get there before the contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean_up(output_dir: str | Path) -> None:
    """Remove what killed runs left, and give back its name to a folder that was being replaced.

    Only what this module makes: an output folder may be one in which other hidden folders lie.
    """
    for left in [path for path in Path(output_dir).glob(".*") if path.is_dir()]:
        found = LEFT_BEHIND.fullmatch(left.name)
        if found is None:
            continue
        folder = left.with_name(found["folder"])
        if found["ending"] == "old" and not folder.exists():
            os.rename(left, folder)
        else:
            shutil.rmtree(left)


def rotate(output_dir: str | Path, limit: int | None, best_step: int | None) -> None:
    """Remove the oldest checkpoints beyond `limit`, but neither the newest nor the best.

    transformers' own rotation goes by the folders' times, and a removal that was cut short makes a folder look new.
    """
    folders = checkpoints_by_age(output_dir)
    if not limit or not folders:
        return
    kept = {folders[-1], checkpoint_path(output_dir, best_step or -1)}
    excess = len(folders) - max(limit, len(kept & set(folders)))
    for folder in [folder for folder in folders if folder not in kept][: max(0, excess)]:
        removed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(folder, removed)  # so that it is gone at once, or not at all
        shutil.rmtree(removed)


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None, ema: nn.Module | None) -> int:
    """About how much disk a checkpoint takes: model, optimizer state and average."""
    modules = [module for module in (model, ema) if module is not None]
    total = sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    if optimizer is not None:
        states = [value for state in optimizer.state.values() for value in state.values()]
        total += sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    return total


# --- finding


def damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being whole; None: nothing."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        files, _ = dict(listed["files"]), int(listed["written_ns"])
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
    if TRAINER_STATE_NAME not in files:
        return f"{TRAINER_STATE_NAME} is missing"
    return None


def checkpoints_by_age(output_dir: str | Path) -> list[Path]:
    """All checkpoints of a run, the one that was written last at the end; damaged ones come first."""
    named = [p for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.split("-", 1)[1].isdigit()]
    return [folder for _, folder in sorted((written_at(folder), folder) for folder in named if folder.is_dir())]


def written_at(folder: Path) -> int:
    """When a checkpoint was finished, in nanoseconds; 0 for a damaged one. (A folder's own time can change later.)"""
    if damage(folder):
        return 0
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["written_ns"]


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The whole checkpoint that was written last; damaged ones are passed over with a warning."""
    whole = None
    for folder in checkpoints_by_age(output_dir):
        problem = damage(folder)
        if problem:
            logger.warning(f"{folder} is passed over: {problem}")
        else:
            whole = folder
    return whole


def find_checkpoint(wanted: str | bool, output_dir: str | Path) -> Path:
    """The checkpoint to continue from.

    Args:
        wanted: a folder; True (or "true"): the newest whole one in `output_dir`.
        output_dir: of the run.

    Raises:
        FileNotFoundError: there is none, or the given one is not whole.
    """
    if wanted is True or str(wanted).lower() == "true":
        newest = newest_checkpoint(output_dir)
        if newest is None:
            raise FileNotFoundError(f"--resume_from_checkpoint: no checkpoint in {output_dir}")
        return newest
    folder = Path(str(wanted))
    problem = damage(folder)
    if problem:
        example = checkpoint_path(output_dir, 500)
        raise FileNotFoundError(
            f"--resume_from_checkpoint {folder}: not a whole checkpoint ({problem}); "
            f"expected a folder such as {example}"
        )
    return folder


# --- does it belong to this run?


def check_same_model(folder: Path, config: Any) -> None:
    """Raise when the checkpoint holds another architecture or class list than the run's model."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    difference = first_difference(saved, config)
    if difference is not None:
        field, theirs, ours = difference
        raise ValueError(
            f"--resume_from_checkpoint {folder}: {field} is {shortened(theirs)} there and "
            f"{shortened(ours)} in this run; continue with the recipe that it was made with, or start "
            f"a new run from its weights with --model.init_from {folder}"
        )


def first_difference(saved: dict[str, Any], config: Any) -> tuple[str, Any, Any] | None:
    """The first field in which a stored configuration describes another architecture or class list than `config`.

    Args:
        saved: what a config.json holds.
        config: a model's configuration.

    Returns:
        (field, value in `saved`, value in `config`), or None.
    """
    kind = type(config)
    if saved.get("model_type") != kind.model_type:
        return "model_type", saved.get("model_type"), kind.model_type
    ours, theirs = config.to_dict(), kind.from_dict(saved).to_dict()
    # What the architecture itself defines: the rest says how the model is run or where it came from.
    own = set(kind.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    return first_difference_of_fields(theirs, ours, ["id2label", *sorted(own)])


def first_difference_of_fields(
    theirs: dict[str, Any], ours: dict[str, Any], fields: Iterable[str]
) -> tuple[str, Any, Any] | None:
    """The first of some fields in which two configurations differ; of a part such as the backbone the field in it."""
    for field in fields:
        was, now = theirs.get(field), ours.get(field)
        if isinstance(was, dict) and isinstance(now, dict) and "model_type" in now:
            inner = first_difference_of_fields(was, now, sorted((was.keys() | now.keys()) - OF_ANY_MODEL))
            if inner is not None:
                return f"{field}.{inner[0]}", *inner[1:]
        elif was != now:
            return field, was, now
    return None


def shortened(value: Any, longest: int = 120) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def check_same_data(folder: Path, saved: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise when the order of the training samples is not the one that the checkpoint belongs to."""
    what = {
        "seed": "--data_seed (or --seed)",
        "num_samples": "the number of training samples in a pass",
        "teachers": "the SHA-256 of the weights of self distillation's teachers",
        "order": "what decides the order of the samples (sources, weights, sampling; with Parquet also readers)",
    }
    for field, name in what.items():
        was, now = saved.get(field, ""), ours.get(field, "")  # checkpoints of one plain source have no "order"
        if was != now:
            raise ValueError(
                f"--resume_from_checkpoint {folder}: {name} was {was} and is {now} now, so the run "
                f"cannot go on where it stopped; set it back, or start a new run with --model.init_from {folder}"
            )
    for source, number in ours.get("data", {}).items():
        if saved.get("data", {}).get(source, number) != number:  # older checkpoints do not tell
            raise ValueError(
                f"--resume_from_checkpoint {folder}: the files of {source} are not those that the run was trained on; "
                "open what it was then (data on the Hub: root: owner/name@commit), or start a new run with "
                f"--model.init_from {folder}"
            )
