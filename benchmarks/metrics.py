"""Our confusion matrix beside mean_iou of the evaluate library: time per frame, memory, and that the numbers agree.

    python benchmarks/metrics.py [--json OUT]

The other side is evaluate's own module when `evaluate.load("mean_iou")` can reach it (network or cache), or the script
given with --reference. Failing both it is `RestatedMeanIoU` below: the same steps (PNG-encoded `Image` features in an
Arrow file through the real evaluate.Metric, then numpy histograms frame by frame), written anew. The output says which
one was measured.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path

import datasets
import evaluate
import numpy as np
import torch

from vss_hf.metrics import MEAN_IOU, ConfusionMatrix


HEIGHT, WIDTH, NUM_LABELS = 480, 853, 124


class RestatedMeanIoU(evaluate.Metric):
    """What evaluate 0.4.2 to 0.4.6 does: histograms of agreement, prediction and truth, frame by frame."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, num_labels, ignore_index):
        areas = np.zeros((3, num_labels))
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = np.array(prediction), np.array(reference)
            scored = reference != ignore_index
            prediction, reference = prediction[scored], reference[scored]
            agreed = prediction[prediction == reference]
            for area, labels in zip(areas, (agreed, prediction, reference), strict=True):
                area += np.histogram(labels, bins=num_labels, range=(0, num_labels - 1))[0]
        agreed, predicted, truth = areas
        return {"mean_iou": np.nanmean(agreed / (predicted + truth - agreed))}


def load_reference(path: str | None, cache: str):
    """Returns evaluate's mean_iou and a line that says where it came from."""
    if path:
        return evaluate.load(path, cache_dir=cache), f"evaluate's mean_iou, script {Path(path).name} given by hand"
    try:
        return evaluate.load("mean_iou", cache_dir=cache), 'evaluate.load("mean_iou")'
    except (FileNotFoundError, ConnectionError):
        return RestatedMeanIoU(cache_dir=cache), "re-statement of evaluate's mean_iou (the real one is out of reach)"


def make_frames(count: int, noise: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prediction, reference) label maps: wavy regions that drift, predicted a little beside and partly wrong.

    Args:
        noise: share of predicted pixels that are replaced by a random class.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(0, NUM_LABELS, (9, 16))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for shift in range(count):
        y = rows / 60 + 0.3 * np.sin(columns / 21 + shift / 5)
        x = columns / 60 + 0.3 * np.sin(rows / 16 + shift / 5)
        reference = classes[y.astype(int).clip(0, 8), x.astype(int).clip(0, 15)].astype(np.uint8)
        prediction = np.roll(reference, (2, 3), (0, 1))
        prediction[100:160, 200:300] = 77
        wrong = rng.random(reference.shape) < noise
        prediction[wrong] = rng.integers(0, NUM_LABELS, wrong.sum())
        reference[:4] = 255
        frames.append((prediction, reference))
    return frames


def run_matrix(frames):
    matrix = ConfusionMatrix(NUM_LABELS)
    for prediction, reference in frames:
        matrix.update(prediction, reference)
    return matrix.compute("evaluate")["mean_iou"]


def run_module(metric, frames, **options):
    for prediction, reference in frames:
        metric.add_batch(predictions=[prediction], references=[reference])
    return metric.compute(num_labels=NUM_LABELS, ignore_index=255, **options)["mean_iou"]


