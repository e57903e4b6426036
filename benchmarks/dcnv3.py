"""DCNv3: the plain grid_sample formulation against modeling/dcnv3.py.

    python benchmarks/dcnv3.py [--device cpu|cuda] [--json OUT]

The plain side is what InternImage publishes for machines without its CUDA extension: pad, grid_sample of all nine
points of a group, multiply, sum. Random offsets of about 1.5 pixels.
Time: median over runs of the two sides in turn, in one process, after one warm-up of each.
Memory: on the CPU growth of the peak resident set (ru_maxrss) in a fresh process that makes the inputs, runs a tiny
problem (which loads the libraries) and then runs one side once; on CUDA the same with max_memory_allocated.
Busy machine: with several threads, OMP_WAIT_POLICY=passive keeps GNU OpenMP from spinning (benchmarks/dense_loss.py).
CPU: one map of InternImage-H, 60 x 107 x 320 in 10 groups, float32, on as many threads as torch has (OMP_NUM_THREADS).
CUDA: all four maps of InternImage-H on a frame of 480 x 853, bfloat16. Its bandwidth counts every tensor that an
operation must read or write once, and is compared with that of copying a large tensor on the same device.
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

from vss_hf.modeling.dcnv3 import dcnv3  # noqa: E402


POINTS = 9
# device -> (dtype, [(height, width, channels, groups)])
SETTINGS = {
    "cpu": (torch.float32, [(60, 107, 320, 10)]),
    "cuda": (torch.bfloat16, [(120, 214, 320, 10), (60, 107, 640, 20), (30, 54, 1280, 40), (15, 27, 2560, 80)]),
}


def plain_dcnv3(value, offset, mask, groups):
    """Kernel 3, stride 1, padding 1. Places in float32, so that bfloat16 is compared at equal quality."""
    batch, height, width, channels = value.shape
    padded = F.pad(value, (0, 0, 1, 1, 1, 1))
    size = torch.tensor([width + 2.0, height + 2.0], device=value.device)
    y, x = (torch.arange(n, device=value.device) + 1.5 for n in (height, width))
    steps = torch.arange(-1.0, 2.0, device=value.device)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(POINTS, 2)
    pixels = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).view(height, width, 1, 1, 2)
    places = (pixels + grid + offset.float().view(batch, height, width, groups, POINTS, 2)) / size * 2 - 1
    places = places.view(batch, height * width, groups, POINTS, 2).transpose(1, 2).flatten(0, 1)
    maps = padded.flatten(1, 2).transpose(1, 2).reshape(batch * groups, -1, height + 2, width + 2)
    samples = F.grid_sample(maps.float(), places, align_corners=False)  # (N·G, D, H·W, P)
    weights = mask.view(batch, height * width, groups, POINTS).transpose(1, 2).reshape(batch * groups, 1, -1, POINTS)
    return (samples * weights).sum(-1).view(batch, channels, height, width).permute(0, 2, 3, 1).to(value.dtype)


def our_dcnv3(value, offset, mask, groups):
    return dcnv3(value, offset, mask, groups=groups)


FORMULATIONS = (plain_dcnv3, our_dcnv3)


def forward(function, inputs, groups, grad_output):
    with torch.no_grad():
        function(*inputs, groups)


def forward_and_backward(function, inputs, groups, grad_output):
    torch.autograd.grad(function(*inputs, groups), inputs, grad_output)


OPERATIONS = {"forward": forward, "forward + backward": forward_and_backward}


def make_inputs(device, batch, shape):
    height, width, channels, groups = shape
    dtype = SETTINGS[device][0]
    generator = torch.Generator(device).manual_seed(0)

    def random(channels):
        return torch.randn(batch, height, width, channels, generator=generator, device=device)

    mask = random(groups * POINTS).unflatten(-1, (groups, POINTS)).softmax(-1).flatten(-2)
    inputs = [random(channels), 1.5 * random(groups * POINTS * 2), mask]
    return [t.to(dtype).requires_grad_() for t in inputs], groups, random(channels).to(dtype)


def seconds_of(run, device):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_time(operation, device, batch, shape, runs):
    """Seconds of each run: (plain, ours)."""
    inputs = make_inputs(device, batch, shape)
    seconds = ([], [])
    for run in range(runs + 1):
        for function, times in zip(FORMULATIONS, seconds, strict=True):
            spent = seconds_of(lambda f=function: OPERATIONS[operation](f, *inputs), device)
            if run > 0:
                times.append(spent)
    return seconds


def peak_mib(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_memory_here(operation, index, device, batch, shape):
    inputs = make_inputs(device, batch, shape)
    tiny = (3, 3, shape[2] // shape[3], 1)  # the same channels per group: on CUDA this tunes the kernels
    OPERATIONS[operation](FORMULATIONS[index], *make_inputs(device, 1, tiny))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_mib(device)
    OPERATIONS[operation](FORMULATIONS[index], *inputs)
    return peak_mib(device) - before


def measure_memory(*arguments):
    """MiB by which the peak grew, in a child process."""
    child = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(arguments)], check=True, capture_output=True, text=True
    )
    return float(child.stdout)


def copy_bandwidth():
    """Bytes per second, read and written, of copying 1 GiB on the GPU."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    spent = [seconds_of(lambda: target.copy_(source), "cuda") for _ in range(10)]
    return 2 * source.numel() / statistics.median(spent[1:])


