"""What views, ensembles and smoothing over time give on labelled videos: mIoU, consistency and speed, row by row.

    python benchmarks/inference_on_camvid.py MODEL MODEL [MODEL ...] --data path/to/camvid_vspw [--json OUT]

The models are folders of one architecture trained with several seeds (docs/results.md says with which command). Rows
of one model are the mean and standard deviation over the models, rows of two models over all pairs of them, with equal
weights: nothing is chosen on these videos. Milliseconds are the processor's own for a frame, on one thread, decoding
and scoring included.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from vss_hf.ensembles.ensemble import create_ensemble  # noqa: E402
from vss_hf.inference import VideoSegmenter  # noqa: E402
from vss_hf.inference.views import TTA, parse_tta  # noqa: E402
from vss_hf.refinement.smoothing import parse  # noqa: E402
from vss_hf.scoring import evaluate_model  # noqa: E402


FLIP, SCALES = TTA(flip=True), TTA(scales=(0.75, 1.0, 1.25), flip=True)
# row: (models together, views, smoothing)
ROWS: dict[str, tuple[int, TTA | None, Any]] = {
    "single view": (1, None, None),
    "flip": (1, FLIP, None),
    "3 scales + flip": (1, SCALES, None),
    "BetterThing's 0.5, 1, 1.5 + flip": (1, parse_tta("betterthing-swin"), None),
    "two models": (2, None, None),
    "two models, 3 scales + flip": (2, SCALES, None),
    "single view, `ema`": (1, None, "ema"),
    "single view, `flow`": (1, None, "flow"),
    "single view, `flicker`": (1, None, "flicker"),
    "two models, 3 scales + flip, `flow`": (2, SCALES, "flow"),
}
SCORES = {"mean_iou": "mIoU", "vc8": "VC8", "vc16": "VC16", "flicker_rate": "flicker rate"}


def segmenters(row: str, models: list[Path]) -> Iterator[VideoSegmenter]:
    """One for each model, or for each pair."""
    together, tta, smoothing = ROWS[row]
    for members in combinations(models, together):
        steps = [] if smoothing is None else parse(smoothing, torch.device("cpu"), row)
        scores = [step for step in steps if step.changes == "scores"]
        labels = [step for step in steps if step.changes == "labels"]
        with tempfile.TemporaryDirectory() as folder:
            source = members[0]
            if together > 1:
                source = Path(folder) / "ensemble"
                create_ensemble(source, [{"name": str(member.resolve())} for member in members])
            yield VideoSegmenter.from_pretrained(source, "cpu", tta=tta, score_steps=scores, label_steps=labels)


def measure(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Mean and standard deviation of every score."""
    results, began = [], time.process_time()
    for segmenter in segmenters(row, options.models):
        results.append(evaluate_model(segmenter, options.data, options.split, batch_size=4))
    seconds = time.process_time() - began
    frames = sum(result["frames"] for result in results)
    measured: dict[str, Any] = {"runs": len(results), "milliseconds": 1000 * seconds / frames}
    for score in SCORES:
        values = [result[score] for result in results]
        measured[score] = [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    options = parser.parse_args()
    if len(options.models) < 2:
        parser.error("give two models or more: pairs of them are ensembles")
    torch.set_num_threads(1)
    print(f"| row | {' | '.join(SCORES.values())} | ms a frame |\n|{'---|' * (2 + len(SCORES))}")
    results = {}
    for row in options.rows:
        results[row] = measure(row, options)
        cells = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in (results[row][name] for name in SCORES))
        print(f"| {row} | {' | '.join(cells)} | {results[row]['milliseconds']:.0f} |", flush=True)
    if options.json:
        setting = {"models": [str(model) for model in options.models], "split": options.split}
        setting |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
