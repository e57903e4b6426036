"""Frames per second and peak memory of presets on this machine, one image at a time, with random weights.

    python benchmarks/inference_speed.py [PRESET ...] [--json OUT] [--height 480 --width 853] [--runs 5]

Each preset runs in a fresh process: model and one label map (forward, then the argmax at the image's size in row
blocks), eval mode, fp32. Time: median of the runs after one that warms up. Memory: peak resident set of the process.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

SMALL = (
    *("upernet-internimage-t", "upernet-internimage-s", "upernet-swin-tiny", "upernet-swin-small"),
    *("upernet-convnext-tiny", "ocrnet-swin-tiny", "ocrnet-swin-small", "ocrnet-hrnet-w18", "ocrnet-volo-d1"),
    *("upernet-resnet50", "pspnet-resnet50", "deeplabv3plus-resnet50", "semantic-fpn-resnet50"),
)


def measure_here(preset: str, size: tuple[int, int], runs: int) -> dict[str, float]:
    """Seconds a frame (median, lowest, highest) and the peak of this process in MiB."""
    from vss_hf.inference import semantic_labels
    from vss_hf.modeling.architectures import config_from_preset, model_class

    torch.manual_seed(0)
    config = config_from_preset(preset, id2label={i: str(i) for i in range(124)})
    model, pixels = model_class(config.model_type)(config).eval(), torch.randn(1, 3, *size)
    seconds = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            start = time.perf_counter()
            semantic_labels(model, model(pixels), size)
            seconds.append(time.perf_counter() - start)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "seconds": statistics.median(seconds[1:]),
        "fastest": min(seconds[1:]),
        "slowest": max(seconds[1:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=SMALL, help="default: the small sizes")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=853)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = (options.height, options.width)
    if options.child:
        print(json.dumps(measure_here(options.presets[0], size, options.runs)))
        return

    setting = {
        "size": list(size),
        "runs": options.runs,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':32}{'frames/s':>10}{'seconds':>10}{'(range)':>16}{'peak MiB':>10}")
    results = {}
    for preset in options.presets:
        arguments = ["--height", str(size[0]), "--width", str(size[1]), "--runs", str(options.runs), "--child", preset]
        child = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
        of = results[preset] = json.loads(child.stdout.splitlines()[-1])
        times = f"({of['fastest']:.2f} to {of['slowest']:.2f})"
        speed = f"{1 / of['seconds']:10.2f}{of['seconds']:10.2f}"
        print(f"{preset:32}{speed}{times:>16}{of['peak_mib']:10.0f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
