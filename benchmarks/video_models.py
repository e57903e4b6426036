"""An image model, TBN-ViT, ST-PPM and TMANet on one data set at equal training time.

    vss-hf data sample DIR --kind ambiguous
    python benchmarks/video_models.py --settings ambiguous --data DIR --out OUT
    python benchmarks/video_models.py --settings camvid --data path/to/camvid_vspw --out OUT

All have one small backbone, heads of like width and the same optimizer (training/recipes/camvid-*.yaml). Equal time is
made of steps, so that a run can be repeated and does not depend on what else the machine does:

1. calibrate: seconds of one training step of each model, on otherwise idle cores -> OUT/calibration.json
2. train: as many steps as fit into the budget at that speed, for each seed -> OUT/runs/MODEL-SEED
3. measure milliseconds per frame on otherwise idle cores -> OUT/speed.json
4. collect everything -> OUT/results.json and OUT/results.md

What is there already is not done again: a comparison that was stopped goes on with the same command. `--calibrate`
ends after 1; `--collect` does 4 alone, with the runs that are there. No run is evaluated on the way, none is chosen:
the last weights (their average) count.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

# name -> (title, recipe, whether it looks at other frames); the others are there to be asked for with --models.
MODELS = {
    "bilateral": ("bilateral network, image model", "camvid-bilateral", False),
    "tbn-vit": ("TBN-ViT", "camvid-tbn-vit", True),
    "st-ppm": ("ST-PPM", "camvid-st-ppm", True),
    "tmanet": ("TMANet", "camvid-tmanet", True),
    "ocrnet": ("OCRNet, image model", "camvid-ocrnet", False),
}
DEFAULT_MODELS = ["bilateral", "tbn-vit", "st-ppm", "tmanet"]
# settings -> (frame_offsets of the video models, what else differs from the recipes)
SETTINGS = {
    "camvid": ([-1], []),
    "ambiguous": (
        [-3, -2, -1],
        [
            *("--data.shortest_edge", "null", "--augmentation.base_size", "null"),
            *("--augmentation.crop_size", "[96, 160]", "--augmentation.scale_range", "[0.9, 1.2]"),
            *("--augmentation.photometric_prob", "0"),  # the set's own noise and flicker are the task
            *("--per_device_train_batch_size", "8"),
        ],
    ),
}
NOTHING_BESIDE = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
SHORT_RUN = ["--ema_decay", "0.99", "--logging_steps", "10"]
SCORES = {"mean_iou": "mIoU", "vc8": "VC8", "vc16": "VC16"}
CALIBRATION_STEPS, LEAST_STEPS = 30, 20
TIMED_FRAMES = 60


# --- one training run


def recipe_words(model: str, settings: str, data: Path, folder: Path, steps: int, seed: int) -> list[str]:
    """What `train.py` is given."""
    _, recipe, is_video_model = MODELS[model]
    offsets, overrides = SETTINGS[settings]
    words = [recipe, "--data.root", str(data), "--output_dir", str(folder), "--seed", str(seed)]
    words += [
        "--max_steps",
        str(steps),
        "--warmup_steps",
        str(max(1, steps // 10)),
        *overrides,
        *SHORT_RUN,
        *NOTHING_BESIDE,
    ]
    if is_video_model:
        words += ["--model.config.frame_offsets", str(offsets)]
    return [*words, "--report_to", "none", "--use_cpu"]


def run_python(words: list[str], threads: int, log: Path) -> int:
    """Run a Python process with this many threads; everything it says goes into a file. Returns the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        )
    return done.returncode


def finished_run(folder: Path, steps: int) -> dict[str, Any] | None:
    """The results of a run that came to its end with this number of steps, else None."""
    parts = []
    for name in ("train_results.json", "eval_results.json", "README.md"):  # the card is written last
        path = folder / "model" / name
        if not path.is_file():
            return None
        parts.append({} if path.suffix == ".md" else json.loads(path.read_text(encoding="utf-8")))
    trained, evaluated, _ = parts
    if trained["steps"] != steps:
        return None
    scores = {key: evaluated[key] for key in (*SCORES, "per_class_iou", "vc_clips", "videos", "frames")}
    return {"seed": trained["seed"], "steps": steps, "seconds": trained["seconds"], **scores}


