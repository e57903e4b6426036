"""Processes that load data do not outlive the process that they load for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


# Batches of 8 MB, which nobody takes: the workers wait in the middle of handing one over.
WAITING = """
import sys, time
import numpy as np
from torch.utils.data import DataLoader
from vss_hf.data.workers import end_with_parent

class Large:
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return np.full(8_000_000, index, np.uint8)

batches = iter(DataLoader(Large(), 1, num_workers=2, collate_fn=list, worker_init_fn=end_with_parent))
next(batches)
print("waiting", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_workers_of_a_killed_process_end():
    path = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # its process group holds the workers too
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)  # until the pipe is full
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers are still there")
