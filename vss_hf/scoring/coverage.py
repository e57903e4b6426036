"""Which frames of a split a dump of predictions holds: what is missing, what is there beside, what to do about it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vss_hf.data.vspw import VSPWVideo
from vss_hf.fields import known_or_raise
from vss_hf.inference.processes import gather_texts

from .dumps import Dump, Frame


MISSING = ("error", "skip", "wrong")
FIRST = 10  # names that are listed


@dataclass(frozen=True)
class Coverage:
    """Frames of a split and files of a dump beside each other.

    Args:
        dump: the files.
        videos: of the split.
        if_missing: what happens to frames without a file: "error", "skip" (not scored) or "wrong" (every pixel of
            them counts as wrong).

    Raises:
        ValueError: `if_missing` is none of these.
    """

    dump: Dump
    videos: Sequence[VSPWVideo]
    if_missing: str = "error"

    def __post_init__(self):
        known_or_raise(self.if_missing, MISSING, "missing")

    @property
    def missing(self) -> list[Frame]:
        """Frames without a file, in the order of the split."""
        frames = ((video.name, record.stem) for video in self.videos for record in video.frames)
        return [frame for frame in frames if frame not in self.dump.files]

    def check(self) -> None:
        """Raise where frames without a file are not allowed, or none has one."""
        missing, wanted = self.missing, sum(len(video.frames) for video in self.videos)
        if not missing or (self.if_missing != "error" and len(missing) < wanted):
            return
        others = f"; there are others, such as {self.dump.extra[0]}" if self.dump.extra else ""
        hint = "" if len(missing) == wanted else "; to score it without them: --missing skip, or --missing wrong"
        raise FileNotFoundError(
            f"{len(missing)} of {wanted} predictions are missing, the first is {self.dump.name(*missing[0])}"
            f"{others}{hint}"
        )

    def check_same_everywhere(self) -> None:
        """Raise in all processes unless all see the same files; all must call this."""
        names = "\n".join(sorted(self.dump.files.values()))
        seen = gather_texts(hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest())
        if len(set(seen)) > 1:
            raise ValueError(f"{self.dump.path} does not hold the same files for all processes; give them one copy")

    def results(self) -> dict[str, Any]:
        """For `score_predictions`."""
        missing, names = self.missing, {video.name for video in self.videos}
        absent = names - {video for video, _ in self.dump.files}
        folders = {str(PurePosixPath(name).parent) for name in self.dump.extra}
        return {
            "missing": self.if_missing,
            "videos_wanted": len(self.videos),
            "videos_missing": len(absent),
            "videos_extra": sum(not names.intersection(PurePosixPath(folder).parts) for folder in folders),
            "frames_wanted": sum(len(video.frames) for video in self.videos),
            "frames_missing": len(missing),
            "frames_extra": len(self.dump.extra),
            "first_missing": ["/".join(frame) for frame in missing[:FIRST]],
            "first_extra": [name.removesuffix(".png") for name in self.dump.extra[:FIRST]],
        }


def coverage_warnings(coverage: dict[str, Any]) -> list[str]:
    """What a reader of the scores must know, in sentences.

    Args:
        coverage: of `Coverage.results`.
    """
    said = []
    if number := coverage["frames_missing"]:
        of = f"{number} of {coverage['frames_wanted']} frames ({coverage['videos_missing']} whole videos)"
        if coverage["missing"] == "skip":
            said.append(
                f"{of} have no prediction and are NOT scored: not comparable with scores of the whole split; "
                f"the first is {coverage['first_missing'][0]}"
            )
        else:
            said.append(f"{of} have no prediction and count as wrong; the first is {coverage['first_missing'][0]}")
    if number := coverage["frames_extra"]:
        said.append(f"{number} PNG files belong to no frame of the split; the first is {coverage['first_extra'][0]}")
    return said