def seconds_per_frame(runs: dict, frames, repeats: int) -> tuple[dict, dict]:
    """Medians per side, (wall time, processor time). The sides take turns, so that a busy machine slows all."""
    wall, processor = {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start, start_processor = time.perf_counter(), time.process_time()
            run(frames)
            wall[name].append((time.perf_counter() - start) / len(frames))
            processor[name].append((time.process_time() - start_processor) / len(frames))
    return tuple({name: statistics.median(values) for name, values in times.items()} for times in (wall, processor))


def peak_bytes(run, frames) -> int:
    """Highest memory of Python and numpy during the run (what torch and Arrow allocate is not seen)."""
    tracemalloc.start()
    try:
        run(frames)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def disk_bytes(metric, frames) -> int:
    """Size of the Arrow files when evaluate closes them, before it reads them back and deletes them."""
    sizes, finalize = [], metric._finalize

    def measured():
        finalize()
        sizes.append(sum(os.path.getsize(path) for path in metric.file_paths))

    metric._finalize = measured
    run_module(metric, frames)
    metric._finalize = finalize
    return sizes[0]


def compare(reference, module, noise: float, count: int, repeats: int) -> dict:
    """Measures both sides on the same frames, one after the other in one process."""
    frames = make_frames(count, noise)

    def theirs(frames):
        return run_module(reference, frames)

    def ours_as_module(frames):
        return run_module(module, frames, protocol="evaluate")

    expected, got = theirs(frames), run_matrix(frames)
    if abs(expected - got) > 1e-12 or abs(expected - ours_as_module(frames)) > 1e-12:
        raise SystemExit(f"the two sides differ: mean_iou {expected} and {got}")
    runs = {"confusion_matrix": run_matrix, "our_module": ours_as_module, "evaluate": theirs}
    wall, processor = seconds_per_frame(runs, frames, repeats)  # the check above was the warm-up
    matrix = ConfusionMatrix(NUM_LABELS)
    return {
        "noise": noise,
        "mean_iou": got,
        "seconds_per_frame": wall,
        "processor_seconds_per_frame": processor,
        "times_faster": wall["evaluate"] / wall["confusion_matrix"],
        "times_faster_module": wall["evaluate"] / wall["our_module"],
        "times_less_processor_time": processor["evaluate"] / processor["confusion_matrix"],
        "state_bytes": matrix._state.nbytes,
        "peak_bytes": {"confusion_matrix": peak_bytes(run_matrix, frames), "evaluate": peak_bytes(theirs, frames)},
        "disk_bytes": {"confusion_matrix": 0, "evaluate": disk_bytes(reference, frames)},
    }


def report(result: dict, count: int) -> None:
    wall, processor = result["seconds_per_frame"], result["processor_seconds_per_frame"]
    peak, disk = result["peak_bytes"], result["disk_bytes"]
    content = f"{result['noise']:.0%} random pixels" if result["noise"] else "smooth regions"
    print(f"\n{content}: mean_iou {result['mean_iou']:.6f} on both sides")
    for name, label in (
        ("confusion_matrix", "ConfusionMatrix"),
        ("our_module", "our module"),
        ("evaluate", "evaluate"),
    ):
        print(f"  {label:<16} {wall[name] * 1e3:7.3f} ms per frame, {processor[name] * 1e3:7.3f} ms of processor time")
    print(
        f"  {result['times_faster']:.0f} times faster ({result['times_faster_module']:.0f} times as a module), "
        f"{result['times_less_processor_time']:.0f} times less processor time"
    )
    print(
        f"  state {result['state_bytes'] / 1e3:.0f} kB; peak {peak['confusion_matrix'] / 1e6:.1f} MB against "
        f"{peak['evaluate'] / 1e6:.1f} MB, disk 0 against {disk['evaluate'] / 1e6:.2f} MB, for {count} frames"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="OUT", help="also write the numbers to this file")
    parser.add_argument("--reference", metavar="DIR", help="folder with evaluate's mean_iou.py, instead of loading it")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9, help="the median of so many runs is taken")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", category=RuntimeWarning)  # evaluate divides 0 by 0 for absent classes
    with tempfile.TemporaryDirectory() as cache:
        reference, source = load_reference(arguments.reference, cache)
        module = evaluate.load(str(MEAN_IOU), cache_dir=cache)
        print(f"{HEIGHT}x{WIDTH}, {NUM_LABELS} classes, {arguments.frames} frames, median of {arguments.repeats} runs")
        print(f"against {source}")
        cases = []
        for noise in (0.0, 0.2):
            cases.append(compare(reference, module, noise, arguments.frames, arguments.repeats))
            report(cases[-1], arguments.frames)
        del reference, module  # they hold files in the folder that is removed now

    if arguments.json:
        result = {
            "height": HEIGHT,
            "width": WIDTH,
            "num_labels": NUM_LABELS,
            "frames": arguments.frames,
            "repeats": arguments.repeats,
            "reference": source,
            "cases": cases,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "evaluate": evaluate.__version__,
                "datasets": datasets.__version__,
            },
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
