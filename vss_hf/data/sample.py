"""A procedural sample data set in VSPW's layout: real enough to train, evaluate and demonstrate on in minutes.

Every video is a still world (a canvas larger than the frame) under a moving camera and a changing light, with things
that move in front of it and behind each other.

Units: positions and sizes in the world are fractions of the canvas height, x to the right, y down; times are seconds.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .labels import VSPW
from .sample_files import FRAMES_PER_SECOND, check_parameters, save_video, write_sample_set
from .sample_pictures import (
    DISK_ID,
    DRAWINGS,
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
from .sample_things import Thing, paste


VOID = 255
VSPW_IDS = dict(zip(VSPW.names, VSPW.disk_ids, strict=True))
TRAIN_STEP = 3  # training videos keep every third frame, validation and test videos all of them
GENERATOR_VERSION = 1  # raise when the pictures change: sample sets of another version are not reused


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
        self.things: list[Thing] = []

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
        disk_id = DISK_ID.get(name, OTHERS)
        self.things.append(Thing(name, disk_id, x, base, height, velocity, bounce, rng.uniform(0, 1), pictures))


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
            paste(image, ids, thing, seconds, (left, top, scale), canvas.unit)
        light = 1 + swing * np.sin(2 * np.pi * seconds / 3 + start)
        colours = np.asarray(image, np.float32) * (light * falloff[..., None] * tint).astype(np.float32)
        colours += sigma * rng.standard_normal(colours.shape, dtype=np.float32)
        if void_borders:
            ids = _with_void_borders(ids)
        yield Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)), ids


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
    parameters = {
        "seed": seed, "height": height, "width": width, "train_videos": train_videos, "val_videos": val_videos,
        "test_videos": test_videos, "frames_per_video": frames_per_video,
        "val_frames_per_video": val_frames_per_video, "generator_version": GENERATOR_VERSION,
    }  # fmt: skip
    limits = {
        "seed": (0, 2**63 - 1), "height": (48, 1080), "train_videos": (1, 10_000), "val_videos": (1, 10_000),
        "test_videos": (0, 10_000), "frames_per_video": (1, 10_000), "val_frames_per_video": (1, 10_000),
        "width": (-(-height // 2), 3 * height),
    }  # fmt: skip
    check_parameters("make_sample_dataset", parameters, limits)
    write_video = partial(_write_video, parameters=parameters)
    return write_sample_set(Path(root), parameters, VSPW_IDS, list(DISK_ID), write_video, progress)


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
    first = int(rng.integers(1, 90))  # VSPW's file names are positions in the source video, rarely from 0
    pictures = _render(scene, [index * step / FRAMES_PER_SECOND for index in range(count)], height, width)
    numbers = range(first, first + count * step, step)
    return name, count, save_video(data / name, pictures, numbers, with_masks=split != "test", quality=88)
