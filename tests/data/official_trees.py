"""Writes small data sets in the official layouts of COCO-Stuff, ADE20K, Cityscapes, ... with drawn scenes in them.

Every tree holds the nasty things of the real ones: masks of mode L and P side by side, values that are no class
(252..254, the numbers that a source never uses), dotfiles, lists without a final line end. `spoil` breaks one file.
A `Tree` says what was drawn, part by part ("sky", "car", ...), and what each part is called: so labels can be
recomputed without any code of the reader.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


VOID = "void"  # the part that no source labels
# what is drawn, in the order of its number in `Drawing.parts`
PARTS = (
    *("void", "sky", "cloud", "building", "house", "road", "lane", "sidewalk", "grass", "tree", "pole", "light"),
    *("sign", "fence", "car", "bus", "van", "person", "bicycle", "mountain", "lake", "sheep", "horse", "kite"),
    *(
        "wall",
        "ceiling",
        "floor",
        "bed",
        "painting",
        "lamp",
        "table",
        "chair",
        "rug",
        "fireplace",
        "window",
        "curtain",
    ),
)
COLOURS = {
    **{"void": (38, 40, 46), "sky": (150, 196, 232), "cloud": (240, 244, 248), "building": (176, 140, 116)},
    **{"house": (206, 170, 128), "road": (98, 98, 104), "lane": (232, 230, 222), "sidewalk": (168, 162, 156)},
    **{"grass": (112, 158, 78), "tree": (62, 112, 58), "pole": (84, 86, 92), "light": (44, 48, 44)},
    **{"sign": (198, 52, 46), "fence": (146, 112, 80), "car": (42, 96, 168), "bus": (206, 158, 44)},
    **{"van": (226, 222, 214), "person": (198, 86, 64), "bicycle": (52, 58, 70), "mountain": (128, 136, 152)},
    **{"lake": (84, 138, 170), "sheep": (234, 230, 220), "horse": (120, 76, 48), "kite": (222, 70, 120)},
    **{"wall": (222, 208, 184), "ceiling": (244, 240, 232), "floor": (164, 124, 86), "bed": (122, 146, 184)},
    **{"painting": (90, 130, 120), "lamp": (246, 214, 120), "table": (118, 80, 52), "chair": (96, 66, 46)},
    **{"rug": (166, 70, 72), "fireplace": (104, 84, 80), "window": (176, 214, 236), "curtain": (152, 96, 124)},
}
SMOOTH = 3  # pictures are drawn that much larger and then reduced


@dataclass
class Drawing:
    """One image: `pixels` uint8 (H, W, 3); `parts` (H, W) index into PARTS; `instances` (H, W), 0 for stuff."""

    pixels: np.ndarray
    parts: np.ndarray
    instances: np.ndarray


@dataclass
class Tree:
    """A data set on disk and what was drawn into it.

    Args:
        root: its folder.
        names: part -> the name of the source's own class, None = void.
        vspw: part -> the name of VSPW's class by the default table, None = ignored.
        drawings: split -> video name -> file stem of a frame -> drawing, in order.
        noise: (rows, columns) at the top left in which masks hold values that are no class, whatever is drawn there.
    """

    root: Path
    names: dict[str, str | None]
    vspw: dict[str, str | None]
    drawings: dict[str, dict[str, dict[str, Drawing]]] = field(default_factory=dict)
    noise: tuple[int, int] = (3, 5)

    def expected(self, drawing: Drawing, names: dict[str, str | None], classes: tuple[str, ...]) -> np.ndarray:
        """The labels of a drawing, uint8 (H, W), 255 = ignored: pixel by pixel, from the names of the parts."""
        labels = np.full(drawing.parts.shape, 255, np.uint8)
        for row, parts in enumerate(drawing.parts.tolist()):
            for column, part in enumerate(parts):
                name = names.get(PARTS[part])
                in_noise = row < self.noise[0] and column < self.noise[1]
                if name is not None and not in_noise:
                    labels[row, column] = classes.index(name)
        return labels


# --- scenes


class Painting:
    """Draws parts as polygons; coordinates are fractions of width and height, y down."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.colours = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), COLOURS[VOID])
        self.parts, self.instances = Image.new("L", size, 0), Image.new("L", size, 0)

    def polygon(self, part: str, points, colour=None, instance: int = 0) -> None:
        """A filled shape of one part."""
        width, height = self.size
        large = [(x * width * SMOOTH, y * height * SMOOTH) for x, y in points]
        ImageDraw.Draw(self.colours).polygon(large, fill=colour or COLOURS[part])
        small = [(x * width, y * height) for x, y in points]
        ImageDraw.Draw(self.parts).polygon(small, fill=PARTS.index(part))
        ImageDraw.Draw(self.instances).polygon(small, fill=instance)

    def box(self, part: str, left: float, top: float, right: float, bottom: float, **options) -> None:
        """An upright rectangle."""
        self.polygon(part, [(left, top), (right, top), (right, bottom), (left, bottom)], **options)

    def disc(self, part: str, x: float, y: float, radius: float, flat: float = 1.0, **options) -> None:
        """A circle whose radius is a fraction of the height; `flat` < 1 squeezes it vertically."""
        narrow = self.size[1] / self.size[0]
        turns = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        points = [(x + radius * narrow * np.cos(a), y + radius * flat * np.sin(a)) for a in turns]
        self.polygon(part, points, **options)

    def finished(self, seed: int) -> Drawing:
        """The drawing, with a little grain and light from above."""
        pixels = np.asarray(self.colours.resize(self.size, Image.Resampling.BOX), np.float32)
        light = np.linspace(1.05, 0.92, pixels.shape[0], dtype=np.float32)[:, None, None]
        grain = np.random.default_rng(seed).normal(0, 4, (*pixels.shape[:2], 1))
        return Drawing(
            np.clip(pixels * light + grain, 0, 255).astype(np.uint8),
            np.asarray(self.parts).copy(),
            np.asarray(self.instances).copy(),
        )


