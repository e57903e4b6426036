"""Pseudo labels: a model labels videos, and what it is sure of becomes a data set in VSPW's layout to train on.

    out/data/<video>/{origin,mask}/, train.txt, label_num_dic_final.json     the data set
    out/pseudo_labels.json                                                   how it was made
    out/.pseudo_labels/                                                      what a killed run goes on from

A video's folder is moved into data/ when it is complete, and its record is written after that: a video with a record
is done. Counts in records are whole numbers or of one video, so that nothing depends on who labelled which video.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vss_hf.data.labels import LABEL_FILE, VSPW, ClassList
from vss_hf.data.layouts import class_list
from vss_hf.files import check_new_folder, replacing, write_json, write_text
from vss_hf.inference.prediction import Progress
from vss_hf.inference.processes import (
    check_same_everywhere,
    failing_together,
    gather_texts,
    is_first,
    largest,
    own_share,
)
from vss_hf.inference.resuming import check_same
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.interruption import StopRequest
from vss_hf.scoring.ground_truth import data_set_name

from .files import LabelledVideoWriter, UnlabelledVideo, find_videos
from .filters import (
    Placed,
    PseudoLabelSettings,
    class_thresholds,
    confidence_counts,
    kept_pixels,
    with_neighbours,
)
from .report import VideoCounts, description, report_of


REPORT_FILE = "pseudo_labels.json"
WORK_FOLDER = ".pseudo_labels"


def pseudo_label(
    segmenter: VideoSegmenter,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    source: str = "vspw",
    settings: PseudoLabelSettings | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label videos with a model and write what passes the filters as the training split of a new data set.

    The same call goes on where a killed one stopped, with any number of processes, and gives the same files. Ctrl-C or
    SIGTERM ends it after the frame at hand; the videos that are complete by then can be trained on.

    Where torch.distributed runs, all processes must call this, each with the same model and data: they share the
    videos and write into one `out`, which all machines must see.

    Args:
        segmenter: model and processor.
        data, split, source: what to label; see `find_videos`.
        out: folder of the new data set. Frames that are JPEG or PNG files become hard links to them (copies on
            another disk), frames of video files become JPEGs.
        settings: which frames are labelled and which pixels count.
        batch_size: frames at once; a video model takes its frames one by one.
        progress: wraps the frames of each video of the first process, e.g. for a progress bar.

    Returns:
        What stands in `out`/pseudo_labels.json (see `report_of`), and "stop_signal": the signal that ended it early
        (2 = Ctrl-C), or None.

    Raises:
        FileNotFoundError, ValueError: as `find_videos`; a video is broken; `out` was begun with other settings; the
            processes see different videos; or no frame is left by the filters.
        FileExistsError: `out` holds something else.
        OSError: `out` cannot be written.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    settings = settings or PseudoLabelSettings()
    with failing_together():
        videos = find_videos(data, split, source)
        names = segmenter.names
        classes = VSPW if tuple(names) == VSPW.names else class_list(names)
    check_same_everywhere("\n".join(f"{video.name} {video.source.length}" for video in videos), str(data))
    run = Run(segmenter, videos, Path(out), classes, settings, batch_size, progress if is_first() else None)
    text = ""
    with failing_together():
        if is_first():
            described = description(segmenter, videos, settings, data_set_name(data))
            text = json.dumps({**run.begin(described), "finished": run.finished_videos()})
    begun = json.loads(gather_texts(text)[0])
    finished = set(begun.pop("finished"))
    if begun["complete"]:
        return {**begun, "stop_signal": None}
    thresholds, stop_signal = run.thresholds()
    if stop_signal is None:
        stop_signal = run.share_videos(finished, lambda video: run.label(video, thresholds))
    with failing_together():
        if is_first():
            report = run.end(begun, thresholds, complete=stop_signal is None)
            text = json.dumps({**report, "stop_signal": stop_signal})
    return json.loads(gather_texts(text)[0])


@dataclass
class Run:
    """One process's part in labelling `videos` into `out`.

    Args:
        classes: of the model, with the values that masks have for them.
        stop: whether somebody asked to stop.
        The others are as for `pseudo_label`.
    """

    segmenter: VideoSegmenter
    videos: list[UnlabelledVideo]
    out: Path
    classes: ClassList
    settings: PseudoLabelSettings
    batch_size: int
    progress: Progress | None
    stop: StopRequest = field(default_factory=lambda: StopRequest([signal.SIGINT, signal.SIGTERM]))

    @property
    def work(self) -> Path:
        """The folder of everything that is not for readers."""
        return self.out / WORK_FOLDER

    # --- begin, or go on

    def begin(self, described: dict[str, Any]) -> dict[str, Any]:
        """Make the data set's folder, or see that the one that is there was begun in the same way.

        Args:
            described: see `description`.

        Returns:
            What stands in its report so far.
        """
        path = self.out / REPORT_FILE
        if path.is_file():
            begun = json.loads(path.read_text(encoding="utf-8"))
            check_same(begun, described, path)
        else:
            path.with_name(f"{REPORT_FILE}.part").unlink(missing_ok=True)  # of a run that was killed here
            check_new_folder(self.out.absolute())  # it is filled where it is: the current one will do
            self.out.mkdir(parents=True, exist_ok=True)
            begun = {"complete": False, **described}
            write_json(path, begun)
        if begun["complete"]:
            shutil.rmtree(self.work, ignore_errors=True)  # of a run that was killed at its last step
            return begun
        ids = zip(self.classes.names, self.classes.disk_ids, strict=True)
        write_json(self.out / LABEL_FILE, {"unlabelled": 0, **dict(ids)})
        ClassList.from_root(self.out)  # reports a class name that no data set can have, before the work
        for folder in ("partial", "confidence", "videos"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        (self.out / "data").mkdir(exist_ok=True)
        return begun

    def record_path(self, name: str) -> Path:
        """Where the record of a video is."""
        return self.work / "videos" / f"{name}.json"

    def finished_videos(self) -> list[str]:
        """The videos that have a record."""
        return [video.name for video in self.videos if self.record_path(video.name).is_file()]

    def share_videos(self, finished: set[str], action: Callable[[UnlabelledVideo], None]) -> int | None:
        """Do something with each video that is not finished; processes share them. Returns the signal to stop."""
        left = [video for video in self.videos if video.name not in finished]
        with failing_together(), self.stop.listening():
            for position in own_share([video.source.length or 1 for video in left]):
                if not self.stop:
                    action(left[position])
        return int(largest(float(self.stop.signal_number or 0))) or None

    # --- frames

    def frames(self, video: UnlabelledVideo, wanted: Callable[[int], bool]) -> Generator[Placed, None, None]:
        """The labelled frames at the positions for which `wanted` holds; of a video model, all."""
        if self.segmenter.is_video_model:
            chosen, source = itertools.count(), video.source  # it looks back at all of them
        else:
            chosen, source = filter(wanted, itertools.count()), video.only(wanted)
        found = self.segmenter.segment(source, batch_size=self.batch_size, with_confidence=True)
        with closing(found) as frames:
            for position, frame in zip(chosen, frames, strict=False):
                if frame.confidence is None or not np.isfinite(frame.confidence).all():
                    raise ValueError(f"{video.name}/{frame.name}: the model's scores are not finite numbers")
                yield Placed(position, frame)

    def with_bar(self, items: Iterator, video: UnlabelledVideo, wanted: Callable[[int], bool]) -> Iterator:
        """The items, one per wanted frame of a video, with the progress bar where there is one."""
        if self.progress is None:
            return items
        length = video.source.length
        return self.progress(items, None if length is None else sum(map(wanted, range(length))), video.name)

    # --- the first pass: thresholds

    def thresholds(self) -> tuple[np.ndarray, int | None]:
        """The least confidence of each class, float32 (num_labels,); and the signal to stop, if one came."""
        least = np.full(self.classes.num_labels, self.settings.least_confidence, np.float32)
        if self.settings.class_balanced is None:
            return least, None
        paths = {video.name: self.work / "confidence" / f"{video.name}.npz" for video in self.videos}
        text = json.dumps([name for name, path in paths.items() if path.is_file()]) if is_first() else ""
        counted = set(json.loads(gather_texts(text)[0]))
        stop_signal = self.share_videos(counted, lambda video: self.count(video, paths[video.name]))
        if stop_signal is not None:
            return least, stop_signal
        with failing_together():
            counts = sum(np.load(path)["counts"] for path in paths.values())
        assert isinstance(counts, np.ndarray)
        return np.maximum(least, class_thresholds(counts, self.settings.class_balanced)), None

    def count(self, video: UnlabelledVideo, path: Path) -> None:
        """Count the confidences of a video's predictions into a file."""

        def wanted(position: int) -> bool:
            return position % (self.settings.every * self.settings.balance_every) == 0

        num_labels = self.classes.num_labels
        counts: Any = 0
        with closing(self.frames(video, wanted)) as frames:
            chosen = (placed.frame for placed in frames if wanted(placed.position))
            for frame in self.with_bar(chosen, video, wanted):
                counts = counts + confidence_counts(frame.labels, frame.confidence, num_labels)
                if self.stop:
                    return
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, counts=counts)

    # --- the second pass: labels

    def label(self, video: UnlabelledVideo, thresholds: np.ndarray) -> None:
        """Label a video, move it into the data set and write its record; nothing of that if asked to stop."""
        partial, target = self.work / "partial" / video.name, self.out / "data" / video.name
        writer = LabelledVideoWriter(video, partial, self.classes.palette)
        counts = VideoCounts.empty(self.classes.num_labels)
        wanted = self.settings.is_wanted
        with closing(self.frames(video, self.settings.is_neighbour)) as frames:
            around = with_neighbours(frames, self.settings.temporal_window)
            chosen = (pair for pair in around if wanted(pair[0].position))
            for here, neighbours in self.with_bar(chosen, video, wanted):
                frame, others = here.frame, [other.frame for other in neighbours]
                kept = kept_pixels(frame, others, thresholds, self.settings.temporal_radius)
                enough = bool(kept.mean() >= self.settings.min_labelled)
                if enough:
                    writer.write(frame.name, frame.image, frame.labels, kept)
                counts.add(frame, kept, enough)
                if self.stop:
                    shutil.rmtree(partial)
                    return
        shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before it wrote the record
        if counts.written:
            partial.rename(target)
        else:
            shutil.rmtree(partial)
        counts.write(self.record_path(video.name))

    # --- the end

    def end(self, begun: dict[str, Any], thresholds: np.ndarray, complete: bool) -> dict[str, Any]:
        """Write the list of videos and, if all of them are done, the report.

        Args:
            begun: what stands in the report so far.
            thresholds: the least confidence of each class.
            complete: whether all videos are done.

        Returns:
            The report, see `report_of`.

        Raises:
            ValueError: no frame is left.
        """
        records = {name: VideoCounts.read(self.record_path(name)) for name in self.finished_videos()}
        report = report_of({**begun, "complete": complete}, self.classes.names, records, thresholds)
        written = [name for name, counts in records.items() if counts.written]
        if written:
            write_text(self.out / "train.txt", "".join(f"{name}\n" for name in written))
        elif complete:
            raise ValueError(
                f"{self.out}: the filters leave none of {report['frames']} frames; the mean confidence is "
                f"{report['mean_confidence']:.3f}: take a lower --threshold or --min-labelled, and another --out"
            )
        if complete:
            write_json(self.out / REPORT_FILE, report)
            shutil.rmtree(self.work)
        return report
