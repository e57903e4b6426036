"""The videos of a split that `predict` has finished: how a video becomes one, and what a run that goes on finds.

    out/<video>/<frame>.png, out/<video>_overlay.mp4     of complete videos only
    out/.prediction/run.json                             what decides the labels
    out/.prediction/videos/<video>.json                  written last: a video with a record is finished
    out/.prediction/partial/                             the videos at work; what an ended run left is made anew

One run at a time writes into a folder; its processes share out the videos that are not finished.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vss_hf.data.vspw import VSPWVideo
from vss_hf.files import write_json
from vss_hf.modeling.loading import read_json

from .resuming import check_same


WORK_FOLDER = ".prediction"


@dataclass(frozen=True)
class LabelledVideo:
    """What was written for a video.

    Args:
        name: of the video.
        frames: names of the label maps, without ".png", in order.
        overlay: file name of the painted video, or None.
        pixels: of each class, in all frames.
    """

    name: str
    frames: list[str]
    overlay: str | None
    pixels: list[int]

    def label_maps(self) -> list[str]:
        """The files, as `<video>/<frame>.png`."""
        return [f"{self.name}/{frame}.png" for frame in self.frames]


class FinishedVideos:
    """The finished videos in a folder of predictions.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path):
        self.out, self.work = out, out / WORK_FOLDER
        self.partial = self.work / "partial"

    def begin(
        self, described: dict[str, Any], videos: Sequence[VSPWVideo], overwrite: bool = False
    ) -> list[LabelledVideo]:
        """Prepare the folder, in the first process only.

        Args:
            described: what decides the labels, as plain values; see `check_same`.
            videos: to label.
            overwrite: begin anew: remove the label maps and overlays of these videos, and of all that have a record.

        Returns:
            Those of the videos that are finished.

        Raises:
            FileExistsError: a folder of a video is there, and not from such a run.
            ValueError: the folder was begun with another model or settings, or a finished video had other pictures.
        """
        path, described = self.work / "run.json", json.loads(json.dumps(described))
        if any(video.name == WORK_FOLDER for video in videos):
            raise ValueError(f"a video is called {WORK_FOLDER}, as a folder of the program; rename it")
        if overwrite:
            self._remove([*(video.name for video in videos), *self._recorded()])
        if path.is_file():
            check_same(read_json(path), described, path, "another --out, or --overwrite to begin anew")
        elif there := [video.name for video in videos if (self.out / video.name).exists()]:
            raise FileExistsError(
                f"{self.out / there[0]} is already there ({len(there)} of {len(videos)} videos), and {self.work} does "
                "not say what made it; give another folder to --out, or --overwrite to replace them"
            )
        shutil.rmtree(self.partial, ignore_errors=True)
        for folder in (self.partial, self.work / "videos"):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(path, described)
        return [found for video in videos if (found := self._finished(video)) is not None]

    def finish(self, video: VSPWVideo, labelled: LabelledVideo) -> None:
        """Move what was written for a video out of `partial`, and record that it is finished."""
        target = self.out / video.name
        remove_label_maps(target)  # of a run that was killed before it wrote the record
        (self.partial / video.name).rename(target)
        if labelled.overlay is not None:
            os.replace(self.partial / labelled.overlay, self.out / labelled.overlay)
        record = {**asdict(labelled), "pictures_sha256": pictures_sha256(video)}
        write_json(self._record_path(video.name), record)

    def forget(self, name: str) -> None:
        """A video's folder is about to be written by others."""
        self._record_path(name).unlink(missing_ok=True)

    def _record_path(self, name: str) -> Path:
        return self.work / "videos" / f"{name}.json"

    def _recorded(self) -> list[str]:
        """The names of all videos that have a record, also those of other splits."""
        return sorted(path.name.removesuffix(".json") for path in self.work.glob("videos/*.json"))

    def _finished(self, video: VSPWVideo) -> LabelledVideo | None:
        """What was written for a video, if all of it is still there."""
        path = self._record_path(video.name)
        if not path.is_file():
            return None
        record = read_json(path)
        if record.pop("pictures_sha256") != pictures_sha256(video):
            raise ValueError(
                f"{path}: {video.name} was labelled from other pictures than those that are there now; give another "
                "--out, or --overwrite to begin anew"
            )
        labelled = LabelledVideo(**record)
        files = {file.stem for file in (self.out / video.name).glob("*.png")}
        has_overlay = labelled.overlay is None or (self.out / labelled.overlay).is_file()
        return labelled if has_overlay and files.issuperset(labelled.frames) else None

    def _remove(self, names: Iterable[str]) -> None:
        names = list(dict.fromkeys(names))
        for name in names:  # all of them before anything is removed
            check_label_maps(self.out / name)
        for name in names:  # the records first: whoever comes after a kill finds nothing that seems finished
            self.forget(name)
        for name in names:
            remove_label_maps(self.out / name)
            for suffix in (".mp4", ".jpg"):
                (self.out / f"{name}_overlay{suffix}").unlink(missing_ok=True)
        (self.work / "run.json").unlink(missing_ok=True)


def check_label_maps(folder: Path) -> None:
    """Raise if the folder of a video is there and may not be removed.

    Raises:
        FileExistsError: it holds something else than PNG files (and halves of them), which people may want to keep.
    """
    if not folder.is_dir():
        return
    if other := [path.name for path in folder.iterdir() if path.is_dir() or path.suffix not in (".png", ".part")]:
        raise FileExistsError(f"{folder}: holds {other[0]}, which is no label map; give another folder to --out")


def remove_label_maps(folder: Path) -> None:
    """Remove the folder of a video, if it is there; raises as `check_label_maps`."""
    check_label_maps(folder)
    if folder.is_dir():
        shutil.rmtree(folder)


def pictures_sha256(video: VSPWVideo) -> str:
    """SHA-256 over the names and sizes (in bytes) of a video's pictures."""
    lines = (f"{record.image_path.name} {os.path.getsize(record.image_path)}\n" for record in video.frames)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
