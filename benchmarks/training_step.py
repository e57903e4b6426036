"""A training step of the CamVid recipe's network on the CPU, with and without `keep_freed_memory`.

    python benchmarks/training_step.py [--pairs 5] [--steps 20] [--json OUT]

What that does: training/cpu_memory.py. Every measurement is a fresh process (the setting cannot be taken back),
the two sides in turn. Time: median seconds per step of forward, loss, backward and optimizer, 6 crops of 208x288,
bfloat16 autocast, channels last.
Memory: peak resident set of the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

SIDES = ("default", "kept")


def measure_here(side: str, steps: int) -> dict[str, float]:
    """Median seconds of a step and the process's peak memory in MiB."""
    import torch

    import vss_hf  # noqa: F401
    from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
    from vss_hf.training.cpu_memory import keep_freed_memory
    from vss_hf.training.recipe import load_recipe

    if side == "kept" and not keep_freed_memory():
        raise SystemExit("the C library of this machine has no such setting")
    recipe = load_recipe("camvid-ocrnet", ["--data.root", "unused", "--use_cpu"])
    labels = {str(i): f"class {i}" for i in range(11)}
    torch.manual_seed(0)
    model = OCRNetForSemanticSegmentation(recipe.model.build_config(id2label=labels))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixel_values = torch.randn(6, 3, 208, 288).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 11, (6, 208, 288))
    seconds = []
    for step in range(steps + 3):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=pixel_values, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 3:
            seconds.append(time.perf_counter() - start)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"seconds": statistics.median(seconds), "peak_mib": peak}


def measure(side: str, steps: int) -> dict[str, float]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure_here(arguments.side, arguments.steps)))
        return
    load = os.getloadavg()[0]
    pairs = [[measure(side, arguments.steps) for side in SIDES] for _ in range(arguments.pairs)]
    ratios = [default["seconds"] / kept["seconds"] for default, kept in pairs]
    result = {
        "seconds": {side: statistics.median(pair[i]["seconds"] for pair in pairs) for i, side in enumerate(SIDES)},
        "peak_mib": {side: statistics.median(pair[i]["peak_mib"] for pair in pairs) for i, side in enumerate(SIDES)},
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "load_before": load,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
