"""From a network's output to the label map of a frame: transformers' post-processing and a plain loop against ours.

    python benchmarks/inference.py [--json OUT] [--device cuda] [--runs 5] [--network PRESET]

The network is left out: a stand-in gives ready logits of stride 4 (or 100 queries with masks), so that all that is
measured is what surrounds it, the making of each view's input included, which is the same on all sides. With
`--network` a preset with random weights runs instead, for what is left of the gain beside it.

Sides, each in turn in every round, after one round that warms up:

- transformers: `SegformerImageProcessor` and `Mask2FormerImageProcessor`, `post_process_semantic_segmentation`. It
  knows neither views nor several models.
- plain: what is found in evaluation scripts: every output upsampled to the frame, softmax, the sum over views and
  models, argmax.
- ours: `VideoSegmenter`, with `tta=` and with `WeightedScores` of several segmenters.

Time: median of the rounds. Memory: by how much the peak of a fresh process (on a GPU: of its allocator) grows over one
frame, after a small frame has loaded all libraries. Labels of plain and ours are compared, too.
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
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms
from transformers import Mask2FormerImageProcessor, SegformerImageProcessor


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from vss_hf.inference import VideoSegmenter  # noqa: E402
from vss_hf.inference.score_maps import WeightedScores  # noqa: E402
from vss_hf.inference.views import TTA  # noqa: E402
from vss_hf.modeling.architectures import config_from_preset, model_class  # noqa: E402
from vss_hf.modeling.image_processing_vss import VSSImageProcessor  # noqa: E402


STRIDE = 4
QUERIES = 100
REGIONS, NOISE = (5, 9), 0.1  # of the ready outputs, so that about as many pixels lie at borders as in street scenes
SCALES = (0.75, 1.0, 1.25)
# case: (kind of output, models, scales, mirrored too)
CASES = {
    "single view": ("logits", 1, (1.0,), False),
    "single view, masks": ("masks", 1, (1.0,), False),
    "3 scales + flip": ("logits", 1, SCALES, True),
    "3 scales + flip, masks": ("masks", 1, SCALES, True),
    "two models": ("logits", 2, (1.0,), False),
    "two models, 3 scales + flip": ("logits", 2, SCALES, True),
}


class ReadyOutputs(torch.nn.Module):
    """In the network's place: the same random output for every input of one size."""

    def __init__(self, kind: str, num_labels: int, seed: int):
        super().__init__()
        self.config = SimpleNamespace(num_labels=num_labels, name_or_path="ready")
        self.kind, self.seed = kind, seed
        self.anchor = torch.nn.Buffer(torch.zeros(1))
        self.known: dict[tuple[int, ...], list[SimpleNamespace]] = {}

    @property
    def device(self):
        return self.anchor.device

    @property
    def dtype(self):
        return self.anchor.dtype

    def forward(self, pixel_values):
        shape = tuple(-(-side // STRIDE) for side in pixel_values.shape[-2:])
        if shape not in self.known:
            self.known[shape] = self.outputs(shape)
        mirrored = bool((pixel_values[0, 0, :, 0] > pixel_values[0, 0, :, -1]).all())  # see `make_frame`
        return self.known[shape][mirrored]

    def outputs(self, shape):
        """Of a frame and of its mirror image: smooth regions of all classes, at every scale the same."""
        number = self.config.num_labels if self.kind == "logits" else QUERIES
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(1, number, *REGIONS, generator=generator) * 4
        generator.manual_seed(self.seed + 1)
        coarse += torch.randn(1, number, *REGIONS, generator=generator) / 2  # two models agree mostly
        classes = torch.randn(1, QUERIES, self.config.num_labels + 1, generator=generator).to(self.device) * 3
        maps = (
            F.interpolate(coarse, size=shape, mode="bicubic")
            + torch.randn(1, number, *shape, generator=generator) * NOISE
        )
        if self.kind == "logits":
            return [SimpleNamespace(logits=view) for view in (maps.to(self.device), maps.flip(-1).to(self.device))]
        best = maps.topk(2, dim=1).values  # masks: above 0 where a query is the first, below elsewhere
        masks = 2 * (maps - torch.where(maps == best[:, :1], best[:, 1:], best[:, :1]))
        return [
            SimpleNamespace(class_queries_logits=classes, masks_queries_logits=view.to(self.device))
            for view in (masks, masks.flip(-1))
        ]


def segmenters(case, num_labels, network, device):
    kind, number, scales, flip = CASES[case]
    tta = TTA(scales=scales, flip=flip) if len(scales) > 1 or flip else None
    found = []
    for seed in range(number):
        if network is None:
            model = ReadyOutputs(kind, num_labels, seed)
        else:
            torch.manual_seed(seed)
            config = config_from_preset(network, id2label={i: str(i) for i in range(num_labels)})
            model = model_class(config.model_type)(config)
        found.append(VideoSegmenter(model, VSSImageProcessor(do_resize=False), device, tta=tta))
    return found


def run_ours(members, frame, case):
    if len(members) == 1:
        return members[0].label_batch([frame])[0]
    maps = [(1 / len(members), member.score_maps([frame])[0]) for member in members]
    return WeightedScores(maps).labels().cpu().numpy()


def run_plain(members, frame, case):
    _, _, scales, flip = CASES[case]
    size = frame.shape[:2]
    image = torch.from_numpy(frame).permute(2, 0, 1).to(members[0].model.device)
    total: Any = None
    for member in members:
        for scale in scales:
            view = image
            if scale != 1:
                view = transforms.resize(image, [int(side * scale + 0.5) for side in size], antialias=True)
            pixels = member.pixel_values([view])
            for mirrored in (False, True)[: 1 + flip]:
                outputs = member.model(pixel_values=pixels.flip(-1) if mirrored else pixels)
                scores = full_size_scores(outputs, size)
                scores = scores.flip(-1) if mirrored else scores
                total = scores if total is None else total + scores
    return total.argmax(1)[0].to(torch.uint8).cpu().numpy()


def full_size_scores(outputs, size):
    if hasattr(outputs, "logits"):
        return F.interpolate(outputs.logits, size=size, mode="bilinear").softmax(1)
    masks = F.interpolate(outputs.masks_queries_logits, size=size, mode="bilinear").sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", outputs.class_queries_logits.softmax(-1)[..., :-1], masks)


def run_transformers(members, frame, case):
    outputs = members[0].model(pixel_values=members[0].pixel_values([frame]))
    processor = SegformerImageProcessor() if hasattr(outputs, "logits") else Mask2FormerImageProcessor()
    (labels,) = processor.post_process_semantic_segmentation(outputs, [frame.shape[:2]])
    return labels.to(torch.uint8).cpu().numpy()


def sides_of(case):
    _, number, scales, flip = CASES[case]
    sides = {"plain": run_plain, "ours": run_ours}
    return {"transformers": run_transformers, **sides} if number == 1 and len(scales) == 1 and not flip else sides


def make_frame(size):
    """Darker on the left than on the right, so that the stand-in can tell it from its mirror image."""
    frame = np.random.default_rng(0).integers(0, 128, (*size, 3), dtype=np.uint8)
    frame[:, size[1] // 2 :] += 128
    return frame


@torch.inference_mode()
def measure_time(case, options):
    """{side: seconds of each run}, and the share of pixels where plain and ours have the same label."""
    members = segmenters(case, options.num_labels, options.network, options.device)
    frame, labels = make_frame(options.size), {}
    seconds = {name: [] for name in sides_of(case)}
    for run in range(options.runs + 1):
        for name, side in sides_of(case).items():
            start = time.perf_counter()
            labels[name] = side(members, frame, case)  # ends with the labels on the CPU
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds, float(np.mean(labels["plain"] == labels["ours"]))


@torch.inference_mode()
def measure_memory_here(case, name, options):
    members = segmenters(case, options.num_labels, options.network, options.device)
    side, frame = sides_of(case)[name], make_frame(options.size)
    side(members, make_frame((64, 64)), case)
    if options.device == "cuda":
        for member in members:  # the stand-in's outputs are not what is measured
            outputs_of_views(member, frame, case)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side(members, frame, case)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    for member in members:
        outputs_of_views(member, frame, case)
    before = peak_rss_mib()
    side(members, frame, case)
    return peak_rss_mib() - before


def outputs_of_views(member, frame, case):
    for scale in CASES[case][2]:
        size = [int(side * scale + 0.5) for side in frame.shape[:2]]
        member.model(pixel_values=torch.zeros(1, 3, *size, device=member.model.device))


def peak_rss_mib():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_memory(case, name):
    """MiB by which the peak grew, in a child process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", json.dumps([case, name])]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(child.stdout.splitlines()[-1])


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, nargs=2, default=(480, 853), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--num-labels", type=int, default=124)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--network", metavar="PRESET", help="run this preset instead of ready outputs")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.size = tuple(options.size)
    if options.network:
        options.cases = [case for case in options.cases if CASES[case][0] == "logits"]
    return options


def main():
    options = parse()
    if options.child is not None:
        case, name = options.child
        print(measure_memory_here(case, name, options))
        return
    setting = {
        "size": list(options.size),
        "num_labels": options.num_labels,
        "network": options.network or f"none: outputs of stride {STRIDE}, {QUERIES} queries",
        "scales": list(SCALES),
        "runs": options.runs,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    # Memory first: on Linux a child starts with its parent's peak, which must still be small.
    peaks = {case: {name: measure_memory(case, name) for name in sides_of(case)} for case in options.cases}
    results = {}
    for case in options.cases:
        seconds, agreement = measure_time(case, options)
        ours = seconds["ours"]
        results[case] = {"labels_agree": agreement}
        print(f"{case}: plain and ours agree on {agreement:.4%} of the pixels")
        for name, times in seconds.items():
            ratios = [time / own for time, own in zip(times, ours, strict=True)]
            results[case][name] = {
                "frames_per_second": 1 / statistics.median(times),
                "extra_peak_mib": peaks[case][name],
                "time_over_ours": statistics.median(ratios),
                "time_over_ours_range": [min(ratios), max(ratios)],
                "memory_over_ours": peaks[case][name] / max(peaks[case]["ours"], 1),
            }
            row = results[case][name]
            print(
                f"  {name:13}{row['frames_per_second']:8.2f} frames/s {row['extra_peak_mib']:7.0f} MiB"
                f"   ours: {row['time_over_ours']:5.2f}x as fast ({min(ratios):.2f} to {max(ratios):.2f}),"
                f" 1/{row['memory_over_ours']:.1f} of the memory"
            )
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
