"""Processes that load data end with the process that they load for."""

import ctypes
import os
import signal
import sys


PR_SET_PDEATHSIG = 1  # of Linux: a signal for this process when its parent ends


def end_with_parent(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: the system ends this worker when its parent is gone, however that came.

    torch's workers notice by themselves within seconds, but not while they wait to hand over a large batch: then they
    stay, with their memory, until somebody ends them (torch 2.15, seen when a process was ended by SIGKILL).

    To the system the parent is the thread that made the loader's workers: it must live as long as they are needed.

    Args:
        worker_id: number of the worker; not used.
    """
    if sys.platform != "linux":
        return  # nothing like it elsewhere: torch's own watch has to do
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended just before
        os.kill(os.getpid(), signal.SIGKILL)
