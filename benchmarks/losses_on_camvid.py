"""The losses and averages of docs/training.md on CamVid: equal steps, several seeds, mean and standard deviation.

    python benchmarks/losses_on_camvid.py --data path/to/camvid_vspw --out runs/losses [--only ohem,dice]
    python benchmarks/losses_on_camvid.py --data path/to/camvid_vspw --out runs/losses --time

Every run is the recipe camvid-ocrnet, shorter, on smaller crops and without its average, with what its row changes.
No run is evaluated on the way, none is chosen: the weights after the last step count. A finished run in OUT is not
done again, so that the command goes on where it was stopped. --time measures the seconds of a step of each row
instead: short runs, the rows in turn, which wants idle cores. Both end with a table of all that is there
(OUT/results.md) and its numbers (OUT/results.json).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
STEPS = 600
PLAIN = "cross_entropy"
WEIGHTED = {"name": "cross_entropy", "class_weights": "inverse_sqrt"}
TEACHER = "the plain run's model"
# row -> what it changes of the plain run
ROWS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "class_weights": {"losses": [WEIGHTED]},
    "pixel_distribution": {"losses": [{**WEIGHTED, "max_with_predicted": True}]},
    "ohem": {"losses": [{"name": "ohem", "min_kept": 20000}]},  # of a step's 165,888 pixels
    "focal": {"losses": [{"name": "focal"}]},
    "confusion_focal": {"losses": [{"name": "confusion_focal"}]},
    "dice": {"losses": [{"name": "cross_entropy"}, {"name": "dice"}]},
    "lovasz": {"losses": [{"name": "cross_entropy"}, {"name": "lovasz"}]},
    "logit_adjustment": {"losses": [{"name": "logit_adjustment"}]},
    "self_distillation": {"losses": [{"name": "self_distillation", "teacher": TEACHER}]},
    "car": {"losses": [{"name": "car"}]},
    "ema": {"ema_decay": 0.99},
    "swa": {"swa_start": 300, "swa_every": 50, "swa_learning_rate": 2.0e-3, "swa_batchnorm_batches": 60},
}
SMALLER = ["--data.shortest_edge", "216", "--augmentation.crop_size", "[144, 192]", "--augmentation.base_size", "0.45"]
NOTHING_BESIDE = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
SCORES = {"mean_iou": "mIoU", "vc8": "VC8", "pixel_accuracy": "pixel accuracy"}
TIMED_STEPS, TIMED_ROUNDS = 60, 2


def train(row: str, seed: int, folder: Path, options: argparse.Namespace, *words: str) -> None:
    """One run in a fresh process on one thread; what it says goes to `folder`.log."""
    changes = {"losses": [], "ema_decay": 0.0, **ROWS[row]}
    teacher = str(options.out / f"{PLAIN}-{seed}" / "model")
    given = [word for name, value in changes.items() for word in (f"--{name}", json.dumps(value))]
    given = [word.replace(TEACHER, teacher) for word in given]
    command = [sys.executable, str(ROOT / "train.py"), "camvid-ocrnet", "--data.root", str(options.data), *SMALLER]
    command += [*NOTHING_BESIDE, "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "--seed", str(seed)]
    command += ["--max_steps", str(STEPS), *given, *words, "--output_dir", str(folder)]
    log = folder.parent / f"{folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as said:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"{row}, seed {seed}: failed, see {log}")


def train_all(options: argparse.Namespace) -> None:
    """The runs that are missing, seed by seed."""
    for seed in options.seeds:
        for row in options.only:
            folder = options.out / f"{row}-{seed}"
            if (folder / "model" / "eval_results.json").is_file():
                continue
            train(row, seed, folder, options)
            print(f"{row}, seed {seed}: mIoU {scores(folder)['mean_iou']:.3f}", flush=True)


def time_all(options: argparse.Namespace) -> None:
    """Milliseconds of a step of each row, by the clock, data included: rounds of short runs, the rows in turn."""
    file = options.out / "milliseconds.json"
    measured: dict[str, list[float]] = json.loads(file.read_text()) if file.is_file() else {}
    short = ["--max_steps", str(TIMED_STEPS), "--warmup_steps", "10"]
    early = ["--swa_start", "20", "--swa_every", "20", "--swa_batchnorm_batches", "1"]  # else it would not begin
    for _ in range(TIMED_ROUNDS):
        for row in options.only:
            folder = options.out / "timed"
            train(row, options.seeds[0], folder, options, *short, *(early if row == "swa" else []))
            seconds = json.loads((folder / "model" / "train_results.json").read_text())["seconds"]
            measured.setdefault(row, []).append(1000 * seconds / TIMED_STEPS)
            shutil.rmtree(folder)
            file.write_text(json.dumps(measured, indent=2) + "\n")


def scores(folder: Path) -> dict[str, float]:
    """What one run reached."""
    return json.loads((folder / "model" / "eval_results.json").read_text(encoding="utf-8"))


def collect(options: argparse.Namespace) -> list[str]:
    """The table as lines of Markdown, from what is there; its numbers go to results.json."""
    file = options.out / "milliseconds.json"
    times = json.loads(file.read_text()) if file.is_file() else {}
    lines = [f"| row | seeds | {' | '.join(SCORES.values())} | ms a step |", f"|---|---|{'---|' * len(SCORES)}---|"]
    results = {}
    for row in ROWS:
        found = sorted(options.out.glob(f"{row}-[0-9]*/model/eval_results.json"))
        runs = [scores(path.parents[1]) for path in found]
        if not runs:
            continue
        results[row] = {name: [each[name] for each in runs] for name in SCORES}
        cells = [mean_and_sd(results[row][name]) for name in SCORES]
        if row in times:
            results[row]["milliseconds"] = times[row]
        cells.append(f"{statistics.median(times[row]):.0f}" if row in times else "")
        lines.append(f"| {row} | {len(runs)} | {' | '.join(cells)} |")
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.out / "results.md").write_text("\n".join(lines) + "\n")
    return lines


def mean_and_sd(values: list[float]) -> str:
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{sd}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid in VSPW layout")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, in their order")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--time", action="store_true", help="measure times, train nothing to its end")
    options = parser.parse_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    options.only = options.only.split(",")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    if unknown := [row for row in options.only if row not in ROWS]:
        parser.error(f"--only {','.join(unknown)}: expected some of {', '.join(ROWS)}")
    (time_all if options.time else train_all)(options)
    print("\n".join(collect(options)))


if __name__ == "__main__":
    main()
