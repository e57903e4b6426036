"""Overlay videos: the frame, beside it the same frame with its classes painted over it, and a legend below.

The first frame decides the layout, and nothing moves afterwards. Which classes a stream will show is not known ahead,
so the legend lists them in the order of their appearance, in a bar whose height does not change.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vss_hf.files import is_full_disk, replacing
from vss_hf.video_io import VideoWriter
from vss_hf.visualize import Palette, overlay


STYLES = ("side-by-side", "painted")
MAX_WIDTH, MAX_HEIGHT = 1920, 2160  # of one of the two pictures: twice this is what players and encoders manage
MIN_SIDE = 320  # smaller videos are enlarged, for the letters of the legend
GAP = 4  # pixels between the two pictures
LEGEND_CLASSES = 30  # of average names the legend has room for; a video of VSPW shows about ten
SMALLEST_SHARE = 0.001  # of a frame that a class covers before the legend names it: wrong pixels would fill it
DARK, LIGHT, OUTLINE = (24, 24, 24), (236, 236, 236), (150, 150, 150)


class Legend:
    """A bar with the colours and names of classes; a place once given to a class stays its own.

    Args:
        names: of all classes in the order of the label values.
        palette: one (red, green, blue) per class, 0..255.
        width: of the bar in pixels.
        font_size: in pixels.
    """

    def __init__(self, names: Sequence[str], palette: Palette, width: int, font_size: int):
        self.font = ImageFont.load_default(size=font_size)
        self.size, self.pad, self.row_height = font_size, font_size // 2, round(1.6 * font_size)
        self.palette, self.right = palette, width - font_size // 2
        room = self.right - self.pad
        self.names = [shortened(name.replace("_", " "), self.font, room - self.swatch) for name in names]
        widths = [self.width_of(name) for name in self.names]
        # Each row but the last is filled up to less than one name, in whatever order they come.
        enough = int(sum(widths) // max(1, room - max(widths))) + 1
        usual = math.ceil(LEGEND_CLASSES * sum(widths) / len(widths) / max(1, room))
        self.rows = min(enough, usual)
        surplus = self.font.getlength(f"+{len(names)} more") + self.pad if enough > self.rows else 0
        self.ends = [self.right] * (self.rows - 1) + [self.right - surplus]
        self.x, self.row = self.pad, 0
        self.listed: set[int] = set()
        self.left_out: set[int] = set()
        self._canvas = Image.new("RGB", (width, self.rows * self.row_height + self.pad), DARK)
        self._draw = ImageDraw.Draw(self._canvas)
        self.picture = np.asarray(self._canvas)  # (height, width, 3)

    @property
    def swatch(self) -> int:
        """Width of the coloured square and the space behind it."""
        return self.size + self.size // 2

    def width_of(self, name: str) -> int:
        """Pixels that a class takes, with the space before the next one."""
        return self.swatch + math.ceil(self.font.getlength(name)) + self.size

    def add(self, labels: np.ndarray) -> None:
        """Name the classes of a label map (H, W) that are new, the largest first."""
        counts = np.bincount(labels.ravel(), minlength=256)[: len(self.names)]
        shown = counts >= max(1.0, SMALLEST_SHARE * labels.size)
        shown[list(self.listed | self.left_out)] = False
        new = [int(label) for label in np.argsort(-counts, kind="stable") if shown[label]]
        for label in new:
            self._add_class(label)
        if new:
            self.picture = np.asarray(self._canvas)

    def _add_class(self, label: int) -> None:
        name, row, x = self.names[label], self.row, self.x
        width = self.width_of(name)
        # The space behind a name may stick out.
        while row < self.rows and x > self.pad and x + width - self.size > self.ends[row]:
            row, x = row + 1, self.pad
        if row == self.rows or x + width - self.size > self.ends[row]:
            self.left_out.add(label)
            self._write_surplus()
            return
        top = self.pad // 2 + row * self.row_height + (self.row_height - self.size) // 2
        square = (x, top, x + self.size - 1, top + self.size - 1)
        self._draw.rounded_rectangle(square, self.size // 6, tuple(self.palette[label]), outline=OUTLINE)
        self._draw.text((x + self.swatch, top + self.size / 2), name, LIGHT, self.font, anchor="lm")
        self.row, self.x = row, x + width
        self.listed.add(label)

    def _write_surplus(self) -> None:
        """How many classes have no place, at the end of the last row."""
        top = self.pad // 2 + (self.rows - 1) * self.row_height
        left = min(int(self.ends[-1]) + 1, self.right)
        self._draw.rectangle((left, top, self.right, top + self.row_height), DARK)
        middle = top + self.row_height / 2
        self._draw.text((self.right, middle), f"+{len(self.left_out)} more", LIGHT, self.font, anchor="rm")


def shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """A name as far as it fits."""
    if font.getlength(name) <= width:
        return name
    end = len(name)
    while end > 1 and font.getlength(f"{name[:end]}...") > width:
        end -= 1
    return f"{name[:end]}..."


class FramePainter:
    """Makes the pictures of one overlay video; all have the size of the first one.

    A frame of another size than the first one is scaled into its place, with one warning for the video.

    Args:
        names: of all classes in the order of the label values.
        palette: one (red, green, blue) per class, 0..255.
        style: "side-by-side" (frame, painted frame, legend), or "painted" (the painted frame alone, at its own size).
        alpha: strength of the colours, 0..1.

    Raises:
        ValueError: for another style or alpha.
    """

    def __init__(self, names: Sequence[str], palette: Palette, style: str = "side-by-side", alpha: float = 0.6):
        if style not in STYLES:
            raise ValueError(f"overlay style is {style!r}: expected one of {', '.join(STYLES)}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: expected 0 (colours invisible) to 1 (frame hidden)")
        self.names, self.palette, self.style, self.alpha = names, palette, style, alpha
        self.first: tuple[int, int] | None = None  # (height, width) of the first frame
        self.warned = False
        self.panel = (0, 0)  # (height, width) of one picture
        self.legend: Legend | None = None

    def paint(self, frame: np.ndarray, labels: np.ndarray, name: str = "") -> np.ndarray:
        """The picture of one frame.

        Args:
            frame: uint8 (H, W, 3) RGB.
            labels: integer (H, W), classes or 255.
            name: how the warning calls the frame.

        Returns:
            uint8 (H', W', 3) RGB, of one size for all frames.
        """
        if self.first is None:
            self._lay_out(frame.shape[:2])
        elif frame.shape[:2] != self.first and not self.warned:
            self.warned = True
            (height, width), (found_height, found_width) = self.first, frame.shape[:2]
            warnings.warn(
                f"frame {name} is {found_width}x{found_height} (width x height), the video began with "
                f"{width}x{height}: in the overlay video frames are scaled to fit the first one",
                RuntimeWarning,
                stacklevel=2,
            )
        painted = fitted(overlay(frame, labels, self.palette, self.alpha), self.panel)
        if self.legend is None:
            return painted
        self.legend.add(labels)
        gap = np.full((self.panel[0], GAP, 3), DARK, np.uint8)
        pictures = np.concatenate([fitted(frame, self.panel), gap, painted], axis=1)
        return np.concatenate([pictures, self.legend.picture])

    def _lay_out(self, size: tuple[int, int]) -> None:
        self.first = self.panel = size
        if self.style == "painted":
            return
        height, width = size
        scale = min(1.0, MAX_WIDTH / width, MAX_HEIGHT / height)
        if max(size) < MIN_SIDE:
            scale = math.ceil(MIN_SIDE / max(size))  # whole, so that each pixel becomes a square
        self.panel = max(1, round(height * scale)), max(1, round(width * scale))
        canvas_width = 2 * self.panel[1] + GAP
        font_size = max(11, round(math.sqrt(self.panel[0] * canvas_width) / 56))  # 16 at 480 x 853, 36 at 1080p
        self.legend = Legend(self.names, self.palette, canvas_width, font_size)


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) scaled into `size` (height, width); what its shape leaves over is dark, at the sides."""
    if picture.shape[:2] == size:
        return picture
    height, width = size
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner = max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))
    filter_ = Image.Resampling.NEAREST if scale.is_integer() else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(picture).resize((inner[1], inner[0]), filter_))
    if inner == size:
        return scaled
    whole = np.full((height, width, 3), DARK, np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    whole[top : top + inner[0], left : left + inner[1]] = scaled
    return whole


class OverlayWriter:
    """Writes an overlay video, or a JPEG where there is a single frame.

    What has been added is kept when the `with` block ends early, as with a broken video: the file ends there.
    When the disk is full, nothing appears under the final name.

    Args:
        base: path without the suffix.
        painter: makes the pictures.
        rate: frames per second, for frames without a time.
    """

    def __init__(self, base: Path, painter: FramePainter, rate: float):
        self.base, self.painter, self.rate = base, painter, rate
        self.writer: VideoWriter | None = None
        self.first: tuple[np.ndarray, float | None] | None = None
        self.path: Path | None = None

    def __enter__(self) -> "OverlayWriter":
        return self

    def add(self, frame: np.ndarray, labels: np.ndarray, time: float | None = None, name: str = "") -> None:
        """Paint one frame, which is shown `time` seconds after the start; the second one makes it a video."""
        picture = self.painter.paint(frame, labels, name)
        if self.first is None:
            self.first = picture, time
            return
        if self.writer is None:
            self.writer = VideoWriter(f"{self.base}.mp4", self.rate, picture.shape[:2])
            self.writer.write(*self.first)
        self.writer.write(picture, time)

    def __exit__(self, error_type, error, traceback) -> None:
        if error is not None and is_full_disk(error):
            if self.writer is not None:
                self.writer.__exit__(error_type, error, traceback)
        elif self.writer is not None:
            self.writer.close()
            self.path = self.writer.path
        elif self.first is not None:
            self.path = Path(f"{self.base}.jpg")
            with replacing(self.path) as partial:
                Image.fromarray(self.first[0]).save(partial, format="JPEG", quality=92)
