"""Writing video files (PyAV)."""

import functools
import math
import warnings
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from vss_hf.files import replacing


CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}  # those that take both h264 and mpeg4
VIDEO_OUT_SUFFIXES = tuple(CONTAINERS)
# Ticks per second for frames with times of their own. Usual rates and milliseconds are whole numbers of 1/60000 s, and
# mpeg4 takes no finer clock; Matroska counts milliseconds. An AVI file has no times, only a rate.
CLOCKS = {".mp4": 60000, ".mov": 60000, ".mkv": 1000}


class VideoWriter:
    """Writes RGB frames to a video file: h264, or mpeg4 (with one warning) where PyAV was built without x264.

    The frames go to `<path>.part`, which gets its final name when the `with` block ends
    without an error; so a half-written file is never found under the final name, and an older one survives a failure.

    Args:
        path: where to write; ends in .mp4, .mov, .mkv or .avi. Missing folders are made.
        fps: frames per second, above 0. Where `write` is given times: about how many.
        size: (height, width) of every frame in pixels. The encoders need even numbers: the last row or column of an
            odd size is repeated once in the file.

    Raises:
        ValueError: for another suffix, rate or size; and by `write` for a frame of another shape or dtype, or times
            that do not ascend.

    Example:
        >>> with VideoWriter("out.mp4", fps=15, size=(480, 853)) as writer:  # doctest: +SKIP
        ...     writer.write(frame)
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]):
        self.path = Path(path)
        if self.path.suffix.lower() not in VIDEO_OUT_SUFFIXES:
            raise ValueError(f"cannot write a video to {self.path}: expected a name in {' '.join(VIDEO_OUT_SUFFIXES)}")
        if not fps > 0:
            raise ValueError(f"fps={fps}: expected a number of frames per second above 0")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size={tuple(size)}: expected (height, width), both at least 1")
        self.height, self.width = size
        self.frames_written = 0
        self.last_time: float | None = None  # of the latest frame, where frames have times
        self._last_ticks = -1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = ExitStack()
        self._partial = self._file.enter_context(replacing(self.path))
        # The index at the front lets browsers play before the whole file is there.
        fast_start = {"movflags": "+faststart"} if self.path.suffix.lower() in (".mp4", ".mov") else {}
        container = CONTAINERS[self.path.suffix.lower()]
        self._container = av.open(str(self._partial.absolute()), "w", format=container, options=fast_start)
        name, options = video_encoder()
        rate = Fraction(fps).limit_denominator(1001)  # 29.97 is 30000/1001
        self._stream: Any = self._container.add_stream(name, rate=rate, options=options)
        self._stream.height, self._stream.width = self.height + self.height % 2, self.width + self.width % 2
        self._stream.pix_fmt = "yuv420p"  # what every player shows

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self.close()
        else:
            self._stop()
            self._file.__exit__(error_type, error, traceback)  # removes the file, and words the error of a full disk

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append one frame.

        Args:
            frame: uint8 (height, width, 3) RGB.
            time: seconds from the start of the video at which the frame is shown, for a rate that varies; give it for
                every frame or for none. None: the frames follow each other at the constant rate.
        """
        frame = np.asarray(frame)
        expected = (self.height, self.width, 3)
        if frame.shape != expected or frame.dtype != np.uint8:
            raise ValueError(
                f"frame {self.frames_written} of {self.path} is {frame.dtype} {frame.shape}: expected uint8 {expected}"
            )
        ticks = self._ticks(time)
        even = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        picture.pts = ticks
        self._container.mux(self._stream.encode(picture))
        self.frames_written += 1
        self.last_time, self._last_ticks = time, ticks

    def _ticks(self, time: float | None) -> int:
        """When the next frame is shown, on the encoder's clock: it ticks once a frame, or much finer for times."""
        frame = f"frame {self.frames_written} of {self.path}"
        if self.frames_written and (time is None) != (self.last_time is None):
            raise ValueError(f"{frame} has time {time} after {self.last_time}: give every frame a time, or none")
        if time is None:
            return self.frames_written
        ticks_per_second = CLOCKS.get(self.path.suffix.lower())
        if ticks_per_second is None:
            raise ValueError(
                f"{frame} has time {time}: {self.path.suffix} files have a constant rate; expected a name in "
                f"{' '.join(CLOCKS)}"
            )
        if not 0 <= time < math.inf:
            raise ValueError(f"{frame} has time {time}: expected seconds from the start of the video")
        if self.last_time is None:
            self._stream.codec_context.time_base = Fraction(1, ticks_per_second)
        elif time <= self.last_time:
            raise ValueError(f"{frame} has time {time} after {self.last_time}: times must ascend")
        return max(round(time * ticks_per_second), self._last_ticks + 1)  # two frames within a tick follow each other

    def close(self) -> None:
        """Finish the file and give it its final name.

        Raises:
            ValueError: if no frame was written; nothing is left behind then.
        """
        if self.frames_written == 0:
            self.discard()
            raise ValueError(f"no frame was written to {self.path}: a video needs at least one")
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
        except FFmpegError as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        self._file.close()

    def discard(self) -> None:
        """Stop and remove the temporary file; what was at `path` before stays as it was."""
        self._stop()
        self._partial.unlink(missing_ok=True)

    def _stop(self) -> None:
        with suppress(FFmpegError):  # a full disk again, but nobody wants this file any more
            self._container.close()


@functools.cache  # so that the warning comes once
def video_encoder() -> tuple[str, dict[str, str]]:
    """Name and options of the encoder that `VideoWriter` uses on this machine."""
    if "libx264" in av.codecs_available:
        # crf 18: hard to tell from the original by eye. mbtree shares out bits by what later frames take over; where
        # x264 uses AVX-512, its files then differ from run to run. Without it they do not, at the same size and PSNR.
        return "libx264", {"crf": "18", "preset": "fast", "mbtree": "0"}
    warnings.warn(
        "PyAV was built without libx264: videos are written as mpeg4, which is larger and which browsers do not play",
        RuntimeWarning,
        stacklevel=3,
    )
    return "mpeg4", {"qscale": "3"}
