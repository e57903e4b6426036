"""Things that move in front of the still world of a sample video.

Units: positions and sizes in the world are fractions of the canvas height, x to the right, y down; times are seconds.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .sample_pictures import MARGIN


@dataclass
class Thing:
    """One thing of a video; its lower edge stands at `base`, its middle at `x` when the video's clock is 0."""

    name: str
    disk_id: int
    x: float
    base: float
    height: float
    velocity: float = 0.0  # per second
    bounce: float = 0.0
    phase: float = 0.0
    pictures: list[Image.Image] = field(default_factory=list)

    @property
    def pictures_per_height(self) -> float:
        """How many pictures pass while the thing moves by its own height: two steps, or one roll in pi heights."""
        return 5 * 8 / np.pi if self.name == "ball" else 10


def paste(image: Image.Image, ids: Image.Image, thing: Thing, seconds: float, window: tuple, unit: int) -> None:
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
        paste_shadow(image, middle, ground, half - MARGIN * thing.height * unit * scale)
    alpha = cut.getchannel("A")
    image.paste(cut.convert("RGB"), (first[0], first[1]), alpha)
    covered = Image.fromarray(np.where(np.asarray(alpha) >= 128, 255, 0).astype(np.uint8))
    ids.paste(thing.disk_id, (first[0], first[1]), covered)


def paste_shadow(image: Image.Image, middle: float, ground: float, half: float) -> None:
    """Darkens a flat ellipse below a thing; the ground keeps its label."""
    width, height = max(3, round(2.1 * half)), max(2, round(0.22 * half) + 1)
    rows, columns = (2 * (np.arange(length) + 0.5) / length - 1 for length in (height, width))
    strength = np.clip(1.2 - rows[:, None] ** 2 - columns[None] ** 2, 0, 1) * 120
    mask = Image.fromarray(strength.astype(np.uint8))
    image.paste((22, 22, 26), (round(middle - width / 2), round(ground - height / 2)), mask)
