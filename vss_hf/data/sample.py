"""A procedural sample data set in VSPW's layout: real enough to train, evaluate and demonstrate on in minutes.

Every video is a still world (a canvas larger than the frame) under a moving camera and a changing light, with things
that move in front of it and behind each other.

Units: positions and sizes in the world are fractions of the canvas height, x to the right, y down; times are seconds.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from .labels import VSPW
from .sample_pictures import (
    DISK_ID,
    DRAWINGS,
    MARGIN,
    OTHERS,
    Canvas,
    Rng,
    paint_building,
    paint_buildings,
    paint_ground,
    paint_ridge,
    paint_sky,
    paint_track,
    paint_wall,
)


VOID = 255
FRAMES_PER_SECOND = 15
TRAIN_STEP = 3  # training videos keep every third frame, validation and test videos all of them
GENERATOR_VERSION = 1  # raise when the pictures change: sample sets of another version are not reused
PARAMETER_FILE = "sample.json"


# --- one video's world


@dataclass
class _Thing:
    """One thing of a video; its lower edge stands at `base`, its middle at `x` when the video's clock is 0."""

    name: str
    x: float
    base: float
    height: float
    velocity: float = 0.0  # per second
    bounce: float = 0.0
    phase: float = 0.0
    pictures: list[Image.Image] = field(default_factory=list)

    @property
    def disk_id(self) -> int:
        return DISK_ID.get(self.name, OTHERS)

    @property
    def pictures_per_height(self) -> float:
        """How many pictures pass while the thing moves by its own height: two steps, or one roll in pi heights."""
        return 5 * 8 / np.pi if self.name == "ball" else 10


# --- scenes


@dataclass
class _Camera:
    """A pan from start to end with a slight zoom and a hand's tremor."""

    start: float
    end: float
    zoom: tuple[float, float]  # height of the view, fraction of the canvas
    duration: float
    tremor: np.ndarray  # (4,) phases

    def view(self, seconds: float) -> tuple[float, float, float]:
        """(centre x, centre y, height of the view)."""
        progress = seconds / self.duration
        smooth = progress * progress * (3 - 2 * progress)
        height = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * smooth
        shake = 0.004 * np.sin(2 * np.pi * np.array([1.1, 0.7, 0.9, 1.7]) * seconds + self.tremor)
        x = self.start + (self.end - self.start) * smooth + shake[0] + shake[1]
        return float(x), float(1 - height / 2 - 0.012 + shake[2] + 0.4 * shake[3]), float(height)


class _Scene:
    """The canvas, the camera and the things of one video."""

    def __init__(self, rng: Rng, height: int, width: int, duration: float):
        unit = round(2.0 * height)  # twice the frame: the camera's resize then smooths all edges
        self.rng, self.aspect = rng, width / height
        room = 0.35
        self.canvas = Canvas(unit, round((self.aspect + 2 * room) * unit))
        middle, travel = self.aspect / 2 + room, rng.uniform(-0.3, 0.3)
        zoom = rng.uniform(0.82, 0.95, 2)
        tremor = rng.uniform(0, 2 * np.pi, 4)
        self.camera = _Camera(middle - travel, middle + travel, (zoom[0], zoom[1]), duration, tremor)
        self.things: list[_Thing] = []

    def add(self, name: str, base: float, height: float, *, speed: float = 0.0, screen: float | None = None) -> None:
        """Adds a thing that crosses the given place of the screen (0 left, 1 right) in the middle of the video."""
        rng = self.rng
        seconds = rng.uniform(0.35, 0.65) * self.camera.duration
        screen = rng.uniform(0.12, 0.88) if screen is None else screen
        velocity = speed * rng.choice([-1, 1])
        centre, _, view = self.camera.view(seconds)
        x = centre + (screen - 0.5) * view * self.aspect - velocity * seconds
        bounce = rng.uniform(0.05, 0.22) if name == "ball" else 0.0
        pictures = DRAWINGS[name](rng, max(24, round(1.2 * height * self.canvas.unit)))
        if velocity < 0 or (velocity == 0 and rng.random() < 0.5):
            pictures = [ImageOps.mirror(picture) for picture in pictures]
        self.things.append(_Thing(name, x, base, height, velocity, bounce, rng.uniform(0, 1), pictures))


