"""Pseudo labelling that is killed at file operations and goes on, alone and by several processes; prints JSON.

    python killed_pseudo_labels.py ROOT FOLDER STRIDE

Everything runs in forks of this process, which saves importing torch each time.
"""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from colour_model import files_of, segmenter

from vss_hf.inference.processes import joined_processes
from vss_hf.inference.pseudo_labels import pseudo_label
from vss_hf.inference.pseudo_labels_filters import PseudoLabelSettings


SETTINGS = PseudoLabelSettings(class_balanced=0.5, balance_every=2, temporal_window=1, min_labelled=0.2)


def label(root: Path, out: Path) -> None:
    """The whole work."""
    pseudo_label(segmenter(), root, out, split="test", settings=SETTINGS, batch_size=2)


def kill_at_file_operation(folder: Path, number: int) -> None:
    """This process ends itself, as SIGKILL would, before its `number`-th change of a file below `folder`."""
    left = [number]

    def hook(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        changes = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")
        if not writes and event not in changes:
            return
        if event in ("os.remove", "os.rmdir") or any(str(folder) in str(argument) for argument in arguments[:2]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fork(action: Callable[[], None]) -> int:
    """Do something in a fork; returns its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """The exit code of a fork (negative: a signal)."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def together(root: Path, out: Path, world: int, kill_first_at: int | None = None) -> list[int]:
    """The whole work by several processes, of which one may be killed; all exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if kill_first_at is not None and rank == 0:
            kill_at_file_operation(out, kill_first_at)
        with joined_processes("cpu"):
            label(root, out)

    pids = [fork(lambda rank=rank: one(rank)) for rank in range(world)]
    return [wait(pid) for pid in pids]


def main() -> None:
    root, folder, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    found = {"codes": [wait(fork(lambda: label(root, folder / "straight")))], "kills": 0, "different": []}
    reference = files_of(folder / "straight")

    def compare(out: Path, name: str) -> None:
        if files_of(out) != reference or (out / ".pseudo_labels").exists():
            found["different"].append(name)
        shutil.rmtree(out)

    out, operation = folder / "killed", 1
    while True:

        def killed_run(number=operation):
            kill_at_file_operation(out, number)
            label(root, out)

        code = wait(fork(killed_run))
        if code == -signal.SIGKILL:
            found["kills"] += 1
            code = wait(fork(lambda: label(root, out)))
            found["codes"].append(code)
            compare(out, f"killed at {operation}")
            operation += stride
            continue
        found["codes"].append(code)
        break
    shutil.rmtree(out)

    found["codes"] += together(root, out, 2)
    compare(out, "two processes")
    codes = together(root, out, 2, kill_first_at=operation // 3)
    found["killed_together"] = codes
    found["codes"] += together(root, out, 3)
    compare(out, "two processes, one killed, then three")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
