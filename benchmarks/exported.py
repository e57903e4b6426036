"""Seconds a picture and peak memory of exported graphs, against the model itself, on the CPU, with random weights.

    python benchmarks/exported.py [PRESET ...] [--json OUT] [--height 480] [--width 853] [--classes 124]
        [--threads 1] [--rounds 5] [--runs 3]

Three ways to the logits of one picture: the model in torch, its .pt2 file (`torch.export`), and its .onnx file in
onnxruntime. Each round runs every way once, in a process of its own and in an order that turns, so that other work on
the machine meets all of them; a process warms up with one picture and tells the median of its runs. The ratios are
medians over the rounds of each round's ratio. Memory: peak resident set of the process, with everything it imports;
onnxruntime's does not import torch. The largest difference from torch is that of `vss-hf export`'s own check.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

PRESETS = ("upernet-swin-tiny", "deeplabv3plus-resnet50", "bisenet-resnet18")
WAYS = {"torch": "model", "torch.export": "model.pt2", "onnxruntime": "model.onnx"}


# --- in a process of its own


def torch_model(place: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """The model folder."""
    import torch

    from vss_hf.modeling.loading import load_segmentation_model

    torch.set_num_threads(threads)
    model = load_segmentation_model(place).eval()

    def run(pixels: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels)).logits

    return run


def torch_program(place: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """The .pt2 file."""
    import torch
    import torchvision  # noqa: F401  (its operators)

    torch.set_num_threads(threads)
    program = torch.export.load(place).module()

    def run(pixels: np.ndarray) -> Any:
        with torch.inference_mode():
            return program(torch.from_numpy(pixels))

    return run


def onnx_session(place: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """The .onnx file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels})


OPENED = {"torch": torch_model, "torch.export": torch_program, "onnxruntime": onnx_session}


def measure_here(way: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a picture, and the peak of this process in MiB."""
    run = OPENED[way](folder / WAYS[way], options.threads)
    pixels = np.random.default_rng(0).standard_normal((1, 3, options.height, options.width), dtype=np.float32)
    seconds = []
    for _ in range(options.runs + 1):
        start = time.perf_counter()
        run(pixels)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The peak resident set of this process; on Linux without what the process had that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# --- the comparison


def export_preset(preset: str, classes: int, folder: Path) -> dict[str, Any]:
    """Write a model of random weights and its two graphs; how long that took, their sizes and differences."""
    import torch

    from vss_hf.export import export_model
    from vss_hf.modeling.architectures import config_from_preset, model_class
    from vss_hf.modeling.image_processing_vss import VSSImageProcessor

    torch.manual_seed(0)
    config = config_from_preset(preset, id2label={i: str(i) for i in range(classes)})
    model_class(config.model_type)(config).save_pretrained(folder / WAYS["torch"])
    VSSImageProcessor().save_pretrained(folder / WAYS["torch"])
    told = {}
    formats: tuple[tuple[Literal["onnx", "torch"], str], ...] = (("onnx", "onnxruntime"), ("torch", "torch.export"))
    for format, way in formats:
        start = time.perf_counter()
        exported = export_model(folder / WAYS["torch"], folder / WAYS[way], format)
        told[way] = {
            "export_seconds": time.perf_counter() - start,
            "mb": exported.path.stat().st_size / 1e6,
            "largest_difference": max(exported.differences.values()),
        }
    return told


def compare(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    """One preset: by way its seconds, peak and ratio to torch."""
    with tempfile.TemporaryDirectory() as name:
        told = export_preset(preset, options.classes, Path(name))
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(options.rounds):
            turn = number % len(WAYS)
            ways = [*WAYS][turn:] + [*WAYS][:turn]
            rounds.append({way: measure_apart(way, name, options) for way in ways})
    results = {}
    for way in WAYS:
        seconds = [one[way]["seconds"] for one in rounds]
        ratios = [one["torch"]["seconds"] / one[way]["seconds"] for one in rounds]
        results[way] = {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "times_as_fast_as_torch": statistics.median(ratios),
            "ratios": ratios,
            "peak_mib": max(one[way]["peak_mib"] for one in rounds),
            **told.get(way, {}),
        }
    return results


def measure_apart(way: str, folder: str, options: argparse.Namespace) -> dict[str, float]:
    """`measure_here` in a new process."""
    words = [f"--{name}={getattr(options, name)}" for name in ("height", "width", "threads", "runs")]
    child = [sys.executable, __file__, *words, "--child", way, folder]
    settings = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(child, check=True, capture_output=True, text=True, env=settings)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=PRESETS, help="of per-pixel image models")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=853)
    parser.add_argument("--classes", type=int, default=124)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3, help="in each process, after one that is not counted")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, folder = options.child
        print(json.dumps(measure_here(way, Path(folder), options)))
        return

    import onnxruntime
    import torch

    names = ("height", "width", "classes", "threads", "rounds", "runs")
    setting = {
        **{name: getattr(options, name) for name in names},
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':40}{'seconds':>9}{'(range)':>16}{'x torch':>9}{'peak MiB':>10}{'difference':>12}{'file MB':>9}")
    results = {}
    for preset in options.presets:
        results[preset] = compare(preset, options)
        for way, of in results[preset].items():
            times = f"({of['fastest']:.2f} to {of['slowest']:.2f})"
            line = f"{preset + ', ' + way:40}{of['seconds']:9.2f}{times:>16}{of['times_as_fast_as_torch']:9.2f}"
            line += f"{of['peak_mib']:10.0f}"
            if "mb" in of:
                line += f"{of['largest_difference']:12.0e}{of['mb']:9.1f}"
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