def _street(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    base = rng.uniform(0.56, 0.62)
    paint_sky(canvas, rng, base)
    if rng.random() < 0.5:
        paint_ridge(canvas, rng, base, 0.2, "tree")
    paint_buildings(canvas, rng, base)
    paint_ground(canvas, rng, base, "road")
    for _ in range(rng.integers(1, 4)):
        scene.add("tree", base + 0.025, rng.uniform(0.28, 0.42))
    scene.add("lamp", base + 0.03, 0.42)
    scene.add("person", base + 0.05, rng.uniform(0.19, 0.23), speed=rng.uniform(0.05, 0.14))
    for _ in range(rng.integers(1, 3)):
        scene.add("car", base + rng.uniform(0.12, 0.16), rng.uniform(0.13, 0.16), speed=rng.uniform(0.15, 0.6))
    scene.add("bus", base + 0.21, rng.uniform(0.26, 0.32), speed=rng.uniform(0.15, 0.45))
    scene.add("car", base + rng.uniform(0.28, 0.33), rng.uniform(0.18, 0.21), speed=rng.uniform(0.3, 0.7))
    scene.add("person", 0.98, rng.uniform(0.4, 0.5), speed=rng.uniform(0.1, 0.22))


def _park(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    base = rng.uniform(0.46, 0.56)
    paint_sky(canvas, rng, base + 0.05)
    if rng.random() < 0.5:
        paint_ridge(canvas, rng, base + 0.02, rng.uniform(0.15, 0.25), "mountain")
    if rng.random() < 0.5:
        paint_ridge(canvas, rng, base + 0.02, rng.uniform(0.08, 0.16), "tree")
    paint_ground(canvas, rng, base, "grass", wavy=0.03)
    for _ in range(rng.integers(2, 4)):
        scene.add("tree", base + rng.uniform(0.04, 0.16), rng.uniform(0.36, 0.52))
    for _ in range(rng.integers(1, 3)):
        scene.add("person", base + rng.uniform(0.2, 0.35), rng.uniform(0.32, 0.42), speed=rng.uniform(0.06, 0.25))
    scene.add("dog", base + rng.uniform(0.26, 0.38), rng.uniform(0.17, 0.24), speed=rng.uniform(0.15, 0.4))
    scene.add("ball", rng.uniform(0.86, 0.96), rng.uniform(0.1, 0.15), speed=rng.uniform(0.1, 0.35))


def _lake(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    horizon = rng.uniform(0.4, 0.5)
    paint_sky(canvas, rng, horizon + 0.01)
    paint_ridge(canvas, rng, horizon, rng.uniform(0.14, 0.28), "mountain")
    if rng.random() < 0.5:
        paint_ridge(canvas, rng, horizon, 0.05, "tree")
    paint_ground(canvas, rng, horizon, "water")
    shore = rng.uniform(0.8, 0.88)
    paint_ground(canvas, rng, shore, "grass", wavy=0.04)
    scene.add("ship_or_boat", horizon + 0.06, rng.uniform(0.12, 0.17), speed=rng.uniform(0.02, 0.1))
    scene.add("ship_or_boat", horizon + rng.uniform(0.18, 0.28), rng.uniform(0.26, 0.36), speed=rng.uniform(0.05, 0.2))
    if rng.random() < 0.6:
        scene.add("tree", shore + 0.06, rng.uniform(0.5, 0.6), screen=rng.choice([0.08, 0.92]))
    scene.add("person", shore + 0.12, rng.uniform(0.36, 0.44), speed=rng.uniform(0.04, 0.15))
    if rng.random() < 0.5:
        scene.add("dog", shore + 0.13, 0.16, speed=rng.uniform(0.1, 0.3))


def _room(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    base = rng.uniform(0.58, 0.68)
    paint_wall(canvas, rng, base)
    paint_ground(canvas, rng, base, "floor")
    for _ in range(rng.integers(1, 3)):
        scene.add("person", base + rng.uniform(0.12, 0.26), rng.uniform(0.52, 0.64), speed=rng.uniform(0.05, 0.2))
    scene.add("dog", base + rng.uniform(0.14, 0.28), rng.uniform(0.24, 0.3), speed=rng.uniform(0.08, 0.3))
    for _ in range(rng.integers(1, 3)):
        scene.add("ball", rng.uniform(0.84, 0.96), rng.uniform(0.1, 0.16), speed=rng.uniform(0.05, 0.3))


def _railway(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    base = rng.uniform(0.56, 0.62)
    paint_sky(canvas, rng, base)
    if rng.random() < 0.6:
        paint_ridge(canvas, rng, base, rng.uniform(0.2, 0.3), "mountain")
    else:
        paint_ridge(canvas, rng, base, rng.uniform(0.12, 0.2), "tree")
    if rng.random() < 0.4:
        paint_building(canvas, rng, rng.uniform(0.5, 1.4), base - 0.28, 0.5, base)
    paint_ground(canvas, rng, base, "grass")
    track = base + rng.uniform(0.1, 0.15)
    paint_track(canvas, rng, track)
    scene.add("train", track + 0.015, rng.uniform(0.22, 0.28), speed=rng.uniform(0.15, 0.5))
    scene.add("tree", track + 0.14, rng.uniform(0.4, 0.5))
    scene.add("person", track + rng.uniform(0.16, 0.24), rng.uniform(0.32, 0.4), speed=rng.uniform(0.03, 0.15))
    if rng.random() < 0.5:
        scene.add("dog", track + 0.22, 0.17, speed=rng.uniform(0.1, 0.3))


SCENES: dict[str, Callable[[_Scene], None]] = {
    "street": _street, "park": _park, "lake": _lake, "room": _room, "railway": _railway,
}  # fmt: skip


# --- rendering


def _render(scene: _Scene, times: list[float], height: int, width: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Yields (image, ids) as PIL pictures for each time in seconds."""
    rng, canvas = scene.rng, scene.canvas
    world = Image.fromarray(np.clip(canvas.colours, 0, 255).astype(np.uint8))
    world_ids = Image.fromarray(canvas.ids)
    tint = rng.uniform(0.78, 1.15) * rng.normal(1, 0.04, 3)  # hour of the day and white balance
    swing, start = rng.uniform(0.04, 0.18), rng.uniform(0, 2 * np.pi)
    slope = rng.normal(0, 0.08, 2)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    falloff = 1 - 0.1 * (rows**2 + columns**2) + slope[0] * rows + slope[1] * columns
    void_borders = rng.random() < 0.4
    sigma = rng.uniform(1, 4)
    for seconds in times:
        x, y, view = scene.camera.view(seconds)
        scale = height / (view * canvas.unit)  # frame pixels per canvas pixel
        left, top = x * canvas.unit - width / scale / 2, (y - view / 2) * canvas.unit
        box = (left, top, left + width / scale, top + height / scale)  # the camera never leaves the canvas
        image = world.resize((width, height), Image.Resampling.BILINEAR, box=box)
        ids = world_ids.resize((width, height), Image.Resampling.NEAREST, box=box)
        for thing in sorted(scene.things, key=lambda thing: thing.base):
            _paste(image, ids, thing, seconds, (left, top, scale), canvas.unit)
        light = 1 + swing * np.sin(2 * np.pi * seconds / 3 + start)
        colours = np.asarray(image, np.float32) * (light * falloff[..., None] * tint).astype(np.float32)
        colours += sigma * rng.standard_normal(colours.shape, dtype=np.float32)
        if void_borders:
            ids = _with_void_borders(ids)
        yield Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)), ids


def _paste(image: Image.Image, ids: Image.Image, thing: _Thing, seconds: float, window: tuple, unit: int) -> None:
    """Draws one thing, to a fraction of a pixel, with a soft shadow; its id goes where it covers half a pixel."""
    left, top, scale = window
    walked = thing.phase + abs(thing.velocity) * seconds / thing.height  # in heights of the thing
    picture = thing.pictures[int(walked * thing.pictures_per_height) % len(thing.pictures)]
    jump = thing.bounce * abs(np.sin(np.pi * (thing.phase + 1.3 * seconds)))
    shrink = thing.height * unit * scale * (1 + 2 * MARGIN) / picture.height  # frame pixels per picture pixel
    middle = ((thing.x + thing.velocity * seconds) * unit - left) * scale
    ground = (thing.base * unit - top) * scale
    half = picture.width * shrink / 2
    bottom = ground + (MARGIN * thing.height - jump) * unit * scale
    box = (middle - half, bottom - picture.height * shrink, middle + half, bottom)
    first, last = [int(np.ceil(value)) for value in box[:2]], [int(np.floor(value)) for value in box[2:]]
    if last[0] <= 0 or first[0] >= image.width or last[0] <= first[0] or last[1] <= first[1]:
        return
    source = [(pixel - origin) / shrink for pixel, origin in zip(first + last, box[:2] * 2, strict=True)]
    source = [min(max(value, 0.0), float(limit)) for value, limit in zip(source, picture.size * 2, strict=True)]
    size = (last[0] - first[0], last[1] - first[1])
    cut = picture.resize(size, Image.Resampling.BILINEAR, box=(source[0], source[1], source[2], source[3]))
    if thing.name != "ship_or_boat":
        _paste_shadow(image, middle, ground, half - MARGIN * thing.height * unit * scale)
    alpha = cut.getchannel("A")
    image.paste(cut.convert("RGB"), (first[0], first[1]), alpha)
    covered = Image.fromarray(np.where(np.asarray(alpha) >= 128, 255, 0).astype(np.uint8))
    ids.paste(thing.disk_id, (first[0], first[1]), covered)


def _paste_shadow(image: Image.Image, middle: float, ground: float, half: float) -> None:
    """Darkens a flat ellipse below a thing; the ground keeps its label."""
    width, height = max(3, round(2.1 * half)), max(2, round(0.22 * half) + 1)
    rows, columns = (2 * (np.arange(length) + 0.5) / length - 1 for length in (height, width))
    strength = np.clip(1.2 - rows[:, None] ** 2 - columns[None] ** 2, 0, 1) * 120
    mask = Image.fromarray(strength.astype(np.uint8))
    image.paste((22, 22, 26), (round(middle - width / 2), round(ground - height / 2)), mask)


def _with_void_borders(ids: Image.Image) -> Image.Image:
    """One pixel of void where two segments meet, as careful annotators leave it."""
    values = np.asarray(ids)
    bordered = values.copy()
    bordered[:, 1:][values[:, 1:] != values[:, :-1]] = VOID
    bordered[1:][values[1:] != values[:-1]] = VOID
    return Image.fromarray(bordered)


# --- the data set


def make_sample_dataset(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    height: int = 120,
    width: int = 214,
    train_videos: int = 20,
    val_videos: int = 5,
    test_videos: int = 1,
    frames_per_video: int = 10,
    val_frames_per_video: int = 36,
    progress: bool = True,
) -> dict:
    """Writes a small labelled video data set in VSPW's layout; the same arguments give the same pictures.

    Videos go round five kinds of scene (street, park, lake, room, railway), so that five validation videos hold all
    sixteen classes. Training videos keep every third frame of 15 a second, validation and test videos every frame
    (video consistency over 8 and 16 frames needs that). The test split has frames but no masks.

    Args:
        root: folder to make. It appears whole or not at all. An existing sample set with the same arguments is kept.
        seed: >= 0.
        height: of the frames, 48..1080 pixels.
        width: of the frames, 0.5 to 3 heights.
        train_videos: >= 1.
        val_videos: >= 1; fewer than 5 do not hold all classes.
        test_videos: >= 0.
        frames_per_video: of a training or test video, >= 1.
        val_frames_per_video: >= 1; 32 or more make video consistency over 16 frames mean something.
        progress: shows a bar on stderr when that is a terminal.

    Returns:
        "root" (str), "reused" (bool), "parameters", "classes" (names that occur in the masks), "videos" and "frames"
        per split.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: root holds something else.
    """
    root = Path(root)
    parameters = {
        "seed": seed, "height": height, "width": width, "train_videos": train_videos, "val_videos": val_videos,
        "test_videos": test_videos, "frames_per_video": frames_per_video,
        "val_frames_per_video": val_frames_per_video, "generator_version": GENERATOR_VERSION,
    }  # fmt: skip
    _check_parameters(parameters)
    found = _existing_summary(root, parameters)
    if found is not None:
        return {"root": str(root), "reused": True, **found}

    plan = [(split, number) for split in ("train", "val", "test") for number in range(parameters[f"{split}_videos"])]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        partial = Path(scratch) / root.name
        names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        frames, seen = dict.fromkeys(names, 0), np.zeros(256, np.int64)
        console = Console(stderr=True)
        hidden = not (progress and console.is_terminal)
        bar = track(plan, "sample videos", console=console, transient=True, disable=hidden)
        for place, (split, number) in enumerate(bar):
            name, count, ids = _write_video(partial / "data", place, split, number, parameters)
            names[split].append(name)
            frames[split] += count
            seen += ids
        for split, videos in names.items():
            (partial / f"{split}.txt").write_text("".join(f"{name}\n" for name in videos))
        label_ids = {"others": OTHERS, **dict(zip(VSPW.names, VSPW.disk_ids, strict=True))}
        (partial / "label_num_dic_final.json").write_text(json.dumps(label_ids, indent=1) + "\n")
        summary = {
            "parameters": parameters,
            "classes": [name for name, disk_id in DISK_ID.items() if seen[disk_id]],
            "videos": {split: len(videos) for split, videos in names.items()},
            "frames": frames,
        }
        (partial / PARAMETER_FILE).write_text(json.dumps(summary, indent=1) + "\n")
        partial.rename(root)  # last step: an interrupted run leaves no half data set
    return {"root": str(root), "reused": False, **summary}


def _check_parameters(parameters: dict[str, int]) -> None:
    limits = {
        "seed": (0, 2**63 - 1), "height": (48, 1080), "train_videos": (1, 10_000), "val_videos": (1, 10_000),
        "test_videos": (0, 10_000), "frames_per_video": (1, 10_000), "val_frames_per_video": (1, 10_000),
        "width": (-(-parameters["height"] // 2), 3 * parameters["height"]),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        value = parameters[name]
        if not low <= value <= high:
            raise ValueError(f"make_sample_dataset: {name} is {value}; allowed: {low} to {high}")


def _existing_summary(root: Path, parameters: dict[str, int]) -> dict | None:
    """The summary of a sample set that is already there, None for a free place; anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    summary_file = root / PARAMETER_FILE
    if not summary_file.is_file():
        raise FileExistsError(f"{root} exists and is no sample data set (no {PARAMETER_FILE}); choose another folder")
    summary = json.loads(summary_file.read_text())
    there = summary.get("parameters", {})
    different = [
        f"{name} {there.get(name)} (asked: {value})" for name, value in parameters.items() if there.get(name) != value
    ]
    if different:
        raise FileExistsError(
            f"{root} holds a sample data set made with other arguments: {', '.join(different)}; "
            "choose another folder or remove this one"
        )
    return summary


def _write_video(data: Path, place: int, split: str, number: int, parameters: dict) -> tuple[str, int, np.ndarray]:
    """Writes one video's frames and masks; returns its name, its number of frames, pixels per disk id."""
    kind = list(SCENES)[number % len(SCENES)]
    key = (parameters["seed"], ("train", "val", "test").index(split), number)
    rng = np.random.default_rng(key)
    count = parameters["val_frames_per_video" if split == "val" else "frames_per_video"]
    step = TRAIN_STEP if split == "train" else 1
    height, width = parameters["height"], parameters["width"]
    scene = _Scene(rng, height, width, max(count * step, 2) / FRAMES_PER_SECOND)
    SCENES[kind](scene)

    name = f"{place}_Sample-{kind}_{number:02d}"
    (data / name / "origin").mkdir(parents=True)
    if split != "test":
        (data / name / "mask").mkdir()
    first = int(rng.integers(1, 90))  # VSPW's file names are positions in the source video, rarely from 0
    pixels = np.zeros(256, np.int64)
    times = [index * step / FRAMES_PER_SECOND for index in range(count)]
    for index, (image, ids) in enumerate(_render(scene, times, height, width)):
        stem = f"{first + index * step:08d}"
        image.save(data / name / "origin" / f"{stem}.jpg", quality=88)
        if split != "test":
            ids.save(data / name / "mask" / f"{stem}.png")
            pixels += np.bincount(np.asarray(ids).ravel(), minlength=256)
    return name, count, pixels
