"""What a DataLoader's workers say when they fail, in one line for people."""

import re
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


SHARED_MEMORY = Path("/dev/shm")
DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited unexpectedly|is killed by signal: ([\w ]+))"
)
FEWER = "use fewer workers (--dataloader_num_workers when training, --num-workers when evaluating; 0 needs none)"


@contextmanager
def explained() -> Iterator[None]:
    """Errors of a DataLoader inside this context come out as `explain` words them."""
    try:
        yield
    except Exception as error:
        told = explain(error)
        if told is error:
            raise
        raise told from error


def explain(error: Exception) -> Exception:
    """The error that says in one line what happened to a DataLoader or its workers.

    Args:
        error: what was raised while batches were read.

    Returns:
        For an error inside a worker, one of the same type with the message that it would have had without workers.
        For a worker that was killed, a ChildProcessError; for a lack of shared memory or of file handles, an OSError.
        Anything else comes back as it is.
    """
    try:
        return worded(error)
    except RuntimeError as repeated:  # torch's handler of SIGCHLD tells of a dead worker again, wherever we are
        return worded(repeated)


def worded(error: Exception) -> Exception:
    """What `explain` returns."""
    if re.match(r"Caught \w+ in DataLoader worker process", str(error)):
        error = without_traceback(error)
    text = str(error)
    died = DIED.search(text)
    if died or while_receiving(error):
        stop_repeating()
        who = f" (pid {died[1]})" if died else ""
        how = f" by the signal {died[2].strip()}" if died and died[2] else ""
        return ChildProcessError(
            f"a process that loads data{who} was ended{how}: mostly the machine is out of memory, or of shared "
            f"memory{shared_memory()}; {FEWER}, or a smaller batch"
        )
    if "shared memory" in text or re.search(r"</?torch_\d+", text):
        return OSError(f"loading data ran out of shared memory{shared_memory()}: {text}; make it larger, or {FEWER}")
    if "Too many open files" in text or "items of ancdata" in text:
        return OSError(f"loading data ran out of open files; raise the limit with `ulimit -n`, or {FEWER}")
    return error


def without_traceback(error: Exception) -> Exception:
    """The error of a worker without the traceback that torch writes into its message."""
    lines = str(error).rstrip().splitlines()
    # After the last frame ("  File ...") and its code, the first line without indent is "package.SomeError: message".
    frame = max((number for number, line in enumerate(lines) if line.startswith("  File ")), default=0)
    start = next((n for n in range(frame + 1, len(lines)) if not lines[n].startswith(" ")), len(lines) - 1)
    kind, _, message = "\n".join(lines[start:]).partition(": ")
    kind = kind.rpartition(".")[2]
    if kind == type(error).__name__:
        return type(error)(message)
    return RuntimeError(f"{kind}: {message}")  # a type that torch could not build again


def while_receiving(error: Exception) -> bool:
    """Whether a connection broke while torch fetched the tensors of a batch, which a worker keeps until then."""
    files = {Path(frame.filename).as_posix() for frame in traceback.extract_tb(error.__traceback__)}
    broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    return broken and any(file.endswith("torch/multiprocessing/reductions.py") for file in files)


def stop_repeating() -> None:
    """Take torch's signal handler away: it would raise the same once more whenever another worker ends.

    Loaders look after their workers every five seconds anyway.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def shared_memory() -> str:
    """' (/dev/shm: 12 of 64 MB free)', or nothing where there is none."""
    if not SHARED_MEMORY.is_dir():
        return ""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f" ({SHARED_MEMORY}: {usage.free // 2**20} of {usage.total // 2**20} MB free)"