def train(models: list[str], seeds: list[int], steps: dict[str, int], options: argparse.Namespace) -> list[str]:
    """Carry out the runs that are not finished, `options.jobs` at a time. Returns the names of those that failed."""

    def one(run: tuple[str, int]) -> str | None:
        model, seed = run
        name = f"{model}-{seed}"
        folder = options.out / "runs" / name
        if finished_run(folder, steps[model]):
            print(f"{name}: finished already", flush=True)
            return None
        shutil.rmtree(folder, ignore_errors=True)
        log, began = options.out / "logs" / f"{name}.log", time.time()
        words = recipe_words(model, options.settings, options.data, folder, steps[model], seed)
        code = run_python([str(ROOT / "train.py"), *words], options.threads, log)
        failed = code != 0 or finished_run(folder, steps[model]) is None
        end = f"FAILED with exit code {code}, see {log}" if failed else f"{time.time() - began:.0f} s"
        print(f"{name}: {steps[model]} steps, {end}", flush=True)
        return name if failed else None

    runs = [(model, seed) for seed in seeds for model in models]  # a whole comparison of one seed first
    with ThreadPoolExecutor(options.jobs) as pool:
        return [name for name in pool.map(one, runs) if name]


# --- the budget


def steps_within(budget_seconds: float, seconds_per_step: float) -> int:
    """How many steps fit into a budget.

    Raises:
        ValueError: so few that nothing is learnt.
    """
    steps = int(budget_seconds / seconds_per_step)
    if steps < LEAST_STEPS:
        raise ValueError(
            f"--budget-seconds {budget_seconds:g}: {steps} steps of {seconds_per_step:.2f} s; expected at least "
            f"{LEAST_STEPS} steps"
        )
    return steps


def time_steps_here(model: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step: median of the second half of a short run, from one step's begin to the next's."""
    from vss_hf.training import run
    from vss_hf.training.trainer import VSSTrainer

    begins = []

    class TimedTrainer(VSSTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            begins.append(time.perf_counter())
            return super().training_step(*args, **kwargs)

    run.VSSTrainer, run.finish = TimedTrainer, lambda *_: None  # neither saved nor evaluated
    with tempfile.TemporaryDirectory() as folder:
        words = recipe_words(model, options.settings, options.data, Path(folder), CALIBRATION_STEPS, seed=0)
        run.main(words)
    times = [later - earlier for earlier, later in zip(begins, begins[1:], strict=False)][len(begins) // 2 :]
    return {"seconds_per_step": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def calibrate(models: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """`time_steps_here` of each model in a fresh process, or what OUT/calibration.json says."""
    file = options.out / "calibration.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    setting = {"settings": options.settings, "threads": options.threads}
    if kept and kept["setting"] != setting:
        raise SystemExit(f"error: {file} is of {kept['setting']}, not of {setting}; choose another --out")
    found = kept.get("models", {})
    for model in models:
        if model not in found:
            found[model] = measured_by_child("--time-steps", model, options)
            print(f"{model}: {found[model]['seconds_per_step']:.3f} s a training step", flush=True)
        write_json(file, {"setting": setting, "models": found})
    return found


# --- speed


def time_frames_here(model: str, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from a decoded frame to its label map, one frame after the other: median over a video."""
    from vss_hf.data import open_split
    from vss_hf.data.vspw import read_image
    from vss_hf.inference import VideoSegmenter

    folders = [options.out / "runs" / f"{model}-{seed}" / "model" for seed in options.seeds]
    segmenter = VideoSegmenter.from_pretrained(next(folder for folder in folders if folder.is_dir()), "cpu")
    video = open_split(options.data, "val").videos[0]
    frames = [read_image(record.image_path) for record in video.frames]
    times = []
    for index in range(10 + TIMED_FRAMES):
        frame = frames[index % len(frames)]
        began = time.perf_counter()
        segmenter.step(frame)
        times.append(1000 * (time.perf_counter() - began))
    times = times[10:]  # before that the stream fills its memory
    parameters = sum(parameter.numel() for parameter in segmenter.model.parameters())
    return {"ms_per_frame": statistics.median(times), "fastest": min(times), "parameters": parameters}


def measure_speed(models: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """`time_frames_here` of each model on one thread in a fresh process, or what OUT/speed.json says."""
    file = options.out / "speed.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for model in models:
        if model not in found:
            found[model] = measured_by_child("--time-frames", model, options)
        write_json(file, found)
    return found


def measured_by_child(what: str, model: str, options: argparse.Namespace) -> dict[str, float]:
    """One measurement in a fresh process; time per frame is always that of one thread."""
    log = options.out / "logs" / f"{model}{what}.log"
    threads = options.threads if what == "--time-steps" else 1
    code = run_python([__file__, *sys.argv[1:], what, model], threads, log)
    if code:
        raise SystemExit(f"error: measuring {model} failed with exit code {code}, see {log}")
    return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])


