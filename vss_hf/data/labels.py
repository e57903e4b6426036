"""Class lists: which class a mask value on disk means, and its colour.

In memory labels are uint8: 0..num_labels-1 are classes and 255 is ignored. On disk VSPW writes 1..124 for classes, and
0 and 252..255 for void. One table of 256 entries (`ClassList.lookup`) turns the second into the first; nothing else in
the package changes label values. This module needs numpy only.
"""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np


IGNORE_INDEX = 255
LABEL_FILE = "label_num_dic_final.json"
_VOID_NAMES = {"others", "other", "void", "void label", "ignore", "background", "unlabeled", "unlabelled"}


@dataclass(frozen=True)
class ClassList:
    """Names, colours and disk values of the classes of a data set, in training order.

    Args:
        names: class names; the position is the training id.
        palette: one (red, green, blue) per class, 0..255. For display only: colours need not be unique (two VSPW
            classes share one), so never read ids back from colours.
        disk_ids: the mask value of each class, 1..254, gaps allowed.
        things: whether each class is countable ("thing") rather than "stuff"; empty when not known.

    Raises:
        ValueError: lengths differ, a name or a disk id appears twice, or a number is out of range.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    disk_ids: tuple[int, ...]
    things: tuple[bool, ...] = ()

    def __post_init__(self):
        if not self.names:
            raise ValueError("names is empty; a class list needs at least one class")
        lengths = {"palette": len(self.palette), "disk_ids": len(self.disk_ids)}
        if self.things:
            lengths["things"] = len(self.things)
        for field, length in lengths.items():
            if length != len(self.names):
                raise ValueError(f"{field} has {length} entries for {len(self.names)} class names")
        for field, values in (("names", self.names), ("disk_ids", self.disk_ids)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{field} holds {twice} more than once; each class needs its own")
        wrong = [i for i in self.disk_ids if isinstance(i, bool) or not isinstance(i, int) or not 1 <= i <= 254]
        if wrong:
            raise ValueError(f"disk_ids holds {wrong}; class values are integers 1..254 (0 and 255 are void)")
        if any(len(colour) != 3 or not all(0 <= value <= 255 for value in colour) for colour in self.palette):
            raise ValueError("palette must hold (red, green, blue) with values 0..255")

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Training id to name, as model configurations want it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Name to training id."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def lookup(self) -> np.ndarray:
        """Disk value to training id, uint8 (256,), read-only; every value that is no class becomes 255."""
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        table[list(self.disk_ids)] = np.arange(self.num_labels, dtype=np.uint8)
        table.setflags(write=False)
        return table

    @classmethod
    def from_root(cls, root: str | Path) -> ClassList:
        """Reads the class list of a data set folder (`label_num_dic_final.json`: {name: disk id}).

        Classes are ordered by disk id. Id 0 is void and no class, whatever its name, and so is a void name at 255.
        VSPW's own list comes back as `VSPW`, with its published colours; any other gets colours made from the ids.

        Args:
            root: the data set folder.

        Raises:
            FileNotFoundError: the folder has no such file.
            ValueError: the file is not the JSON object described above, or ids are doubled or out of 1..254.
        """
        path = Path(root) / LABEL_FILE
        if not path.is_file():
            example = '{"wall": 1, "ceiling": 2}'
            raise FileNotFoundError(f"{path} not found; it maps class names to mask values, such as {example}")
        ids = _read_label_file(path)
        names = sorted(ids, key=ids.__getitem__)
        disk_ids = tuple(ids[name] for name in names)
        if tuple(names) == VSPW.names and disk_ids == VSPW.disk_ids:
            return VSPW
        try:
            return cls(tuple(names), tuple(_colour_of(i) for i in disk_ids), disk_ids)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def palette_of(names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Colours for a class list known only by its names, as in a model configuration: VSPW's own, or distinct ones."""
    if tuple(names) == VSPW.names:
        return VSPW.palette
    return tuple(_colour_of(i) for i in range(1, len(names) + 1))


def _read_label_file(path: Path) -> dict[str, int]:
    """The classes of a label file without its void entries; complains about everything that is not {name: id}."""
    try:
        # pairs, because a JSON object with a doubled name would silently keep the last one only
        pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits and brackets without end
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError(f'{path}: must be one JSON object {{"name": disk id}}, found {type(pairs).__name__}')
    ids: dict[str, int] = {}
    for name, disk_id in pairs:
        if not _is_name(name):
            raise ValueError(f"{path}: {name!r} is no class name; expected text without control characters")
        if isinstance(disk_id, bool) or not isinstance(disk_id, int):
            raise ValueError(f"{path}: {name!r} has id {disk_id!r}; ids are whole numbers, classes 1..254")
        void_name = name.strip().lower() in _VOID_NAMES
        if disk_id == 0 and not void_name:
            warnings.warn(f"{path}: {name!r} has id 0, which is void on disk; it is not a class", stacklevel=3)
        if disk_id == 0 or (disk_id == 255 and void_name):
            continue
        if name in ids:
            raise ValueError(f"{path}: the name {name!r} appears twice")
        ids[name] = disk_id
    if not ids:
        raise ValueError(f"{path}: holds no class (ids 1..254)")
    return ids


