"""Which data sets can be opened from their official layout, by the name that `open_split` and recipes use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .layouts_photos import (
    open_ade20k,
    open_coco_stuff,
    open_coco_stuff10k,
    open_folder,
    open_pascal_context,
    open_pascal_context59,
)
from .layouts_videos import open_camvid, open_cityscapes, open_cityscapes19, open_vipseg, open_vspw
from .splits import LabelledSplit


SOURCES: dict[str, Callable[[Path, str], LabelledSplit]] = {
    "vspw": open_vspw,
    "coco_stuff": open_coco_stuff,
    "coco_stuff10k": open_coco_stuff10k,
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "cityscapes19": open_cityscapes19,
    "pascal_context": open_pascal_context,
    "pascal_context59": open_pascal_context59,
    "vipseg": open_vipseg,
    "camvid": open_camvid,
    "folder": open_folder,
}
