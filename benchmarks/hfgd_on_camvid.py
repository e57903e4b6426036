"""What each part of HFGD brings on CamVid: equal steps, several seeds, mean and standard deviation.

    python benchmarks/hfgd_on_camvid.py --data path/to/camvid_vspw --out runs/hfgd [--jobs 2] [--only SemanticFPN]
    python benchmarks/hfgd_on_camvid.py --data path/to/camvid_vspw --out runs/hfgd --markdown docs/results.md

Every run is the recipe camvid-hfgd with the parts that its row has; nothing else differs, not even where a part costs
time. No run is evaluated on the way, none is chosen: the weights after the last step count. A finished run in OUT is
not done again, so that the command goes on where it was stopped. Each run has one thread. It ends with a table of all
that is there (OUT/results.md, and with --markdown between the marks of a page) and its numbers (OUT/results.json).
"""

import argparse
import json
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from benchmarks.losses_on_camvid import NOTHING_BESIDE, mean_and_sd  # noqa: E402
from benchmarks.markdown_tables import write_between  # noqa: E402
from benchmarks.video_models import SCORES, finished_run, run_python  # noqa: E402


MARKS = ("<!-- hfgd on camvid: begin (benchmarks/hfgd_on_camvid.py --markdown) -->", "<!-- hfgd on camvid: end -->")
# row -> what it changes of the recipe, the whole HFGD (Tables 3 and 7 of the paper)
PLAIN: dict[str, Any] = {"upsampler": "semantic_fpn", "extra_encoding": "identity"}
ROWS: dict[str, dict[str, Any]] = {
    "SemanticFPN": {**PLAIN, "guidance": False, "axial_attention": False},
    "+ guidance": {**PLAIN, "axial_attention": False},
    "+ axial attention": {**PLAIN, "guidance": False},
    "full HFGM": PLAIN,
    "full HFGD": {},
}
MEASURES = {**SCORES, "pixel_accuracy": "pixel accuracy"}


def folder_of(row: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a run's results are."""
    name = row.lower().replace("+ ", "").replace(" ", "-")
    return options.out / f"{name}-{seed}"


def result_of(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a run reached, if it came to its end."""
    folder = folder_of(row, seed, options)
    found = finished_run(folder, options.steps)
    if found is not None:
        evaluated = json.loads((folder / "model" / "eval_results.json").read_text(encoding="utf-8"))
        found["pixel_accuracy"] = evaluated["pixel_accuracy"]
    return found


def train(run: tuple[str, int], options: argparse.Namespace) -> str | None:
    """One run in a fresh process on one thread, unless it is finished. Returns its log's name if it failed."""
    row, seed = run
    folder = folder_of(row, seed, options)
    if not result_of(row, seed, options):
        shutil.rmtree(folder, ignore_errors=True)
        words = ["camvid-hfgd", "--data.root", str(options.data), "--output_dir", str(folder), "--seed", str(seed)]
        words += [word for name, value in ROWS[row].items() for word in (f"--model.config.{name}", json.dumps(value))]
        words += [*NOTHING_BESIDE, "--max_steps", str(options.steps), "--disable_tqdm", "true", "--use_cpu"]
        log = options.out / f"{folder.name}.log"
        if run_python([str(ROOT / "train.py"), *words], threads=1, log=log):
            print(f"{row}, seed {seed}: failed, see {log}", flush=True)
            return str(log)
    found = result_of(row, seed, options)
    assert found is not None
    print(f"{row}, seed {seed}: mIoU {found['mean_iou']:.3f}", flush=True)
    return None


def train_all(options: argparse.Namespace) -> list[str]:
    """The runs that are missing, a whole comparison of one seed first. Returns the logs of those that failed."""
    runs = [(row, seed) for seed in options.seeds for row in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        return [log for log in pool.map(lambda run: train(run, options), runs) if log]


def collect(options: argparse.Namespace) -> list[str]:
    """The table as lines of Markdown, from what is there; its numbers go to results.json."""
    lines = [f"| row | seeds | {' | '.join(MEASURES.values())} | ahead of SemanticFPN, seed by seed |"]
    lines.append(f"|---|---|{'---|' * len(MEASURES)}---|")
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for row in ROWS:
        found = {seed: result for seed in options.seeds if (result := result_of(row, seed, options))}
        if not found:
            continue
        results[row] = found
        cells = [mean_and_sd([result[name] for result in found.values()]) for name in MEASURES]
        lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} | {ahead(found, results.get('SemanticFPN'))} |")
    kept = {"steps": options.steps, "rows": results}
    (options.out / "results.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    (options.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def ahead(found: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]] | None) -> str:
    """Mean difference in mIoU to the plain rows of the same seeds, and each of them."""
    if not plain or found is plain:
        return ""
    apart = [found[seed]["mean_iou"] - plain[seed]["mean_iou"] for seed in found if seed in plain]
    return f"{statistics.mean(apart):+.3f} ({', '.join(f'{each:+.3f}' for each in apart)})" if apart else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid in VSPW layout")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, in their order")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--jobs", type=int, default=1, help="trainings beside each other")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the table between the marks of this page")
    options = parser.parse_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    options.only = options.only.split(",")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    if unknown := [row for row in options.only if row not in ROWS]:
        parser.error(f"--only {','.join(unknown)}: expected some of {', '.join(ROWS)}")
    failed = train_all(options)
    lines = collect(options)
    print("\n".join(lines))
    if options.markdown:
        write_between(MARKS, lines, options.markdown)
    if failed:
        raise SystemExit(f"error: not all runs came to their end, see {', '.join(failed)}")


if __name__ == "__main__":
    main()
