"""The whole road once, on sample data or on a folder of yours: `make demo`, `make demo-camvid`.

    sample data -> accelerate launch train.py -> evaluation and card -> overlay video -> from_pretrained -> table

What a former run left is used again, and said so.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from vss_hf.data.vspw import scan_split


def main() -> None:
    """Run the steps that are not done yet and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything that is made")
    parser.add_argument("--recipe", default="demo-ocrnet", help="recipe file, or the name of a shipped one")
    parser.add_argument("--data", type=Path, help="data set in VSPW layout; left out: sample videos are made")
    options, overrides = parser.parse_known_args()

    data = options.data or make_data(options.out / "sample_videos")
    if not data.is_dir():
        sys.exit(f"error: {data}: no such folder; give a data set in VSPW layout with --data")
    run = options.out / Path(options.recipe).stem
    model = run / "model"
    train(options.recipe, data, run, model, overrides)
    overlay = predict(model, data, options.out / "prediction")
    show(model, overlay, data, load_back(model))


def make_data(folder: Path) -> Path:
    """Procedural videos in VSPW layout."""
    step("sample data", folder, (folder / "train.txt").is_file(), ["data", "sample", str(folder)])
    return folder


def train(recipe: str, data: Path, run: Path, model: Path, overrides: list[str]) -> None:
    """Train, evaluate and write the model folder, as a user would: through accelerate."""
    # On a machine without a GPU accelerate asks for these; with one they are chosen as well.
    launch = ["accelerate.commands.accelerate_cli", "launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", str(os.cpu_count())]  # left out, accelerate takes one on a CPU
    arguments = ["train.py", recipe, "--data.root", str(data), "--output_dir", str(run), *overrides]
    if any(run.glob("checkpoint-*")):
        arguments += ["--resume_from_checkpoint", "true"]  # a run that was stopped goes on
    done = (model / "README.md").is_file()
    step("training", model, done, [], command=[sys.executable, "-m", *launch, *arguments])


def predict(model: Path, data: Path, folder: Path) -> Path:
    """Label one video that the model has not seen and paint it."""
    video = scan_split(data, "val")[0]
    overlay = folder / f"{video.name}_overlay.mp4"
    frames = video.frames[0].image_path.parent
    arguments = ["predict", str(model), str(frames), "--out", str(folder), "--overlay"]
    step("overlay video", overlay, overlay.is_file(), arguments)
    return overlay


def step(name: str, result: Path, done: bool, arguments: list[str], command: list[str] | None = None) -> None:
    """Run one command, or say that its result exists."""
    if done:
        print(f"[{name}] {result} exists already: reused (delete it to make it anew)", flush=True)
        return
    command = command or [sys.executable, "-m", "vss_hf", *arguments]
    shown = " ".join(["accelerate", *command[3:]] if "launch" in command else ["vss-hf", *arguments])
    print(f"[{name}] {shown}", flush=True)
    began = time.time()
    finished = subprocess.run(command, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}, check=False)
    if finished.returncode:
        sys.exit(f"error: {name} failed with exit code {finished.returncode}; the command is above")
    print(f"[{name}] {time.time() - began:.0f} s", flush=True)


def load_back(model: Path) -> str:
    """Load the folder back as any user would; returns the class that came."""
    import vss_hf  # noqa: F401  (lets the Auto classes know our models)
    from vss_hf.modeling.loading import auto_class

    return type(auto_class(model).from_pretrained(model)).__name__


def show(model: Path, overlay: Path, data: Path, loaded: str) -> None:
    """The short table at the end."""
    from rich.console import Console
    from rich.table import Table

    results = json.loads((model / "eval_results.json").read_text(encoding="utf-8"))
    trained = json.loads((model / "train_results.json").read_text(encoding="utf-8"))
    table = Table(title=f"{results['model']} on {results['dataset']} {results['split']}", show_header=False)
    scored = f"{results['classes_scored']} classes, {results['videos']} videos, {results['frames']} frames"
    table.add_row(f"mIoU ({results['protocol']})", f"{results['mean_iou']:.3f}", scored)
    for key in ("vc8", "vc16"):
        value = "-" if results[key] is None else f"{results[key]:.3f}"
        table.add_row(f"{key.upper()} ({results['vc_protocol']})", value, f"{results['vc_clips'].get(key, 0)} clips")
    table.add_row("frames per second", f"{results['frames_per_second']:.0f}", results["hardware"])
    table.add_row("training", f"{trained['seconds']:.0f} s", f"{trained['steps']} steps, seed {trained['seed']}")
    table.add_row("model folder", str(model), f"from_pretrained gives {loaded}")
    table.add_row("model card", str(model / "README.md"), "")
    table.add_row("overlay video", str(overlay), "")
    table.add_row("data", str(data), "")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