def street(size: tuple[int, int], seed: int) -> Drawing:
    """A street; the car drives to the right as the seed grows."""
    art, step = Painting(size), 0.04 * (seed % 6)
    art.box("sky", 0, 0, 1, 0.62)
    art.disc("cloud", 0.22 + step / 2, 0.1, 0.06, 0.6)
    art.disc("cloud", 0.27 + step / 2, 0.12, 0.08, 0.6)
    for left, right, top, colour in ((0, 0.2, 0.18, None), (0.2, 0.4, 0.3, (152, 130, 132)), (0.8, 1, 0.1, None)):
        art.box("building", left, top, right, 0.62, colour=colour)
        for x in np.arange(left + 0.03, right - 0.04, 0.055):
            for y in np.arange(top + 0.05, 0.5, 0.11):
                art.box("building", x, y, x + 0.025, y + 0.055, colour=(92, 104, 120))
    art.box("fence", 0.4, 0.52, 0.8, 0.6)
    art.box("grass", 0.38, 0.58, 0.82, 0.66)
    for x, radius in ((0.5, 0.13), (0.68, 0.1)):
        art.box("tree", x - 0.008, 0.4, x + 0.008, 0.63, colour=(86, 66, 48))
        art.disc("tree", x, 0.38, radius)
    art.box("sidewalk", 0, 0.62, 1, 0.72)
    art.box("road", 0, 0.72, 1, 1)
    for x in (0.02, 0.27, 0.52, 0.77):
        art.polygon("lane", [(x + 0.02, 0.86), (x + 0.16, 0.86), (x + 0.14, 0.885), (x, 0.885)])
    art.box("bus", 0.56, 0.5, 0.84, 0.74, instance=1)
    for x in (0.585, 0.65, 0.715, 0.78):
        art.box("bus", x, 0.54, x + 0.045, 0.61, colour=(60, 72, 88), instance=1)
    for x in (0.62, 0.78):
        art.disc("bus", x, 0.745, 0.03, colour=(30, 30, 34), instance=1)
    art.box("van", 0.3, 0.6, 0.44, 0.73, instance=1)
    art.box("van", 0.4, 0.62, 0.435, 0.67, colour=(70, 84, 100), instance=1)
    for x in (0.33, 0.41):
        art.disc("van", x, 0.735, 0.025, colour=(30, 30, 34), instance=1)
    art.box("pole", 0.885, 0.28, 0.897, 0.72)
    art.disc("sign", 0.891, 0.28, 0.055)
    art.box("sign", 0.868, 0.265, 0.914, 0.295, colour=(240, 240, 240))
    art.box("pole", 0.475, 0.34, 0.485, 0.72)
    art.box("light", 0.466, 0.26, 0.494, 0.4)
    for y, colour in ((0.285, (214, 60, 48)), (0.33, (216, 180, 60)), (0.375, (64, 180, 96))):
        art.disc("light", 0.48, y, 0.015, colour=colour)
    for number, x in enumerate((0.12, 0.94)):
        _person(art, x + step / 4, 0.7, 0.24, number + 1)
    _bicycle(art, 0.495, 0.7)
    _car(art, 0.08 + step, 0.8, COLOURS["car"], 1)
    _car(art, 0.62 - step / 2, 0.88, (150, 46, 48), 2)
    art.box("void", 0, 0.97, 1, 1.02)  # the bonnet of the car with the camera
    return art.finished(seed)


