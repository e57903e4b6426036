"""What is counted of predictions that come in frame by frame, and all numbers that follow from it.

One pass serves every protocol. What is kept of a video are sums: three numbers per class, the windows of its video
consistency, and two numbers per frame. For 343 videos of 124 classes that is 1 MB. Beside it there are two confusion
matrices, of the open video and of all, and a few maps of a frame's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vss_hf.data.labels import IGNORE_INDEX
from vss_hf.data.statistics import LabelStatistics, class_groups
from vss_hf.metrics import (
    ConfusionMatrix,
    SteadyRuns,
    VideoConsistency,
    class_scores,
    mean_iou_interval,
    sum_over_processes,
)
from vss_hf.metrics.confusion import PROTOCOLS, check_protocol
from vss_hf.metrics.temporal_consistency import TemporalConsistency
from vss_hf.metrics.video_consistency import PROTOCOLS as VC_PROTOCOLS

from .class_scores import group_scores
from .ground_truth import GroundTruth, data_set_name


if TYPE_CHECKING:
    from vss_hf.refinement.flow import Flow

    from .report_frames import KeptFrames


@dataclass
class LabelledFrame:
    """One decoded frame.

    Args:
        video: its video's position in the split.
        number: its own position in the video.
        name: its stem.
        image: uint8 (H, W, 3) RGB; None when only the mask is wanted.
        values: of the mask, uint8 (H, W).
    """

    video: int
    number: int
    name: str
    image: np.ndarray | None
    values: np.ndarray


class VideoScores:
    """Confusion counts, video consistency and flicker of predictions that come in frame by frame.

    Args:
        truth: what the predictions are compared with; all its videos, counted in this process or not.
        protocol: of the mIoU that the results lead with, `vspw` or `evaluate`.
        vc_protocol: of the video consistency that they lead with, e.g. `vspw-official`.
        training: label statistics of the training data, whose head, medium and tail classes are told apart; None:
            those of the ground truth.
        flow: optical flow between two frames, for the temporal consistency (TC); None: it is not computed. With it,
            frames need their images.
        tc_protocol: of the TC, `vspw-official` or `paper`.

    Raises:
        ValueError: an unknown protocol, or `training` counts other classes than those that are scored.
    """

    def __init__(
        self,
        truth: GroundTruth,
        protocol: str = "vspw",
        vc_protocol: str = "vspw-official",
        training: LabelStatistics | None = None,
        flow: "Flow | None" = None,
        tc_protocol: str = "vspw-official",
    ):
        check_protocol(protocol)  # an unknown one is an error now, not after hours of frames
        windows = VideoConsistency(protocol=vc_protocol).num_frames
        if training is not None:
            training.check_names(truth.classes.names)
        self.truth, self.protocol, self.vc_protocol, self.training = truth, protocol, vc_protocol, training
        self.names = truth.classes.names
        self.windows, num_labels = windows, len(self.names)
        lengths = [len(video.frames) for video in truth.split.videos]
        self.first = list(accumulate(lengths, initial=0))  # each video's first frame in `flicker`
        self.confusion = ConfusionMatrix(num_labels)  # without the open video
        self.frames = torch.zeros(len(lengths), dtype=torch.int64)
        self.frames_with = torch.zeros(len(lengths), num_labels, dtype=torch.int64)  # each class
        self.class_pixels = torch.zeros(len(lengths), 3, num_labels, dtype=torch.int64)  # right, in truth, predicted
        self.totals = torch.zeros(len(lengths), len(VC_PROTOCOLS), len(windows), 3, dtype=torch.float64)
        self.flicker = torch.zeros(sum(lengths), 2, dtype=torch.int64)  # pixels of constant truth, of these changed
        self.temporal = None if flow is None else TemporalConsistency(num_labels, flow, tc_protocol)
        self.tc_totals = torch.zeros(0 if flow is None else len(lengths), num_labels, 3, dtype=torch.int64)
        self.kept: KeptFrames | None = None  # sees every frame, too, where a report is wanted
        # of the open video
        self.video: int | None = None
        self.counts = ConfusionMatrix(num_labels)
        self.runs = SteadyRuns(max(windows))
        self.consistency = {name: VideoConsistency(windows, name) for name in VC_PROTOCOLS}

    # --- counting

    def add(self, frame: LabelledFrame, prediction: np.ndarray | None) -> None:
        """Count one frame; the frames of a video must come in order.

        Args:
            frame: with the values of its mask.
            prediction: label map (H, W); None: there is none, and all of it is wrong and nothing of it steady.
        """
        self.open_video(frame.video)
        labels = self.truth.lookup[frame.values]
        if prediction is None:
            counted = np.full_like(labels, IGNORE_INDEX)
            steady = np.full(labels.shape, 256 + frame.number % 2, np.int16)  # no label, and never twice the same
        else:
            counted = steady = self.truth.scored_prediction(prediction)
        before = self.counts.in_truth
        self.counts.update(counted, labels)
        self.frames_with[frame.video] += self.counts.in_truth > before
        self.runs.add_frame(steady, frame.values if self.truth.raw_consistency else labels, labels)
        windows = self.runs.windows_of(self.windows)
        for consistency in self.consistency.values():
            consistency.add_windows(windows)
        flicker = self.runs.flicker()
        self.flicker[self.first[frame.video] + frame.number] = torch.tensor(flicker)
        if self.kept is not None:
            self.kept.add(frame, labels, counted, flicker)
        if self.temporal is not None:
            self.temporal.add_frame(counted, frame.image)
        self.frames[frame.video] += 1

    def leave_out(self, video: int) -> None:
        """The next frame of a video is not scored: no window and no flicker reaches over it."""
        self.open_video(video)
        self.runs.reset()
        for consistency in self.consistency.values():
            consistency.end_video()
        if self.temporal is not None:
            self.temporal.end_video()

    def open_video(self, video: int) -> None:
        """Close the video that is open, unless it is this one."""
        if video != self.video:
            self.end_video()
            self.video = video

    def end_video(self) -> None:
        """Close the video that is open, if any."""
        if self.video is None:
            return
        self.class_pixels[self.video] += torch.from_numpy(np.stack(self.counts.class_pixels()))
        self.confusion.merge(self.counts)
        self.counts.reset()
        self.runs.reset()
        for consistency, totals in zip(self.consistency.values(), self.totals[self.video], strict=True):
            consistency.end_video()
            totals += consistency.totals
            consistency.reset()
        if self.temporal is not None:
            self.temporal.end_video()
            self.tc_totals[self.video] += self.temporal.totals.sum(0)
            self.temporal.reset()
        if self.kept is not None:
            self.kept.end_video()
        self.video = None

    def reduce(self) -> None:
        """Add what the other processes counted, in every process. Call it once, at the end."""
        self.end_video()
        self.confusion.reduce()
        for name in ("frames", "frames_with", "class_pixels", "totals", "flicker", "tc_totals"):
            setattr(self, name, sum_over_processes(getattr(self, name)))

    # --- numbers

    def results(self, with_timeline: bool = False) -> dict[str, Any]:
        """All numbers with their protocols; see `evaluate_model`."""
        self.end_video()
        scores = {name: self.confusion.compute(name) for name in PROTOCOLS}
        consistency = self.all_consistency()
        lead, vc = scores[self.protocol], consistency[self.vc_protocol]
        means = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy")
        right, in_truth, predicted = self.class_pixels.numpy().transpose(1, 0, 2)
        return {
            "protocol": self.protocol,
            "vc_protocol": self.vc_protocol,
            "videos": int(self.frames.count_nonzero()),
            "frames": int(self.frames.sum()),
            **{key: lead[key] for key in means},
            "classes_scored": lead["num_classes_scored"],
            "mean_iou_interval": mean_iou_interval(right, in_truth, predicted, self.protocol),
            "mean_iou_protocols": {
                name: {"mean_iou": known(of["mean_iou"]), "classes_scored": of["num_classes_scored"]}
                for name, of in scores.items()
            },
            **self.class_results(lead),
            "vc8": vc["vc8"],
            "vc16": vc["vc16"],
            "vc_clips": vc["clips"],
            "consistency": consistency,
            **self.temporal_results(),
            "flicker_rate": flicker_rate(self.flicker.sum(0)),
            **self.video_results(),
            **({"timeline": self.timeline()} if with_timeline else {}),
        }

    def all_consistency(self) -> dict[str, dict[str, Any]]:
        """Video consistency by protocol. Sums of floats are made in the order of the data set, for their last bits."""
        found = {}
        for i, name in enumerate(VC_PROTOCOLS):
            consistency = VideoConsistency(self.windows, name)
            for totals in self.totals[:, i]:
                consistency.add_totals(totals)
            scores = consistency.compute()
            found[name] = {key: scores[key] for key in ("vc8", "vc16", "clips", "dropped_clips")}
        return found

    def temporal_results(self) -> dict[str, Any]:
        """TC and what it was made with, or why there is none."""
        if self.temporal is None:
            return {"tc": None, "tc_skipped": "no optical flow was given (--flow_weights)"}
        found = self.temporal_scores()
        made_with = getattr(self.temporal.flow, "settings", {"name": type(self.temporal.flow).__name__})
        return {
            "tc": found["tc"],
            "tc_protocol": found["protocol"],
            "tc_videos": found["videos"],
            "tc_flow": made_with,
        }

    def temporal_scores(self) -> dict[str, Any]:
        """TC of all videos, as of `TemporalConsistency.compute`."""
        assert self.temporal is not None
        together = TemporalConsistency(len(self.names), self.temporal.flow, self.temporal.protocol)
        together.add_totals(self.tc_totals)
        return together.compute()

    def class_results(self, scores: dict[str, Any]) -> dict[str, Any]:
        """What is told of single classes and of their groups."""
        if self.training is None:
            counted_on = f"{data_set_name(self.truth.split.root)} {self.truth.split.name}"
            groups = class_groups((self.frames_with > 0).sum(0).numpy(), int(self.frames.count_nonzero()))
        else:
            counted_on, groups = f"{self.training.dataset} {self.training.split}", self.training.groups()
        return {
            **group_scores(scores["per_class_iou"], groups),
            "per_class_iou": self.by_name(scores["per_class_iou"]),
            "per_class_accuracy": self.by_name(scores["per_class_accuracy"]),
            "per_class_pixels": self.by_name(self.confusion.in_truth.tolist()),
            "per_class_frames": self.by_name(self.frames_with.sum(0).tolist()),
            "class_groups": self.by_name(groups),
            "class_groups_of": counted_on,
        }

    def video_results(self) -> dict[str, Any]:
        """What is told of single videos, in the order of the data set, and the means over them."""
        scored = self.frames.nonzero().flatten().tolist()
        videos, means = [self.one_video(i) for i in scored], {}
        if self.temporal is not None:
            per_video = self.temporal_scores()["per_video"]
            for i, video in zip(scored, videos, strict=True):
                video["tc"] = per_video[i]
        for key in ("mean_iou", "frequency_weighted_iou"):
            known = [video[key] for video in videos if video[key] is not None]
            means[f"{key}_over_videos"] = float(np.mean(known)) if known else None
        return {**means, "per_video": videos}

    def one_video(self, video: int) -> dict[str, Any]:
        """The scores of one video by itself."""
        right, in_truth, predicted = self.class_pixels[video].numpy()
        scores = class_scores(right, in_truth, predicted, self.protocol)
        consistency = {}
        for name, totals in zip(VC_PROTOCOLS, self.totals[video], strict=True):
            alone = VideoConsistency(self.windows, name)
            alone.add_totals(totals)
            found = alone.compute()
            consistency[name] = {"vc8": found["vc8"], "vc16": found["vc16"]}
        return {
            "video": self.truth.split.videos[video].name,
            "frames": int(self.frames[video]),
            **{key: known(scores[key]) for key in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy")},
            "classes": int(self.class_pixels[video, 1].count_nonzero()),
            **consistency[self.vc_protocol],
            "consistency": consistency,
            "flicker_rate": flicker_rate(self.flicker[self.first[video] : self.first[video + 1]].sum(0)),
        }

    def timeline(self) -> dict[str, list[float | None]]:
        """By video, the flicker rate of each frame against the one before."""
        rates = [flicker_rate(pixels) for pixels in self.flicker]
        return {
            video.name: rates[self.first[i] : self.first[i + 1]]
            for i, video in enumerate(self.truth.split.videos)
            if self.frames[i]
        }

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        """One value per class, by the names of the classes."""
        return dict(zip(self.names, values, strict=True))


def flicker_rate(pixels: torch.Tensor) -> float | None:
    """Of the pixels with constant truth, the share whose prediction changes; None without such pixels."""
    constant, changed = pixels.tolist()
    return changed / constant if constant else None


def known(value: float) -> float | None:
    """NaN has no place in JSON."""
    return None if np.isnan(value) else value
