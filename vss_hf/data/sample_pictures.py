"""What the sample data set's worlds are painted with: textures of stuff, pictures of things.

Appearance says the class only through texture, colour, shape and place together: a building may have the grey of the
road, water the colour of the sky, a bus the red of a train.

Units: positions and sizes are fractions of the canvas height, x to the right, y down; a thing's own height is 1.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .labels import VSPW


CLASSES = (
    "wall", "floor", "grass", "road", "building", "sky", "mountain", "water",
    "tree", "person", "dog", "ball", "car", "bus", "ship_or_boat", "train",
)  # fmt: skip
DISK_ID = {name: VSPW.disk_ids[VSPW.names.index(name)] for name in CLASSES}
OTHERS = 0  # left out of every metric, as 255 is
MARGIN = 0.15  # clear room around a thing's picture, so that a resize by a fraction of a pixel has something to read

Colour = tuple[int, int, int]
Rng = np.random.Generator


# --- textures: float32 (rows, columns, 3) in 0..255


def smooth_noise(rng: Rng, shape: tuple[int, int], cell: tuple[float, float], octaves: int = 3) -> np.ndarray:
    """Smooth fractal noise (rows, columns), mean near 0, standard deviation 1; cell = (rows, columns) of a bump."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        rows, columns = (round(length / size * 2**octave) + 2 for length, size in zip(shape, cell, strict=True))
        bumps = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
        total += 0.6**octave * np.asarray(bumps.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return total / max(float(total.std()), 1e-6)


def _tinted(noise: np.ndarray, colour: Colour | np.ndarray, contrast: float) -> np.ndarray:
    """A colour whose brightness follows the noise."""
    return np.asarray(colour, np.float32) * (1 + contrast * noise[..., None])


def _jitter(rng: Rng, colour: Colour, amount: float = 16) -> Colour:
    red, green, blue = (int(value) for value in np.clip(np.array(colour) + rng.normal(0, amount, 3), 8, 247))
    return red, green, blue


def _choice(rng: Rng, colours: tuple[Colour, ...], amount: float = 16) -> Colour:
    return _jitter(rng, colours[rng.integers(len(colours))], amount)


def _foliage(rng: Rng, shape: tuple[int, int], unit: float) -> np.ndarray:
    colour = _choice(rng, ((62, 98, 44), (84, 106, 40), (48, 84, 52), (128, 104, 42)), 10)
    clumps = 0.6 * smooth_noise(rng, shape, (0.05 * unit, 0.05 * unit), 4) + 0.5 * rng.standard_normal(shape)
    return _tinted(clumps.astype(np.float32), colour, 0.28)


# --- the still world


class Canvas:
    """Colours and disk ids of one world; `unit` is its height in pixels."""

    def __init__(self, unit: int, width: int):
        self.unit, self.width = unit, width
        self.colours = np.zeros((unit, width, 3), np.float32)
        self.ids = np.full((unit, width), OTHERS, np.uint8)

    def paint(self, rows: slice, texture: np.ndarray, disk_id: int, where: np.ndarray | None = None) -> None:
        """Puts a texture and its id on a band of rows, only where the mask (same shape) is true."""
        where = np.ones(texture.shape[:2], bool) if where is None else where
        self.colours[rows][where] = texture[where]
        self.ids[rows][where] = disk_id

    def rows(self, top: float, bottom: float) -> tuple[slice, tuple[int, int]]:
        """Rows between two heights (fractions), and the band's shape."""
        first, last = round(top * self.unit), round(bottom * self.unit)
        return slice(first, last), (last - first, self.width)


def paint_sky(canvas: Canvas, rng: Rng, bottom: float) -> None:
    rows, shape = canvas.rows(0, bottom)
    high = np.array(_choice(rng, ((84, 138, 205), (108, 150, 196), (150, 160, 172), (190, 150, 140)), 12), np.float32)
    low = high + (235 - high) * rng.uniform(0.3, 0.8)
    fall = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    sky = np.broadcast_to(high + (low - high) * fall, (*shape, 3))
    clouds = smooth_noise(rng, shape, (0.13 * canvas.unit, 0.4 * canvas.unit), 4)[..., None]
    cover = np.clip(clouds - rng.uniform(-0.2, 0.8), 0, 1) * rng.uniform(0.5, 0.95)
    canvas.paint(rows, sky + (np.float32(242) - sky) * cover, DISK_ID["sky"])


def paint_ridge(canvas: Canvas, rng: Rng, base: float, height: float, name: str) -> None:
    """A mountain range or a far row of trees, standing on `base`."""
    rows, shape = canvas.rows(max(0, base - 1.6 * height), base)
    coarse = (1, 0.5 * canvas.unit) if name == "mountain" else (1, 0.14 * canvas.unit)
    outline = height * canvas.unit * (1 + 0.28 * np.clip(smooth_noise(rng, (2, canvas.width), coarse, 5)[0], -2, 2))
    depth = np.arange(shape[0], dtype=np.float32)[:, None] - (shape[0] - outline)[None]  # pixels below the outline
    if name == "mountain":
        colour = _choice(rng, ((104, 112, 122), (112, 100, 84), (88, 106, 84)), 10)
        texture = _tinted(smooth_noise(rng, shape, (0.1 * canvas.unit, 0.06 * canvas.unit), 5), colour, 0.2)
        snow = np.clip(0.25 - depth / (height * canvas.unit) + 0.1 * smooth_noise(rng, shape, (12, 12)), 0, 0.2)[
            ..., None
        ]
        texture = texture + (np.float32(240) - texture) * 5 * snow * (rng.random() < 0.6)
        haze = np.float32(0.35) * np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
        texture = texture + (np.float32(190) - texture) * haze
    else:
        texture = _foliage(rng, shape, canvas.unit)
    canvas.paint(rows, texture, DISK_ID[name], depth > 0)


def paint_ground(canvas: Canvas, rng: Rng, top: float, name: str, wavy: float = 0) -> None:
    """Everything below `top`: grass, road, water or a wooden or tiled floor, finer towards the horizon."""
    rows, shape = canvas.rows(top - wavy, 1)
    unit = canvas.unit
    depth = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    if name == "grass":
        colour = _choice(rng, ((98, 138, 60), (122, 140, 70), (82, 120, 70), (150, 138, 82)), 8)
        blades = 0.7 * smooth_noise(rng, shape, (0.03 * unit, 0.008 * unit), 2)
        blades += 0.6 * smooth_noise(rng, shape, (0.1 * unit, 0.1 * unit))
        texture = _tinted(blades, colour, 0.14) * (0.85 + 0.2 * depth[..., None])
    elif name == "water":
        colour = _choice(rng, ((74, 116, 146), (92, 128, 140), (110, 140, 168), (74, 104, 106)), 10)
        ripples = smooth_noise(rng, shape, (0.018 * unit, 0.2 * unit), 3)
        texture = _tinted(ripples, colour, 0.13) * (1.15 - 0.25 * depth[..., None])
        texture += 70 * np.clip(ripples - 1.5, 0, 1)[..., None]  # glitter
    elif name == "road":
        colour = _choice(rng, ((104, 104, 108), (126, 122, 116), (84, 86, 92)), 6)
        grain = 0.8 * smooth_noise(rng, shape, (0.06 * unit, 0.3 * unit))
        grain += 0.6 * rng.standard_normal(shape, dtype=np.float32)
        texture = _tinted(grain, colour, 0.07)
        along = np.arange(canvas.width)[None] / unit
        for line, dash in ((0.36, 0.30), (0.97, 9)):  # lane marks, at these depths of the band
            marks = (abs(depth - line) < 0.012 + 0.02 * line) & (along % dash < 0.6 * dash)
            texture[marks] = 205
        texture[: round(0.05 * shape[0])] = 170  # kerb
    else:
        colour = _choice(rng, ((150, 108, 70), (172, 138, 100), (122, 92, 72), (160, 156, 150)), 8)
        row = 0.35 + 0.65 * depth
        centred = (np.arange(canvas.width)[None] - canvas.width / 2) / unit / row  # lines meet at a far point
        plank = np.floor(centred / 0.11).astype(int)
        shade = rng.normal(0, 0.1, 401).astype(np.float32)[plank % 401]
        texture = _tinted(shade + 0.06 * smooth_noise(rng, shape, (0.05 * unit, 0.02 * unit)), colour, 1.0)
        seams = (centred / 0.11) % 1 < 0.05
        texture[seams] *= 0.65
    edge = np.ones(shape, bool)
    if wavy:
        outline = wavy * unit * np.clip(1 + 0.4 * smooth_noise(rng, (2, canvas.width), (1, 0.7 * unit))[0], 0, 2)
        edge = np.arange(shape[0])[:, None] > outline[None]
    canvas.paint(rows, texture, DISK_ID[name], edge)


def paint_buildings(canvas: Canvas, rng: Rng, base: float) -> None:
    left = -rng.uniform(0, 0.2)
    while left * canvas.unit < canvas.width:
        width, height = rng.uniform(0.28, 0.55), rng.uniform(0.24, 0.5)
        if rng.random() < 0.85:  # else a gap with sky or trees
            paint_building(canvas, rng, left, base - height, width, base)
        left += width


def paint_building(canvas: Canvas, rng: Rng, left: float, top: float, width: float, base: float) -> None:
    unit = canvas.unit
    first, last = max(0, round(left * unit)), min(canvas.width, round((left + width) * unit))
    rows, (height, _) = canvas.rows(top, base)
    if last - first < 3:
        return
    shape = (height, last - first)
    wall = _choice(rng, ((158, 116, 96), (176, 164, 146), (128, 128, 134), (196, 180, 150), (120, 92, 84)), 14)
    texture = _tinted(smooth_noise(rng, shape, (0.2 * unit, 0.2 * unit)), wall, 0.05)
    row, column = np.indices(shape)
    texture[row % max(3, round(0.018 * unit)) == 0] *= 0.94  # courses of bricks
    pitch_y, pitch_x = rng.uniform(0.085, 0.12) * unit, rng.uniform(0.075, 0.12) * unit
    in_y, in_x = (row - 0.04 * unit) % pitch_y / pitch_y, (column - 0.02 * unit) % pitch_x / pitch_x
    window = (in_y > 0.25) & (in_y < 0.8) & (in_x > 0.25) & (in_x < 0.78) & (row > 0.03 * unit)
    panes = (row // pitch_y).astype(int) * 31 + (column // pitch_x).astype(int)
    glass = rng.uniform(0.25, 1.0, 997)[panes % 997]
    tint = np.array([120, 142, 160], np.float32) if rng.random() < 0.7 else np.array([200, 180, 120], np.float32)
    texture[window] = (glass[..., None] * tint)[window]
    texture[row < 0.02 * unit] *= 0.6  # cornice
    texture *= np.linspace(1.06, 0.82, shape[1], dtype=np.float32)[None, :, None]
    canvas.colours[rows, first:last] = texture
    canvas.ids[rows, first:last] = DISK_ID["building"]


def paint_wall(canvas: Canvas, rng: Rng, bottom: float) -> None:
    rows, shape = canvas.rows(0, bottom)
    unit = canvas.unit
    colour = _choice(rng, ((196, 186, 168), (150, 168, 178), (178, 150, 140), (158, 172, 150), (128, 128, 134)), 12)
    texture = _tinted(smooth_noise(rng, shape, (0.5 * unit, 0.5 * unit), 2), colour, 0.04)
    row, column = np.indices(shape)
    if rng.random() < 0.5:
        texture[(column / unit / 0.07).astype(int) % 2 == 0] *= 0.93  # striped paper
    else:
        brick = round(0.05 * unit)
        shifted = column + (row // brick % 2) * brick
        texture[(row % brick == 0) | (shifted % (2 * brick) == 0)] *= 0.82
    texture[-round(0.03 * unit) :] = np.array(colour, np.float32) * 0.62 + 20  # skirting board
    canvas.paint(rows, texture, DISK_ID["wall"])
    for left in np.arange(rng.uniform(0.1, 0.4), canvas.width / unit, rng.uniform(0.6, 0.9)):  # pictures: "others"
        top, height, width = rng.uniform(0.1, 0.18), rng.uniform(0.16, 0.24), rng.uniform(0.16, 0.3)
        box = [round(value * unit) for value in (top, top + height, left, left + width)]
        inside = canvas.colours[box[0] : box[1], box[2] : box[3]]
        if min(inside.shape) == 0:
            continue
        inside[:] = _jitter(rng, (92, 66, 44))
        margin = round(0.02 * unit)
        paper = inside[margin:-margin, margin:-margin]
        if min(paper.shape) > 0:
            hues = smooth_noise(rng, paper.shape[:2], (0.06 * unit, 0.08 * unit))[..., None] * rng.normal(0, 40, 3)
            paper[:] = np.clip(hues + 140, 20, 235)
        canvas.ids[box[0] : box[1], box[2] : box[3]] = OTHERS


def paint_track(canvas: Canvas, rng: Rng, base: float) -> None:
    """Gravel, sleepers and rails under a train: disk id 0, "others"."""
    rows, shape = canvas.rows(base - 0.03, base + 0.06)
    gravel = _tinted(rng.standard_normal(shape, dtype=np.float32), (112, 107, 101), 0.2)
    along = np.arange(shape[1])[None] / canvas.unit
    depth = np.linspace(0, 1, shape[0])[:, None]
    gravel[(along % 0.07 < 0.03) & (depth > 0.3) & (depth < 0.8)] = (78, 60, 46)
    gravel[((abs(depth - 0.38) < 0.05) | (abs(depth - 0.7) < 0.05)) & (along >= 0)] = (166, 166, 172)
    canvas.paint(rows, gravel, OTHERS)


# --- the things: RGBA pictures with a clear margin


class Pen:
    """Draws on a clear picture of a thing of height 1 (y down, origin at the thing's upper left corner)."""

    def __init__(self, width: float, pixels: int):
        """pixels: of the thing's height."""
        self.scale = pixels
        size = [round((length + 2 * MARGIN) * pixels) for length in (width, 1)]
        self.image = Image.new("RGBA", (size[0], size[1]))
        self.draw = ImageDraw.Draw(self.image)

    def _points(self, values: tuple[float, ...]) -> list[float]:
        return [(value + MARGIN) * self.scale for value in values]

    def ellipse(self, box: tuple[float, ...], colour: Colour) -> None:
        self.draw.ellipse(self._points(box), fill=colour)

    def box(self, box: tuple[float, ...], colour: Colour, radius: float = 0) -> None:
        self.draw.rounded_rectangle(self._points(box), radius * self.scale, fill=colour)

    def polygon(self, corners: tuple[float, ...], colour: Colour) -> None:
        self.draw.polygon(self._points(corners), fill=colour)

    def limb(self, corners: tuple[float, ...], colour: Colour, width: float) -> None:
        """A thick line with round ends and joints."""
        points = self._points(corners)
        self.draw.line(points, fill=colour, width=max(1, round(width * self.scale)), joint="curve")
        radius = width * self.scale / 2
        for x, y in zip(points[::2], points[1::2], strict=True):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def finish(self, rng: Rng, grain: float = 0.06) -> Image.Image:
        """Adds a soft light from above and a little texture."""
        picture = np.asarray(self.image).astype(np.float32)
        shape = picture.shape[:2]
        light = np.linspace(1.12, 0.84, shape[0], dtype=np.float32)[:, None]
        light = light + grain * smooth_noise(rng, shape, (0.06 * shape[0], 0.06 * shape[0]), 2)
        picture[..., :3] = np.clip(picture[..., :3] * light[..., None], 0, 255)
        return Image.fromarray(picture.astype(np.uint8))


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(np.clip(value * factor, 0, 255)) for value in colour)
    return red, green, blue


CLOTHES: tuple[Colour, ...] = (
    (178, 48, 44), (40, 72, 140), (230, 226, 216), (52, 54, 58), (206, 160, 60), (70, 120, 84), (120, 78, 130),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (176, 38, 40), (36, 78, 150), (208, 208, 206), (60, 62, 66), (214, 170, 50), (66, 116, 92), (130, 134, 140),
)  # fmt: skip


def _draw_person(rng: Rng, pixels: int) -> list[Image.Image]:
    shirt, trousers = _choice(rng, CLOTHES), _choice(rng, CLOTHES[1:4], 10)
    skin = _choice(rng, ((224, 180, 150), (190, 140, 108), (124, 86, 64)), 8)
    hair = _choice(rng, ((48, 34, 26), (110, 78, 44), (30, 28, 30), (170, 140, 90)), 8)
    frames = []
    for phase in np.arange(8) / 8 * 2 * np.pi:
        swing = np.sin(phase)
        pen = Pen(0.42, pixels)
        for side, dark in ((-1, 0.8), (1, 1.0)):
            reach, lift = 0.13 * side * swing, 0.05 * max(0.0, side * np.cos(phase))
            knee = 0.21 + 0.65 * reach + lift
            pen.limb((0.21, 0.52, knee, 0.74, 0.21 + reach, 0.955 - lift), _shade(trousers, dark), 0.095)
            foot = 0.21 + reach
            pen.box((foot - 0.045, 0.945 - lift, foot + 0.085, 1 - lift), (38, 34, 34), 0.02)
        pen.limb((0.21, 0.24, 0.19 + 0.06 * swing, 0.4, 0.22 + 0.13 * swing, 0.53), _shade(shirt, 0.72), 0.065)
        pen.box((0.115, 0.19, 0.305, 0.57), shirt, 0.07)
        pen.limb((0.21, 0.25, 0.19 - 0.06 * swing, 0.4, 0.23 - 0.13 * swing, 0.52), _shade(shirt, 0.88), 0.065)
        pen.ellipse((0.2 - 0.13 * swing, 0.49, 0.27 - 0.13 * swing, 0.56), skin)
        pen.box((0.18, 0.13, 0.24, 0.22), _shade(skin, 0.85))
        pen.ellipse((0.135, 0.0, 0.285, 0.165), hair)
        pen.ellipse((0.165, 0.03, 0.3, 0.175), skin)
        frames.append(pen.finish(rng))
    return frames


def _wheels(pen: Pen, centres: tuple[float, ...], bottom: float, radius: float) -> None:
    for x in centres:
        for size, colour in ((1.0, (28, 28, 30)), (0.55, (150, 152, 156)), (0.2, (60, 60, 62))):
            reach = radius * size
            pen.ellipse((x - reach, bottom - radius - reach, x + reach, bottom - radius + reach), colour)


def _draw_car(rng: Rng, pixels: int) -> list[Image.Image]:
    paint = _choice(rng, PAINTS)
    glass, bonnet = (96, 116, 130), rng.uniform(0.62, 0.78)
    pen = Pen(2.6, pixels)
    pen.polygon((0.35, 0.46, 0.72, 0.02, 1.62, 0.02, 2.02, 0.46), _shade(paint, 0.92))
    pen.box((0.03, 0.4, 2.57, 0.82), paint, 0.16)
    pen.polygon((2.0, 0.4, 2.57, 0.46 + 0.1 * bonnet, 2.57, 0.7, 2.0, 0.7), paint)
    pen.polygon((0.5, 0.42, 0.78, 0.09, 1.13, 0.09, 1.13, 0.42), glass)
    pen.polygon((1.2, 0.42, 1.2, 0.09, 1.57, 0.09, 1.88, 0.42), glass)
    pen.polygon((0.62, 0.42, 0.82, 0.14, 0.92, 0.14, 0.74, 0.42), (170, 186, 196))
    pen.box((1.15, 0.42, 1.17, 0.78), _shade(paint, 0.6))
    pen.box((1.25, 0.5, 1.4, 0.53), _shade(paint, 0.5))
    pen.box((0.0, 0.7, 2.6, 0.82), _shade(paint, 0.55), 0.05)
    pen.box((2.47, 0.5, 2.59, 0.6), (248, 240, 200), 0.03)
    pen.box((0.01, 0.48, 0.1, 0.6), (190, 30, 30), 0.03)
    _wheels(pen, (0.56, 2.04), 1.0, 0.23)
    return [pen.finish(rng, 0.03)]


def _draw_bus(rng: Rng, pixels: int) -> list[Image.Image]:
    paint = _choice(rng, PAINTS)
    pen = Pen(2.9, pixels)
    pen.box((0.0, 0.0, 2.9, 0.9), paint, 0.09)
    pen.box((0.06, 0.14, 2.84, 0.48), (72, 88, 100), 0.04)
    for x in np.arange(0.42, 2.6, 0.4):
        pen.box((x, 0.14, x + 0.04, 0.48), paint)
    pen.box((2.3, 0.16, 2.62, 0.86), (98, 116, 126), 0.03)
    pen.box((2.45, 0.16, 2.47, 0.86), _shade(paint, 0.6))
    pen.box((0.0, 0.6, 2.26, 0.67), (232, 230, 222))
    pen.box((1.1, 0.03, 1.9, 0.11), (238, 196, 70))
    pen.box((2.8, 0.64, 2.9, 0.74), (248, 240, 200), 0.02)
    pen.box((0.0, 0.82, 2.9, 0.91), _shade(paint, 0.5), 0.03)
    _wheels(pen, (0.55, 2.08), 1.0, 0.155)
    return [pen.finish(rng, 0.03)]


def _draw_train(rng: Rng, pixels: int) -> list[Image.Image]:
    paint, stripe = _choice(rng, PAINTS), _choice(rng, PAINTS)
    pen = Pen(9.0, pixels)
    for car in range(3):
        left = 3.0 * car
        pen.box((left + 0.03, 0.05, left + 2.97, 0.86), paint, 0.08)
        pen.box((left + 0.03, 0.62, left + 2.97, 0.72), stripe)
        pen.box((left + 0.05, 0.03, left + 2.95, 0.1), (120, 122, 126), 0.03)
        for x in np.arange(left + 0.3, left + 2.5, 0.44):
            pen.box((x, 0.22, x + 0.32, 0.5), (62, 78, 92), 0.04)
        pen.box((left + 2.62, 0.2, left + 2.82, 0.84), _shade(stripe, 0.8), 0.02)
        pen.box((left - 0.05, 0.7, left + 0.08, 0.82), (52, 52, 54))
        pen.box((left + 0.1, 0.84, left + 2.9, 0.92), (58, 58, 62))
        _wheels(pen, (left + 0.4, left + 0.75, left + 2.25, left + 2.6), 1.0, 0.085)
    pen.polygon((8.6, 0.05, 8.75, 0.05, 9.0, 0.5, 9.0, 0.86, 8.6, 0.86), paint)
    pen.polygon((8.7, 0.15, 8.78, 0.15, 8.93, 0.46, 8.7, 0.46), (72, 92, 108))
    pen.box((8.88, 0.62, 8.99, 0.72), (250, 242, 200), 0.02)
    return [pen.finish(rng, 0.02)]


def _draw_boat(rng: Rng, pixels: int) -> list[Image.Image]:
    hull, sail = _choice(rng, PAINTS), _choice(rng, ((238, 234, 222), (206, 96, 70), (225, 205, 150)), 8)
    pen = Pen(1.25, pixels)
    if rng.random() < 0.6:
        pen.limb((0.6, 0.03, 0.6, 0.8), (110, 84, 60), 0.03)
        pen.polygon((0.64, 0.06, 0.64, 0.7, 1.1, 0.7), sail)
        pen.polygon((0.56, 0.14, 0.56, 0.7, 0.22, 0.7), _shade(sail, 0.86))
    else:
        pen.box((0.3, 0.5, 0.85, 0.8), (226, 224, 218), 0.04)
        for x in (0.36, 0.53, 0.7):
            pen.box((x, 0.56, x + 0.1, 0.67), (70, 90, 106))
        pen.box((0.42, 0.3, 0.54, 0.5), _shade(hull, 0.8))
    pen.polygon((0.02, 0.74, 1.23, 0.74, 1.04, 1.0, 0.18, 1.0), hull)
    pen.polygon((0.02, 0.74, 1.23, 0.74, 1.2, 0.8, 0.05, 0.8), (236, 234, 228))
    return [pen.finish(rng, 0.04)]


def _draw_dog(rng: Rng, pixels: int) -> list[Image.Image]:
    fur = _choice(rng, ((150, 108, 66), (66, 52, 44), (206, 184, 150), (120, 116, 112)), 10)
    frames = []
    for phase in np.arange(8) / 8 * 2 * np.pi:
        pen = Pen(1.4, pixels)
        for x, offset, dark in ((0.42, 0, 0.7), (0.92, 2.2, 0.7), (0.34, 3.1, 0.95), (0.98, 5.2, 0.95)):
            reach = 0.13 * np.sin(phase + offset)
            pen.limb((x, 0.6, x + reach / 2, 0.78, x + reach, 0.96), _shade(fur, dark), 0.09)
        pen.limb((0.27, 0.48, 0.12, 0.36, 0.06, 0.2 + 0.05 * np.sin(2 * phase)), fur, 0.07)
        pen.ellipse((0.22, 0.38, 1.08, 0.76), fur)
        pen.limb((0.95, 0.5, 1.1, 0.3), fur, 0.22)
        pen.ellipse((0.96, 0.08, 1.26, 0.4), fur)
        pen.limb((1.2, 0.27, 1.33, 0.3), _shade(fur, 1.1), 0.12)
        pen.ellipse((1.34, 0.24, 1.4, 0.31), (24, 22, 22))
        pen.ellipse((1.12, 0.17, 1.17, 0.22), (24, 22, 22))
        pen.polygon((0.98, 0.08, 1.1, 0.12, 1.02, 0.36, 0.94, 0.26), _shade(fur, 0.62))
        frames.append(pen.finish(rng, 0.1))
    return frames


def _draw_ball(rng: Rng, pixels: int) -> list[Image.Image]:
    ground, mark = _choice(rng, PAINTS + ((236, 234, 230),)), _choice(rng, ((240, 238, 232), (36, 36, 40)), 4)
    flat = Pen(1, pixels)
    flat.ellipse((0, 0, 1, 1), ground)
    for angle in np.arange(5) / 5 * 2 * np.pi:
        x, y = 0.5 + 0.33 * np.cos(angle), 0.5 + 0.33 * np.sin(angle)
        flat.ellipse((x - 0.11, y - 0.11, x + 0.11, y + 0.11), mark)
    flat.ellipse((0.4, 0.4, 0.6, 0.6), mark)
    frames = []
    for step in range(8):
        pen = Pen(1, pixels)
        pen.image = flat.image.rotate(-9 * step, Image.Resampling.BICUBIC)  # the pattern repeats after 72 degrees
        frames.append(pen.finish(rng, 0.02))
    return frames


def _draw_tree(rng: Rng, pixels: int) -> list[Image.Image]:
    pen = Pen(0.8, pixels)
    trunk = _choice(rng, ((92, 70, 52), (112, 100, 86)), 8)
    pen.polygon((0.36, 1.0, 0.385, 0.5, 0.43, 0.5, 0.455, 1.0), trunk)
    bark = np.asarray(pen.finish(rng, 0.15))
    crown = Pen(0.8, pixels)
    tall = rng.random() < 0.35  # a conifer
    for _ in range(45):
        height = rng.uniform(0.05, 0.66)
        reach = 0.04 + 0.3 * height / 0.66 if tall else 0.3 * np.sin(np.pi * (0.12 + 0.8 * height / 0.68))
        x, radius = 0.4 + rng.uniform(-1, 1) * reach, rng.uniform(0.05, 0.1)
        crown.ellipse((x - radius, height - radius, x + radius, height + radius), (255, 255, 255))
    leaves = np.asarray(crown.image)[..., 3]
    picture = bark.copy()
    texture = _foliage(rng, leaves.shape, 1.2 * pixels)
    texture *= np.linspace(1.2, 0.75, leaves.shape[0], dtype=np.float32)[:, None, None]
    picture[leaves > 0, :3] = np.clip(texture, 0, 255)[leaves > 0]
    picture[..., 3] = np.maximum(picture[..., 3], leaves)
    return [Image.fromarray(picture)]


def _draw_lamp(rng: Rng, pixels: int) -> list[Image.Image]:
    pen = Pen(0.25, pixels)
    metal = _jitter(rng, (70, 74, 76), 6)
    pen.limb((0.06, 0.98, 0.06, 0.06, 0.16, 0.04), metal, 0.022)
    pen.box((0.12, 0.02, 0.25, 0.07), (226, 220, 190), 0.02)
    return [pen.finish(rng)]


DRAWINGS: dict[str, Callable[[Rng, int], list[Image.Image]]] = {
    "person": _draw_person, "car": _draw_car, "bus": _draw_bus, "train": _draw_train, "ship_or_boat": _draw_boat,
    "dog": _draw_dog, "ball": _draw_ball, "tree": _draw_tree, "lamp": _draw_lamp,
}  # fmt: skip
