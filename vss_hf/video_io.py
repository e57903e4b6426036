"""Reading frames from video files, folders, pictures, arrays and cameras (PyAV)."""

import re
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.device import enumerate_input_devices
from av.error import BlockingIOError, FFmpegError
from av.stream import Disposition
from PIL import ImageOps

from .data.vspw import check_frame_mode, naming_damage, open_image
from .video_writer import VideoWriter as VideoWriter  # reading and writing have one door


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
USUAL_RATE = 25.0  # where a video says neither its rate nor when a frame is shown
SECONDS_MISSING = 0.5  # by which a video may be shorter than it announces


class Frame(NamedTuple):
    """One frame of a video.

    Args:
        name: the picture's stem, or the frame's position in the video as eight digits.
        image: uint8 (H, W, 3) RGB, upright.
        time: seconds since the first frame; None where there is no clock (pictures, arrays, raw streams).
    """

    name: str
    image: np.ndarray
    time: float | None


@dataclass(frozen=True)
class FrameSource:
    """The frames of one video, read when they are asked for; one is in memory at a time.

    Args:
        name: of the video.
        length: number of frames; None where it is not known beforehand.
        rate: frames per second, on average; None where there is no clock.
        read: begins to read, at the first frame; an iterator of arrays goes on where it stands.
        live: the frames come when they come (a camera): whoever is slower leaves some out.
    """

    name: str
    length: int | None
    rate: float | None
    read: Callable[[], Iterator[Frame]]
    live: bool = False

    def __iter__(self) -> Generator[Frame, None, None]:
        yield from self.read()


def open_source(source: Any) -> FrameSource:
    """The frames of a video file, a folder of pictures, a picture, arrays or a camera.

    Args:
        source: a video file; a folder, whose pictures are taken in natural order ("frame2" before "frame10", dotfiles
            skipped); the folder of a video in VSPW layout, whose `origin/` holds the pictures; a picture; the number
            of a camera, from 0; an iterable of frames, each a uint8 (H, W, 3) array or (3, H, W) tensor, RGB; or
            a `FrameSource`, which is returned as it is.

    Returns:
        Its frames. The frames of one video may differ in size. Times ascend: where those of a file do not, one
        RuntimeWarning says so, and the frames concerned follow each other at the average rate. Rotation metadata
        (phones) is applied.

    Raises:
        FileNotFoundError: there is nothing at `source`, or no such camera.
        ValueError: a folder without pictures, two pictures of one stem, or a file that is neither a video nor a
            picture. What cannot be decoded, and a frame of another shape, raise when the iteration comes to it.
    """
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, int):
        return _open_camera(source)
    if isinstance(source, (str, Path)):
        path = existing(source)
        return _open_folder(path) if path.is_dir() else _open_file(path)
    if not isinstance(source, Iterable):
        raise ValueError(
            f"a {type(source).__name__} is no source of frames: expected a file, a folder, arrays or the number of a "
            "camera"
        )
    length = len(source) if hasattr(source, "__len__") else None  # type: ignore[arg-type]
    return FrameSource("frames", length, None, lambda: _read_arrays(source))


def read_frames(source: Any) -> Iterator[tuple[str, np.ndarray]]:
    """`(name, image)` of every frame of a source; see `open_source` for what it takes and raises."""
    return ((frame.name, frame.image) for frame in open_source(source))


# --- pictures


def _open_folder(path: Path) -> FrameSource:
    folder = path / "origin" if (path / "origin").is_dir() else path
    images = list_images(folder)
    place = folder.resolve()
    name = place.parent.name if place.name == "origin" else place.name  # VSPW's layout
    return FrameSource(name, len(images), None, lambda: read_pictures(images))


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


def read_pictures(paths: list[Path]) -> Iterator[Frame]:
    """Pictures one after the other, turned upright as their EXIF data say; errors as `read_image`."""
    for path in paths:
        with open_image(path) as picture:
            check_frame_mode(path, picture)
            with naming_damage(path):
                image = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        yield Frame(path.stem, image, None)


# --- arrays


def _read_arrays(arrays: Iterable[Any]) -> Iterator[Frame]:
    for number, array in enumerate(arrays):
        yield Frame(f"{number:08d}", _as_image(array, number), None)


def _as_image(array: Any, number: int) -> np.ndarray:
    """A frame as uint8 (H, W, 3)."""
    image = array.movedim(0, -1).cpu().numpy() if isinstance(array, torch.Tensor) and array.ndim == 3 else array
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{array.dtype} {tuple(array.shape)}" if hasattr(array, "dtype") else type(array).__name__
        raise ValueError(
            f"frame {number} is {found}: expected a uint8 (height, width, 3) array or (3, height, width) tensor, RGB"
        )
    return np.array(image)  # a copy: a camera's library may use its buffer again while this frame waits


# --- video files


def _open_file(path: Path) -> FrameSource:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FrameSource(path.stem, 1, None, lambda: read_pictures([path]))
    with _open_video(path) as container:  # a wrong file is reported now, not at the first frame
        stream = video_stream(container)
        length, rate = stream.frames or None, stream.average_rate or stream.guessed_rate
    return FrameSource(path.stem, length, float(rate) if rate else None, lambda: _read_video(path))


