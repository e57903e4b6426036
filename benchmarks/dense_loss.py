"""Losses and argmax from low-resolution logits: upsampling everything first against row blocks (modeling/dense.py).

    python benchmarks/dense_loss.py [--json OUT]

Time: median over runs of the two sides in turn, in one process, after one warm-up of each.
Memory: growth of the peak resident set (ru_maxrss) in a fresh process that makes the inputs, runs a tiny problem
(which loads the libraries) and then runs one side once.
Busy machine: the blocks mean about a thousand short parallel regions, and where other processes take the cores GNU
OpenMP's threads wait for each other by spinning, which can cost more than the work. OMP_WAIT_POLICY=passive (or fewer
threads) avoids it, here and in any CPU training; the load is printed with the result.
The default sizes are a frame of VSPW at 480p, 124 classes, and a head of stride 8.
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
import torch.nn.functional as F


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from vss_hf.modeling.dense import upsampled_argmax, upsampled_cross_entropy  # noqa: E402
from vss_hf.training.loss_terms import ohem_cross_entropy, weighted_cross_entropy  # noqa: E402


def naive_loss(logits, labels):
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    F.cross_entropy(upsampled, labels, ignore_index=255).backward()


def blocks_loss(logits, labels):
    upsampled_cross_entropy(logits, labels).backward()


def naive_argmax(logits, labels):
    F.interpolate(logits.detach(), size=labels.shape[1:], mode="bilinear").argmax(1)


def blocks_argmax(logits, labels):
    upsampled_argmax(logits, labels.shape[1:])


def naive_ohem(logits, labels, threshold=0.7, min_kept=100_000):
    """Mean over the hard pixels: as mmsegmentation and others find them, by sorting."""
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    with torch.no_grad():
        valid = labels != 255
        true = upsampled.softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
        least = true[valid].sort().values[min(min_kept * len(labels), int(valid.sum())) - 1]
        hard = valid & (true <= least.clamp(min=threshold))
    losses = F.cross_entropy(upsampled, labels, ignore_index=255, reduction="none")
    losses[hard].mean().backward()


def blocks_ohem(logits, labels):
    ohem_cross_entropy(logits, labels, threshold=0.7, min_kept=100_000).backward()


def naive_pixel_distribution(logits, labels):
    weights = torch.linspace(0.1, 10, logits.shape[1])
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    valid = labels != 255
    factors = torch.maximum(weights[labels.where(valid, 0)], weights[upsampled.detach().argmax(1)])
    losses = F.cross_entropy(upsampled, labels, ignore_index=255, reduction="none")
    ((factors * losses).sum() / valid.sum()).backward()


def blocks_pixel_distribution(logits, labels):
    weights = torch.linspace(0.1, 10, logits.shape[1])
    weighted_cross_entropy(logits, labels, class_weights=weights, max_with_predicted=True).backward()


# operation -> (upsampling everything first, row blocks)
SIDES = {
    "loss + gradient": (naive_loss, blocks_loss),
    "OHEM": (naive_ohem, blocks_ohem),
    "pixel-distribution loss": (naive_pixel_distribution, blocks_pixel_distribution),
    "argmax": (naive_argmax, blocks_argmax),
}


def make_inputs(batch, num_labels, low, high):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, num_labels, *low, generator=generator).mul_(3).requires_grad_()
    labels = torch.randint(0, num_labels, (batch, *high), generator=generator)
    labels[:, :20] = 255
    return logits, labels


def measure_time(operation, sizes, runs):
    """Seconds of each run: (naive, blocks)."""
    inputs = make_inputs(*sizes)
    seconds = ([], [])
    for run in range(runs + 1):
        for side, times in zip(SIDES[operation], seconds, strict=True):
            inputs[0].grad = None
            start = time.perf_counter()
            side(*inputs)
            if run > 0:
                times.append(time.perf_counter() - start)
    return seconds


def peak_rss_mib():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_memory_here(operation, side_index, sizes):
    side = SIDES[operation][side_index]
    inputs = make_inputs(*sizes)
    side(*make_inputs(1, 4, (2, 2), (30, 30)))
    before = peak_rss_mib()
    side(*inputs)
    return peak_rss_mib() - before


def measure_memory(operation, side_index, sizes):
    """MiB by which the peak grew, in a child process."""
    arguments = json.dumps([operation, side_index, sizes])
    child = subprocess.run(
        [sys.executable, __file__, "--child", arguments], check=True, capture_output=True, text=True
    )
    return float(child.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--num-labels", type=int, default=124)
    parser.add_argument("--low", type=int, nargs=2, default=(60, 107), metavar=("h", "w"))
    parser.add_argument("--high", type=int, nargs=2, default=(480, 853), metavar=("H", "W"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(measure_memory_here(*options.child))
        return

    sizes = (options.batch, options.num_labels, tuple(options.low), tuple(options.high))
    setting = {
        "batch": options.batch,
        "num_labels": options.num_labels,
        "low": list(options.low),
        "high": list(options.high),
        "runs": options.runs,
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':16}{'naive':>10}{'blocks':>10}{'ratio':>9}   (ratio of times: median of the pairs, lowest to highest)")

    # Memory first: on Linux a child starts with its parent's peak, which must still be small.
    peaks = {operation: [measure_memory(operation, index, sizes) for index in (0, 1)] for operation in SIDES}
    results = {}
    for operation, memory in peaks.items():
        naive, blocks = measure_time(operation, sizes, options.runs)
        ratios = [n / b for n, b in zip(naive, blocks, strict=True)]
        seconds = [statistics.median(naive), statistics.median(blocks)]
        results[operation] = {
            "seconds": seconds,
            "speedup": statistics.median(ratios),
            "speedup_range": [min(ratios), max(ratios)],
            "extra_peak_mib": memory,
            "memory_ratio": memory[1] / memory[0],
        }
        print(operation)
        print(
            f"{'  seconds':16}{seconds[0]:10.3f}{seconds[1]:10.3f}{statistics.median(ratios):8.2f}x"
            f"   ({min(ratios):.2f} to {max(ratios):.2f})"
        )
        print(f"{'  extra peak MiB':16}{memory[0]:10.0f}{memory[1]:10.0f}     1/{memory[0] / max(memory[1], 1):.0f}")
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