def meadow(size: tuple[int, int], seed: int) -> Drawing:
    """Country: mountains, a lake, animals, a house, a kite."""
    art, shift = Painting(size), 0.03 * (seed % 5)
    art.box("sky", 0, 0, 1, 0.5)
    art.disc("cloud", 0.7, 0.14, 0.07, 0.55)
    art.disc("cloud", 0.76, 0.12, 0.09, 0.55)
    art.polygon("mountain", [(0, 0.5), (0.16, 0.2), (0.3, 0.38), (0.46, 0.16), (0.72, 0.5)])
    art.polygon("mountain", [(0.42, 0.215), (0.46, 0.16), (0.51, 0.215), (0.465, 0.24)], colour=(236, 240, 244))
    art.box("grass", 0, 0.48, 1, 1)
    art.disc("lake", 0.3, 0.6, 0.24, 0.32)
    art.box("house", 0.72, 0.36, 0.92, 0.58)
    art.polygon("house", [(0.7, 0.36), (0.82, 0.22), (0.94, 0.36)], colour=(150, 74, 60))
    art.box("house", 0.8, 0.46, 0.84, 0.58, colour=(96, 66, 50))
    for x in (0.75, 0.87):
        art.box("house", x, 0.41, x + 0.03, 0.47, colour=(110, 140, 160))
    for x, y, radius in ((0.6, 0.42, 0.11), (0.97, 0.46, 0.12)):
        art.box("tree", x - 0.008, y, x + 0.008, y + 0.18, colour=(86, 66, 48))
        art.disc("tree", x, y, radius)
    for x in np.arange(0.02, 1, 0.08):
        art.box("fence", x, 0.66, x + 0.012, 0.78)
    art.box("fence", 0, 0.69, 1, 0.705)
    for number, (x, y) in enumerate(((0.16, 0.82), (0.34, 0.9), (0.78, 0.86))):
        x += shift
        for leg in (-0.03, -0.01, 0.015, 0.035):
            art.box("sheep", x + leg, y, x + leg + 0.008, y + 0.08, colour=(60, 54, 50), instance=number + 1)
        art.disc("sheep", x, y, 0.07, 0.7, instance=number + 1)
        art.disc("sheep", x + 0.055, y - 0.03, 0.03, colour=(60, 54, 50), instance=number + 1)
    for leg in (0.5, 0.53, 0.6, 0.63):
        art.box("horse", leg, 0.7, leg + 0.012, 0.86, instance=1)
    art.disc("horse", 0.57, 0.69, 0.11, 0.62, instance=1)
    art.polygon("horse", [(0.62, 0.7), (0.66, 0.54), (0.71, 0.6), (0.66, 0.72)], instance=1)
    _person(art, 0.9, 0.92, 0.3, 1)
    art.polygon("kite", [(0.2, 0.1), (0.24, 0.03), (0.28, 0.1), (0.24, 0.22)])
    return art.finished(seed)


def room(size: tuple[int, int], seed: int) -> Drawing:
    """A bedroom."""
    art, shift = Painting(size), 0.02 * (seed % 5)
    art.box("wall", 0, 0, 1, 0.72)
    art.polygon("ceiling", [(0, 0), (1, 0), (0.88, 0.12), (0.12, 0.12)])
    art.box("floor", 0, 0.7, 1, 1.02)
    art.disc("rug", 0.42, 0.88, 0.24, 0.36)
    art.box("window", 0.18, 0.22, 0.36, 0.5)
    art.box("window", 0.266, 0.22, 0.274, 0.5, colour=(240, 240, 236))
    for left in (0.14, 0.34):
        art.box("curtain", left, 0.18, left + 0.06, 0.62)
    art.box("painting", 0.46, 0.24, 0.6, 0.42, colour=(72, 54, 40))
    art.box("painting", 0.475, 0.26, 0.585, 0.4)
    art.polygon(
        "painting", [(0.475, 0.4), (0.51, 0.31), (0.53, 0.35), (0.555, 0.3), (0.585, 0.4)], colour=(60, 84, 70)
    )
    art.box("fireplace", 0.02, 0.5, 0.13, 0.78)
    art.box("fireplace", 0.04, 0.6, 0.11, 0.77, colour=(230, 130, 50))
    art.box("table", 0.66, 0.56, 0.72, 0.72)
    art.polygon("lamp", [(0.675, 0.42), (0.705, 0.42), (0.725, 0.5), (0.655, 0.5)])
    art.box("lamp", 0.687, 0.5, 0.693, 0.56, colour=(90, 80, 70))
    art.box("bed", 0.74, 0.46, 1, 0.62, colour=(110, 76, 52))
    art.polygon("bed", [(0.74, 0.6), (1, 0.6), (1, 0.9), (0.64, 0.9)])
    art.polygon("bed", [(0.78, 0.6), (0.94, 0.6), (0.93, 0.66), (0.76, 0.66)], colour=(240, 238, 230))
    for left in (0.3, 0.39):
        art.box("chair", left + shift, 0.66, left + shift + 0.015, 0.84)
    art.box("chair", 0.29 + shift, 0.48, 0.315 + shift, 0.72)
    art.box("chair", 0.29 + shift, 0.66, 0.41 + shift, 0.7)
    art.disc("lamp", 0.5, 0.1, 0.045, 0.7)
    return art.finished(seed)


def _person(art: Painting, x: float, feet: float, height: float, number: int) -> None:
    half = 0.12 * height
    art.box("person", x - half / 2, feet - 0.5 * height, x + half / 2, feet, colour=(52, 60, 92), instance=number)
    art.box("person", x - half, feet - 0.8 * height, x + half, feet - 0.42 * height, instance=number)
    art.disc("person", x, feet - 0.89 * height, 0.11 * height, colour=(226, 178, 146), instance=number)


def _bicycle(art: Painting, x: float, wheels: float) -> None:
    for left in (x, x + 0.06):
        art.disc("bicycle", left, wheels, 0.045, instance=1)
        art.disc("bicycle", left, wheels, 0.03, colour=(150, 150, 150), instance=1)
    frame = [(x, wheels), (x + 0.015, wheels - 0.07), (x + 0.055, wheels - 0.07), (x + 0.03, wheels)]
    art.polygon("bicycle", frame, instance=1)


