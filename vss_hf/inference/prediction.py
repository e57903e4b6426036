"""Prediction files: label PNGs, overlay videos, a submission archive, from whatever a user has."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vss_hf.data.labels import palette_of
from vss_hf.data.vspw import VSPWVideo, read_image, scan_split
from vss_hf.interruption import StopRequest
from vss_hf.overlay_video import FramePainter, OverlayWriter
from vss_hf.video_io import IMAGE_SUFFIXES, Frame, FrameSource, open_source
from vss_hf.visualize import save_label_png

from .finished_videos import FinishedVideos, LabelledVideo
from .processes import (
    check_same_everywhere,
    failing_together,
    gather_texts,
    is_first,
    largest,
    own_share,
    rank_and_world,
)
from .resuming import model_description
from .segmenter import SegmentedFrame, VideoSegmenter
from .submission import (
    ZIP_ROOT,
    check_member_names,
    check_names,
    check_zip_root,
    classes_to_submit,
    write_submission,
)


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
    zip_root: str = ZIP_ROOT,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label a video file, a folder of frames, one image, a camera, or the videos of a split of a VSPW root.

    Ctrl-C or SIGTERM ends it after the frame at hand; a second one at once.

    Of a single source, then, and when it is broken, what has been labelled stays, and the overlay video ends there.
    Another call labels it anew.

    Of a split, label maps and overlay of a video appear when it is complete; what there is of an incomplete one lies
    in `out`/.prediction/partial. The same call, also after a kill, goes on with the videos that are not complete, with
    any number of processes, and gives the same files. With another model, other steps, `max_frames` or overlay
    settings it raises; batch size, device and number of processes do not count. Another split may go into one `out`.

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
        submission: also pack the label maps of a split into this zip, see `write_submission`. Not when it was ended
            early.
        zip_root: folder in that zip; "": none.
        overwrite: for a split, begin anew: label maps that are in `out` are removed.
        progress: wraps the frames of each video of the first process (with their number and the video's name), e.g.
            for a progress bar.

    Returns:
        {"model": its name, "videos": n, "frames": n, "files": [paths of overlays and archive],
        "class_share": {class name: share of all pixels}, all of them with what earlier calls have labelled;
        "videos_before": how many of the videos earlier calls have labelled, "frames_per_second": of this call, reading
        and writing included, or None if nothing was left to do,
        what `VideoSegmenter.settings` says,
        "interrupted": whether it was ended early, "stop_signal": by which signal (2 = Ctrl-C), or None}.

    Raises:
        FileNotFoundError: `source` does not exist or holds nothing to label.
        FileExistsError: `out` holds folders of the split's videos that no such call made.
        ValueError: a video is broken, the label maps would lie among the pictures that they are made from, `out` was
            begun with another model or settings, a submission cannot be made of this, or the processes see different
            videos.
        OSError: `out` cannot be written; what was written before stays.
        OtherProcessFailed: another process raised; its message is repeated.
    """
    out = Path(out)
    with failing_together():
        FramePainter([], [], overlay_style, alpha)  # a wrong setting is reported before the work
        videos = videos_of_split(source, split)
        sources = [open_source(source)] if videos is None else [source_of(video) for video in videos]
        refuse_own_pictures(source, out, sources)
        if submission is not None:
            check_submittable(segmenter.names, source, videos, max_frames, zip_root)
        out.mkdir(parents=True, exist_ok=True)
    check_same_everywhere("\n".join(f"{video.name} {video.length}" for video in sources), str(source))
    overlay = {"style": overlay_style, "alpha": alpha} if overlay_video else None
    finished = FinishedVideos(out)
    earlier: list[LabelledVideo] = []
    with failing_together():
        if is_first() and videos is not None:
            settings = {"max_frames": max_frames, "overlay": overlay, **segmenter.settings()}
            described = {"model": model_description(segmenter), "settings": settings}
            earlier = finished.begin(described, videos, overwrite)
        elif is_first():
            finished.forget(sources[0].name)
    earlier = of_all_processes(earlier)
    names_before = {video.name for video in earlier}
    left = [i for i, video in enumerate(sources) if video.name not in names_before]
    labelled: list[LabelledVideo] = []  # by this process
    began = time.perf_counter()
    stop = StopRequest([signal.SIGINT, signal.SIGTERM])
    with failing_together(), stop.listening():
        for i in (left[share] for share in own_share([sources[i].length or 1 for i in left])):
            if stop:
                break
            video = label_one(
                segmenter,
                sources[i],
                out if videos is None else finished.partial,
                stop,
                batch_size=batch_size,
                max_frames=max_frames,
                overlay=overlay,
                progress=progress if is_first() else None,
            )
            if videos is not None:
                if stop:
                    break
                finished.finish(videos[i], video)
            labelled.append(video)
    seconds = largest(time.perf_counter() - began)
    stop_signal = int(largest(float(stop.signal_number or 0))) or None
    labelled = of_all_processes(labelled)
    by_name = {video.name: video for video in [*earlier, *labelled]}
    in_order = [by_name[video.name] for video in sources if video.name in by_name]
    files = [out / video.overlay for video in in_order if video.overlay]
    if submission is not None and stop_signal is None:
        with failing_together():
            if is_first():
                maps = [(name, out / name) for video in in_order for name in video.label_maps()]
                write_submission(maps, submission, zip_root, classes_to_submit(str(source)), progress=progress)
        files.append(Path(submission))
    return {
        "model": Path(str(segmenter.model.config.name_or_path)).name or type(segmenter.model).__name__,
        "videos": len(in_order),
        "frames": number_of_frames(in_order),
        "files": [str(path) for path in files],
        "class_share": class_shares(segmenter.names, in_order),
        "videos_before": len(earlier),
        "frames_per_second": number_of_frames(labelled) / seconds if labelled else None,
        **segmenter.settings(),
        "interrupted": stop_signal is not None,
        "stop_signal": stop_signal,
    }


