"""Training on the CPU with and without `keep_freed_memory` (training/cpu_memory.py).

    python benchmarks/training_speed.py --data path/to/camvid_vspw [--recipe camvid-ocrnet] [--pairs 3] [--json OUT]

Every measurement is a whole training run in a fresh process (the setting cannot be taken back), the two sides in turn,
neither evaluated nor saved on the way. Time: seconds of training, the first reading of the frames included.
Memory: peak resident set of the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

SIDES = ("default", "kept")
NOTHING_BESIDE = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]


def measure_here(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of training and the process's peak memory in MiB."""
    from vss_hf.training import run
    from vss_hf.training.cpu_memory import keep_freed_memory

    if side == "default":
        run.keep_freed_memory = lambda: False
    elif not keep_freed_memory():
        raise SystemExit("the C library of this machine has no such setting")
    with tempfile.TemporaryDirectory() as folder:
        words = ["--data.root", str(options.data), "--output_dir", folder, "--max_steps", str(options.steps)]
        model = run.main([options.recipe, *words, *NOTHING_BESIDE, "--report_to", "none", "--use_cpu"])
        seconds = json.loads((model / "train_results.json").read_text(encoding="utf-8"))["seconds"]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def measure(side: str) -> dict[str, float]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set in VSPW layout")
    parser.add_argument("--recipe", default="camvid-ocrnet")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure_here(options.side, options)))
        return
    load = os.getloadavg()[0]
    pairs = [[measure(side) for side in SIDES] for _ in range(options.pairs)]
    ratios = [default["seconds"] / kept["seconds"] for default, kept in pairs]
    result = {
        "seconds": {side: statistics.median(pair[i]["seconds"] for pair in pairs) for i, side in enumerate(SIDES)},
        "peak_mib": {side: statistics.median(pair[i]["peak_mib"] for pair in pairs) for i, side in enumerate(SIDES)},
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "load_before": load,
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
