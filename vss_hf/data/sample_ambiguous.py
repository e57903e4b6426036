"""A procedural data set in VSPW's layout in which single frames are ambiguous and a few frames together are not.

A still camera looks into a hall, over a bad line. Five things make a single frame ambiguous; all but the last are
drawn anew for every frame, so that frames a moment apart fill in what this one does not show:

- noise: grain and blotches of colour as large as a door, stronger than the classes' colours differ
- flicker: brightness and tint jump
- occlusion: rectangles of the picture are lost; grey, snow or a piece of another place stands there
- twins: a screen shows in turns what a billboard and a poster always show; water looks like the floor but for one
  frame in `cycle`, when a lamp glints on it
- a camera that drifts a little, and people, dogs and balls that move: what time blurs

The ground truth is that of the scene behind all this. Without noise, flicker and occlusion every class but the twins
has its own colour.

Units: as in sample.py.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .sample_files import FRAMES_PER_SECOND, check_parameters, save_video, write_sample_set
from .sample_pictures import DRAWINGS, Canvas, Colour, Rng, smooth_noise
from .sample_things import Thing, paste


GENERATOR_VERSION = 1  # raise when the pictures change: sample sets of another version are not reused
# Near each other on purpose: two neighbours in this list of colours differ by less than the default noise.
COLOURS: dict[str, Colour] = {
    "wall": (150, 140, 125),
    "pillar": (176, 172, 168),
    "door": (132, 104, 80),
    "curtain": (152, 96, 104),
    "window": (112, 148, 172),
    "floor": (112, 108, 108),
    "cushion_or_carpet": (96, 88, 134),
    "billboard_or_Bulletin_Board": (196, 152, 66),
    "painting_or_poster": (78, 168, 82),
}
SCREEN, WATER = "screen_or_television", "water"
MOVING = ("person", "dog", "ball")
CLASSES = (*COLOURS, SCREEN, WATER, *MOVING)
DISK_ID = {name: number for number, name in enumerate(CLASSES, start=1)}  # a class list of its own, names as VSPW's
GLINT = (216, 220, 226)
ROOM = 0.06  # of the canvas beyond each side of the view, for the camera's drift


# --- the hall


@dataclass
class _Blinking:
    """A region of the canvas whose look alternates; `phase` is its frame in the cycle when the video begins."""

    name: str
    where: np.ndarray  # bool, of the canvas
    phase: int

    def colour(self, frame: int, cycle: int) -> Colour:
        moment = (frame + self.phase) % cycle
        if self.name == WATER:
            return GLINT if moment == 0 else COLOURS["floor"]
        return COLOURS["billboard_or_Bulletin_Board" if moment < cycle // 2 else "painting_or_poster"]


class _Hall:
    """The canvas and everything in it."""

    def __init__(self, rng: Rng, height: int, width: int, cycle: int):
        unit = 2 * height  # twice the frame: the camera's resize then smooths all edges
        self.rng, self.canvas = rng, Canvas(unit, round((width / height + 2 * ROOM) * unit))
        self.aspect = self.canvas.width / unit
        self.base = rng.uniform(0.5, 0.68)  # where wall and floor meet
        self.blinking: list[_Blinking] = []
        self.things: list[Thing] = []
        self.fill("wall", 0, self.base, 0, self.aspect)
        self.fill("floor", self.base, 1, 0, self.aspect)
        self.furnish()
        self.lay_floor(cycle)
        self.hang_panels(cycle)

    def fill(self, name: str, top: float, bottom: float, left: float, right: float) -> np.ndarray:
        """Paints a box in the colour of a class; returns where it is."""
        where = np.zeros(self.canvas.ids.shape, bool)
        rows, columns = (
            [round(value * self.canvas.unit) for value in pair] for pair in ((top, bottom), (left, right))
        )
        where[max(rows[0], 0) : rows[1], max(columns[0], 0) : columns[1]] = True
        self.paint(name, where)
        return where

    def paint(self, name: str, where: np.ndarray) -> None:
        self.canvas.colours[where] = COLOURS["floor" if name == WATER else name]
        self.canvas.ids[where] = DISK_ID[name]

    def furnish(self) -> None:
        """Doors, curtains, windows and pillars along the wall."""
        rng, left = self.rng, self.rng.uniform(-0.1, 0.15)
        while left < self.aspect:
            name = rng.choice(["door", "curtain", "window", "pillar"])
            width = rng.uniform(0.1, 0.16) if name == "pillar" else rng.uniform(0.2, 0.36)
            top = {"pillar": 0.0, "curtain": 0.0, "door": self.base - 0.46, "window": rng.uniform(0.05, 0.12)}[name]
            bottom = self.base - rng.uniform(0.12, 0.2) if name == "window" else self.base
            self.fill(name, top, bottom, left, left + width)
            left += width + rng.uniform(0.05, 0.5)

    def lay_floor(self, cycle: int) -> None:
        """Carpets and puddles."""
        rng, (rows, columns) = self.rng, np.indices(self.canvas.ids.shape) / self.canvas.unit
        for name in rng.permutation(["cushion_or_carpet", "cushion_or_carpet", WATER, WATER, WATER])[1:]:
            middle = rng.uniform(self.base + 0.06, 0.98), rng.uniform(0.05, self.aspect - 0.05)
            reach = rng.uniform(0.08, 0.15), rng.uniform(0.16, 0.34)
            down, right = (rows - middle[0]) / reach[0], (columns - middle[1]) / reach[1]
            if name == WATER:
                where = down**2 + right**2 < 1 + 0.4 * smooth_noise(rng, rows.shape, (60, 60), 2)
            else:
                where = (abs(down) < 1) & (abs(right - 0.3 * down) < 1)
            where &= rows > self.base
            self.paint(name, where)
            for other in self.blinking:
                other.where &= ~where
            if name == WATER:
                self.blinking.append(_Blinking(WATER, where, int(rng.integers(cycle))))

    def hang_panels(self, cycle: int) -> None:
        """Screens and their two twins, side by side in changing order."""
        rng, left = self.rng, self.rng.uniform(0.0, 0.2)
        while left < self.aspect:
            name = rng.choice([SCREEN, SCREEN, "billboard_or_Bulletin_Board", "painting_or_poster"])
            top, width = rng.uniform(0.05, 0.2), rng.uniform(0.16, 0.34)
            box = (top, min(top + rng.uniform(0.16, 0.26), self.base - 0.05), left, left + width)
            if name == SCREEN:
                where = self.fill("billboard_or_Bulletin_Board", *box)
                self.canvas.ids[where] = DISK_ID[SCREEN]
                self.blinking.append(_Blinking(SCREEN, where, int(rng.integers(cycle))))
            else:
                self.fill(name, *box)
            left += width + rng.uniform(0.06, 0.4)

    def invite(self, duration: float) -> None:
        """People, a dog and a ball; each crosses a random place in the middle of the video."""
        rng = self.rng
        for name in ("person", "person", "dog", "ball"):
            low, high, speed = {"person": (0.36, 0.5, 0.2), "dog": (0.16, 0.22, 0.3), "ball": (0.09, 0.13, 0.4)}[name]
            height, velocity = rng.uniform(low, high), rng.uniform(0.3, 1) * speed * rng.choice([-1, 1])
            x = rng.uniform(0.1, 0.9) * self.aspect - velocity * duration / 2
            pictures = DRAWINGS[name](rng, max(24, round(1.2 * height * self.canvas.unit)))
            if velocity < 0:
                pictures = [ImageOps.mirror(picture) for picture in pictures]
            bounce = rng.uniform(0.05, 0.15) if name == "ball" else 0.0
            base = rng.uniform(self.base + 0.08, 0.98)
            phase = rng.uniform(0, 1)
            self.things.append(Thing(name, DISK_ID[name], x, base, height, velocity, bounce, phase, pictures))


# --- what the camera and the line make of it


def _render(
    hall: _Hall, count: int, height: int, width: int, parameters: dict
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Yields (image, ids) as PIL pictures, frame by frame."""
    rng, canvas = hall.rng, hall.canvas
    world_ids = Image.fromarray(canvas.ids)
    grain = 1 + 0.04 * smooth_noise(rng, canvas.ids.shape, (8, 8), 2)[..., None]
    slow, turn = rng.uniform(0.1, 0.3, 2), rng.uniform(0, 2 * np.pi, 2)  # the camera's drift: two slow circles
    for frame in range(count):
        seconds = frame / FRAMES_PER_SECOND
        for part in hall.blinking:
            canvas.colours[part.where] = part.colour(frame, parameters["cycle"])
        world = Image.fromarray(np.clip(canvas.colours * grain, 0, 255).astype(np.uint8))
        shift = parameters["drift"] * 2 * np.sin(2 * np.pi * slow * seconds + turn)  # in canvas pixels
        left, top = ROOM * canvas.unit + shift[0], ROOM * canvas.unit + shift[1]
        scale = height / (canvas.unit * (1 - 2 * ROOM))  # frame pixels per canvas pixel
        box = (left, top, left + width / scale, top + height / scale)
        image = world.resize((width, height), Image.Resampling.BILINEAR, box=box)
        ids = world_ids.resize((width, height), Image.Resampling.NEAREST, box=box)
        for thing in sorted(hall.things, key=lambda thing: thing.base):
            paste(image, ids, thing, seconds, (left, top, scale), canvas.unit)
        colours = _flickering(rng, np.asarray(image, np.float32), parameters["flicker"])
        colours = _noisy(rng, colours, parameters["noise"])
        yield Image.fromarray(_with_losses(rng, colours, parameters["occlusion"])), ids