def _open_video(path: Path) -> InputContainer:
    try:
        container = av.open(str(path.absolute()))  # FFmpeg takes "12:30.mp4" for a protocol called 12
    except FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from error
    # FFmpeg "plays" text files (its tty format) as pictures of letters.
    if video_stream(container) is None or container.format.name == "tty":
        container.close()
        raise ValueError(f"{path} is not a video: it has no video stream")
    return container


def video_stream(container: InputContainer) -> Any:
    """The first video stream that is not the cover picture of a sound file; None without any."""
    streams = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return next(streams, None)


def _read_video(path: Path) -> Iterator[Frame]:
    count, end = 0, 0.0
    with _open_video(path) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        try:
            for frame, duration in _timed(container.decode(stream), stream, str(path)):
                yield frame
                count += 1
                end = (frame.time or 0.0) + duration
        except FFmpegError as error:
            raise ValueError(f"{path} breaks off: after {count} frames, {error.strerror}") from error
        if count == 0:
            raise ValueError(f"{path} is a video without a single frame")
        announced = _announced_seconds(container, stream)
        if count < stream.frames:
            found = f"{stream.frames} frames but holds {count}"
        elif end and end + SECONDS_MISSING < announced:
            found = f"{announced:.1f} seconds but ends after {end:.1f}"
        else:
            return
    warnings.warn(f"{path} announces {found}: it may have been cut off", RuntimeWarning, stacklevel=2)


def _announced_seconds(container: InputContainer, stream: Any) -> float:
    """The length of a video by its header, for files that do not count their frames; 0: nothing to go by."""
    if stream.frames or len(container.streams) > 1 or container.duration is None:
        return 0.0  # sound may go on when the pictures have ended
    return container.duration / av.time_base


def _timed(pictures: Iterator[av.VideoFrame], stream: Any, place: str) -> Iterator[tuple[Frame, float]]:
    """Decoded pictures as frames whose times begin at 0 and ascend; and how long each is shown, in seconds."""
    rate = float(stream.average_rate or stream.guessed_rate or USUAL_RATE)
    first = seconds = None
    warned = False
    for number, picture in enumerate(pictures):
        # An AVI file has a rate and no times; those that FFmpeg makes up are out of order where frames were reordered.
        stamp = number / rate if stream.container.format.name == "avi" else picture.time
        if number == 0:
            first, seconds = stamp, None if stamp is None else 0.0
        elif first is not None and seconds is not None:
            before, seconds = seconds, seconds if stamp is None else stamp - first
            if seconds <= before:
                if not warned:
                    warnings.warn(
                        f"{place}: frame {number} has time {seconds:.3f} after {before:.3f} seconds; from here on, "
                        f"such frames follow each other at {rate:.3g} frames per second",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                warned, seconds = True, before + 1 / rate
        image = picture.to_ndarray(format="rgb24")  # (H, W, 3)
        # The display matrix says how far to turn counter-clockwise, and so does rot90.
        image = np.ascontiguousarray(np.rot90(image, picture.rotation // 90))
        yield Frame(f"{number:08d}", image, seconds), float((picture.duration or 0) * (picture.time_base or 0))


# --- cameras


def _open_camera(number: int) -> FrameSource:
    with _camera(number) as container:  # a camera that is not there is reported now
        stream = video_stream(container)
        rate = stream.average_rate or stream.guessed_rate
    return FrameSource(f"camera{number}", None, float(rate) if rate else None, lambda: _read_camera(number), live=True)


def camera_address(number: int) -> tuple[str, str, dict[str, str]]:
    """How FFmpeg reaches a camera on this system: format, name, options."""
    if sys.platform == "darwin":
        return "avfoundation", str(number), {"framerate": "30"}  # its own default, 29.97, is one that no camera has
    if sys.platform == "win32":
        devices = enumerate_input_devices("dshow")
        names = [device.name for device in devices if "video" in device.media_types]
        if number >= len(names):
            raise FileNotFoundError(f"no camera {number}: this machine has {len(names)}")
        return "dshow", f"video={names[number]}", {}
    return "v4l2", f"/dev/video{number}", {}


def _camera(number: int) -> InputContainer:
    if number < 0:
        raise ValueError(f"camera {number}: cameras are counted from 0")
    kind, address, options = camera_address(number)
    try:
        return av.open(address, format=kind, options=options)
    except (FFmpegError, ValueError) as error:  # ValueError: FFmpeg was built without this kind of input
        raise FileNotFoundError(
            f"no camera {number} ({address} through {kind}): {getattr(error, 'strerror', None) or error}; expected "
            "the number of a camera that no other program uses"
        ) from error


def _read_camera(number: int) -> Iterator[Frame]:
    with _camera(number) as container:
        stream = video_stream(container)
        try:
            for frame, _ in _timed(_camera_pictures(container, stream), stream, f"camera {number}"):
                yield frame
        except FFmpegError as error:
            raise ValueError(f"camera {number} stopped: {error.strerror}") from error


def _camera_pictures(container: InputContainer, stream: Any) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield from container.decode(stream)
            return
        except BlockingIOError:  # macOS answers so until the next picture is there
            time.sleep(0.005)
