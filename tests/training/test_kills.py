"""Runs that are killed with SIGKILL and resumed end, bit for bit, as the run that was never killed.

Weights, average, optimizer moments, best score: everything is compared, on the CPU. Every run has accumulation, a
schedule with warm-up, dropout, evaluation, and a checkpoint after each step, so that many kills hit one being written.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_default_data


KINDS = [(False, 0, False), (False, 2, True), (True, 0, True), (True, 2, False)]  # streaming, workers, mixed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def killed_runs(root, folder, moment, kills, streaming=False, workers=0, mixed=False, seed=0, stride=1):
    """The counts that killed_runs.py prints."""
    command = [sys.executable, Path(__file__).with_name("killed_runs.py"), root, folder, "--moment", moment]
    options = {"kills": kills, "streaming": int(streaming), "workers": workers, "mixed": int(mixed)}
    options |= {"seed": seed, "stride": stride}
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    path = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:3])
    log = folder / "log.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            start_new_session=True,  # its process group holds the runs and all that they started
        )
        process.wait()
    assert process.returncode == 0, log.read_text()
    assert nothing_left(process.pid), "processes of killed runs are still there"
    return json.loads(log.read_text().splitlines()[-1])


def nothing_left(group: int, patience: float = 10.0) -> bool:
    """Whether a process group is empty, or becomes so soon: the workers of a killed run must not outlive it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


def test_a_few_kills(root, tmp_path):
    """At file operations spread over a run with two sources: the quick stand-in for the long tests below."""
    counts = killed_runs(root, tmp_path, "file", kills=6, mixed=True, stride=25)
    assert counts["kills"] == counts["completed"] == 6 and not counts["different"]


@pytest.mark.slow
@pytest.mark.parametrize(("streaming", "workers", "mixed"), KINDS)
def test_kills_at_random_moments(root, tmp_path, streaming, workers, mixed):
    """50 kills of each kind of run, at any moment from the start of a session on."""
    kind = dict(streaming=streaming, workers=workers, mixed=mixed)
    counts = killed_runs(root, tmp_path, "random", kills=50, seed=7, **kind)
    assert counts["kills"] == 50 and counts["completed"] > 0 and not counts["different"]


@pytest.mark.slow
def test_kills_at_every_file_operation(root, tmp_path):
    """Before each open for writing, rename and removal in the run's folder, from the first to the last."""
    counts = killed_runs(root, tmp_path, "file", kills=10_000)
    assert counts["while_writing"] > 50 and not counts["different"]
