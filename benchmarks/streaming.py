"""Milliseconds per frame of a video model's `step`, against the same model without time and whole clips.

    python benchmarks/streaming.py [PRESET ...] [--json OUT] [--markdown FILE] [--height 480 --width 853] [--runs 5]

Three ways to segment one more frame of a video, in eval mode, fp32, with random weights and 124 classes:

    image  the same preset with frame_offsets=[], forward on the frame
    step   `step` with the state of the frames before
    clip   forward on the frame and three others

Each preset runs in a fresh process, where the three take turns: medians of the runs, and medians of the ratios of each
turn. Peak memory: of a further process for each way, with a full state (on the CPU all of the process, on a GPU what
torch allocates). The state's size is that of one stream with the preset's own `frame_offsets`.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from benchmarks.markdown_tables import write_between  # noqa: E402


PRESETS = (
    *("tbn-vit-swin-tiny", "tbn-resnet18", "st-ppm-resnet50", "tcb-ocr-resnet50", "tmanet-resnet50"),
    "video-swin-tiny",
)
OFFSETS = [-3, -2, -1]  # three other frames, and a state that is full after three steps
WAYS = ("image", "step", "clip")
MARKS = ("<!-- streaming: begin (benchmarks/streaming.py --markdown) -->", "<!-- streaming: end -->")
HEADING = [
    "| preset | `step` ms | without time ms | whole clips ms | step / without time | clips / step | GMAC, likewise | "
    "peak MiB step / without time / clips | state MiB |",
    "|---|---|---|---|---|---|---|---|---|",
]


def build(preset: str, device: str, **changes: Any) -> Any:
    """The preset's model with random weights."""
    from vss_hf.modeling.architectures import config_from_preset, model_class

    torch.manual_seed(0)
    config = config_from_preset(preset, id2label={i: str(i) for i in range(124)}, **changes)
    return model_class(config.model_type)(config).eval().to(device)


def prepare(way: str, preset: str, size: tuple[int, int], device: str) -> Callable[[], Any]:
    """What segments one more frame in this way."""
    frame = torch.randn(1, 3, *size, device=device)
    if way == "image":
        image_model = build(preset, device, frame_offsets=[])
        return lambda: image_model(frame.unsqueeze(1))
    model = build(preset, device, frame_offsets=OFFSETS)
    if way == "clip":
        clip = torch.randn(1, 1 + len(OFFSETS), 3, *size, device=device)
        return lambda: model(clip)
    state = model.init_state()
    for _ in OFFSETS:
        _, state = model.step(torch.randn(1, 3, *size, device=device), state)
    return lambda: model.step(frame, state)


def seconds(work: Callable[[], Any], device: str) -> float:
    """How long `work` takes."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_times(preset: str, size: tuple[int, int], runs: int, device: str) -> dict[str, Any]:
    """Milliseconds and GMAC of the three ways, the ratios, and the size of a stream's state."""
    work, times, gmac = {way: prepare(way, preset, size, device) for way in WAYS}, {way: [] for way in WAYS}, {}
    for way in WAYS:  # warms up, too
        with FlopCounterMode(display=False) as counter:
            work[way]()
        gmac[way] = counter.get_total_flops() / 2e9
        work[way]()
    for _ in range(runs):
        for way in WAYS:
            times[way].append(seconds(work[way], device))
    turns = list(zip(*(times[way] for way in WAYS), strict=True))
    return {
        "milliseconds": {way: 1000 * statistics.median(times[way]) for way in WAYS},
        "range": {way: [1000 * min(times[way]), 1000 * max(times[way])] for way in WAYS},
        "step_over_image": statistics.median(step / image for image, step, _ in turns),
        "clip_over_step": statistics.median(clip / step for _, step, clip in turns),
        "gmac": gmac,
        "state_mib": state_mib(work["step"]()[1], preset),
    }


def state_mib(state: Any, preset: str) -> float:
    """Memory of the state of a stream with the preset's own `frame_offsets`."""
    from vss_hf.modeling.architectures import config_from_preset

    of_frame = sum(part.numel() * part.element_size() for part in state.frames[-1])
    return config_from_preset(preset).num_past_frames * of_frame / 2**20


def measure_peak(preset: str, way: str, size: tuple[int, int], device: str) -> float:
    """The peak memory of this process after two frames, in MiB."""
    work = prepare(way, preset, size, device)
    for _ in range(2):
        work()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_a_process(arguments: list[str]) -> Any:
    """What a fresh process of this file prints, as JSON."""
    child = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1])


def markdown_row(preset: str, of: dict[str, Any]) -> str:
    """One row of the table."""
    times, peaks = of["milliseconds"], of["peak_mib"]
    gmac = f"{of['gmac']['step'] / of['gmac']['image']:.2f}, {of['gmac']['clip'] / of['gmac']['step']:.2f}"
    ratios = f"{of['step_over_image']:.2f} | {of['clip_over_step']:.2f} | {gmac}"
    memory = f"{peaks['step']:.0f} / {peaks['image']:.0f} / {peaks['clip']:.0f} | {of['state_mib']:.1f}"
    return f"| `{preset}` | {times['step']:.0f} | {times['image']:.0f} | {times['clip']:.0f} | {ratios} | {memory} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=PRESETS, help="default: a small one of each model")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite the table in this file")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=853)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # "times", or the way whose peak memory is wanted
    options = parser.parse_args()
    size = (options.height, options.width)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        with torch.inference_mode():
            if options.child == "times":
                found = measure_times(options.presets[0], size, options.runs, options.device)
            else:
                found = measure_peak(options.presets[0], options.child, size, options.device)
        print(json.dumps(found))
        return

    setting = {
        "size": list(size),
        "runs": options.runs,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        if options.device == "cpu"
        else torch.cuda.get_device_name(),
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    columns = ("step ms", "image ms", "clip ms", "step/image", "clip/step", "GMAC s/i", "state MiB")
    print(f"{'':24}" + "".join(f"{column:>11}" for column in columns))
    shared = [f"--{name}={getattr(options, name)}" for name in ("height", "width", "runs", "device")]
    shared += [f"--threads={torch.get_num_threads()}"]
    results = {}
    for preset in options.presets:
        of = results[preset] = in_a_process([preset, "--child", "times", *shared])
        of["peak_mib"] = {way: in_a_process([preset, "--child", way, *shared]) for way in WAYS}
        times, gmac = of["milliseconds"], of["gmac"]
        numbers = (*(times[way] for way in ("step", "image", "clip")), of["step_over_image"], of["clip_over_step"])
        numbers = (*numbers, gmac["step"] / gmac["image"], of["state_mib"])
        print(f"{preset:24}" + "".join(f"{number:11.2f}" for number in numbers), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")
    if options.markdown:
        rows = [markdown_row(preset, of) for preset, of in results.items()]
        write_between(MARKS, [*HEADING, *rows], options.markdown)


if __name__ == "__main__":
    main()
