"""Frames that a report may show, kept while an evaluation passes over them.

Which videos are the worst is known at the end only. To show them without running the model again (a video model would
have to begin at their first frame) every video leaves a few label maps behind: those of its worst frames, and of the
two neighbours between which most flickers. They are the labels that were scored, whatever they were made from: a model
with steps, a dump of values on disk, another size. 343 videos of 480 x 853 pixels leave about 20 MB on disk, and while
a video passes, a handful of its maps are in memory.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vss_hf.data.labels import IGNORE_INDEX
from vss_hf.data.vspw import read_mask
from vss_hf.files import write_json
from vss_hf.visualize import save_label_png

from .dumps import open_dump
from .ground_truth import GroundTruth
from .predicted_values import PredictedValues
from .video_scores import LabelledFrame


@dataclass(frozen=True)
class KeptVideo:
    """What is kept of one video.

    Args:
        maps: the label map of each kept frame, uint8 (H, W), by its number, in order of time; 255 = none.
        worst: numbers of the least accurate frames, one of each part of the video.
        flicker: the number of the frame that differs most from the one before; None: nothing flickers.
        rates: the flicker rate of every frame against the one before; None: not known.
    """

    maps: dict[int, np.ndarray]
    worst: list[int]
    flicker: int | None
    rates: list[float | None]


class KeptFrames:
    """Keeps the frames of the videos that this process counts; see the module.

    Args:
        folder: for the files; there, and seen by all processes.
        truth: what is scored.
        parts: equal parts of a video, of each of which the worst frame is kept: of a dense video the worst ones
            altogether would be neighbours.
    """

    def __init__(self, folder: Path, truth: GroundTruth, parts: int):
        self.folder, self.parts = folder, parts
        self.lengths = [len(video.frames) for video in truth.split.videos]
        self.forget()

    def forget(self) -> None:
        """Begin another video."""
        self.video: int | None = None
        self.rates: list[float | None] = []
        self.worst: dict[int, tuple[float, int, np.ndarray]] = {}  # by part: accuracy, number, labels
        self.strongest: tuple[float, int, np.ndarray, np.ndarray] | None = None  # rate, number, labels before and now
        self.before: np.ndarray | None = None

    def add(self, frame: LabelledFrame, labels: np.ndarray, prediction: np.ndarray, flicker: tuple[int, int]) -> None:
        """Look at the next scored frame of a video.

        Args:
            frame: which one it is.
            labels: true labels, uint8 (H, W), 255 = ignored.
            prediction: predicted ones, uint8 (H, W), 255 = none.
            flicker: `FlickerPixels` between it and the frame before.
        """
        if self.video is None:
            self.video, self.rates = frame.video, [None] * self.lengths[frame.video]
        constant, changed = flicker
        if constant:
            self.rates[frame.number] = rate = changed / constant
            if changed and self.before is not None and (self.strongest is None or rate > self.strongest[0]):
                self.strongest = (rate, frame.number, self.before, prediction)
        if (accuracy := accuracy_of(prediction, labels)) is not None:
            part = frame.number * self.parts // len(self.rates)
            if part not in self.worst or accuracy < self.worst[part][0]:
                self.worst[part] = (accuracy, frame.number, prediction)
        self.before = prediction

    def end_video(self) -> None:
        """Write what is kept of the video that passed."""
        if self.video is None:
            return
        maps = {number: labels for _, number, labels in self.worst.values()}
        if self.strongest is not None:
            _, number, before, now = self.strongest
            maps |= {number - 1: before, number: now}
        place = self.folder / str(self.video)
        place.mkdir()
        for number, labels in maps.items():
            save_label_png(labels, place / f"{number}.png")
        kept = {
            "frames": sorted(maps),
            "worst": sorted(number for _, number, _ in self.worst.values()),
            "flicker": None if self.strongest is None else self.strongest[1],
            "rates": self.rates,
        }
        write_json(place / "kept.json", kept)
        self.forget()

    def read(self, video: int, with_maps: bool = True) -> KeptVideo:
        """What any process has kept of a video.

        Args:
            video: its position in the split.
            with_maps: whether to read the label maps.

        Raises:
            FileNotFoundError: nothing; the process that counted it has another folder of this name.
        """
        place = self.folder / str(video)
        if not (place / "kept.json").is_file():
            raise FileNotFoundError(
                f"{place}: nothing was kept of video {video} of the split; where several machines evaluate together, "
                "the report's folder must be one that all of them see"
            )
        kept = json.loads((place / "kept.json").read_text(encoding="utf-8"))
        maps = {number: read_mask(place / f"{number}.png") for number in (kept["frames"] if with_maps else [])}
        return KeptVideo(maps, kept["worst"], kept["flicker"], kept["rates"])


def accuracy_of(prediction: np.ndarray, labels: np.ndarray) -> float | None:
    """The share of the labelled pixels that are right; None without such pixels."""
    labelled = np.count_nonzero(labels != IGNORE_INDEX)
    # where the truth is ignored, 255 meets 255 if nothing was predicted
    right = np.count_nonzero((prediction == labels) & (labels != IGNORE_INDEX))
    return right / labelled if labelled else None


class OtherDump:
    """Another dump of predictions of the same videos, in the labels that are scored. Close it.

    Args:
        path: folder or zip file.
        truth: what is scored.
        values: what the files hold, "labels" or "disk".

    Raises:
        FileNotFoundError: no such dump, or it has no file for any frame.
        ValueError: as `open_dump` and `PredictedValues`.
    """

    def __init__(self, path: Path, truth: GroundTruth, values: str):
        self.truth = truth
        self.values = PredictedValues(truth, values, resize=True)  # it is looked at, not scored
        self.dump = open_dump(path, truth.split.videos)
        if not self.dump.files:
            self.close()
            others = f"; there are others, such as {self.dump.extra[0]}" if self.dump.extra else ""
            raise FileNotFoundError(f"{path}: no prediction of any frame of {truth.split}{others}")

    def close(self) -> None:
        """Closes its file."""
        self.dump.close()

    def labels(self, video: int, number: int) -> np.ndarray | None:
        """The labels (H, W) of a frame; None where there are none. A ValueError names a file with other values."""
        of_video = self.truth.split.videos[video]
        record = of_video.frames[number]
        if (of_video.name, record.stem) not in self.dump.files:
            return None
        assert record.mask_path is not None  # it was scored
        shape = self.truth.split.reader.values(record.mask_path).shape
        stored, name = self.dump.read(of_video.name, record.stem), self.dump.name(of_video.name, record.stem)
        labels = self.truth.scored_prediction(self.values.labels(stored, shape, name))
        count = self.truth.classes.num_labels
        wrong = labels[(labels >= count) & (labels != IGNORE_INDEX)]
        if wrong.size:
            hint = self.values.hint(stored)
            raise ValueError(f"{name}: holds the value {wrong[0]}; labels are 0..{count - 1}, 255 none{hint}")
        return labels
