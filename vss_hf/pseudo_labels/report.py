"""What pseudo labelling tells of itself: settings that must not change on the way, counts, the report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vss_hf.files import write_json
from vss_hf.inference.resuming import model_description
from vss_hf.inference.segmenter import SegmentedFrame, VideoSegmenter

from .files import UnlabelledVideo
from .filters import PseudoLabelSettings


PACKAGES = ("vss-hf", "torch", "transformers", "numpy", "pillow")


# --- what decides the labels


def description(
    segmenter: VideoSegmenter, videos: list[UnlabelledVideo], settings: PseudoLabelSettings, data: str
) -> dict[str, Any]:
    """Everything that decides the labels, as plain values; batch size, device and processes do not, or should not."""
    lengths = [video.source.length for video in videos]
    listing = "\n".join(f"{video.name} {video.source.length} {' '.join(video.files)}" for video in videos)
    chosen = asdict(settings) | {"threshold": settings.least_confidence}
    if settings.class_balanced is None:
        del chosen["balance_every"]
    return {
        "model": model_description(segmenter),
        "data": {
            "name": data,
            "videos": len(videos),
            "frames": sum(length or 0 for length in lengths) if all(lengths) else None,
            "names_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        },
        "settings": chosen,
        "segmenter": segmenter.settings(),
    }


# --- counts


@dataclass
class VideoCounts:
    """What is known of a labelled video.

    Args:
        frames: that were labelled.
        written: those of them that are in the data set.
        confidence: sum over all pixels of the labelled frames.
        predicted: int64 (num_labels,), pixels of the labelled frames by class.
        kept: int64 (num_labels,), pixels of the written frames that kept their label.
    """

    predicted: np.ndarray
    kept: np.ndarray
    frames: int = 0
    written: int = 0
    confidence: float = 0.0

    @classmethod
    def empty(cls, num_labels: int) -> VideoCounts:
        """Of no frame."""
        return cls(np.zeros(num_labels, np.int64), np.zeros(num_labels, np.int64))

    @classmethod
    def read(cls, path: Path) -> VideoCounts:
        """From a record."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        arrays = {name: np.array(fields.pop(name), np.int64) for name in ("predicted", "kept")}
        return cls(**arrays, **fields)

    def write(self, path: Path) -> None:
        """As a record."""
        write_json(path, {**asdict(self), "predicted": self.predicted.tolist(), "kept": self.kept.tolist()})

    def add_counts(self, other: VideoCounts) -> None:
        """Count another video, too."""
        for name in ("predicted", "kept", "frames", "written", "confidence"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add(self, frame: SegmentedFrame, kept: np.ndarray, written: bool) -> None:
        """Count a frame whose pixels `kept`, bool (H, W), passed the filters."""
        assert frame.confidence is not None
        num_labels = len(self.predicted)
        self.frames += 1
        self.confidence += float(np.sum(frame.confidence, dtype=np.float64))
        self.predicted += np.bincount(frame.labels.ravel(), minlength=num_labels)
        if written:
            self.written += 1
            self.kept += np.bincount(frame.labels[kept], minlength=num_labels)


def of_counts(counts: VideoCounts) -> dict[str, Any]:
    """A video, or all of them, in the report."""
    pixels = int(counts.predicted.sum())
    return {
        "frames": counts.frames,
        "frames_written": counts.written,
        "kept_share": int(counts.kept.sum()) / max(1, pixels),
        "mean_confidence": counts.confidence / max(1, pixels),
    }


def of_classes(names: tuple[str, ...], counts: VideoCounts, thresholds: np.ndarray) -> dict[str, dict[str, Any]]:
    """Every class in the report; shares are 0 where nothing was predicted or kept."""
    predicted, kept = counts.predicted.tolist(), counts.kept.tolist()
    return {
        name: {
            "threshold": float(threshold) if np.isfinite(threshold) else None,
            "predicted_share": before / max(1, sum(predicted)),
            "share": after / max(1, sum(kept)),
            "kept_share": after / max(1, before),
        }
        for name, threshold, before, after in zip(names, thresholds, predicted, kept, strict=True)
    }


def report_of(
    begun: dict[str, Any], names: tuple[str, ...], records: dict[str, VideoCounts], thresholds: np.ndarray
) -> dict[str, Any]:
    """The report on all videos that have a record.

    Args:
        begun: what stands in it so far; see `description`.
        names: of the classes.
        records: by video.
        thresholds: float32 (num_labels,), the least confidence of each class.

    Returns:
        {"complete", "model", "data", "settings": as begun; "videos_written", "frames", "frames_written";
        "kept_share": of all pixels of the labelled frames; "mean_confidence": over all of them;
        "classes": {name: {"threshold": None if the first pass did not see the class, "predicted_share": of all
        pixels, before the filters, "share": of the kept pixels, "kept_share": of its own}};
        "videos": {name: {"frames", "frames_written", "kept_share", "mean_confidence"}}; "versions"}.
    """
    total = VideoCounts.empty(len(names))
    for counts in records.values():
        total.add_counts(counts)
    return {
        **begun,
        "videos_written": sum(counts.written > 0 for counts in records.values()),
        **of_counts(total),
        "classes": of_classes(names, total, thresholds),
        "videos": {name: of_counts(counts) for name, counts in records.items()},
        "versions": {name: version(name) for name in PACKAGES},
    }