def number_of_frames(videos: list[LabelledVideo]) -> int:
    """Frames of all videos."""
    return sum(len(video.frames) for video in videos)


def class_shares(names: list[str], videos: list[LabelledVideo]) -> dict[str, float]:
    """The share of each class in all pixels of the videos; classes without a pixel are left out."""
    counts = [sum(of_class) for of_class in zip(*(video.pixels for video in videos), strict=True)]
    return {name: count / sum(counts) for name, count in zip(names, counts, strict=bool(counts)) if count}


def of_all_processes(videos: list[LabelledVideo]) -> list[LabelledVideo]:
    """The videos of all processes, in every process."""
    texts = gather_texts(json.dumps([asdict(video) for video in videos]))
    return [LabelledVideo(**fields) for text in texts for fields in json.loads(text)]


def label_one(
    segmenter: VideoSegmenter,
    source: FrameSource,
    folder: Path,
    stop: StopRequest,
    *,
    batch_size: int,
    max_frames: int | None,
    overlay: dict[str, Any] | None,
    progress: Progress | None,
) -> LabelledVideo:
    """Label one video into `folder`, until its end or until asked to stop; see `predict`."""
    names, palette = segmenter.names, palette_of(segmenter.names)
    counts = np.zeros(len(names), np.int64)
    labelled: list[str] = []
    painting: OverlayWriter | nullcontext = nullcontext()
    if overlay is not None:
        painter = FramePainter(names, palette, **overlay)
        painting = OverlayWriter(folder / f"{source.name}_overlay", painter, source.rate or DEFAULT_FRAME_RATE)
    with closing(segmenter.segment(source, batch_size=batch_size)) as frames, painting as painted:
        wanted: Iterator[SegmentedFrame] = islice(frames, max_frames)
        if progress is not None:
            wanted = progress(wanted, fewer(source.length, max_frames), source.name)
        for frame in wanted:
            if not labelled:
                (folder / source.name).mkdir(exist_ok=True)
            save_label_png(frame.labels, folder / source.name / f"{frame.name}.png", palette)
            labelled.append(frame.name)
            counts += np.bincount(frame.labels.ravel(), minlength=len(names))
            if painted is not None:
                painted.add(frame.image, frame.labels, frame.time, frame.name)
            if stop:
                break
    path = painted.path if painted is not None else None
    return LabelledVideo(source.name, labelled, None if path is None else path.name, counts.tolist())


def fewer(length: int | None, limit: int | None) -> int | None:
    """How many frames there will be, at most; None: nobody knows."""
    known = [number for number in (length, limit) if number is not None]
    return min(known, default=None)


def videos_of_split(source: str | Path | int, split: str) -> list[VSPWVideo] | None:
    """The videos of a split of a VSPW root; None: `source` is something else."""
    if isinstance(source, int):
        if rank_and_world()[1] > 1:
            raise ValueError(f"camera {source} and several processes: a camera has one reader; start one process")
        return None
    is_root = (Path(source) / "data").is_dir() and any(Path(source).glob("*.txt"))
    return scan_split(source, split) if is_root else None


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
    folders += [place / "data" / video.name for video in sources]  # of a VSPW root
    own = {folder.resolve() for folder in folders}
    for video in sources:
        target = out / video.name
        if target.resolve() in own:
            raise ValueError(f"{target}: label maps would replace the pictures there; give another folder to --out")


def check_submittable(
    names: list[str], source: str | Path | int, videos: list[VSPWVideo] | None, max_frames: int | None, zip_root: str
) -> None:
    """Raise before the work where no complete submission can come of it."""
    check_zip_root(zip_root)
    if videos is None:
        raise ValueError(f"--submission: {source} is no data set in VSPW's layout; a submission is of a split of one")
    if max_frames is not None:
        raise ValueError(
            f"--submission with --max-frames {max_frames}: a submission has every frame; leave one of them out"
        )
    check_names(names, str(source))
    check_member_names(f"{video.name}/{frame.stem}.png" for video in videos for frame in video.frames)
