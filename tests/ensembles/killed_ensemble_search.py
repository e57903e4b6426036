"""A search for weights that is killed at file operations and goes on; prints JSON.

    python killed_ensemble_search.py ROOT MODELS FOLDER STRIDE

Everything runs in forks of this process, which saves importing torch each time.
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import torch
from colour_model import files_of, segmenter
from killed_processes import fork, kill_at_file_operation, wait

from vss_hf.ensembles import search as ensemble_search
from vss_hf.ensembles.scores import Sampling
from vss_hf.ensembles.search import search_ensemble
from vss_hf.ensembles.weights import SearchSettings
from vss_hf.inference.segmenter import VideoSegmenter


def open_member(member: dict, device: str | None) -> VideoSegmenter:
    """The colour model, which needs no loading; other weights for the other member."""
    opened = segmenter()
    if member["name"].endswith("video"):
        opened.model.weight.data.mul_(-0.5)
    return opened


def search(root: Path, models: Path, out: Path) -> None:
    """The whole work."""
    ensemble_search.open_member = open_member
    members = [{"name": str(models / name)} for name in ("image", "video")]
    sampling, settings = Sampling(top_k=3, stride=4, every=2), SearchSettings(step=0.25)
    search_ensemble(members, out, root, sampling=sampling, settings=settings, device="cpu")


def results(folder: Path) -> dict[str, bytes]:
    """Every file, but for the seconds in the report."""
    files = files_of(folder)
    report = json.loads(files.pop("e/search.json"))
    report.pop("seconds")
    return {**files, "report": json.dumps(report).encode()}


def main() -> None:
    root, models, folder, stride = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    search(root, models, folder / "before" / "e")  # imports what forks need then
    found = {
        "codes": [wait(fork(lambda: search(root, models, folder / "straight" / "e")))],
        "kills": 0,
        "different": [],
    }
    reference = results(folder / "straight")
    out, operation = folder / "killed", 1
    while True:

        def killed_run(number=operation):
            kill_at_file_operation(out, number)
            search(root, models, out / "e")

        code = wait(fork(killed_run))
        if code != -signal.SIGKILL:
            found["codes"].append(code)
            break
        found["kills"] += 1
        for path in out.rglob("*.npz"):  # what is there is whole
            assert path.read_bytes() == reference[str(path.relative_to(out))], path
        found["codes"].append(wait(fork(lambda: search(root, models, out / "e"))))
        if results(out) != reference:
            found["different"].append(operation)
        shutil.rmtree(out)
        operation += stride
    print(json.dumps(found))


if __name__ == "__main__":
    main()
