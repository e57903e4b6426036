"""Prediction files: label PNGs, overlay videos, a submission archive, from whatever a user has."""

import json
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vss_hf.data.labels import palette_of
from vss_hf.data.vspw import VSPWVideo, read_image, scan_split
from vss_hf.files import replacing
from vss_hf.interruption import StopRequest
from vss_hf.metrics import sum_over_processes
from vss_hf.overlay_video import FramePainter, OverlayWriter
from vss_hf.video_io import IMAGE_SUFFIXES, Frame, FrameSource, open_source
from vss_hf.visualize import save_label_png

from .processes import (
    check_same_everywhere,
    failing_together,
    gather_texts,
    is_first,
    largest,
    own_share,
    rank_and_world,
)
from .segmenter import SegmentedFrame, VideoSegmenter


DEFAULT_FRAME_RATE = 15.0  # VSPW's; folders of frames do not tell theirs
Progress = Callable[[Iterator, int | None, str], Iterator]


def predict(
    segmenter: VideoSegmenter,
    source: str | Path | int,
    out: str | Path,
    *,
    split: str = "test",
    batch_size: int = 1,
    max_frames: int | None = None,
    overlay_video: bool = False,
    overlay_style: str = "side-by-side",
    alpha: float = 0.6,
    submission: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label a video file, a folder of frames, one image, a camera, or the videos of a split of a VSPW root.

    Ctrl-C or SIGTERM ends it after the frame at hand; a second one at once. Then, and when a video is broken, what
    has been labelled stays, and the overlay video ends there.

    Where torch.distributed runs, all processes must call this, each with the same model and source: they share the
    videos, write into one `out` (which all machines must see), and all get the result of one process. The first one
    writes the archive.

    Args:
        segmenter: model and processor.
        source: what to label: a path, or the number of a camera.
        out: folder for `<video>/<frame>.png`, 8-bit palette PNGs whose indices are the classes 0..num_labels-1.
        split: for a VSPW root, which split.
        batch_size: frames at once; a video model takes its frames one by one.
        max_frames: at most as many of each video; None: all. A camera has no end of its own.
        overlay_video: also write `<video>_overlay.mp4`, at the times of the source's frames (a JPEG for a single
            image).
        overlay_style: "side-by-side" (frame, painted frame, legend), or "painted" (the painted frame alone).
        alpha: strength of the colours in the overlay, 0..1.
        submission: also pack the PNGs into this zip as the VSPW server wants them
            (`result_submission/<video>/<frame>.png`). Not when it was ended early.
        progress: wraps the frames of each video of the first process (with their number and the video's name), e.g.
            for a progress bar.

    Returns:
        {"model": its name, "videos": n, "frames": n, "files": [paths of overlays and archive],
        "class_share": {class name: share of all pixels}, "frames_per_second": reading and writing included,
        what `VideoSegmenter.settings` says,
        "interrupted": whether it was ended early, "stop_signal": by which signal (2 = Ctrl-C), or None}.

    Raises:
        FileNotFoundError: `source` does not exist or holds nothing to label.
        ValueError: a video is broken, the label maps would lie among the pictures that they are made from, or the
            processes see different videos.
        OSError: `out` cannot be written; what was written before stays.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    out = Path(out)
    with failing_together():
        FramePainter([], [], overlay_style, alpha)  # a wrong setting is reported before the work
        sources = sources_of(source, split)
        refuse_own_pictures(source, out, sources)
        out.mkdir(parents=True, exist_ok=True)
    check_same_everywhere("\n".join(f"{video.name} {video.length}" for video in sources), str(source))
    counts = torch.zeros(len(segmenter.names), dtype=torch.int64)
    done: dict[int, dict[str, Any]] = {}  # by position, what was written for a video
    began = time.perf_counter()
    stop = StopRequest([signal.SIGINT, signal.SIGTERM])
    with failing_together(), stop.listening():
        for position in own_share([video.length or 1 for video in sources]):
            if not stop:
                painter = None
                if overlay_video:
                    painter = FramePainter(segmenter.names, palette_of(segmenter.names), overlay_style, alpha)
                done[position] = label_one(
                    segmenter,
                    sources[position],
                    out,
                    counts,
                    stop,
                    batch_size=batch_size,
                    max_frames=max_frames,
                    painter=painter,
                    progress=progress if is_first() else None,
                )
    seconds = largest(time.perf_counter() - began)
    stop_signal = int(largest(float(stop.signal_number or 0))) or None
    for text in gather_texts(json.dumps(list(done.items()))):
        done.update(json.loads(text))
    in_order = [done[position] for position in sorted(done)]
    written = [out / name for video in in_order for name in video["labels"]]
    files = [out / video["overlay"] for video in in_order if video["overlay"]]
    if submission is not None and stop_signal is None:
        with failing_together():
            if is_first():
                write_submission(written, out, Path(submission))
        files.append(Path(submission))
    counts = sum_over_processes(counts)
    return {
        "model": Path(str(segmenter.model.config.name_or_path)).name or type(segmenter.model).__name__,
        "videos": len(in_order),
        "frames": len(written),
        "files": [str(path) for path in files],
        "class_share": {
            name: count / int(counts.sum())
            for name, count in zip(segmenter.names, counts.tolist(), strict=True)
            if count
        },
        "frames_per_second": len(written) / seconds,
        **segmenter.settings(),
        "interrupted": stop_signal is not None,
        "stop_signal": stop_signal,
    }


def label_one(
    segmenter: VideoSegmenter,
    source: FrameSource,
    out: Path,
    counts: torch.Tensor,
    stop: StopRequest,
    *,
    batch_size: int,
    max_frames: int | None,
    painter: FramePainter | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Label one video; adds its pixels per class to `counts`.

    Returns:
        {"labels": [label PNGs], "overlay": the painted video or None}, all relative to `out`.
    """
    palette = palette_of(segmenter.names)
    labelled: list[str] = []
    rate = source.rate or DEFAULT_FRAME_RATE
    writing = OverlayWriter(out / f"{source.name}_overlay", painter, rate) if painter is not None else nullcontext()
    with closing(segmenter.segment(source, batch_size=batch_size)) as frames, writing as overlay:
        wanted: Iterator[SegmentedFrame] = islice(frames, max_frames)
        if progress is not None:
            wanted = progress(wanted, fewer(source.length, max_frames), source.name)
        for frame in wanted:
            name = f"{source.name}/{frame.name}.png"
            if not labelled:
                (out / source.name).mkdir(exist_ok=True)
            save_label_png(frame.labels, out / name, palette)
            labelled.append(name)
            counts += torch.from_numpy(np.bincount(frame.labels.ravel(), minlength=len(counts)))
            if overlay is not None:
                overlay.add(frame.image, frame.labels, frame.time, frame.name)
            if stop:
                break
    path = overlay.path if overlay is not None else None
    return {"labels": labelled, "overlay": path.name if path is not None else None}


def fewer(length: int | None, limit: int | None) -> int | None:
    """How many frames there will be, at most; None: nobody knows."""
    known = [number for number in (length, limit) if number is not None]
    return min(known, default=None)


def sources_of(source: str | Path | int, split: str) -> list[FrameSource]:
    """The videos that `source` stands for."""
    if isinstance(source, int):
        if rank_and_world()[1] > 1:
            raise ValueError(f"camera {source} and several processes: a camera has one reader; start one process")
    elif (Path(source) / "data").is_dir() and any(Path(source).glob("*.txt")):
        return [source_of(video) for video in scan_split(source, split)]
    return [open_source(source)]


def source_of(video: VSPWVideo) -> FrameSource:
    """The frames of a video of a split, read as strictly as for training."""

    def read() -> Iterator[Frame]:
        for record in video.frames:
            yield Frame(record.stem, read_image(record.image_path), None)

    return FrameSource(video.name, len(video.frames), None, read)


def refuse_own_pictures(source: str | Path | int, out: Path, sources: list[FrameSource]) -> None:
    """Raise where label maps would come to lie among the source's own pictures, whose names they have."""
    place = Path(str(source))
    folders = [place, place / "origin"] if place.is_dir() else []
    if place.suffix.lower() in IMAGE_SUFFIXES:
        folders = [place.parent]
    for video in sources:
        target = out / video.name
        if target.resolve() in [folder.resolve() for folder in folders]:
            raise ValueError(f"{target}: label maps would replace the pictures there; give another folder to --out")


def write_submission(files: list[Path], out: Path, archive: Path) -> None:
    """Pack label PNGs for the VSPW server; the archive appears under its name only when it is whole."""
    with replacing(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as zipped:
        for path in files:
            zipped.write(path, Path("result_submission") / path.relative_to(out))
