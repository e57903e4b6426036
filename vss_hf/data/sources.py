"""Which data sets can be opened from their official layout, by the name that `open_split` and recipes use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .labels import VSPW, ClassList
from .layouts_photos import (
    ade20k_classes,
    coco_classes,
    open_ade20k,
    open_coco_stuff,
    open_coco_stuff10k,
    open_folder,
    open_pascal_context,
    open_pascal_context59,
    pascal_context_classes,
)
from .layouts_videos import (
    cityscapes_classes,
    open_camvid,
    open_cityscapes,
    open_cityscapes19,
    open_vipseg,
    open_vspw,
)
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


def usual_classes(source: str) -> ClassList | None:
    """The classes of a data set in its official layout, without its folder.

    Returns:
        None for "folder" and "camvid", whose files tell the classes.
    """
    if source in ("folder", "camvid"):
        return None
    if source.startswith("coco_stuff"):
        return coco_classes()[0]
    if source.startswith("pascal_context"):
        return pascal_context_classes(source)[0]
    if source.startswith("cityscapes"):
        return cityscapes_classes(benchmark=source == "cityscapes19")[0]
    return ade20k_classes() if source == "ade20k" else VSPW
