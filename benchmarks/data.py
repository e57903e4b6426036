"""How many training frames one core reads and augments, beside the bare decoding and a plain PyTorch data set.

    python benchmarks/data.py [--data path/to/camvid_vspw] [--json OUT] [--markdown docs/data.md]

Frames of 480x853 (JPEG of quality 75, 85 and 95 in turn) with index masks, augmented by the default settings to
480x480. The pictures are made here: enlarged from the first videos of --data, or else drawn as by
`vss-hf data sample`. One process, one thread; all sides take turns on the same frames, and the median of the rounds
is taken of the processor time, which other programs on the machine disturb least. Files are read from memory by then
(the system's cache), so that a disk does not count. `keep_freed_memory` is on for all sides.

- bare decoding: PIL, or torchvision's decoder, from file to array; the frame alone, or frame and mask.
- transform: `TrainTransform` on decoded samples.
- ours: `load_vspw` and `TrainTransform`, map-style from a folder, as a `FrameStream`, and map-style from Parquet.
- plain: a PyTorch Dataset with PIL, numpy and torchvision's v2 functions, written as most are.

The limit is the bare decoding of frame and mask and the transform of a sample decoded before, by turns: so the caches
are as cold as in training. The share of the limit is its time / ours. The DataLoader rows count wall time from the
first batch of 8 to the last, and the processor time of the workers.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from benchmarks.markdown_tables import write_between  # noqa: E402
from vss_hf.data import ClassList, load_vspw, make_sample_dataset, scan_split, write_parquet  # noqa: E402
from vss_hf.data.transforms import AugmentationConfig, TrainTransform  # noqa: E402
from vss_hf.data.vspw import FrameRecord, read_image  # noqa: E402
from vss_hf.training.cpu_memory import keep_freed_memory  # noqa: E402


HEIGHT, WIDTH = 480, 853
QUALITIES = (75, 85, 95)
VIDEOS, FRAMES_PER_VIDEO = 5, 6
CONFIG = AugmentationConfig(crop_size=(480, 480))
BATCH_SIZE = 8
MARKS = ("<!-- throughput: begin (benchmarks/data.py --markdown) -->", "<!-- throughput: end -->")
ACCELERATOR_RATES = (50, 100, 200, 400)  # training frames per second, for the line on starving
LABELS = {
    "decode_frame_pil": "bare decoding, frame, PIL",
    "decode_frame_torchvision": "bare decoding, frame, torchvision's `decode_jpeg`",
    "decode_pair": "bare decoding, frame and mask, PIL",
    "transform": "transform alone",
    "limit": "limit: bare decoding of both, and the transform, by turns",
    "ours_map": "ours, `load_vspw(...)[i]` + `TrainTransform`",
    "ours_stream": "ours, `FrameStream`",
    "ours_parquet": "ours, map-style from Parquet",
    "plain": "plain PyTorch Dataset",
}


# --- the data


def make_data(folder: Path, source: Path | None) -> Path:
    """Writes a data set in VSPW's layout: split "train" with frames of 480x853."""
    if source is None:
        source = folder / "drawn"
        sizes = {"height": HEIGHT, "width": WIDTH, "val_videos": 1, "val_frames_per_video": 1, "test_videos": 0}
        make_sample_dataset(source, train_videos=VIDEOS, frames_per_video=FRAMES_PER_VIDEO, **sizes, progress=False)
    root = folder / "frames"
    qualities = cycle(QUALITIES)
    videos = scan_split(source, "train")[:VIDEOS]
    for video in videos:
        for kind in ("origin", "mask"):
            (root / "data" / video.name / kind).mkdir(parents=True)
        for frame in video.frames[:FRAMES_PER_VIDEO]:
            assert frame.mask_path is not None
            image, mask = Image.open(frame.image_path).convert("RGB"), Image.open(frame.mask_path)
            image = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            image.save(root / "data" / video.name / "origin" / f"{frame.stem}.jpg", quality=next(qualities))
            mask = mask.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
            mask.save(root / "data" / video.name / "mask" / f"{frame.stem}.png")
    (root / "train.txt").write_text("".join(f"{video.name}\n" for video in videos), encoding="utf-8")
    class_list = "label_num_dic_final.json"
    (root / class_list).write_bytes((source / class_list).read_bytes())
    return root


