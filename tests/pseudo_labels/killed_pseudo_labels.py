"""Pseudo labelling that is killed at file operations and goes on, alone and by several processes; prints JSON.

    python killed_pseudo_labels.py ROOT FOLDER STRIDE

Everything runs in forks of this process, which saves importing torch each time.
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import torch
from colour_model import files_of, segmenter
from killed_processes import fork, kill_at_file_operation, together, wait

from vss_hf.pseudo_labels.filters import PseudoLabelSettings
from vss_hf.pseudo_labels.labelling import pseudo_label


SETTINGS = PseudoLabelSettings(class_balanced=0.5, balance_every=2, temporal_window=1, min_labelled=0.2)


def label(root: Path, out: Path) -> None:
    """The whole work."""
    pseudo_label(segmenter(), root, out, split="test", settings=SETTINGS, batch_size=2)


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

    def work():
        label(root, out)

    found["codes"] += together(work, out, 2)
    compare(out, "two processes")
    codes = together(work, out, 2, kill_first_at=operation // 3)
    found["killed_together"] = codes
    found["codes"] += together(work, out, 3)
    compare(out, "two processes, one killed, then three")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