def bytes_moved(operation, device, batch, shape):
    """Every tensor once: forward reads three and writes one, backward reads four and writes three."""
    height, width, channels, groups = shape
    samples = groups * POINTS
    forward_elements = 2 * channels + 3 * samples
    elements = forward_elements if operation == "forward" else forward_elements + 3 * channels + 6 * samples
    return elements * batch * height * width * SETTINGS[device][0].itemsize


def measure(operation, device, batch, shape, runs, memory):
    plain, ours = measure_time(operation, device, batch, shape, runs)
    ratios = [p / o for p, o in zip(plain, ours, strict=True)]
    result = {
        "seconds": [statistics.median(plain), statistics.median(ours)],
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "extra_peak_mib": memory,
        "memory_ratio": memory[1] / memory[0],
    }
    if device == "cuda":
        result["bytes_per_second"] = bytes_moved(operation, device, batch, shape) / statistics.median(ours)
    return result


def show(operation, result):
    (plain, ours), (low, high) = result["seconds"], result["speedup_range"]
    plain_mib, our_mib = result["extra_peak_mib"]
    print(f"  {operation}")
    print(f"{'    ms':18}{plain * 1e3:10.2f}{ours * 1e3:10.2f}{result['speedup']:8.2f}x   ({low:.2f} to {high:.2f})")
    print(f"{'    extra peak MiB':18}{plain_mib:10.1f}{our_mib:10.1f}     1/{plain_mib / max(our_mib, 0.1):.1f}")
    if "bytes_per_second" in result:
        print(f"{'    GB/s':18}{'':10}{result['bytes_per_second'] / 1e9:10.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--device", choices=SETTINGS, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(measure_memory_here(*options.child))
        return

    device, batch = options.device, options.batch
    dtype, shapes = SETTINGS[device]
    setting = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "dtype": str(dtype),
        "batch": batch,
        "runs": options.runs,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    # Memory first: on Linux a child starts with its parent's peak, which must still be small.
    memory = {
        (shape, operation): [measure_memory(operation, index, device, batch, shape) for index in (0, 1)]
        for shape in shapes
        for operation in OPERATIONS
    }
    if device == "cuda":
        setting["copy_bytes_per_second"] = copy_bandwidth()
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':18}{'plain':>10}{'ours':>10}{'ratio':>9}   (ratio of times: median of the pairs, lowest to highest)")

    results = {}
    for shape in shapes:
        height, width, channels, groups = shape
        name = f"{height}x{width}x{channels}, {groups} groups"
        print(name)
        results[name] = {}
        for operation in OPERATIONS:
            result = measure(operation, device, batch, shape, options.runs, memory[shape, operation])
            results[name][operation] = result
            show(operation, result)
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
