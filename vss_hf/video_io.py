"""Reading frames from video files, folders and pictures, and writing video files (PyAV)."""

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image, ImageOps

from vss_hf.files import replacing


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}  # those that take both h264 and mpeg4
VIDEO_OUT_SUFFIXES = tuple(CONTAINERS)


def read_frames(source: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Frames of a video file, of a folder of pictures, or one picture, in order; one is in memory at a time.

    Rotation metadata (phones) is applied, so the frames are upright.

    Args:
        source: a video file; a folder, whose pictures are taken in natural order ("frame2" before "frame10", dotfiles
            skipped); or a picture.

    Returns:
        An iterator of `(name, frame)`. The name is the picture's stem, or the frame's position in the video as eight
        digits; frame: uint8 (H, W, 3) RGB.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: for a folder without pictures, two pictures of one stem, or a file that is neither a video nor a
            picture. A picture or frame that cannot be decoded raises when the iteration comes to it.
    """
    source = existing(source)
    if source.is_dir():
        return _read_pictures(list_images(source))
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return _read_pictures([source])
    _open_video(source).close()  # a wrong file is reported now, not at the first frame
    return _read_video(source)


def frame_rate(source: str | Path) -> float | None:
    """Frames per second of a video file (its average, where it varies); None for pictures, which have no rate.

    Args:
        source: as in `read_frames`.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if it is neither a video nor a picture, or a video that does not say its rate.
    """
    source = existing(source)
    if source.is_dir() or source.suffix.lower() in IMAGE_SUFFIXES:
        return None
    with _open_video(source) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise ValueError(f"{source} does not say how many frames per second it has")
    return float(rate)


class VideoWriter:
    """Writes RGB frames to a video file: h264, or mpeg4 (with one warning) where PyAV was built without x264.

    The frames go to `<path>.part`, which gets its final name when the `with` block ends
    without an error; so a half-written file is never found under the final name, and an older one survives a failure.

    Args:
        path: where to write; ends in .mp4, .mov, .mkv or .avi. Missing folders are made.
        fps: frames per second, above 0.
        size: (height, width) of every frame in pixels. The encoders need even numbers: the last row or column of an
            odd size is repeated once in the file.

    Raises:
        ValueError: for another suffix, rate or size; and by `write` for a frame of another shape or dtype.

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = ExitStack()
        self._partial = self._file.enter_context(replacing(self.path))
        # The index at the front lets browsers play before the whole file is there.
        fast_start = {"movflags": "+faststart"} if self.path.suffix.lower() in (".mp4", ".mov") else {}
        container = CONTAINERS[self.path.suffix.lower()]
        self._container = av.open(str(self._partial), "w", format=container, options=fast_start)
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

    def write(self, frame: np.ndarray) -> None:
        """Append one frame: uint8 (height, width, 3) RGB."""
        frame = np.asarray(frame)
        expected = (self.height, self.width, 3)
        if frame.shape != expected or frame.dtype != np.uint8:
            raise ValueError(
                f"frame {self.frames_written} of {self.path} is {frame.dtype} {frame.shape}: expected uint8 {expected}"
            )
        even = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        picture.pts = self.frames_written  # the encoder's clock ticks once a frame
        self._container.mux(self._stream.encode(picture))
        self.frames_written += 1

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
        return "libx264", {"crf": "18", "preset": "fast"}  # crf 18: hard to tell from the original by eye
    warnings.warn(
        "PyAV was built without libx264: videos are written as mpeg4, which is larger and which browsers do not play",
        RuntimeWarning,
        stacklevel=3,
    )
    return "mpeg4", {"qscale": "3"}


def list_images(folder: str | Path) -> list[Path]:
    """Pictures of a folder in natural order, dotfiles skipped.

    Raises:
        ValueError: if there is none, or if two share a stem (what is made from them would overwrite each other).
    """
    folder = Path(folder)
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()]
    if not images:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        hint = f"; it has the sub-folders {', '.join(folders[:3])}: name one of them" if folders else ""
        raise ValueError(f"no pictures in the folder {folder}: expected {', '.join(IMAGE_SUFFIXES)} files{hint}")
    images.sort(key=natural_key)
    by_stem = {image.stem: image for image in images}
    for image in images:
        if by_stem[image.stem] != image:
            raise ValueError(f"{image} and {by_stem[image.stem]} have the same stem: keep one of them")
    return images


def natural_key(path: Path) -> list:
    """Sort key that compares the numbers in a file name as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if position % 2 else part for position, part in enumerate(parts)] + [path.name]


def existing(source: str | Path) -> Path:
    """The path, if there is something at it."""
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    return source


def _read_pictures(paths: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    from vss_hf.data.vspw import naming_damage  # here, because it brings `datasets` along

    for path in paths:
        with naming_damage(path), Image.open(path) as picture:
            frame = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        yield path.stem, frame  # (H, W, 3)


def _open_video(path: Path) -> InputContainer:
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from error
    # FFmpeg "plays" text files (its tty format) as pictures of letters.
    if not container.streams.video or container.format.name == "tty":
        container.close()
        raise ValueError(f"{path} is not a video: it has no video stream")
    return container


def _read_video(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    count = 0
    with _open_video(path) as container:
        promised = container.streams.video[0].frames  # 0 where the container does not say
        container.streams.video[0].thread_type = "AUTO"
        try:
            for picture in container.decode(video=0):
                frame = picture.to_ndarray(format="rgb24")  # (H, W, 3)
                # The display matrix says how far to turn counter-clockwise, and so does rot90.
                yield f"{count:08d}", np.ascontiguousarray(np.rot90(frame, picture.rotation // 90))
                count += 1
        except FFmpegError as error:
            raise ValueError(f"{path} breaks off: after {count} frames, {error.strerror}") from error
    if count == 0:
        raise ValueError(f"{path} is a video without a single frame")
    if count < promised:
        warnings.warn(
            f"{path} announces {promised} frames but holds {count}: it may have been cut off",
            RuntimeWarning,
            stacklevel=2,
        )
