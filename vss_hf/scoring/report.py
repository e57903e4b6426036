"""The HTML report of an evaluation: one folder that opens without a server and without a network.

    report/index.html     numbers, classes, videos, and clips of the worst videos; script and style are inside
    report/pictures/      of the clips

`KeptFrames` keeps candidates while the evaluation runs, `FramePainter` paints the chosen ones afterwards, and the
template `report.html.jinja` shows them. All text on the page is escaped; names of files are numbers.
"""

import shutil
from pathlib import Path
from typing import Any

from vss_hf.files import write_text
from vss_hf.inference.processes import failing_together, is_first

from .ground_truth import GroundTruth
from .report_frames import KeptFrames, OtherDump
from .report_page import MARK, Clip, page, plot, worst_videos
from .report_pictures import FramePainter


class Report:
    """Makes the HTML report of one evaluation. Give it to `evaluate_model` or `score_predictions`, then `write`.

    Several processes: each gives it to its own call, and all must call `write`; the folder is one that all see. A run
    that was broken off leaves `<folder>.part`, which the next one for this folder removes.

    Args:
        folder: that is made: not there yet, empty, or with an older report, which is replaced.
        clips: videos with pictures: the worst so many by mean IoU and the worst so many by flicker rate.
        frames: of each: the least accurate frame of so many equal parts of the video; and the two between which most
            flickers.
        width: of a picture in pixels, at most.
        compare: another dump of predictions of the same data, to be shown beside; its values are read as those of
            `score_predictions` (labels, for a model), and brought to the truth's size. Frames may be missing.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: the folder holds something else.

    Example:
        >>> report = Report("report")  # doctest: +SKIP
        >>> results = score_predictions("labels", "VSPW_480p", report=report)  # doctest: +SKIP
        >>> report.write(results)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        clips: int = 4,
        frames: int = 3,
        width: int = 640,
        compare: str | Path | None = None,
    ):
        for name, value, least in (("clips", clips, 0), ("frames", frames, 1), ("width", width, 16)):
            if value < least:
                raise ValueError(f"{name}={value}: expected a number from {least}")
        self.folder = Path(folder).resolve()
        self.partial = self.folder.with_name(f"{self.folder.name}.part")
        check_free(self.folder)
        self.clips, self.frames, self.width = clips, frames, width
        self.compare = None if compare is None else Path(compare)
        self.kept: KeptFrames | None = None

    def begin(self, truth: GroundTruth, values: str = "labels") -> KeptFrames:
        """An evaluation begins; all processes must call this.

        Args:
            truth: what is scored.
            values: what the files of `compare` hold.

        Returns:
            What has to see every scored frame.

        Raises:
            FileNotFoundError, ValueError: `compare` cannot be read, or has no file for any frame.
        """
        with failing_together():
            if is_first():
                if self.compare is not None:
                    OtherDump(self.compare, truth, values).close()
                remove_broken_off(self.partial)
                (self.partial / "kept").mkdir(parents=True)
        self.truth, self.values = truth, values
        self.kept = KeptFrames(self.partial / "kept", truth, self.frames)
        return self.kept

    def write(self, results: dict[str, Any]) -> Path | None:
        """Make the folder, the page last; all processes must call this.

        Args:
            results: what the evaluation returned.

        Returns:
            The page; None in other processes than the first.

        Raises:
            RuntimeError: there was no evaluation.
            FileNotFoundError: another process kept its frames elsewhere, or a file of the data is gone.
        """
        if self.kept is None:
            raise RuntimeError("give the report to evaluate_model or score_predictions first")
        with failing_together():
            if is_first():
                self.write_pages(results, self.kept)
        return self.folder / "index.html" if is_first() else None

    def write_pages(self, results: dict[str, Any], kept: KeptFrames) -> None:
        """The first process's part of `write`."""
        positions = {video.name: i for i, video in enumerate(self.truth.split.videos)}
        videos = {positions[scores["video"]]: scores for scores in results["per_video"]}
        rates = {position: kept.read(position, with_maps=False).rates for position in videos}
        top = max((rate for of_video in rates.values() for rate in of_video if rate is not None), default=0.0)
        plots = {position: plot(of_video, top) for position, of_video in rates.items()}
        clips = self.paint_clips(videos, plots, kept)
        text = page(results, self.truth.classes, videos, plots, top, clips, self.compare)
        write_text(self.partial / "index.html", text)
        shutil.rmtree(self.partial / "kept")
        check_free(self.folder)  # again: hours may have passed
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.partial.rename(self.folder)

    def paint_clips(
        self, videos: dict[int, dict[str, Any]], plots: dict[int, dict[str, Any]], kept: KeptFrames
    ) -> list[Clip]:
        """The worst videos with their pictures.

        Args:
            videos: entries of `per_video` by position in the split.
            plots: of their flicker.
            kept: frames of all of them.
        """
        painter = FramePainter(self.partial, self.truth, self.width)
        other = None if self.compare is None else OtherDump(self.compare, self.truth, self.values)
        clips = []
        for position, why in worst_videos(videos, self.clips).items():
            of_video = kept.read(position)
            frames = [
                painter.paint(position, number, of_video, other and other.labels(position, number))
                for number in of_video.maps
            ]
            last = max(1, len(of_video.rates) - 1)
            marks = [100 * number / last for number in of_video.maps]
            clips.append(Clip(position, videos[position], why, plots[position], marks, frames))
        if other is not None:
            other.close()
        return clips


def check_free(folder: Path) -> None:
    """Raise unless a report may be made here: nothing there, an empty folder, or an older report."""
    if not folder.exists():
        return
    index = folder / "index.html"
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        only_ours = {file.name for file in folder.iterdir()} <= {"index.html", "pictures"}
        if only_ours and index.is_file() and MARK in index.read_text(encoding="utf-8", errors="replace"):
            return
    raise FileExistsError(f"{folder}: is there and no report made earlier; give the report a folder of its own")


def remove_broken_off(partial: Path) -> None:
    """Remove what a run that was broken off has left.

    Raises:
        FileExistsError: it is something else.
    """
    if not partial.exists():
        return
    files = {file.name for file in partial.iterdir()} if partial.is_dir() else {partial.name}
    if not files <= {"kept", "pictures", "index.html"}:
        raise FileExistsError(f"{partial}: is there and no report broken off earlier; the report needs that name")
    shutil.rmtree(partial)
