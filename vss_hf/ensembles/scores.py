"""Class scores of many frames on disk, small enough to try weights on: what `vss-hf ensemble search` looks at.

    scores/swin-3fa2b1c40d5e/scores.json      what was stored, of which model
    scores/swin-3fa2b1c40d5e/00017.npz        the split's 18th video: labels (n,), classes (k, n), scores (k, n)

Of every `every`th frame, at every `stride`th row and column, the labelled pixels are kept: their label, the k classes
of the highest scores, and these scores in 1/65535. (Not in 1/255: where two sure models disagree, it is the last
thousandth that decides.) What is lost: a score is off by at most 1/131070, and one that is not among the k counts as
0. A file appears when its video is complete, so a killed run goes on where it stopped.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch.utils.data import DataLoader

from vss_hf.data.labels import IGNORE_INDEX
from vss_hf.data.splits import LabelledSplit
from vss_hf.data.vspw import open_image
from vss_hf.data.workers import end_with_parent
from vss_hf.files import replacing, write_json
from vss_hf.inference.batches import runs
from vss_hf.inference.processes import failing_together, is_first, own_share, rank_and_world
from vss_hf.inference.score_maps import ScoreMap
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.dense import full_precision
from vss_hf.scoring.evaluation import FrameReader, flatten
from vss_hf.scoring.ground_truth import GroundTruth


LEVELS = 65535  # a score of 1


@dataclass(frozen=True)
class Sampling:
    """Which scores are stored.

    Args:
        top_k: classes of each pixel.
        stride: of pixels, in both directions; the middle one of each `stride` x `stride` is taken.
        every: of frames; a video model sees those between, too.
    """

    top_k: int = 8
    stride: int = 8
    every: int = 5

    def __post_init__(self) -> None:
        for name, most in (("top_k", 255), ("stride", 1024), ("every", 100_000)):
            if not 1 <= getattr(self, name) <= most:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {getattr(self, name)}: expected a whole number from 1 to {most}")

    def positions(self, length: int) -> slice:
        """The rows of an image so high, or columns of one so wide."""
        return slice(min(self.stride // 2, (length - 1) // 2), None, self.stride)

    def count(self, length: int) -> int:
        """How many `positions` are."""
        return len(range(*self.positions(length).indices(length)))


@dataclass(frozen=True)
class VideoSample:
    """The labelled pixels of one video, from its first frame to its last.

    Args:
        labels: uint8 (n,).
        classes: uint8 (n, k), the highest score first.
        scores: uint16 (n, k), in 1/65535.
    """

    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def bytes_to_store(split: LabelledSplit, sampling: Sampling, num_labels: int) -> int:
    """At most so many bytes are stored for one member; judged by the size of each video's first frame. Files are
    packed, to between a fifth and a half in most cases."""
    total = 0
    for video in split.videos:
        with open_image(video.frames[0].image_path) as image:
            pixels = sampling.count(image.height) * sampling.count(image.width)
        frames = -(-len(video.frames) // sampling.every)
        total += frames * pixels * (1 + 3 * min(sampling.top_k, num_labels))
    return total


def sampled_scores(
    scores: ScoreMap, labels: np.ndarray, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is stored of a frame; see `VideoSample`. Only the rows that are wanted are computed.

    Args:
        scores: of the frame, summing to 1 at each pixel.
        labels: uint8 (H, W), 255 where there is none.
        sampling: which pixels and how many classes.
    """
    height, width = labels.shape
    rows, columns = sampling.positions(height), sampling.positions(width)
    wanted = labels[rows, columns].ravel()
    with torch.inference_mode(), full_precision(scores.device):
        picked = [scores.rows(row, row + 1)[0, :, columns].t().clone() for row in range(*rows.indices(height))]
        best = torch.cat(picked)[torch.from_numpy(wanted != IGNORE_INDEX).to(scores.device)]  # (n, K)
        values, classes = best.topk(min(sampling.top_k, best.shape[1]), dim=1)
        values = (values * LEVELS).round_().clamp_(0, LEVELS)
    return (
        wanted[wanted != IGNORE_INDEX],
        classes.to(torch.uint8).cpu().numpy(),
        values.cpu().numpy().astype(np.uint16),
    )


