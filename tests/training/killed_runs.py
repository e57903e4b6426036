"""Run by test_kills.py: training runs that are killed and resumed until they are done, many in one process tree.

Importing torch and transformers takes seconds; so this process does it once, and every run is a fork of it.

    killed_runs.py ROOT FOLDER --moment random|file --kills N --streaming 0|1 --workers N --mixed 0|1 --seed N
                   --stride N

prints one line of JSON: kills, how many of them hit a checkpoint that was being written, runs that were completed, and
the runs whose end differs from the one that was never killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import torch
from killed_processes import fork, kill_at_file_operation
from safetensors.torch import load_file, save_file
from tiny import make_trainer, mixed_data, state_of, tiny_model, training_data
from torchvision.transforms import v2  # noqa: F401  (the forks shall not have to import it)

from vss_hf.training.checkpoints import damage, newest_checkpoint


STEPS = 6


def run(root: Path, folder: Path, streaming: bool, workers: int, mixed: bool) -> None:
    """One session: from the newest whole checkpoint, or from the start; its end is written beside the run."""
    trainer = make_trainer(
        root,
        folder,
        model=tiny_model(root, classifier_dropout=0.1),
        data=(mixed_data if mixed else training_data)(root, streaming=streaming),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=3,
        gradient_accumulation_steps=2,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 0.9, "lr_end": 1e-6},
        warmup_steps=2,
        **({"swa_every": 2, "swa_batchnorm_batches": 2} if mixed else {"ema_decay": 0.9}),
        weight_decay=0.01,
        dataloader_num_workers=workers,
    )
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder) is not None)
    average = trainer.average()
    tensors = {**state_of(trainer.model), **{f"average.{k}": v for k, v in state_of(average).items()}}
    for group in trainer.optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{group[0]}.{name}": value for name, value in group[1].items()})
    tensors["steps"] = torch.tensor(trainer.state.global_step)
    tensors["best"] = torch.tensor(trainer.state.best_metric or -1.0, dtype=torch.float64)
    save_file(tensors, folder / "end.part")
    os.replace(folder / "end.part", folder / "end.safetensors")


def ended(pid: int, wait: bool) -> int | None:
    """The exit code of a fork (negative: a signal); None while it runs."""
    done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def session(arguments, folder: Path, rng: random.Random, duration: float, operation: int) -> bool:
    """One session that is killed, unless it is done before; whether it was killed."""

    def action():
        if arguments.moment == "file":
            kill_at_file_operation(folder, operation)
        run(arguments.root, folder, arguments.streaming, arguments.workers, arguments.mixed)

    pid = fork(action)
    if arguments.moment == "random":
        end = time.monotonic() + rng.uniform(0.0, duration)
        while time.monotonic() < end:
            code = ended(pid, wait=False)
            if code is not None:
                break
            time.sleep(0.002)
        else:
            os.kill(pid, signal.SIGKILL)
            code = ended(pid, wait=True)
    else:
        code = ended(pid, wait=True)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a session ended with exit code {code}")
    return code != 0


def same(folder: Path, reference: dict[str, torch.Tensor]) -> bool:
    """Whether a run ended exactly as the one that was never killed."""
    end = load_file(folder / "end.safetensors")
    whole = all(damage(path) is None for path in folder.glob("checkpoint-*"))
    return whole and end.keys() == reference.keys() and all(torch.equal(end[name], reference[name]) for name in end)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moment", choices=("random", "file"))
    parser.add_argument("--kills", type=int)
    parser.add_argument("--streaming", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--mixed", type=int, help="of two sources")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1, help="mean distance of the file operations that are tried")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)

    began = time.monotonic()
    straight = arguments.folder / "straight"
    settings = (arguments.streaming, arguments.workers, arguments.mixed)
    if ended(fork(lambda: run(arguments.root, straight, *settings)), wait=True) != 0:
        raise SystemExit("the run that is never killed failed")
    duration = time.monotonic() - began
    reference = load_file(straight / "end.safetensors")

    counts = {"kills": 0, "while_writing": 0, "completed": 0, "different": []}
    folder = arguments.folder / "killed"
    operation = 1
    while counts["kills"] < arguments.kills:
        killed = session(arguments, folder, rng, duration, operation)
        # Random moments: kill every session that is not done before. File operations: one kill in a run, then on.
        if killed:
            counts["kills"] += 1
            counts["while_writing"] += any(folder.glob(".checkpoint-*"))
            operation += rng.randint(1, 2 * arguments.stride - 1) if arguments.stride > 1 else 1
        if killed and arguments.moment == "file":
            if ended(fork(lambda: run(arguments.root, folder, *settings)), True) != 0:
                raise SystemExit("a resumed run failed")
        if not killed or arguments.moment == "file":
            counts["completed"] += 1
            if not same(folder, reference):
                counts["different"].append(counts["completed"])
            shutil.rmtree(folder)
        if not killed and arguments.moment == "file":
            break  # every file operation had its turn
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
