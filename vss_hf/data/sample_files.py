"""Writes sample videos into a folder in VSPW's layout: whole or not at all, and not twice."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track


FRAMES_PER_SECOND = 15
PARAMETER_FILE = "sample.json"
SPLITS = ("train", "val", "test")

# (folder "data" of the set, position among all videos, split, number in the split)
#   -> (name of the video, number of frames, pixels per disk id)
WriteVideo = Callable[[Path, int, str, int], tuple[str, int, np.ndarray]]


def write_sample_set(
    root: Path,
    parameters: dict,
    label_ids: dict[str, int],
    drawn: list[str],
    write_video: WriteVideo,
    progress: bool,
) -> dict:
    """Makes a sample set, or finds that it is there already.

    Args:
        root: folder to make.
        parameters: everything that decides the pictures; `train_videos`, `val_videos` and `test_videos` among it.
        label_ids: the class list, and each class's value in the masks.
        drawn: those of its classes that may occur.
        write_video: writes one video.
        progress: shows a bar on stderr when that is a terminal.

    Returns:
        What `make_sample_dataset` returns.

    Raises:
        FileExistsError: root holds something else.
    """
    found = _existing_summary(root, parameters)
    if found is not None:
        return {"root": str(root), "reused": True, **found}

    plan = [(split, number) for split in SPLITS for number in range(parameters[f"{split}_videos"])]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        partial = Path(scratch) / root.name
        names: dict[str, list[str]] = {split: [] for split in SPLITS}
        frames, seen = dict.fromkeys(names, 0), np.zeros(256, np.int64)
        console = Console(stderr=True)
        hidden = not (progress and console.is_terminal)
        bar = track(plan, "sample videos", console=console, transient=True, disable=hidden)
        for place, (split, number) in enumerate(bar):
            name, count, pixels = write_video(partial / "data", place, split, number)
            names[split].append(name)
            frames[split] += count
            seen += pixels
        for split, videos in names.items():
            (partial / f"{split}.txt").write_text("".join(f"{name}\n" for name in videos))
        class_file = json.dumps({"others": 0, **label_ids}, indent=1)
        (partial / "label_num_dic_final.json").write_text(class_file + "\n")
        summary = {
            "parameters": parameters,
            "classes": [name for name in drawn if seen[label_ids[name]]],
            "videos": {split: len(videos) for split, videos in names.items()},
            "frames": frames,
        }
        (partial / PARAMETER_FILE).write_text(json.dumps(summary, indent=1) + "\n")
        partial.rename(root)  # last step: an interrupted run leaves no half data set
    return {"root": str(root), "reused": False, **summary}


def check_parameters(function: str, parameters: dict, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise where a parameter is outside its limits (both allowed); `function` is who was given it."""
    for name, (low, high) in limits.items():
        value = parameters[name]
        if not low <= value <= high:
            raise ValueError(f"{function}: {name} is {value}; allowed: {low} to {high}")


def _existing_summary(root: Path, parameters: dict) -> dict | None:
    """The summary of a sample set that is already there, None for a free place; anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    summary_file = root / PARAMETER_FILE
    if not summary_file.is_file():
        raise FileExistsError(f"{root} exists and is no sample data set (no {PARAMETER_FILE}); choose another folder")
    summary = json.loads(summary_file.read_text())
    there = summary.get("parameters", {})
    different = [
        f"{name} {there.get(name)} (asked: {parameters.get(name)})"
        for name in {**parameters, **there}
        if there.get(name) != parameters.get(name)
    ]
    if different:
        raise FileExistsError(
            f"{root} holds a sample data set made with other arguments: {', '.join(different)}; "
            "choose another folder or remove this one"
        )
    return summary


def save_video(
    folder: Path,
    pictures: Iterable[tuple[Image.Image, Image.Image]],
    numbers: Iterable[int],
    *,
    with_masks: bool,
    quality: int,
    subsampling: int = -1,
) -> np.ndarray:
    """Writes a video's frames and masks.

    Args:
        folder: of the video.
        pictures: (image, ids) of each frame.
        numbers: what the frames' files are called.
        with_masks: whether masks are written.
        quality: of the frames' JPEG, as PIL counts it.
        subsampling: of its colours: 0 none, -1 PIL's default.

    Returns:
        Pixels per disk id (256,) in the masks written.
    """
    (folder / "origin").mkdir(parents=True)
    if with_masks:
        (folder / "mask").mkdir()
    pixels = np.zeros(256, np.int64)
    for (image, ids), number in zip(pictures, numbers, strict=True):
        image.save(folder / "origin" / f"{number:08d}.jpg", quality=quality, subsampling=subsampling)
        if with_masks:
            ids.save(folder / "mask" / f"{number:08d}.png")
            pixels += np.bincount(np.asarray(ids).ravel(), minlength=256)
    return pixels