# --- other distances between the frames


def evaluate_at(models: list[str], steps: dict[str, int], options: argparse.Namespace) -> dict[str, list[dict]]:
    """The video models of all finished runs, looking at other frames than they were trained with."""
    from vss_hf.inference import VideoSegmenter
    from vss_hf.scoring import evaluate_model

    results: dict[str, list[dict]] = {}
    for model in models:
        for seed in options.seeds:
            folder = options.out / "runs" / f"{model}-{seed}"
            run = finished_run(folder, steps[model])
            if run is None or not MODELS[model][2]:
                continue
            file = folder / f"eval_at_{'_'.join(map(str, options.eval_offsets))}.json"
            if not file.is_file():
                segmenter = VideoSegmenter.from_pretrained(folder / "model", "cpu")
                segmenter.model.config.frame_offsets = options.eval_offsets
                segmenter.reset()
                write_json(file, evaluate_model(segmenter, options.data, "val"))
            evaluated = json.loads(file.read_text(encoding="utf-8"))
            results.setdefault(model, []).append({**run, **{key: evaluated[key] for key in SCORES}})
    return results


# --- results


def summary(runs: list[dict]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation (of the sample) over the seeds of each score that all runs have."""
    found = {}
    for key in (*SCORES, "seconds"):
        values = [run[key] for run in runs]
        if None not in values:
            found[key] = {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
    return found


def shown(score: dict[str, float | None] | None) -> str:
    """A cell: mean and standard deviation, where there is one."""
    if score is None:
        return "-"
    return f"{score['mean']:.3f}" + ("" if score["sd"] is None else f" ± {score['sd']:.3f}")


def table(results: dict[str, Any]) -> list[str]:
    """The comparison as markdown lines."""
    lines = [
        "| | parameters | seconds a step | steps | seeds | mIoU | VC8 | VC16 | ms a frame |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, of in results["models"].items():
        cells = [MODELS[model][0]]
        cells += [f"{of['parameters'] / 1e6:.2f} M" if "parameters" in of else "-", f"{of['seconds_per_step']:.3f}"]
        cells += [str(of["steps"]), str(len(of["runs"]))]
        cells += [shown(of["summary"].get(key)) for key in SCORES]
        cells += [f"{of['ms_per_frame']:.1f}" if "ms_per_frame" in of else "-"]
        lines.append(f"| {' | '.join(cells)} |")
        if "summary_at" in of:
            scores = " | ".join(shown(of["summary_at"].get(key)) for key in SCORES)
            lines.append(f"| {cells[0]}, frames {results['eval_offsets']} | | | | {cells[4]} | {scores} | |")
    return lines


def collect(
    models: list[str],
    calibration: dict[str, dict[str, float]],
    speed: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Everything there is, with the runs that are finished."""
    steps = {model: steps_within(options.budget_seconds, calibration[model]["seconds_per_step"]) for model in models}
    elsewhere = evaluate_at(models, steps, options) if options.eval_offsets else {}
    found = {}
    for model in models:
        runs = [finished_run(options.out / "runs" / f"{model}-{seed}", steps[model]) for seed in options.seeds]
        runs = [run for run in runs if run]
        if not runs:
            print(f"{model}: no finished run", flush=True)
            continue
        found[model] = {
            "seconds_per_step": calibration[model]["seconds_per_step"],
            "steps": steps[model],
            **{key: speed[model][key] for key in ("ms_per_frame", "parameters") if model in speed},
            "summary": summary(runs),
            "runs": runs,
        }
        if model in elsewhere:
            found[model] |= {"summary_at": summary(elsewhere[model]), "runs_at": elsewhere[model]}
    setting = {
        "settings": options.settings,
        "data": options.data.name,
        "budget_seconds": options.budget_seconds,
        "threads": options.threads,
        "seeds": options.seeds,
        "frame_offsets": SETTINGS[options.settings][0],
    }
    return {"setting": setting, "eval_offsets": options.eval_offsets, "models": found}


def draw_picture(path: Path, models: list[str], options: argparse.Namespace, rows: int = 4) -> None:
    """Frames on end of one validation video: frame, truth and what each model makes of it (runs of the first seed)."""
    import numpy as np
    from matplotlib.figure import Figure

    from vss_hf.data import ClassList, decode_frame, open_split
    from vss_hf.inference import VideoSegmenter
    from vss_hf.visualize import colorize

    classes, video = ClassList.from_root(options.data), open_split(options.data, "val").videos[options.picture_video]
    palette, first = classes.palette, len(video.frames) // 2
    decoded = [decode_frame(record, classes) for record in video.frames[: first + rows]]
    frames = [frame.permute(1, 2, 0).numpy() for frame, _ in decoded]
    truth = np.stack([labels.numpy() for _, labels in decoded if labels is not None])
    columns = {"frame": frames, "ground truth": [colorize(labels, palette) for labels in truth]}
    for model in models:
        folder = options.out / "runs" / f"{model}-{options.seeds[0]}" / "model"
        if folder.is_dir():
            segmenter = VideoSegmenter.from_pretrained(folder, "cpu")
            columns[MODELS[model][0].replace(", ", "\n")] = [
                colorize(labels, palette) for labels in segmenter.label_video(frames)
            ]
    height, width = frames[0].shape[:2]
    cell = 2.4
    figure = Figure((cell * len(columns), cell * rows * height / width + 1.1), layout="constrained", dpi=110)
    for row, axes in enumerate(figure.subplots(rows, len(columns))):
        for axis, (title, pictures) in zip(axes, columns.items(), strict=True):
            axis.imshow(pictures[first + row], interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
    seen = [label for label in np.unique(truth[first:]) if label < len(palette)]
    keys = [figure.axes[0].scatter([], [], marker="s", color=np.array(palette[label]) / 255) for label in seen]
    names = [classes.names[label].replace("_", " ") for label in seen]
    figure.legend(keys, names, loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# --- the command


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", choices=SETTINGS, required=True, help="what the recipes are changed to")
    parser.add_argument("--data", type=Path, required=True, help="data set in VSPW layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT_MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--budget-seconds", type=float, default=100.0, help="of training, for each run")
    parser.add_argument("--threads", type=int, default=1, help="of each training process")
    parser.add_argument("--jobs", type=int, default=1, help="training processes beside each other")
    parser.add_argument("--eval-offsets", nargs="+", type=int, metavar="OFFSET", help="evaluate with these, too")
    parser.add_argument("--calibrate", action="store_true", help="measure the seconds of a step, no more")
    parser.add_argument("--collect", action="store_true", help="neither train nor measure, only collect")
    parser.add_argument("--picture", type=Path, help="draw frames, truth and predictions here (.png or .jpg)")
    parser.add_argument("--picture-video", type=int, default=0, help="which validation video")
    parser.add_argument("--time-steps", metavar="MODEL", help=argparse.SUPPRESS)  # in a fresh process
    parser.add_argument("--time-frames", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.data, options.out = options.data.resolve(), options.out.resolve()
    return options


def main() -> None:
    options = parse()
    if options.time_steps:
        print(json.dumps(time_steps_here(options.time_steps, options)))
        return
    if options.time_frames:
        print(json.dumps(time_frames_here(options.time_frames, options)))
        return
    calibration = calibrate(options.models, options)
    if options.calibrate:
        return
    failed: list[str] = []
    if not options.collect:
        steps = {m: steps_within(options.budget_seconds, calibration[m]["seconds_per_step"]) for m in options.models}
        failed = train(options.models, options.seeds, steps, options)
        done = [m for m in options.models if any(f"{m}-{seed}" not in failed for seed in options.seeds)]
        measure_speed(done, options)
    speed_file = options.out / "speed.json"
    speed = json.loads(speed_file.read_text(encoding="utf-8")) if speed_file.is_file() else {}
    results = collect(options.models, calibration, speed, options)
    lines = table(results)
    write_json(options.out / "results.json", results)
    (options.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if options.picture:
        draw_picture(options.picture, options.models, options)
    if failed:
        raise SystemExit(f"error: not finished: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    main()
