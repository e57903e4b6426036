"""Frames per second of `VideoSegmenter.segment` on an mp4, against a plain loop: decode, processor, model, label map.

    python benchmarks/video_segmenter.py [PRESET ...] [--json OUT] [--frames 40] [--height 480 --width 854]
        [--shortest-edge 480] [--classes 124] [--runs 5]

Both label the same file with the same model (random weights), one frame at a time, and find the same label maps: this
is checked. What differs is that `segment` decodes and prepares the next frames while the model computes. Each run is a
process of its own, the two ways take turns, and the first frames are not counted. Time: median of the runs. Memory:
peak resident set of the process (on a GPU also of its memory).
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from vss_hf.inference import VideoSegmenter  # noqa: E402
from vss_hf.modeling.architectures import config_from_preset, model_class  # noqa: E402
from vss_hf.modeling.image_processing_vss import VSSImageProcessor  # noqa: E402
from vss_hf.video_writer import VideoWriter  # noqa: E402


WARM_UP = 3  # frames


def plain_loop(segmenter: VideoSegmenter, path: Path) -> Iterator[np.ndarray]:
    """What one would write with PyAV and transformers."""
    model, processor = segmenter.model, segmenter.processor
    state = model.init_state() if segmenter.is_video_model else None
    with av.open(str(path)) as container, torch.inference_mode():
        container.streams.video[0].thread_type = "AUTO"
        for picture in container.decode(video=0):
            image = picture.to_ndarray(format="rgb24")
            pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
            if state is None:
                output = model(pixel_values=pixels)
            else:
                output, state = model.step(pixels, state)
            [labels] = processor.post_process_semantic_segmentation(output, [image.shape[:2]])
            yield labels.cpu().numpy()


def overlapped(segmenter: VideoSegmenter, path: Path) -> Iterator[np.ndarray]:
    """The same with `segment`."""
    return (frame.labels for frame in segmenter.segment(path))


WAYS = {"plain": plain_loop, "segment": overlapped}


def measure_here(options: argparse.Namespace) -> dict[str, Any]:
    """Frames per second, peak memory in MiB, and a digest of all label maps."""
    torch.manual_seed(0)
    way, path = options.child
    config = config_from_preset(options.presets[0], id2label={i: str(i) for i in range(options.classes)})
    edge = options.shortest_edge
    processor = VSSImageProcessor(do_resize=edge is not None, size={"shortest_edge": edge or options.height})
    segmenter = VideoSegmenter(model_class(config.model_type)(config), processor, options.device)
    digest, began = hashlib.sha256(), 0.0
    number = -1
    for number, labels in enumerate(WAYS[way](segmenter, Path(path))):
        digest.update(labels.astype(np.uint8).tobytes())
        if number == WARM_UP - 1:
            began = time.perf_counter()
    return {
        "frames_per_second": (number + 1 - WARM_UP) / (time.perf_counter() - began),
        "peak_mib": peak_memory(),
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else None,
        "digest": digest.hexdigest(),
    }


def peak_memory() -> float:
    """The peak resident set of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: `ru_maxrss` begins with what the parent had
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def write_video(path: Path, count: int, size: tuple[int, int]) -> None:
    """Colour ramps that move, with noise: about as hard to decode as a street."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    with VideoWriter(path, fps=15, size=size) as writer:
        for number in range(count):
            planes = [255 * x / size[1], 255 * y / size[0], 127 + 100 * np.sin((x + y + 9 * number) / 40)]
            writer.write((0.85 * np.stack(planes, -1) + rng.integers(0, 38, (*size, 3))).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["semantic-fpn-resnet50"])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=854)
    parser.add_argument("--shortest-edge", type=int, help="resize frames to it before the model; default: not at all")
    parser.add_argument("--classes", type=int, default=124)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "VIDEO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_here(options)))
        return

    setting = {
        "size": [options.height, options.width],
        "shortest_edge": options.shortest_edge,
        "classes": options.classes,
        "frames": options.frames,
        "runs": options.runs,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "av": av.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':28}{'plain':>8}{'segment':>9}  frames/s  {'ratio':>6}{'(range)':>15}   peak MiB plain, segment")
    same = ["--device", options.device, "--classes", str(options.classes), "--height", str(options.height)]
    same += ["--shortest-edge", str(options.shortest_edge)] if options.shortest_edge else []
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, options.frames, (options.height, options.width))
        for preset in options.presets:
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(options.runs):
                for way in WAYS:
                    command = [sys.executable, __file__, preset, *same, "--child", way, str(path)]
                    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    runs[way].append(json.loads(child.stdout.splitlines()[-1]))
            results[preset] = of = summary(runs)
            spread = f"({of['ratios'][0]:.2f} to {of['ratios'][-1]:.2f})"
            print(
                f"{preset:28}{of['plain']:8.2f}{of['segment']:9.2f}{'':12}{of['ratio']:6.2f}{spread:>15}   "
                f"{of['plain_peak_mib']:.0f}, {of['segment_peak_mib']:.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of both ways, and of the ratio of neighbouring runs."""
    digests = {run["digest"] for way in WAYS for run in runs[way]}
    if len(digests) > 1:
        raise SystemExit(f"the label maps differ: {sorted(digests)}")
    of: dict[str, Any] = {}
    for way in WAYS:
        of[way] = statistics.median(run["frames_per_second"] for run in runs[way])
        of[f"{way}_peak_mib"] = max(run["peak_mib"] for run in runs[way])
        of[f"{way}_gpu_peak_mib"] = max(run["gpu_peak_mib"] or 0 for run in runs[way]) or None
    pairs = zip(runs["segment"], runs["plain"], strict=True)
    of["ratios"] = sorted(ours["frames_per_second"] / plain["frames_per_second"] for ours, plain in pairs)
    of["ratio"] = statistics.median(of["ratios"])
    return of


if __name__ == "__main__":
    main()
