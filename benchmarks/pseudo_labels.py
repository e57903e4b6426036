"""How right the pixels are that `vss-hf pseudo-label` keeps, on labelled videos, by filter.

    python benchmarks/pseudo_labels.py MODEL --data path/to/camvid_vspw [--split val] [--device cpu] [--overlay X.jpg]

The model sees the split once; every row then filters the same predictions with the functions of the command. Kept: the
share of all pixels. mIoU (protocol vspw) and accuracy: of the pixels that are kept and have ground truth. Least kept:
of all pixels of a class, by ground truth, the share that is kept; the class with which that is lowest.
"""

import argparse
import sys
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from vss_hf.data.splits import LabelledSplit, open_split  # noqa: E402
from vss_hf.inference import VideoSegmenter  # noqa: E402
from vss_hf.inference.prediction import source_of  # noqa: E402
from vss_hf.inference.segmenter import SegmentedFrame  # noqa: E402
from vss_hf.metrics import ConfusionMatrix  # noqa: E402
from vss_hf.pseudo_labels.filters import (  # noqa: E402
    Placed,
    PseudoLabelSettings,
    class_thresholds,
    confidence_counts,
    kept_pixels,
    with_neighbours,
)
from vss_hf.visualize import overlay_sheet  # noqa: E402


THRESHOLDS = (0.0, 0.5, 0.7, 0.9, 0.95, 0.99)
NEIGHBOURS = ((0, 0), (1, 0), (1, 2))  # window, radius
SETTINGS = [
    *(PseudoLabelSettings(t, temporal_window=w, temporal_radius=r) for w, r in NEIGHBOURS for t in THRESHOLDS),
    *(PseudoLabelSettings(class_balanced=share, temporal_window=w) for w in (0, 1) for share in (0.3, 0.5, 0.8)),
]
SHOWN = PseudoLabelSettings(threshold=0.9, temporal_window=1)

Video = tuple[list[SegmentedFrame], list[np.ndarray]]  # frames with labels and confidence; their ground truth (H, W)


def main() -> None:
    """Label once, filter many times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--device")
    parser.add_argument("--overlay", type=Path, help="draw four frames with ground truth and pseudo labels")
    options = parser.parse_args()
    split = open_split(options.data, options.split)
    segmenter = VideoSegmenter.from_pretrained(options.model, options.device)
    videos = [labelled(segmenter, split, number) for number in range(len(split.videos))]
    counts = sum(confidence_counts(f.labels, f.confidence, split.classes.num_labels) for v in videos for f in v[0])
    print(
        "| threshold | neighbours agree | kept | mIoU of the kept | accuracy | least kept |\n|---|---|---|---|---|---|"
    )
    for settings in SETTINGS:
        print(row(settings, filtered(settings, videos, counts), split.classes.num_labels), flush=True)
    if options.overlay is not None:
        draw(options.overlay, split, filtered(SHOWN, videos, counts))


def labelled(segmenter: VideoSegmenter, split: LabelledSplit, number: int) -> Video:
    """The predictions for a video and its ground truth."""
    video = split.videos[number]
    frames = list(segmenter.segment(source_of(video), with_confidence=True))
    return frames, [split.reader.labels(record.mask_path) for record in video.frames]


def filtered(settings: PseudoLabelSettings, videos: list[Video], counts: np.ndarray):
    """(frame, bool (H, W) of the kept pixels, ground truth) of all frames."""
    thresholds = np.full(len(counts), settings.least_confidence, np.float32)
    if settings.class_balanced is not None:
        thresholds = np.maximum(thresholds, class_thresholds(counts, settings.class_balanced))
    for frames, truths in videos:
        placed = (Placed(position, frame) for position, frame in enumerate(frames))
        for here, neighbours in with_neighbours(placed, settings.temporal_window):
            others = [other.frame for other in neighbours]
            kept = kept_pixels(here.frame, others, thresholds, settings.temporal_radius)
            yield here.frame, kept, truths[here.position]


def row(settings: PseudoLabelSettings, frames, num_labels: int) -> str:
    """One line of the table."""
    confusion, everywhere = ConfusionMatrix(num_labels), np.zeros(num_labels, np.int64)
    kept_count = pixels = 0
    for frame, kept, truth in frames:
        confusion.update(frame.labels, np.where(kept, truth, 255).astype(np.uint8))
        everywhere += np.bincount(truth[truth != 255], minlength=num_labels)
        kept_count, pixels = kept_count + int(kept.sum()), pixels + kept.size
    results = confusion.compute("vspw")
    least = (confusion.in_truth.numpy()[everywhere > 0] / everywhere[everywhere > 0]).min()
    chosen = f"{settings.least_confidence:g}"
    if settings.class_balanced is not None:
        chosen = f"--class_balanced {settings.class_balanced:g}"
    agree = f"within {settings.temporal_radius} pixels" if settings.temporal_radius else "at the same place"
    return (
        f"| {chosen} | {agree if settings.temporal_window else 'not asked'} | {kept_count / pixels:.3f} | "
        f"{results['mean_iou']:.3f} | {results['pixel_accuracy']:.3f} | {least:.3f} |"
    )


def draw(path: Path, split: LabelledSplit, frames) -> None:
    """Four frames evenly spaced: image, ground truth, what is kept."""
    found = list(frames)
    chosen = [found[number] for number in np.linspace(0, len(found) - 1, 4).astype(int)]
    maps = [np.where(kept, frame.labels, 255).astype(np.uint8) for frame, kept, _ in chosen]
    overlay_sheet([frame.image for frame, _, _ in chosen], [truth for *_, truth in chosen], maps, split.classes, path)


if __name__ == "__main__":
    main()