def _car(art: Painting, x: float, wheels: float, colour, number: int) -> None:
    art.polygon(
        "car",
        [(x + 0.04, wheels - 0.1), (x + 0.08, wheels - 0.17), (x + 0.17, wheels - 0.17), (x + 0.21, wheels - 0.1)],
        colour=colour,
        instance=number,
    )
    glass = [(x + 0.06, wheels - 0.1), (x + 0.09, wheels - 0.15), (x + 0.16, wheels - 0.15), (x + 0.19, wheels - 0.1)]
    art.polygon("car", glass, colour=(188, 210, 224), instance=number)
    art.box("car", x, wheels - 0.1, x + 0.25, wheels, colour=colour, instance=number)
    for wheel in (x + 0.05, x + 0.2):
        art.disc("car", wheel, wheels, 0.035, colour=(28, 28, 32), instance=number)


# --- files


def write_image(path: Path, drawing: Drawing) -> None:
    """The picture as JPEG or PNG, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing.pixels).save(path, **({"quality": 92} if path.suffix == ".jpg" else {}))
    (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")


def stored(tree: Tree, drawing: Drawing, values: dict[str, int], void: int, noise) -> np.ndarray:
    """The numbers of a mask file, uint16 (H, W): those of the parts, and no class at all in the top left corner."""
    table = np.full(len(PARTS), void, np.uint16)
    for part, value in values.items():
        table[PARTS.index(part)] = value
    numbers = table[drawing.parts]
    rows, columns = tree.noise
    numbers[:rows, :columns] = np.resize(np.array(noise, np.uint16), (rows, columns))
    return numbers


def write_index_mask(path: Path, numbers: np.ndarray, mode: str) -> None:
    """An 8-bit PNG. Mode P gets a palette that sends every index to some other grey, a trap for conversions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers.astype(np.uint8))
    if mode == "P":
        image.putpalette([(index * 7 + 3) % 256 for index in range(256) for _ in range(3)])
    assert image.mode == mode
    image.save(path)
    (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")


def write_list(path: Path, lines: list[str], final_newline: bool = False) -> None:
    """A list file; without a final line end unless asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n" * final_newline)


def spoil(path: Path, how: str) -> None:
    """Breaks a file: "zero bytes", "truncated", "other size" (an image), "colours" (an RGB copy of a mask)."""
    if how == "zero bytes":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "other size":
        image = Image.open(path)
        image.resize((image.width + 2, image.height), Image.Resampling.NEAREST).save(path)
    elif how == "colours":
        Image.open(path).convert("RGB").save(path)
    else:
        raise ValueError(how)


# --- COCO-Stuff

COCO_IDS = {
    **{"sky": 157, "cloud": 106, "building": 96, "house": 128, "road": 149, "lane": 149, "sidewalk": 140},
    **{"grass": 124, "tree": 169, "pole": 132, "light": 10, "sign": 13, "fence": 113, "car": 3, "bus": 6, "van": 3},
    **{"person": 1, "bicycle": 2, "mountain": 135, "lake": 178, "sheep": 20, "horse": 19, "kite": 38},
}
COCO_NAMES = {
    **{"sky": "sky-other", "cloud": "clouds", "building": "building-other", "house": "house", "road": "road"},
    **{"lane": "road", "sidewalk": "pavement", "grass": "grass", "tree": "tree", "pole": "metal"},
    **{"light": "traffic light", "sign": "stop sign", "fence": "fence", "car": "car", "bus": "bus", "van": "car"},
    **{"person": "person", "bicycle": "bicycle", "mountain": "mountain", "lake": "water-other", "sheep": "sheep"},
    **{"horse": "horse", "kite": "kite"},
}
COCO_VSPW = {
    **{"sky": "sky", "cloud": "sky", "building": "building", "house": "house", "road": "road", "lane": "road"},
    **{"sidewalk": "path", "grass": "grass", "tree": "tree", "pole": None, "light": "traffic_light", "sign": None},
    **{"fence": "handrail_or_fence", "car": "car", "bus": "bus", "van": "car", "person": "person"},
    **{"bicycle": "bicycle", "mountain": "mountain", "lake": "water", "sheep": "other_animal", "horse": "horse"},
    **{"kite": None},
}
# ids 1..182 that no annotation uses
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def _coco_train_id(coco_id: int) -> int:
    return coco_id - 1 - sum(gap < coco_id for gap in COCO_GAPS)


def make_coco_stuff(root: Path, *, converted: bool = False, masks_in="stuffthingmaps", size=(96, 64)) -> Tree:
    """COCO-Stuff 164k: value = id - 1, 255 = unlabelled; `converted`: *_labelTrainIds.png with 0..170."""
    tree = Tree(root, COCO_NAMES, COCO_VSPW)
    number = _coco_train_id if converted else (lambda coco_id: coco_id - 1)
    values = {part: number(coco_id) for part, coco_id in COCO_IDS.items()}
    noise = (252, 253, 254, 255, 171, 200) if converted else (252, 253, 254, 255, 182, 11, 90)
    for split, numbers in {"train2017": (9, 25, 30), "val2017": (139, 285)}.items():
        for place, image_id in enumerate(numbers):
            stem, drawing = f"{image_id:012d}", (meadow if place % 2 == 0 else street)(size, image_id)
            write_image(root / "images" / split / f"{stem}.jpg", drawing)
            ending = "_labelTrainIds.png" if converted else ".png"
            mask = root / masks_in / split / f"{stem}{ending}"
            write_index_mask(mask, stored(tree, drawing, values, 255, noise), "LP"[place % 2])
            tree.drawings.setdefault(split, {})[stem] = {stem: drawing}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    return tree


def make_coco_stuff10k(root: Path, *, converted: bool = False, size=(96, 64)) -> Tree:
    """COCO-Stuff 10k v1.1: MATLAB files with ids 0..182; `converted`: *_labelTrainIds.png with 0 = void, 1..171."""
    from scipy.io import savemat

    tree = Tree(root, COCO_NAMES, COCO_VSPW)
    values = {part: _coco_train_id(i) + 1 if converted else i for part, i in COCO_IDS.items()}
    noise = (0, 172, 200, 252, 253, 254) if converted else (0, 12, 26, 91)
    for split, numbers in {"train": (77, 36), "test": (110,)}.items():
        for place, image_id in enumerate(sorted(numbers) if converted else numbers):  # as they are listed
            stem = f"COCO_train2014_{image_id:012d}"
            drawing = (street if place % 2 else meadow)(size, image_id)
            numbers_on_disk = stored(tree, drawing, values, 0, noise)
            if converted:
                folder = f"{split}2014"
                mask = root / "annotations" / folder / f"{stem}_labelTrainIds.png"
                write_index_mask(mask, numbers_on_disk, "PL"[place % 2])
            else:
                folder = ""
                (root / "annotations").mkdir(parents=True, exist_ok=True)
                content = {"S": numbers_on_disk, "names": np.array([f"n{i}" for i in range(182)], object)[:, None]}
                savemat(root / "annotations" / f"{stem}.mat", content, do_compression=True)
            write_image(root / "images" / folder / f"{stem}.jpg", drawing)
            tree.drawings.setdefault(f"{split}2014" if converted else split, {})[stem] = {stem: drawing}
    lists = {split.removesuffix("2014"): list(videos) for split, videos in tree.drawings.items()}
    lists["all"] = [stem for stems in lists.values() for stem in stems]
    for name, stems in lists.items():
        write_list(root / "imageLists" / f"{name}.txt", stems, final_newline=name == "test")
    return tree


# --- ADE20K

ADE = {
    **{"sky": (3, "sky"), "cloud": (3, "sky"), "building": (2, "building"), "road": (7, "road"), "lane": (7, "road")},
    **{"sidewalk": (12, "sidewalk"), "grass": (10, "grass"), "tree": (5, "tree"), "pole": (94, "pole")},
    **{"light": (137, "traffic light"), "sign": (44, "signboard"), "fence": (33, "fence"), "car": (21, "car")},
    **{"bus": (81, "bus"), "van": (103, "van"), "person": (13, "person"), "bicycle": (128, "bicycle")},
    **{"wall": (1, "wall"), "ceiling": (6, "ceiling"), "floor": (4, "floor"), "bed": (8, "bed")},
    **{"painting": (23, "painting"), "lamp": (37, "lamp"), "table": (16, "table"), "chair": (20, "chair")},
    **{"rug": (29, "rug"), "fireplace": (50, "fireplace"), "window": (9, "windowpane"), "curtain": (19, "curtain")},
}
ADE_VSPW = {
    **{part: name for part, (_, name) in ADE.items()},
    **{"sidewalk": "path", "light": "traffic_light", "sign": "billboard_or_Bulletin_Board"},
    **{"fence": "handrail_or_fence", "van": "car", "painting": "painting_or_poster", "table": "table_or_desk"},
    **{"chair": "chair_or_seat", "rug": "cushion_or_carpet", "fireplace": None, "window": "window"},
}


def make_ade20k(root: Path, *, size=(96, 64)) -> Tree:
    """SceneParse150 inside `root`/ADEChallengeData2016; 0 = void; images without masks in the split "testing"."""
    tree = Tree(root, {part: name for part, (_, name) in ADE.items()}, ADE_VSPW)
    values = {part: value for part, (value, _) in ADE.items()}
    home = root / "ADEChallengeData2016"
    for split, short in {"training": "train", "validation": "val", "testing": "test"}.items():
        for number in (1, 2, 3)[: 2 if split == "training" else 1]:
            stem, drawing = f"ADE_{short}_{number:08d}", (room if number == 1 else street)(size, number)
            write_image(home / "images" / split / f"{stem}.jpg", drawing)
            tree.drawings.setdefault(split, {})[stem] = {stem: drawing}
            if split != "testing":
                numbers = stored(tree, drawing, values, 0, (0, 151, 252, 253, 254, 255))
                write_index_mask(home / "annotations" / split / f"{stem}.png", numbers, "PL"[number % 2])
    (home / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return tree


# --- Cityscapes

CITYSCAPES = {  # label id, train id, name
    **{"sky": (23, 10, "sky"), "cloud": (23, 10, "sky"), "building": (11, 2, "building"), "road": (7, 0, "road")},
    **{"lane": (7, 0, "road"), "sidewalk": (8, 1, "sidewalk"), "grass": (22, 9, "terrain")},
    **{"tree": (21, 8, "vegetation"), "pole": (17, 5, "pole"), "light": (19, 6, "traffic light")},
    **{"sign": (20, 7, "traffic sign"), "fence": (13, 4, "fence"), "car": (26, 13, "car"), "bus": (28, 15, "bus")},
    **{"van": (29, 255, "caravan"), "person": (24, 11, "person"), "bicycle": (33, 18, "bicycle")},
}
CITYSCAPES_VSPW = {
    **{part: name for part, (_, _, name) in CITYSCAPES.items()},
    **{"sidewalk": "path", "grass": "grass", "tree": "tree", "light": "traffic_light", "sign": None},
    **{"fence": "handrail_or_fence", "van": None},
}


def make_cityscapes(root: Path, *, masks=("labelIds",), size=(96, 64)) -> Tree:
    """Cityscapes with `masks` of the kinds "labelIds" (ids, 1 = the camera's car) and "labelTrainIds" (0..18, 255)."""
    names = {p: n for p, (_, t, n) in CITYSCAPES.items() if "labelIds" in masks or t != 255}
    tree = Tree(root, names, CITYSCAPES_VSPW)
    places = {"train": ("aachen_000000_000019", "bochum_000000_000313"), "val": ("lindau_000001_000019",)}
    for split, stems in places.items():
        for place, stem in enumerate(stems):
            drawing, city = street(size, place + 2), stem.split("_")[0]
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", drawing)
            tree.drawings.setdefault(split, {})[stem] = {f"{stem}_leftImg8bit": drawing}
            for kind in masks:
                ids = {part: row[0 if kind == "labelIds" else 1] for part, row in CITYSCAPES.items()}
                void, noise = (1, (0, 1, 4, 34, 252, 255)) if kind == "labelIds" else (255, (19, 252, 253, 254, 255))
                numbers = stored(tree, drawing, ids, void, noise)
                mask = root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png"
                write_index_mask(mask, numbers, "LP"[place % 2])
            folder = root / "gtFine" / split / city
            Image.fromarray(drawing.pixels).save(folder / f"{stem}_gtFine_color.png")
            Image.fromarray(drawing.parts.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
            (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return tree


# --- Pascal Context

PASCAL = {
    **{"sky": (47, "sky"), "cloud": (47, "sky"), "building": (11, "building"), "house": (11, "building")},
    **{"road": (41, "road"), "lane": (41, "road"), "sidewalk": (45, "sidewalk"), "grass": (29, "grass")},
    **{"tree": (53, "tree"), "sign": (46, "sign"), "fence": (25, "fence"), "car": (14, "car"), "bus": (12, "bus")},
    **{"person": (37, "person"), "bicycle": (6, "bicycle"), "mountain": (35, "mountain"), "lake": (57, "water")},
    **{"sheep": (43, "sheep"), "horse": (31, "horse")},
}
PASCAL_VSPW = {
    **{part: name for part, (_, name) in PASCAL.items()},
    **{"sidewalk": "path", "sign": "billboard_or_Bulletin_Board", "fence": "handrail_or_fence"},
    **{"sheep": "other_animal"},
}


def make_pascal_context(root: Path, *, size=(96, 64)) -> Tree:
    """VOCdevkit with converted Pascal Context masks: 0 = background, 1..59; more images than the lists name."""
    names = {part: name for part, (_, name) in PASCAL.items()}
    tree = Tree(root, {part: names.get(part, "background") for part in PARTS}, PASCAL_VSPW)
    values = {part: value for part, (value, _) in PASCAL.items()}
    home = root / "VOCdevkit" / "VOC2010"
    for split, stems in {"train": ("2008_000008", "2008_000015"), "val": ("2008_000002",)}.items():
        for place, stem in enumerate(stems):
            drawing = (meadow if place == 0 else street)(size, place + len(split))
            write_image(home / "JPEGImages" / f"{stem}.jpg", drawing)
            numbers = stored(tree, drawing, values, 0, (60, 100, 252, 253, 254, 255))
            write_index_mask(home / "SegmentationClassContext" / f"{stem}.png", numbers, "PL"[place % 2])
            tree.drawings.setdefault(split, {})[stem] = {stem: drawing}
        write_list(home / "ImageSets" / "SegmentationContext" / f"{split}.txt", list(stems), split == "val")
    write_image(home / "JPEGImages" / "2007_000027.jpg", meadow(size, 1))
    return tree


# --- VIPSeg

VIPSEG = {  # VSPW's mask value and name; * = thing
    **{"sky": (29, "sky"), "cloud": (29, "sky"), "building": (22, "building"), "road": (19, "road")},
    **{"lane": (19, "road"), "sidewalk": (20, "path"), "grass": (16, "grass"), "tree": (67, "tree")},
    **{"pole": (13, "pole"), "light": (59, "traffic_light"), "sign": (41, "billboard_or_Bulletin_Board")},
    **{"fence": (8, "handrail_or_fence"), "car": (49, "car"), "bus": (50, "bus"), "van": (49, "car")},
    **{"person": (61, "person"), "bicycle": (52, "bicycle")},
}
VIPSEG_THINGS = ("car", "bus", "van", "person", "bicycle")


def make_vipseg(root: Path, *, layout="VIPSeg", colours_only=False, size=(96, 64)) -> Tree:
    """VIPSeg (imgs/) or, for layout "VIPSeg_720P", the resized one (images/, panomasksRGB/ and its JSON).

    panomasks: void 0, stuff = class number, things = class number * 100 + instance, 8 or 16 bits by the largest.
    """
    names = {part: name for part, (_, name) in VIPSEG.items()}
    tree = Tree(root, names, names)
    resized = layout == "VIPSeg_720P"
    home = root / "VIPSeg_720P" if resized else root
    splits = {"train": ("0_wHveSGjXyDY", "12_-aB_c-D_E1"), "val": ("7_0b4cQa1",), "test": ("9_no_masks",)}
    records: dict[str, list] = {"train": [], "val": []}
    for split, videos in splits.items():
        for video in videos:
            for frame in range(3):
                stem, drawing = f"{frame * 24 + 12:08d}", street(size, frame)
                write_image(home / ("images" if resized else "imgs") / video / f"{stem}.jpg", drawing)
                tree.drawings.setdefault(split, {}).setdefault(video, {})[stem] = drawing
                if split == "test":
                    continue
                numbers = _panoptic(tree, drawing)
                if not colours_only:
                    mask = home / "panomasks" / video / f"{stem}.png"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(numbers).save(mask)
                    (mask.parent / f"._{mask.name}").write_bytes(b"\0")
                if resized:
                    _write_coloured(home / "panomasksRGB" / video / f"{stem}.png", numbers, records[split], video)
        write_list(root / f"{split}.txt", list(videos), final_newline=split == "val")
    if resized:
        for split, rows in records.items():
            categories = [{"id": 0, "name": "wall", "isthing": 0}]
            content = {"videos": [], "annotations": rows, "categories": categories}
            (home / f"panoptic_gt_VIPSeg_{split}.json").write_text(json.dumps(content))
    return tree


def _panoptic(tree: Tree, drawing: Drawing) -> np.ndarray:
    """Panoptic numbers, uint16 (H, W); everything from 12500 is no class."""
    classes = stored(tree, drawing, {part: value for part, (value, _) in VIPSEG.items()}, 0, (0,))
    things = np.isin(drawing.parts, [PARTS.index(part) for part in VIPSEG_THINGS])
    numbers = np.where(things, classes * 100 + drawing.instances, classes).astype(np.uint16)
    van = drawing.parts == PARTS.index("van")
    numbers[van] = 49 * 100 + 77  # a third car
    rows, columns = tree.noise
    numbers[:rows, :columns] = np.resize(np.array([0, 12500, 65535, 40000], np.uint16), (rows, columns))
    return numbers


def _write_coloured(path: Path, numbers: np.ndarray, records: list, video: str) -> None:
    """The RGB twin: a random colour per segment and video, and its row in the JSON: category_id = class number - 1."""
    annotation = next((row for row in records if row["video_id"] == video), None)
    if annotation is None:
        annotation = {"video_id": video, "annotations": []}
        records.append(annotation)
    pixels, segments = np.zeros((*numbers.shape, 3), np.uint8), []
    for number in np.unique(numbers).tolist():
        category = number if number < 125 else number // 100
        if category == 0 or category > 124:
            continue
        colour = np.random.default_rng([number, *video.encode()]).integers(1, 256, 3)
        pixels[numbers == number] = colour
        segment = int(colour[0] + 256 * colour[1] + 65536 * colour[2])
        segments.append({"id": segment, "category_id": category - 1, "iscrowd": 0, "area": 1})
    annotation["annotations"].append({"image_id": path.stem, "file_name": path.name, "segments_info": segments})
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# --- CamVid

CAMVID = {  # colour, official name, SegNet's number
    **{"sky": ((128, 128, 128), "Sky", 0), "cloud": ((128, 128, 128), "Sky", 0)},
    **{"building": ((128, 0, 0), "Building", 1), "pole": ((192, 192, 128), "Column_Pole", 2)},
    **{"road": ((128, 64, 128), "Road", 3), "lane": ((128, 0, 192), "LaneMkgsDriv", 3)},
    **{"sidewalk": ((0, 0, 192), "Sidewalk", 4), "tree": ((128, 128, 0), "Tree", 5)},
    **{"grass": ((192, 192, 0), "VegetationMisc", 5), "sign": ((192, 128, 128), "SignSymbol", 6)},
    **{"light": ((0, 64, 64), "TrafficLight", 6), "fence": ((64, 64, 128), "Fence", 7)},
    **{"car": ((64, 0, 128), "Car", 8), "bus": ((192, 128, 192), "Truck_Bus", 8)},
    **{"van": ((64, 128, 192), "SUVPickupTruck", 8), "person": ((64, 64, 0), "Pedestrian", 9)},
    **{"bicycle": ((0, 128, 192), "Bicyclist", 10)},
}
SEGNET_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist"),
)
CAMVID_FRAMES = {  # the frames at the borders of the usual splits
    "train": ("0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_07929", "0016E5_08640"),
    "val": ("0016E5_07959", "0016E5_08159"),
    "test": ("0001TP_008550", "0001TP_010380", "Seq05VD_f00000", "Seq05VD_f02610"),
}


CAMVID_NOT_DRAWN = {
    **{"Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "CartLuggagePram": (64, 0, 192)},
    **{"Child": (192, 128, 64), "LaneMkgsNonDriv": (192, 0, 64), "Misc_Text": (128, 128, 64)},
    **{"MotorcycleScooter": (192, 0, 192), "OtherMoving": (128, 64, 64), "ParkingBlock": (64, 192, 128)},
    **{"RoadShoulder": (128, 128, 192), "TrafficCone": (0, 0, 64), "Train": (192, 64, 128), "Tunnel": (64, 0, 64)},
    **{"Void": (0, 0, 0), "Wall": (64, 192, 0)},
}
CAMVID_VSPW = {
    **{"sky": "sky", "cloud": "sky", "building": "building", "pole": "pole", "road": "road", "lane": "road"},
    **{"sidewalk": "path", "tree": "tree", "grass": "other_plant", "light": "traffic_light", "car": "car"},
    **{"fence": "handrail_or_fence", "van": "car", "person": "person", "bus": None, "sign": None, "bicycle": None},
}


def make_camvid(root: Path, *, size=(96, 64)) -> Tree:
    """The official CamVid: colours, one of them unknown; label_colors.txt; no list files."""
    tree = Tree(root, {part: name for part, (_, name, _) in CAMVID.items()}, CAMVID_VSPW)
    colours = np.zeros((len(PARTS), 3), np.uint8)
    for part, (colour, _, _) in CAMVID.items():
        colours[PARTS.index(part)] = colour
    for split, stems in CAMVID_FRAMES.items():
        for place, stem in enumerate(stems):
            drawing = street(size, place)
            write_image(root / "701_StillsRaw_full" / f"{stem}.png", drawing)
            pixels = colours[drawing.parts]
            pixels[: tree.noise[0], : tree.noise[1]] = (26, 26, 26)
            mask = root / "LabeledApproved_full" / f"{stem}_L.png"
            mask.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(mask)
            (mask.parent / ".DS_Store").write_bytes(b"\0")
            tree.drawings.setdefault(split, {}).setdefault(stem.split("_")[0], {})[stem] = drawing
    drawn = {name: colour for colour, name, _ in CAMVID.values()}
    rows = sorted({**CAMVID_NOT_DRAWN, **drawn}.items(), key=lambda row: row[0].lower())
    write_list(root / "label_colors.txt", [f"{' '.join(map(str, colour))}\t{name}" for name, colour in rows])
    return tree


def make_camvid_segnet(root: Path, *, size=(96, 64)) -> Tree:
    """CamVid as the SegNet tutorial has it: train/, trainannot/, train.txt with two absolute paths a line."""
    vspw = {**CAMVID_VSPW, "grass": "tree", "light": None, "bus": "car"}  # classes that the 11 join
    tree = Tree(root, {part: SEGNET_NAMES[number] for part, (_, _, number) in CAMVID.items()}, vspw)
    values = {part: number for part, (_, _, number) in CAMVID.items()}
    for split, stems in CAMVID_FRAMES.items():
        lines = []
        for place, stem in enumerate(stems):
            drawing = street(size, place)
            write_image(root / split / f"{stem}.png", drawing)
            numbers = stored(tree, drawing, values, 11, (11, 12, 252, 253, 254, 255))
            write_index_mask(root / f"{split}annot" / f"{stem}.png", numbers, "LP"[place % 2])
            lines.append(f"/SegNet/CamVid/{split}/{stem}.png /SegNet/CamVid/{split}annot/{stem}.png")
            tree.drawings.setdefault(split, {}).setdefault(stem.split("_")[0], {})[stem] = drawing
        write_list(root / f"{split}.txt", lines, final_newline=split != "train")
    return tree


# --- plain folders

FOLDER = {
    "sky": 1,
    "cloud": 1,
    "grass": 2,
    "tree": 7,
    "lake": 9,
    "mountain": 12,
    "house": 20,
    "sheep": 30,
    "person": 31,
}


def make_folder(
    root: Path, *, masks_in="masks", class_file="label_num_dic_final.json", splits=True, size=(96, 64)
) -> Tree:
    """images/[split]/x.jpg with masks/[split]/x.png; `splits` False: no split folders, but train.txt and val.txt."""
    names = {part: {"cloud": "sky"}.get(part, part) for part in FOLDER}
    tree = Tree(root, names, {})
    for split, stems in {"train": ("one", "2", "10"), "val": ("three",)}.items():
        below = split if splits else ""
        for place, stem in enumerate(sorted(stems) if splits else stems):  # as they are listed
            drawing = meadow(size, place)
            write_image(root / "images" / below / f"{stem}.jpg", drawing)
            numbers = stored(tree, drawing, FOLDER, 0, (0, 3, 252, 253, 254, 255))
            write_index_mask(root / masks_in / below / f"{stem}.png", numbers, "LP"[place % 2])
            tree.drawings.setdefault(split, {})[stem] = {stem: drawing}
        if not splits:
            write_list(root / f"{split}.txt", [f"{stem}.jpg" for stem in stems], final_newline=split == "val")
    ids = {names[part]: value for part, value in FOLDER.items()}
    if class_file.endswith(".json"):
        (root / class_file).write_text(json.dumps({"others": 0, **ids}))
    else:
        write_list(root / class_file, [f"{value} {name}" for name, value in ids.items()])
    return tree
