"""Prediction files: label PNGs, overlay videos, a submission archive, from whatever a user has."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vss_hf.data.labels import palette_of
from vss_hf.data.vspw import read_image, scan_split
from vss_hf.files import replacing
from vss_hf.metrics import sum_over_processes
from vss_hf.video_io import VideoWriter, frame_rate, read_frames
from vss_hf.visualize import overlay, save_label_png

from .processes import check_same_everywhere, failing_together, gather_texts, is_first, own_share
from .segmenter import VideoSegmenter


DEFAULT_FRAME_RATE = 15.0  # VSPW's; folders of frames do not tell theirs


@dataclass
class Clip:
    """One video to predict: its name, its frames as they are read, how many (None: unknown), their rate."""

    name: str
    frames: Iterator[tuple[str, np.ndarray]]
    length: int | None
    rate: float


def predict(
    segmenter: VideoSegmenter,
    source: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    overlay_video: bool = False,
    submission: str | Path | None = None,
    progress: Callable[[Iterator, int | None, str], Iterator] | None = None,
) -> dict[str, Any]:
    """Label a video file, a folder of frames, one image, or the videos of a split of a VSPW root.

    Where torch.distributed runs, all processes must call this, each with the same model and source: they share the
    videos, write into one `out` (which all machines must see), and all get the result of one process. The first one
    writes the archive.

    Args:
        segmenter: model and processor.
        source: what to label.
        out: folder for `<video>/<frame>.png`, 8-bit palette PNGs whose indices are the classes 0..num_labels-1.
        split: for a VSPW root, which split.
        overlay_video: also write `<video>_overlay.mp4` (a JPEG for a single image).
        submission: also pack the PNGs into this zip as the VSPW server wants them
            (`result_submission/<video>/<frame>.png`).
        progress: wraps the frames of each video of the first process (with their number and the video's name), e.g.
            for a progress bar.

    Returns:
        {"videos": n, "frames": n, "files": [paths of overlays and archive],
        "class_share": {class name: share of all pixels}}.

    Raises:
        FileNotFoundError: `source` does not exist or holds nothing to label.
        ValueError: the processes see different videos.
        OSError: `out` cannot be written; what was written before stays.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    out = Path(out)
    with failing_together():
        out.mkdir(parents=True, exist_ok=True)
        clips = list(clips_of(source, split))
    check_same_everywhere("\n".join(f"{clip.name} {clip.length}" for clip in clips), str(source))
    counts = torch.zeros(len(segmenter.names), dtype=torch.int64)
    done: dict[int, dict[str, Any]] = {}  # by position, what was written for a video
    with failing_together():
        for position in own_share([clip.length or 1 for clip in clips]):
            wrap = progress if is_first() else None
            done[position] = label_clip(segmenter, clips[position], out, counts, overlay_video, wrap)
    for text in gather_texts(json.dumps(list(done.items()))):
        done.update(json.loads(text))
    in_order = [done[position] for position in range(len(clips))]
    written = [out / name for video in in_order for name in video["labels"]]
    files = [out / video["overlay"] for video in in_order if video["overlay"]]
    if submission is not None:
        with failing_together():
            if is_first():
                write_submission(written, out, Path(submission))
        files.append(Path(submission))
    counts = sum_over_processes(counts)
    share = {name: c / int(counts.sum()) for name, c in zip(segmenter.names, counts.tolist(), strict=True) if c}
    return {"videos": len(clips), "frames": len(written), "files": [str(p) for p in files], "class_share": share}


def label_clip(
    segmenter: VideoSegmenter,
    clip: Clip,
    out: Path,
    counts: torch.Tensor,
    overlay_video: bool,
    progress: Callable[[Iterator, int | None, str], Iterator] | None,
) -> dict[str, Any]:
    """Label one video; adds its pixels per class to `counts`.

    Returns:
        {"labels": [label PNGs], "overlay": the painted video or None}, all relative to `out`.
    """
    palette = palette_of(segmenter.names)
    labelled: list[str] = []
    (out / clip.name).mkdir(exist_ok=True)
    with OverlayWriter(out, clip, palette) if overlay_video else nullcontext() as painter:
        for name, frame in progress(clip.frames, clip.length, clip.name) if progress else clip.frames:
            labels = segmenter.step(frame)
            save_label_png(labels, out / clip.name / f"{name}.png", palette)
            labelled.append(f"{clip.name}/{name}.png")
            counts += torch.from_numpy(np.bincount(labels.ravel(), minlength=len(counts)))
            if painter is not None:
                painter.add(frame, labels)
    return {"labels": labelled, "overlay": painter.path.name if painter is not None else None}


def clips_of(source: str | Path, split: str) -> Iterator[Clip]:
    """The videos that `source` stands for."""
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder to label")
    if (source / "data").is_dir() and (source / f"{split}.txt").is_file():
        for video in scan_split(source, split):
            frames = ((record.stem, read_image(record.image_path)) for record in video.frames)
            yield Clip(video.name, frames, len(video.frames), DEFAULT_FRAME_RATE)
    else:
        length = sum(1 for _ in source.iterdir()) if source.is_dir() else None
        name = source.resolve().name if source.is_dir() else source.stem
        if name == "origin":  # the frames of a video in VSPW layout
            name = source.resolve().parent.name
        yield Clip(name, read_frames(source), length, frame_rate(source) or DEFAULT_FRAME_RATE)


class OverlayWriter:
    """Writes the frames with their classes painted over them: a video, or a JPEG for a single frame.

    Nothing appears under the final name when the `with` block ends with an error.

    Args:
        out: folder.
        clip: the video.
        palette: colour of each class.
    """

    def __init__(self, out: Path, clip: Clip, palette: tuple):
        self.base, self.rate, self.palette = out / f"{clip.name}_overlay", clip.rate, palette
        self.writer: VideoWriter | None = None
        self.first: np.ndarray | None = None
        self.path = self.base

    def __enter__(self) -> "OverlayWriter":
        return self

    def add(self, frame: np.ndarray, labels: np.ndarray) -> None:
        """Paint one frame; the second one makes it a video."""
        painted = overlay(frame, labels, self.palette)
        if self.first is None:
            self.first = painted
            return
        if self.writer is None:
            self.writer = VideoWriter(f"{self.base}.mp4", self.rate, self.first.shape[:2])
            self.writer.write(self.first)
        self.writer.write(painted)

    def __exit__(self, error_type, error, traceback) -> None:
        if self.writer is not None:
            self.writer.__exit__(error_type, error, traceback)
            self.path = self.writer.path
        elif self.first is not None and error_type is None:
            self.path = Path(f"{self.base}.jpg")
            with replacing(self.path) as partial:
                Image.fromarray(self.first).save(partial, format="JPEG", quality=92)


def write_submission(files: list[Path], out: Path, archive: Path) -> None:
    """Pack label PNGs for the VSPW server; the archive appears under its name only when it is whole."""
    with replacing(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as zipped:
        for path in files:
            zipped.write(path, Path("result_submission") / path.relative_to(out))