def _flickering(rng: Rng, colours: np.ndarray, amount: float) -> np.ndarray:
    """Another brightness and white balance for each frame."""
    return colours * ((1 + amount * rng.uniform(-1, 1)) * (1 + amount / 3 * rng.uniform(-1, 1, 3))).astype(np.float32)


def _noisy(rng: Rng, colours: np.ndarray, deviation: float) -> np.ndarray:
    """Adds noise of this standard deviation, a third of its power as grain, the rest as blotches; returns uint8."""
    shape = colours.shape[:2]
    blotches = np.stack([smooth_noise(rng, shape, (0.35 * shape[0], 0.35 * shape[0]), 2) for _ in range(3)], axis=-1)
    noise = np.sqrt(2 / 3) * blotches + np.sqrt(1 / 3) * rng.standard_normal(colours.shape, dtype=np.float32)
    return np.clip(colours + deviation * noise, 0, 255).astype(np.uint8)


def _with_losses(rng: Rng, pixels: np.ndarray, share: float) -> np.ndarray:
    """Rectangles are lost until they cover this share of the frame."""
    height, width = pixels.shape[:2]
    received, lost = pixels.copy(), np.zeros((height, width), bool)
    while lost.mean() < share:
        rows, columns = (round(rng.uniform(0.15, 0.45) * height) for _ in range(2))
        top, left = rng.integers(-rows // 2, height - rows // 2), rng.integers(-columns // 2, width - columns // 2)
        target = slice(max(top, 0), top + rows), slice(max(left, 0), left + columns)
        size = lost[target].shape
        kind = rng.choice(["grey", "snow", "elsewhere"])
        if kind == "grey":
            received[target] = rng.integers(40, 200)
        elif kind == "snow":
            received[target] = rng.integers(40, 200, (*size, 1))
        else:
            other = rng.integers(0, height - size[0] + 1), rng.integers(0, width - size[1] + 1)
            received[target] = pixels[other[0] : other[0] + size[0], other[1] : other[1] + size[1]]
        lost[target] = True
    return received


# --- the data set


def make_ambiguous_dataset(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    height: int = 96,
    width: int = 160,
    train_videos: int = 40,
    val_videos: int = 8,
    test_videos: int = 1,
    frames_per_video: int = 10,
    val_frames_per_video: int = 28,
    noise: float = 24.0,
    flicker: float = 0.3,
    occlusion: float = 0.3,
    cycle: int = 4,
    drift: float = 1.5,
    progress: bool = True,
) -> dict:
    """Writes a small labelled video data set whose single frames do not tell the classes; see the head of this file.

    All videos keep every frame of 15 a second. The same arguments give the same pictures.

    Args:
        root: folder to make. It appears whole or not at all. An existing sample set with the same arguments is kept.
        seed: >= 0.
        height: of the frames, 48..1080 pixels.
        width: of the frames, 0.5 to 3 heights.
        train_videos: >= 1.
        val_videos: >= 1.
        test_videos: >= 0; frames without masks.
        frames_per_video: of a training or test video, >= 1.
        val_frames_per_video: >= 1; 24 or more make video consistency over 16 frames mean something.
        noise: standard deviation, in grey levels of 255, 0..128.
        flicker: largest change of a frame's brightness, as a fraction, 0..0.9; of its tint a third of it.
        occlusion: share of each frame that is lost, 0..0.9.
        cycle: frames until screens and water look the same again, >= 2. Half the cycle a screen looks like a
            billboard, the other half like a poster; in one frame of it water glints.
        drift: how far the camera drifts, in pixels of the frame, 0..2.

    Returns:
        As `make_sample_dataset`.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: root holds something else.
    """
    parameters = {
        "kind": "ambiguous", "seed": seed, "height": height, "width": width, "train_videos": train_videos,
        "val_videos": val_videos, "test_videos": test_videos, "frames_per_video": frames_per_video,
        "val_frames_per_video": val_frames_per_video, "noise": noise, "flicker": flicker, "occlusion": occlusion,
        "cycle": cycle, "drift": drift, "generator_version": GENERATOR_VERSION,
    }  # fmt: skip
    limits = {
        "seed": (0, 2**63 - 1), "height": (48, 1080), "train_videos": (1, 10_000), "val_videos": (1, 10_000),
        "test_videos": (0, 10_000), "frames_per_video": (1, 10_000), "val_frames_per_video": (1, 10_000),
        "width": (-(-height // 2), 3 * height), "noise": (0, 128), "flicker": (0, 0.9), "occlusion": (0, 0.9),
        "cycle": (2, 1000), "drift": (0, 2),
    }  # fmt: skip
    check_parameters("make_ambiguous_dataset", parameters, limits)
    write_video = partial(_write_video, parameters=parameters)
    return write_sample_set(Path(root), parameters, DISK_ID, list(CLASSES), write_video, progress)


def _write_video(data: Path, place: int, split: str, number: int, parameters: dict) -> tuple[str, int, np.ndarray]:
    """Writes one video's frames and masks; returns its name, its number of frames, pixels per disk id."""
    rng = np.random.default_rng((parameters["seed"], ("train", "val", "test").index(split), number))
    count = parameters["val_frames_per_video" if split == "val" else "frames_per_video"]
    height, width = parameters["height"], parameters["width"]
    hall = _Hall(rng, height, width, parameters["cycle"])
    hall.invite(count / FRAMES_PER_SECOND)
    name, first = f"{place}_Ambiguous-hall_{number:02d}", int(rng.integers(1, 90))
    pictures = _render(hall, count, height, width, parameters)
    numbers, with_masks = range(first, first + count), split != "test"
    # Without subsampling: the noise's colours are part of the task.
    pixels = save_video(data / name, pictures, numbers, with_masks=with_masks, quality=95, subsampling=0)
    return name, count, pixels