# --- the sides


class PlainDataset(Dataset):
    """The same augmentation as one writes it with PIL, numpy and torchvision, whole pictures at every step.

    Its colour steps are torchvision's own four; ours follow mmsegmentation, with as much to do.
    """

    def __init__(self, records: list[FrameRecord], lookup: np.ndarray):
        self.records, self.lookup = records, lookup

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        record = self.records[index]
        assert record.mask_path is not None
        image = F.pil_to_tensor(Image.open(record.image_path).convert("RGB"))
        labels = torch.from_numpy(self.lookup[np.array(Image.open(record.mask_path))])
        size = self.draw_size(*labels.shape)
        image = F.resize(image, size, antialias=True)
        labels = F.resize(labels[None], size, interpolation=InterpolationMode.NEAREST_EXACT)
        height, width = (min(crop, whole) for crop, whole in zip(CONFIG.crop_size, size, strict=True))
        for _ in range(11):
            top, left = random.randint(0, size[0] - height), random.randint(0, size[1] - width)
            window = F.crop(labels, top, left, height, width)
            classes, counts = np.unique(window.numpy(), return_counts=True)
            counts = counts[classes != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < CONFIG.cat_max_ratio:
                break
        image, labels = F.crop(image, top, left, height, width), window
        if random.random() < CONFIG.horizontal_flip_prob:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        image = self.distort_colours(F.to_dtype(image, torch.float32, scale=True))
        image = F.normalize(image, list(CONFIG.image_mean), list(CONFIG.image_std))
        padding = [0, 0, CONFIG.crop_size[1] - width, CONFIG.crop_size[0] - height]
        return {
            "pixel_values": F.pad(image, padding, fill=0),
            "labels": F.pad(labels, padding, fill=255)[0].long(),
        }

    def draw_size(self, height: int, width: int) -> list[int]:
        scale = random.uniform(1, CONFIG.scale_range[1])
        scale = 1 / scale if random.random() < 0.5 else scale
        jitter = (random.uniform(-CONFIG.aspect_jitter, CONFIG.aspect_jitter) for _ in range(2))
        return [round(length * scale * (1 + jitter)) for length, jitter in zip((height, width), jitter, strict=True)]

    def distort_colours(self, image: torch.Tensor) -> torch.Tensor:
        brightness = 1 - CONFIG.brightness, 1 + CONFIG.brightness
        steps = [(F.adjust_saturation, CONFIG.saturation), (F.adjust_hue, (-CONFIG.hue, CONFIG.hue))]
        steps.insert(random.choice((0, 2)), (F.adjust_contrast, CONFIG.contrast))
        for step, limits in [(F.adjust_brightness, brightness), *steps]:
            if random.random() < CONFIG.photometric_prob:
                image = step(image, random.uniform(*limits))
        return image


class Draws(Dataset):
    """One side for a DataLoader."""

    def __init__(self, side: Callable[[int], Any], draws: int):
        self.side, self.draws = side, draws

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, draw: int) -> dict[str, torch.Tensor]:
        return self.side(draw)


