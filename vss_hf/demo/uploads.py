"""What visitors give: a file is looked at before anything decodes it, and its name is not used as a path."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import av
from av.error import FFmpegError
from PIL import Image

from vss_hf.video_io import IMAGE_SUFFIXES, FrameSource, open_source, video_stream


# FFmpeg also reads play lists (HLS, concat, ...), which name other files of this machine or addresses: not these.
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg,gif,asf,flv"
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
LONGEST_NAME = 60  # characters
SMALLEST = 32  # pixels on each side: networks shrink a frame to a 32nd


class Refused(ValueError):
    """Something that a visitor gave cannot be taken; the message is for the visitor."""


@dataclass(frozen=True)
class Limits:
    """What a demo takes.

    Args:
        frames: of one video.
        pixels: of one frame; 4K is 8.3 million.
        upload_bytes: of one file.
        result_bytes: that the result of one visitor may take on the disk.
        results: kept at a time; the one that was not used for the longest time goes first.
        disk_bytes: that uploads and results of all visitors may take, half of it each.
        waiting: visitors in the line behind the one who is served.
    """

    frames: int = 600
    pixels: int = 4096 * 2304
    upload_bytes: int = 500 * 2**20
    result_bytes: int = 2 * 2**30
    results: int = 8
    disk_bytes: int = 10 * 2**30
    waiting: int = 16


def open_upload(path: str | Path, limits: Limits) -> FrameSource:
    """The frames of an uploaded video or picture.

    Args:
        path: where the server put the file.
        limits: what is taken.

    Returns:
        Its frames; the source's name is safe in a zip file.

    Raises:
        Refused: it is neither, it is damaged, too long or too large; the message names the file, not its folder.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"{path.name} is not kept any more; upload it again")
    if path.stat().st_size == 0:
        raise Refused(f"{path.name} is empty")
    if path.stat().st_size > limits.upload_bytes:
        raise Refused(f"{path.name} has {path.stat().st_size / 2**20:.0f} MB; at most {limits.upload_bytes >> 20} MB")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        check_picture(path, limits)
    else:
        check_video(path, limits)
    return replace(open_source(path), name=safe_name(path.stem))


def check_picture(path: Path, limits: Limits) -> None:
    """Raise `Refused` unless the head of a file is that of a picture of a size that is taken."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            width, height = picture.size
            if picture.mode.startswith(("I", "F")):
                raise Refused(f"{path.name} has more than 8 bits per channel; save it as a JPEG or a usual PNG first")
    except Refused:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"{path.name} is not a picture that can be read; expected JPEG, PNG or WebP") from error
    check_size(path.name, height, width, limits)


def check_video(path: Path, limits: Limits) -> None:
    """Raise `Refused` unless a file is a video of a length and size that are taken."""
    try:
        with av.open(str(path.absolute()), options={"format_whitelist": VIDEO_FORMATS}) as container:
            stream = video_stream(container)
            if stream is None:
                raise Refused(f"{path.name} has no pictures; expected a video, e.g. MP4, MOV or WebM")
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            seconds = (container.duration or 0) / av.time_base
            frames, height, width = stream.frames or round(seconds * rate), stream.height, stream.width
    except FFmpegError as error:
        raise Refused(f"{path.name} is not a video that can be read; expected e.g. MP4, MOV or WebM") from error
    check_size(path.name, height, width, limits)
    if frames > limits.frames:
        taken = f"this page takes up to {limits.frames}: cut it shorter"
        raise Refused(f"{path.name} has {frames} frames ({seconds:.0f} seconds); {taken}")


def check_size(name: str, height: int, width: int, limits: Limits) -> None:
    """Raise `Refused` for frames with too few pixels or too many."""
    if min(height, width) < SMALLEST:
        raise Refused(f"{name} is {width} x {height} pixels; this page takes at least {SMALLEST} on each side")
    if height * width > limits.pixels:
        raise Refused(f"{name} is {width} x {height} pixels; this page takes up to {limits.pixels / 1e6:.1f} million")


def safe_name(stem: str) -> str:
    """A name for files and zip members: letters, digits and ".-_" of a visitor's file name."""
    name = re.sub(r"[^\w.-]+", "_", stem).strip("._")[:LONGEST_NAME]
    return name or "upload"
