"""The files of pseudo labelling: which videos there are to label, and how one becomes a video in VSPW's layout."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from vss_hf.data.packed import is_packed, read_packed
from vss_hf.data.parquet import is_parquet
from vss_hf.data.splits import open_split
from vss_hf.data.vspw import (
    IMAGE_SUFFIXES,
    VSPWVideo,
    is_file_name,
    is_text,
    open_image,
    read_image,
    scan_split,
)
from vss_hf.files import write_bytes
from vss_hf.inference.prediction import source_of
from vss_hf.video_io import IMAGE_SUFFIXES as PICTURES
from vss_hf.video_io import Frame, FrameSource, existing, list_images, natural_key, open_source, read_pictures
from vss_hf.visualize import save_label_png


VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".y4m")
JPEG_QUALITY = 95  # of frames that come from video files, without subsampled colours: about twice VSPW's own size


@dataclass(frozen=True)
class UnlabelledVideo:
    """A video to label.

    Args:
        source: its frames.
        files: the picture of each frame, by frame name; none for a video file.
        turned: whether the reader of `source` turns pictures upright as their EXIF data say. Training reads them as
            they are stored, so a turned one cannot be taken over as a file.
    """

    source: FrameSource
    files: Mapping[str, Path] = field(default_factory=dict)
    turned: bool = False

    @property
    def name(self) -> str:
        """What the video is called."""
        return self.source.name

    def only(self, wanted: Callable[[int], bool]) -> FrameSource:
        """The frames at the positions for which `wanted` holds; other pictures are not even opened."""
        if self.files:
            chosen = [path for position, path in enumerate(self.files.values()) if wanted(position)]
            reader = read_pictures if self.turned else read_stored
            return replace(self.source, read=lambda: reader(chosen), length=len(chosen))

        def some() -> Iterator[Frame]:
            return (frame for position, frame in enumerate(self.source.read()) if wanted(position))

        return replace(self.source, read=some, length=None)


def read_stored(paths: list[Path]) -> Iterator[Frame]:
    """Pictures one after the other, as training reads them."""
    return (Frame(path.stem, read_image(path), None) for path in paths)


# --- which videos there are


def find_videos(data: str | Path, split: str, source: str = "vspw") -> list[UnlabelledVideo]:
    """The videos that `data` stands for; masks are not looked at.

    Args:
        data: a data set in VSPW's layout (with or without masks and class list), packed or of another `source`; a
            folder of videos and of folders of frames; one such folder of frames; or a video file.
        split: of a data set, which split.
        source: layout of a data set, as for `open_split`.

    Returns:
        The videos in the order of the list file, or of their names.

    Raises:
        FileNotFoundError: nothing is there, or nothing that can be labelled.
        ValueError: two videos have one name, or a name cannot stand in a list of videos; or as the readers say.
    """
    if source != "vspw" or is_parquet(data):
        videos = [of_split(video) for video in open_split(data, split, source=source).videos]
    elif (existing(data) / "data").is_dir() and any(Path(data).glob("*.txt")):
        videos = [of_split(video) for video in scan_split(data, split)]
    else:
        videos = [of_path(path) for path in video_paths(Path(data))]
    check_names([video.name for video in videos], data)
    return videos


def of_split(video: VSPWVideo) -> UnlabelledVideo:
    """A video of a data set."""
    return UnlabelledVideo(source_of(video), {record.stem: record.image_path for record in video.frames})


def of_path(path: Path) -> UnlabelledVideo:
    """A video file, a folder of frames, or one picture."""
    source = open_source(path)
    if not path.is_dir() and path.suffix.lower() not in PICTURES:
        return UnlabelledVideo(source)
    folder = path / "origin" if (path / "origin").is_dir() else path
    pictures = list_images(folder) if path.is_dir() else [path]
    if wrong := [picture for picture in pictures if not is_text(picture.name)]:
        raise ValueError(f"{folder}: the file name {wrong[0].name!r} is not UTF-8; rename it")
    return UnlabelledVideo(source, {picture.stem: picture for picture in pictures}, turned=True)


def video_paths(path: Path) -> list[Path]:
    """The path itself, if it is a video or a folder of frames; otherwise the videos and folders in it."""
    if not path.is_dir():
        return [path]
    entries = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=natural_key)
    if (path / "origin").is_dir() or any(entry.suffix.lower() in PICTURES for entry in entries):
        return [path]
    found = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise FileNotFoundError(
            f"{path}: nothing to label; expected data/ and train.txt (VSPW's layout), folders of frames, or videos "
            f"({', '.join(VIDEO_SUFFIXES)})"
        )
    if other := [entry.name for entry in entries if entry not in found]:
        warnings.warn(f"{path}: not taken for videos: {', '.join(other[:3])} ({len(other)} files)", stacklevel=4)
    return found


def check_names(names: list[str], data: str | Path) -> None:
    """Raise for videos that could not lie beside each other in one data set."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{data}: two videos are called {twice[0]!r}; rename one of them")
    for name in names:
        # A list holds one name per line, without blanks around it; hidden folders are not looked at.
        if not is_file_name(name) or name.splitlines() != [name.strip()] or name.startswith("."):
            raise ValueError(f"{data}: {name!r} cannot be the name of a video in a list; rename it")