def decode_pil(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as image:
        return np.asarray(image)


def make_sides(root: Path, packed: Path) -> dict[str, Callable[[int], object]]:
    """What is measured: functions of the number of a draw, from 0, which is ours' seed."""
    records = [frame for video in scan_split(root, "train") for frame in video.frames]
    classes, transform = ClassList.from_root(root), TrainTransform(CONFIG)
    ours: Any = load_vspw(root, "train")
    parquet: Any = load_vspw(packed, "train")
    decoded = [ours[i] for i in range(len(ours))]
    plain = PlainDataset(records, classes.lookup)
    stream: Any = load_vspw(root, "train", streaming=True, shuffle_seed=0)
    stream = stream.with_transform(transform)

    def passes():
        for epoch in count():
            stream.set_epoch(epoch)
            yield from stream

    endless = passes()

    def bare(draw: int) -> tuple[np.ndarray, np.ndarray]:
        return decode_pil(of(draw).image_path), decode_pil(of(draw).mask_path)

    def augmented(draw: int) -> dict[str, torch.Tensor]:
        return transform(decoded[draw % len(decoded)], draw)

    def of(draw: int) -> FrameRecord:
        return records[draw % len(records)]

    for draw in range(3):  # what is compared gives the same
        example = transform(ours[draw], draw)
        assert all(torch.equal(example[key], transform(parquet[draw], draw)[key]) for key in example)
        assert np.array_equal(decode_pil(of(draw).image_path), read_image(of(draw).image_path))
    return {
        "decode_frame_pil": lambda draw: decode_pil(of(draw).image_path),
        "decode_frame_torchvision": lambda draw: decode_jpeg(read_file(str(of(draw).image_path))),
        "decode_pair": bare,
        "transform": augmented,
        "limit": lambda draw: (bare(draw), augmented(draw)),
        "ours_map": lambda draw: transform(ours[draw % len(ours)], draw),
        "ours_stream": lambda draw: next(endless),
        "ours_parquet": lambda draw: transform(parquet[draw % len(parquet)], draw),
        "plain": lambda draw: plain[draw % len(plain)],
    }


# --- measuring


def milliseconds(sides: dict[str, Callable[[int], object]], draws: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians per frame and side of processor and wall time; the sides take turns."""
    times: dict[str, dict[str, list[float]]] = {name: {"processor": [], "wall": []} for name in sides}
    for side in sides.values():  # warm-up, with the system's file cache
        for draw in range(draws):
            side(draw)
    for _ in range(rounds):
        for name, side in sides.items():
            processor, wall = time.thread_time(), time.perf_counter()
            for draw in range(draws):
                side(draw)
            times[name]["processor"].append((time.thread_time() - processor) / draws * 1e3)
            times[name]["wall"].append((time.perf_counter() - wall) / draws * 1e3)
    return {name: {kind: statistics.median(runs) for kind, runs in both.items()} for name, both in times.items()}


def loader_rates(data: Dataset, workers: int) -> dict[str, float]:
    """Frames per second of a DataLoader from the first batch to the last, and processor time per frame of all."""
    context = "fork" if workers else None  # the sides are closures
    start = _processor_seconds()
    arrivals = [
        time.perf_counter()
        for _ in DataLoader(data, BATCH_SIZE, num_workers=workers, multiprocessing_context=context, drop_last=True)
    ]
    frames = len(arrivals) * BATCH_SIZE
    return {
        "frames_per_second": (frames - BATCH_SIZE) / (arrivals[-1] - arrivals[0]),
        "processor_ms_per_frame": (_processor_seconds() - start) / frames * 1e3,
    }


def _processor_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure_loaders(sides: dict[str, Callable[[int], object]], draws: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Medians of `loader_rates` for ours and plain with 0, 1 and 2 workers, which take turns."""
    result: dict[str, dict[str, Any]] = {}
    for workers in (0, 1, 2):
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for _ in range(rounds):
            for name, side in (("ours", "ours_map"), ("plain", "plain")):
                runs[name].append(loader_rates(Draws(sides[side], draws), workers))
        result[str(workers)] = {
            name: {key: statistics.median(run[key] for run in of_side) for key in of_side[0]}
            for name, of_side in runs.items()
        }
    return result


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare(root: Path, packed: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    random.seed(0)
    sides = make_sides(root, packed)
    times = milliseconds(sides, options.draws, options.rounds)
    cost = {name: times[name]["processor"] for name in times}
    own_peak = peak_mib(resource.RUSAGE_SELF)
    ours = [name for name in cost if name.startswith("ours")]
    return {
        "ms_per_frame": times,
        "frames_per_second_per_core": {name: 1e3 / ms for name, ms in cost.items()},
        "share_of_limit": {name: cost["limit"] / cost[name] for name in [*ours, "plain"]},
        "times_plain": {name: cost["plain"] / cost[name] for name in ours},
        "loader": measure_loaders(sides, options.draws * 2, max(1, options.rounds // 2)),
        "peak_mib": {"process": own_peak, "worker": peak_mib(resource.RUSAGE_CHILDREN)},
    }


# --- reporting


def report(result: dict[str, Any]) -> list[str]:
    """The figures as lines of markdown."""
    rates = result["frames_per_second_per_core"]
    lines = ["| one core | ms per frame | frames/s | share of the limit | times the plain one |"]
    lines.append("|---|---|---|---|---|")
    for name, label in LABELS.items():
        ms = result["ms_per_frame"][name]["processor"]
        share = result["share_of_limit"].get(name)
        times = result["times_plain"].get(name)
        cells = [f"{ms:.2f}", f"{rates[name]:.0f}", f"{share:.0%}" if share else "", f"{times:.1f}" if times else ""]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "| DataLoader, workers | ours, frames/s | plain, frames/s | ours, ms of processor | plain |"]
    lines.append("|---|---|---|---|---|")
    for workers, sides in result["loader"].items():
        ours, plain = sides["ours"], sides["plain"]
        lines.append(
            f"| {workers} | {ours['frames_per_second']:.0f} | {plain['frames_per_second']:.0f} "
            f"| {ours['processor_ms_per_frame']:.1f} | {plain['processor_ms_per_frame']:.1f} |"
        )
    ours, plain = result["loader"]["1"]["ours"], result["loader"]["1"]["plain"]
    fed, plainly = 1e3 / ours["processor_ms_per_frame"], 1e3 / plain["processor_ms_per_frame"]
    needs = ", ".join(f"{rate} frames/s {rate / fed:.1f} ({rate / plainly:.1f})" for rate in ACCELERATOR_RATES)
    lines += [
        "",
        f"A core that works for a DataLoader feeds {fed:.0f} frames/s (plain: {plainly:.0f}), handing over included; "
        f"an accelerator that trains more than that per core starves. Cores it needs (plain): {needs}.",
        f"Peak memory: {result['peak_mib']['process']:.0f} MiB, of a worker {result['peak_mib']['worker']:.0f} MiB "
        f"(all libraries, {result['frames']} decoded frames and what "
        "workers share with the process included).",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in VSPW's layout to take pictures from")
    parser.add_argument("--draws", type=int, default=90, help="frames per round and side")
    parser.add_argument("--rounds", type=int, default=7, help="the median of so many is taken")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite the tables in this file")
    options = parser.parse_args()

    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*(deprecated|TorchCodec).*")  # torchvision's decoder
    with tempfile.TemporaryDirectory() as folder:
        root, packed = make_data(Path(folder), options.data), Path(folder, "packed")
        write_parquet(root, packed, progress=False)
        sizes = [frame.image_path.stat().st_size for video in scan_split(root, "train") for frame in video.frames]
        result = {
            "height": HEIGHT,
            "width": WIDTH,
            "crop_size": CONFIG.crop_size,
            "pictures": "drawn (vss-hf data sample)" if options.data is None else f"enlarged from {options.data.name}",
            "frames": len(sizes),
            "jpeg_kilobytes": statistics.mean(sizes) / 1e3,
            "load_before": os.getloadavg()[0],
            **compare(root, packed, options),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "pillow": PIL.__version__,
                "datasets": datasets.__version__,
            },
            "hardware": f"{platform.machine()}, 1 thread",
        }
    lines = [
        f"{result['frames']} frames of {HEIGHT}x{WIDTH}, {result['pictures']}, {result['jpeg_kilobytes']:.0f} kB "
        f"each; crops of {CONFIG.crop_size[0]}x{CONFIG.crop_size[1]}; median of {options.rounds} rounds.",
        "",
        *report(result),
    ]
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        write_between(MARKS, lines, options.markdown)


if __name__ == "__main__":
    main()
