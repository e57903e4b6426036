"""Run by test_stages.py: a recipe with stages whose second one is killed and resumed, in forks of this process.

    killed_stages.py RECIPE OUTPUT_DIR OPERATION

OPERATION: the change of a file in the second stage's folder before which the process is killed.
"""

import signal
import sys
from pathlib import Path

import torch
from killed_processes import fork, kill_at_file_operation
from killed_runs import ended

from vss_hf.training.run import main


def run(recipe: str, output_dir: Path, operation: int | None) -> None:
    words = [recipe, "--output_dir", str(output_dir)]
    if operation is None:
        main([*words, "--resume_from_checkpoint"])
    else:
        kill_at_file_operation(output_dir / "two", operation)
        main(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, output_dir, operation = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    code = ended(fork(lambda: run(recipe, output_dir, operation)), wait=True)
    assert code == -signal.SIGKILL, f"the run was not killed: {code}"
    print("left:", sorted(path.name for path in (output_dir / "two").iterdir()))
    code = ended(fork(lambda: run(recipe, output_dir, None)), wait=True)
    assert code == 0, f"the resumed run failed: {code}"