class MemberScores:
    """The stored scores of one member on one split.

    Args:
        root: folder of all members' scores.
        name: of the member, for people.
        described: everything that the scores depend on; another description is another folder.
        truth: the split.
        sampling: which scores.
    """

    def __init__(self, root: Path, name: str, described: dict[str, Any], truth: GroundTruth, sampling: Sampling):
        self.truth, self.sampling = truth, sampling
        self.description = {
            **described,
            **asdict(sampling),
            "split": truth.split.name,
            "fingerprint": truth.split.fingerprint,
            "classes": list(truth.classes.names),
            "labels": truth.lookup.tolist(),
        }
        digest = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:12]
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).name).strip(".-")[:60]
        self.folder = root / f"{plain or 'member'}-{digest}"

    def path(self, video: int) -> Path:
        """The file of a video, by its position in the split; names of videos need not be file names."""
        return self.folder / f"{video:05d}.npz"

    def missing(self) -> list[int]:
        """The videos that are not stored yet."""
        return [video for video in range(len(self.truth.split.videos)) if not self.path(video).is_file()]

    def load(self, video: int) -> VideoSample:
        """What is stored of a video.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with np.load(self.path(video), allow_pickle=False) as arrays:
                return VideoSample(arrays["labels"], arrays["classes"].T, arrays["scores"].T)
        except (ValueError, KeyError, EOFError, OSError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path(video)} is damaged ({error}); remove it and run the search again") from error

    def store(
        self,
        open_segmenter: Callable[[], VideoSegmenter],
        *,
        batch_size: int = 4,
        num_workers: int = 0,
        progress: Callable[[Iterator, int], Iterator] | None = None,
    ) -> None:
        """Store what is missing, in this process its share; all processes must call this.

        Args:
            open_segmenter: loads the member; not called where nothing is missing.
            batch_size: frames that an image model takes at once.
            num_workers: processes that decode.
            progress: wraps the first process's iterator of frames.
        """
        with failing_together():
            if is_first():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "scores.json", self.description)
        own = set(own_share([len(video.frames) for video in self.truth.split.videos]))  # of all: they never overlap
        chosen = [video for video in self.missing() if video in own]
        with failing_together():
            if chosen:
                bar = progress if is_first() else None
                self._store(open_segmenter(), chosen, batch_size, num_workers, bar)

    def _store(
        self,
        segmenter: VideoSegmenter,
        chosen: list[int],
        batch_size: int,
        num_workers: int,
        progress: Callable[[Iterator, int], Iterator] | None,
    ) -> None:
        """Run the frames of some videos through the model, and write each video when it ends."""
        every = self.sampling.every
        reader = FrameReader(self.truth.split, chosen)
        reader.frames = [frame for frame in reader.frames if segmenter.is_video_model or frame[1] % every == 0]
        batches = DataLoader(
            reader,
            batch_size,
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=end_with_parent,
            multiprocessing_context="forkserver" if num_workers and rank_and_world()[1] > 1 else None,  # as evaluation
        )
        in_order = flatten(batches)
        if progress is not None:
            in_order = progress(in_order, len(reader))
        video, kept = None, []
        for group in runs(in_order, batch_size, key=lambda frame: (frame.video, frame.values.shape)):
            if group[0].video != video:
                if video is not None:
                    self._write(video, kept)
                video, kept = group[0].video, []
                segmenter.reset()
            maps = segmenter.score_maps([frame.image for frame in group], normalised=True)
            for frame, scores in zip(group, maps, strict=True):
                if frame.number % every == 0:
                    kept.append(sampled_scores(scores, self.truth.lookup[frame.values], self.sampling))
        if video is not None:
            self._write(video, kept)

    def _write(self, video: int, kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        labels, classes, scores = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        with replacing(self.path(video)) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, labels=labels, classes=classes.T, scores=scores.T)  # a rank's are alike


def weight_files(source: str) -> list[list[Any]]:
    """Name, size and time of what a model's folder holds, so that scores of other weights are not taken for its own;
    a Hub id has its revision."""
    folder = Path(source)
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    kept = [path for path in files if path.name not in ("eval_results.json", "trainer_state.json")]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in kept]