# --- one video in VSPW's layout


def frame_names(stems: list[str]) -> dict[str, str]:
    """What frames are called in the data set, where they are sorted by their numbers, or else as text.

    Args:
        stems: of the pictures, in order of time.

    Returns:
        {stem: name}: the same, or the position as eight digits where sorting would change the order ("f2", "f10").
    """
    key = int if all(stem.isdecimal() for stem in stems) else str
    if sorted(stems, key=key) == stems:
        return {stem: stem for stem in stems}
    return {stem: f"{position:08d}" for position, stem in enumerate(stems)}


class LabelledVideoWriter:
    """Writes frames and masks into `folder`/origin and `folder`/mask.

    Args:
        video: what is labelled.
        folder: is made anew.
        palette: of the classes, for viewers.
    """

    def __init__(self, video: UnlabelledVideo, folder: Path, palette: tuple[tuple[int, int, int], ...]):
        self.video, self.folder = video, folder
        self.palette = ((0, 0, 0), *palette)  # the stored 0 is no class
        self.names = frame_names(list(video.files))
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        (folder / "origin").mkdir(parents=True)
        (folder / "mask").mkdir()

    def write(self, name: str, image: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> None:
        """One frame.

        Args:
            name: of the frame, as the source calls it.
            image: uint8 (H, W, 3).
            labels: uint8 (H, W), 0..num_labels-1.
            kept: bool (H, W): the others are stored as 0, which is void; class k as k + 1.
        """
        stem = self.names.get(name, name)
        self._write_image(self.video.files.get(name), image, stem)
        stored = np.where(kept, labels + 1, 0).astype(np.uint8)
        save_label_png(stored, self.folder / "mask" / f"{stem}.png", self.palette)

    def _write_image(self, path: Path | None, image: np.ndarray, stem: str) -> None:
        folder = self.folder / "origin"
        if path is None or path.suffix.lower() not in IMAGE_SUFFIXES or (self.video.turned and not is_upright(path)):
            data = io.BytesIO()
            Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            write_bytes(folder / f"{stem}.jpg", data.getbuffer())
            return
        take_over(path, folder / f"{stem}{path.suffix}")


def is_upright(path: Path) -> bool:
    """Whether a picture's EXIF data leave it as it is stored."""
    with open_image(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def take_over(path: Path, target: Path) -> None:
    """Make `target` the same file (a hard link), or a copy where that is not possible."""
    if is_packed(path):
        write_bytes(target, read_packed(path))
        return
    try:
        os.link(os.path.realpath(path), target)
    except OSError:  # another disk, or a file system without links
        write_bytes(target, path.read_bytes())
