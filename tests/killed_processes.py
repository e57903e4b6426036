"""Work that is killed at file operations, alone and by several processes, in forks: importing torch takes seconds."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from vss_hf.inference.processes import joined_processes


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


def together(work: Callable[[], None], out: Path, world: int, kill_first_at: int | None = None) -> list[int]:
    """Work by several processes, of which one may be killed at a change of a file below `out`; all exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if kill_first_at is not None and rank == 0:
            kill_at_file_operation(out, kill_first_at)
        with joined_processes("cpu"):
            work()

    pids = [fork(lambda rank=rank: one(rank)) for rank in range(world)]
    return [wait(pid) for pid in pids]