def _is_name(name: str) -> bool:
    """Whether people and files can take a class name: not blank, no control characters, no half characters."""
    return bool(name.strip()) and not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)


def _colour_of(disk_id: int) -> tuple[int, int, int]:
    """A colour per id, all 256 distinct: the id's bits dealt to red, green, blue, highest bit first (as VOC does)."""
    red = green = blue = 0
    for bit in range(8):
        red |= (disk_id & 1) << (7 - bit)
        green |= ((disk_id >> 1) & 1) << (7 - bit)
        blue |= ((disk_id >> 2) & 1) << (7 - bit)
        disk_id >>= 3
    return red, green, blue


def _vspw() -> ClassList:
    entries = [entry.rsplit(":", 1) for entry in _VSPW_TABLE.split()]
    return ClassList(
        names=tuple(name.removesuffix("*") for name, _ in entries),
        palette=tuple(tuple(bytes.fromhex(colour)) for _, colour in entries),  # type: ignore[arg-type]
        disk_ids=tuple(range(1, len(entries) + 1)),
        things=tuple(name.endswith("*") for name, _ in entries),
    )


# name[* = thing]:RRGGBB in training order; the disk id is the position + 1. Spelled as in the data set. Order, colours
# and thing flags are those of VIPSeg's panoVIPSeg_categories.json; the order is also label_num_dic_final.json's.
_VSPW_TABLE = """
    wall:787878 ceiling:b47878 door*:06e6e6 stair:503232 ladder*:04c803 escalator:787850 Playground_slide:8c8c8c
    handrail_or_fence:cc05ff window*:e6e6e6 rail:04fa07 goal*:e005ff pillar:ebff07 pole:96053d floor:787846
    ground:08ff33 grass:ff0652 sand:8fff8c athletic_field:ccff04 road:ff3307 path:cc4603 crosswalk:0066c8
    building:3de6fa house:ff0633 bridge:0b66ff tower:ff0747 windmill:ff09e0 well_or_well_lid:0907e6
    other_construction:dcdcdc sky:ff095c mountain:7009ff stone:08ffd6 wood:07ffe0 ice:ffb806 snowfield:0aff47
    grandstand:ff290a sea:07ffff river:e0ff08 lake:6608ff waterfall:ff3d06 water:ffc207
    billboard_or_Bulletin_Board:ff7a08 sculpture*:00ff14 pipeline:ff0829 flag*:ff0599 parasol_or_umbrella*:0633ff
    cushion_or_carpet:eb0cff tent*:a09614 roadblock*:00a3ff car*:8c8c8c bus*:fa0a0f truck*:14ff00 bicycle*:1fff00
    motorcycle*:ff1f00 wheeled_machine:ffe000 ship_or_boat*:99ff00 raft*:0000ff airplane*:ff4700 tyre:00ebff
    traffic_light:00adff lamp:1f00ff person*:0bc8c8 cat*:ff5200 dog*:00fff5 horse*:003dff cattle*:00ff70
    other_animal*:00ff85 tree:ff0000 flower:ffa300 other_plant:ff6600 toy:c2ff00 ball_net:008fff backboard:33ff00
    skateboard*:0052ff bat:00ff29 ball*:00ffad cupboard_or_showcase_or_storage_rack:0a00ff box*:adff00
    traveling_case_or_trolley_case*:00ff99 basket*:ff5c00 bag_or_package*:ff00ff trash_can:ff00f5 cage:ff0066
    plate*:ffad00 tub_or_bowl_or_pot*:ff0014 bottle_or_cup*:ffb8b8 barrel*:001fff fishbowl*:00ff3d bed*:0047ff
    pillow*:ff00cc table_or_desk*:00ffc2 chair_or_seat*:00ff52 bench*:000aff sofa*:0070ff shelf:3300ff bathtub:00c2ff
    gun*:007aff commode*:00ffa3 roaster*:ff9900 other_machine:00ff0a refrigerator*:ff7000 washing_machine*:8fff00
    Microwave_oven*:5200ff fan*:a3ff00 curtain:ffeb00 textiles:08b8aa clothes:8500ff painting_or_poster*:00ff5c
    mirror*:b800ff flower_pot_or_vase*:ff001f clock*:00b8ff book:00d6ff tool:ff0070 blackboard:5cff00 tissue:00e0ff
    screen_or_television*:70e0ff computer*:46b8a0 printer*:a300ff Mobile_phone*:9900ff keyboard*:47ff00
    other_electronic_product:ff00a3 fruit:ffcc00 food:ff008f instrument*:00ffeb train*:85ff00
"""

VSPW = _vspw()
