"""Prediction of a split that is killed at file operations and goes on, alone and by several processes; prints JSON.

python killed_prediction.py ROOT FOLDER STRIDE
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import torch
from colour_model import files_of, segmenter
from killed_processes import fork, kill_at_file_operation, together, wait

from vss_hf.inference.prediction import predict


TIMING = ("frames_per_second", "files", "videos_before")


def label(root: Path, out: Path) -> None:
    """The whole work; its results become a file beside `out`."""
    results = predict(segmenter(), root, out, overlay_video=True, submission=out / "s.zip", batch_size=2)
    kept = {key: value for key, value in results.items() if key not in TIMING}
    out.with_name(f"{out.name}.json").write_text(json.dumps(kept))


def main() -> None:
    root, folder, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    straight, out = folder / "straight", folder / "killed"
    found = {"codes": [wait(fork(lambda: label(root, straight)))], "kills": 0, "different": [], "videos_before": []}
    reference = files_of(straight)
    reference_results = (folder / "straight.json").read_text()

    def compare(name: str) -> None:
        if files_of(out) != reference or (folder / "killed.json").read_text() != reference_results:
            found["different"].append(name)
        shutil.rmtree(out)

    def work() -> None:
        label(root, out)

    operation = 1
    while True:

        def killed_run(number=operation):
            kill_at_file_operation(out, number)
            work()

        code = wait(fork(killed_run))
        if code != -signal.SIGKILL:
            found["codes"].append(code)
            break
        found["kills"] += 1
        records = out / ".prediction" / "videos"
        found["videos_before"].append(len(list(records.glob("*.json"))))
        for path in out.glob("*/*.png"):  # what can be seen is complete
            if path.read_bytes() != reference[str(path.relative_to(out))]:
                found["different"].append(f"{path.name}, seen after the kill at {operation}")
        for video in {path.parent for path in out.glob("*/*.png")}:
            seen = {str(path.relative_to(out)) for path in video.iterdir()}
            if seen != {name for name in reference if name.startswith(f"{video.name}/")}:
                found["different"].append(f"{video.name}, incomplete after the kill at {operation}")
        found["codes"].append(wait(fork(work)))
        compare(f"killed at {operation}")
        operation += stride
    shutil.rmtree(out)

    found["codes"] += together(work, out, 2)
    compare("two processes")
    found["killed_together"] = together(work, out, 2, kill_first_at=operation // 3)
    found["codes"] += together(work, out, 3)
    compare("two processes, one killed, then three")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
