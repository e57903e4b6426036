"""Memory that is freed in one step is there in the next one."""

import subprocess
import sys

import pytest


# Fills and frees 32 MB twenty times; every page that has to be taken anew from the system is a fault.
FAULTS = """
import resource, sys
import numpy as np
from vss_hf.training.cpu_memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for repetition in range(21):
    if repetition == 1:  # the first one takes the memory in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(32 * 2**20, np.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(side: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, side], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept():
    assert page_faults("kept") * 10 < page_faults("default")
