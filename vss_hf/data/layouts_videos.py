"""Video sets as their authors lay them out: VSPW, VIPSeg, CamVid, and Cityscapes (one labelled frame per video).

One function per source: (root, split) -> `LabelledSplit` with the source's own classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from .labels import LABEL_FILE, VSPW, ClassList
from .layouts import (
    PNG,
    chosen,
    class_list,
    find_folder,
    find_images,
    list_files,
    named_split,
    read_list,
    some,
    still_images,
    subfolders,
)
from .masks import LabelReader, lookup_table
from .parquet import is_parquet, open_parquet_split
from .remap import source_names
from .splits import LabelledSplit
from .vspw import IMAGE_SUFFIXES, FrameRecord, VSPWVideo, is_file_name, list_images, scan_split


CITYSCAPES = (
    "Cityscapes: leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png and "
    "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png (or ..._labelTrainIds.png)"
)
VIPSEG = (
    "VIPSeg: imgs/<video>/00000012.jpg, panomasks/<video>/00000012.png and train.txt "
    "(in VIPSeg_720P: images/<video>/, panomasks/<video>/ or panomasksRGB/<video>/)"
)
CAMVID = (
    "CamVid: 701_StillsRaw_full/0001TP_006690.png and LabeledApproved_full/0001TP_006690_L.png; or SegNet's "
    "train/, trainannot/ and train.txt; or VSPW's layout with data/ and label_num_dic_final.json"
)


# --- VSPW


def open_vspw(root: str | Path, split: str, classes: ClassList | None = None) -> LabelledSplit:
    """VSPW and every data set in its layout, in a folder, packed into Parquet, or packed and on the Hub.

    Args:
        root: the folder, or "owner/name" or "owner/name@revision" on the Hub.
        split: the name of a list file without ".txt".
        classes: the class list; default is the data set's own.
    """
    if is_parquet(root):
        return open_parquet_split(root, split, classes=classes)
    videos = tuple(scan_split(root, split))
    classes = ClassList.from_root(root) if classes is None else classes
    return LabelledSplit(Path(root), split, classes, LabelReader.of_classes(classes), videos)


# --- Cityscapes

# ids 0..5 mark what is no part of the scene (the camera's car, borders) or no class ("static", "dynamic")
FIRST_CITYSCAPES_CLASS = 6
# the ids of the benchmark's 19 classes, in the order of its train ids
BENCHMARK_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def open_cityscapes(root: Path, split: str) -> LabelledSplit:
    """Cityscapes with all its 28 classes; with the benchmark's 19 where only *_labelTrainIds.png are there."""
    return _cityscapes(root, split, "cityscapes")


def open_cityscapes19(root: Path, split: str) -> LabelledSplit:
    """Cityscapes with the benchmark's 19 classes, from either kind of mask."""
    return _cityscapes(root, split, "cityscapes19")


def _cityscapes(root: Path, split: str, source: str) -> LabelledSplit:
    images = find_folder(root, ("leftImg8bit",), CITYSCAPES)
    split = named_split(split, subfolders(images), images)
    place = find_folder(root, (f"gtFine/{split}",), CITYSCAPES)
    files: dict[str, Path] = {}
    ids: dict[str, Path] = {}
    train_ids: dict[str, Path] = {}
    for city in subfolders(images / split):
        files |= list_files(images / split / city, ("_leftimg8bit.png",))
        ids |= list_files(place / city, ("_gtfine_labelids.png",))
        train_ids |= list_files(place / city, ("_gtfine_labeltrainids.png",))
    classes, kept = cityscapes_classes(benchmark=source == "cityscapes19" or not ids)
    values = kept if ids else range(len(kept))
    reader = LabelReader(lookup_table({value: label for label, value in enumerate(values)}))
    videos = still_images(files, ids or train_ids, place)
    return LabelledSplit(root, split, classes, reader, videos, source)


def cityscapes_classes(benchmark: bool) -> tuple[ClassList, list[int]]:
    """The benchmark's 19 classes or all 28, and their ids."""
    name_of = dict(source_names("cityscapes"))
    kept = BENCHMARK_IDS if benchmark else [i for i in name_of if i >= FIRST_CITYSCAPES_CLASS]
    return class_list(name_of[i] for i in kept), list(kept)


# --- VIPSeg


def open_vipseg(root: Path, split: str) -> LabelledSplit:
    """VIPSeg: VSPW's 124 classes from panoptic masks of 16 bits, in which instances are told apart.

    A mask holds the class number for stuff and class number * 100 + instance for things. Where only the RGB copies
    (panomasksRGB) are there, panoptic_gt_VIPSeg_<split>.json says what their colours mean.
    """
    images = find_folder(root, ("imgs", "images", "VIPSeg_720P/images"), VIPSEG)
    home = images.parent
    lists = {**list_files(home.parent, (".txt",)), **list_files(home, (".txt",))}
    names = read_list(lists[named_split(split, lists, home)])
    if foreign := [name for name in names if not is_file_name(name)]:
        raise ValueError(f"{lists[split]}: {foreign[0]!r} is no video name; expected that of a folder in {images}")
    if missing := [name for name in names if not (images / name).is_dir()]:
        raise FileNotFoundError(
            f"{images}: {len(missing):,} of the {len(names):,} videos in {lists[split]} are missing: {some(missing)}"
        )
    masks = find_folder(home, ("panomasks", "panomasksRGB"), VIPSEG)
    videos = tuple(_vipseg_video(images / name, masks / name) for name in names)
    unlabelled = [video.name for video in videos if not video.has_masks]
    if unlabelled and (len(unlabelled) < len(videos) or not split.startswith("test")):
        raise FileNotFoundError(
            f"{masks}: {len(unlabelled):,} of {len(videos):,} videos have no masks: {some(unlabelled)}"
        )
    if masks.name == "panomasksRGB" and not unlabelled:
        reader = LabelReader(VSPW.lookup, "colour", _segment_colours(home, split))
    else:
        reader = LabelReader(_panoptic_lookup(), "panoptic")
    return LabelledSplit(home, split, VSPW, reader, videos, "vipseg")


def _vipseg_video(images: Path, masks: Path) -> VSPWVideo:
    frames, found = list_images(images, IMAGE_SUFFIXES), list_images(masks, PNG)
    if not frames:
        raise FileNotFoundError(f"{images}: no frames")
    if found and (missing := [stem for stem in frames if stem not in found]):
        raise FileNotFoundError(
            f"{masks}: {len(missing):,} of {len(frames):,} frames have no mask: {some(missing)}; "
            "every frame of a labelled video needs one"
        )
    return VSPWVideo(images.name, tuple(FrameRecord(stem, path, found.get(stem)) for stem, path in frames.items()))


def _panoptic_lookup() -> np.ndarray:
    """Label of every panoptic number: class numbers are VSPW's mask values, things have them times 100.

    Classes 1 and 2 (wall, ceiling) are no things, so 125..299 are no class; 252..255 stand for void elsewhere.
    """
    numbers = np.arange(65536)
    classes = np.where(numbers < 300, numbers, numbers // 100)
    return VSPW.lookup[np.where(classes <= VSPW.num_labels, classes, 0)]


def _segment_colours(home: Path, split: str) -> dict[str, dict[int, int]]:
    """{video: {colour: class number}} from the JSON that came with the RGB masks; categories count from 0."""
    places = [home / f"panoptic_gt_VIPSeg_{split}.json", home / "panoptic_gt_VIPSeg.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{places[0]}: no such file; only it says what the colours in panomasksRGB mean. "
            "Or add the folder panomasks, which needs no such file"
        )
    try:
        colours = {
            video["video_id"]: {
                int(segment["id"]): int(segment["category_id"]) + 1
                for frame in video["annotations"]
                for segment in frame["segments_info"]
            }
            for video in json.loads(path.read_text(encoding="utf-8"))["annotations"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not VIPSeg's panoptic JSON ({type(error).__name__}: {error})") from None
    for video, class_of in colours.items():
        for colour, number in class_of.items():
            if not (0 <= colour < 2**24 and 1 <= number <= VSPW.num_labels):
                raise ValueError(
                    f"{path}: video {video} has a segment {colour} of category {number - 1}; expected 0..123"
                )
    return colours


# --- CamVid

# the official colours, as red green blue in hexadecimal digits, in the order of the official list
CAMVID_COLOURS = """
    408040 c00080 0080c0 008040 800000 400080 4000c0 c08040 c0c080 404080 8000c0 c00040 808040 c000c0 804040 40c080
    404000 804080 8080c0 0000c0 c08080 808080 4080c0 000040 004040 c04080 808000 c080c0 400040 c0c000 000000 40c000
""".split()
# of the 11 classes in SegNet's version, by mask value; 11 = void
SEGNET_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian"),
    "bicyclist",
)


def open_camvid(root: Path, split: str) -> LabelledSplit:
    """CamVid: the official colour masks (31 classes), SegNet's version (11) or VSPW's layout (its own class list).

    Frames of one sequence are one video. The official files come without lists: where there is no <split>.txt,
    "train", "val" and "test" are the 367, 101 and 233 frames that SegNet and most papers use; "all" is all 701.
    """
    if any((root / f"{name}annot").is_dir() for name in ("train", "val", "test")):
        return _camvid_segnet(root, split)
    if is_parquet(root):
        return open_vspw(root, split)
    if (root / LABEL_FILE).is_file():
        return replace(open_vspw(root, split), source="camvid")
    return _camvid_official(root, split)


def _camvid_official(root: Path, split: str) -> LabelledSplit:
    images = find_folder(root, ("701_StillsRaw_full",), CAMVID)
    place = find_folder(root, ("LabeledApproved_full",), CAMVID)
    files = find_images(images)
    lists = list_files(root, (".txt",), but_not=("label_colors.txt",))
    split = named_split(split, {*lists, "train", "val", "test", "all"}, root)
    if split in lists:
        names = [Path(line).name.removesuffix(".png") for line in read_list(lists[split])]
        files = chosen(files, names, lists[split], images)
    elif split != "all":
        files = {name: path for name, path in files.items() if _usual_camvid_split(name) == split}
    masks = {name: path for name, path in list_files(place, ("_l.png",)).items() if name in files}
    colours = _camvid_colours(root / "label_colors.txt")
    value_of = {colour: i for i, colour in enumerate(colours.values(), start=1)}
    classes = replace(class_list(colours), palette=tuple(_rgb(colour) for colour in colours.values()))
    reader = LabelReader(classes.lookup, "colour", {"": value_of})
    videos = _sequences(still_images(files, masks, place))
    return LabelledSplit(root, split, classes, reader, videos, "camvid")


def _usual_camvid_split(name: str) -> str:
    """The split of a frame such as "0016E5_07959"."""
    sequence, _, number = name.partition("_")
    frame = int(number) if number.isdecimal() else -1
    if sequence == "0016E5" and 7959 <= frame <= 8159:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= 8550) else "train"


def _camvid_colours(path: Path) -> dict[str, int]:
    """{class: R + 256 * G + 65536 * B} from label_colors.txt ("64 128 64 Animal"), or the official ones without it."""
    if path.is_file():
        rows = [_colour_row(path, line) for line in read_list(path)]
    else:
        names = [name for _, name in source_names("camvid")]
        rows = list(zip(names, map(bytes.fromhex, CAMVID_COLOURS), strict=True))
    return {name: int.from_bytes(colour, "little") for name, colour in rows if name != "Void"}


def _colour_row(path: Path, line: str) -> tuple[str, bytes]:
    *colour, name = line.split()
    if len(colour) == 3 and all(number.isdecimal() and int(number) < 256 for number in colour):
        return name, bytes(map(int, colour))
    raise ValueError(f'{path}: {line!r}; expected red, green, blue and a class, such as "64 128 64 Animal"')


def _rgb(colour: int) -> tuple[int, int, int]:
    return colour % 256, colour // 256 % 256, colour // 65536


def _camvid_segnet(root: Path, split: str) -> LabelledSplit:
    found = [name for name in subfolders(root) if (root / f"{name}annot").is_dir()]
    split = named_split(split, found, root)
    place = root / f"{split}annot"
    files, masks = find_images(root / split), list_files(place, PNG)
    list_file = root / f"{split}.txt"
    if list_file.is_file():  # lines of two paths, which start with a folder of the authors' machine
        names = [Path(line.split()[0]).stem for line in read_list(list_file)]
        files = chosen(files, names, list_file, root / split)
    classes = class_list(SEGNET_CLASSES)
    reader = LabelReader(lookup_table({i: i for i in range(classes.num_labels)}))
    return LabelledSplit(root, split, classes, reader, _sequences(still_images(files, masks, place)), "camvid")


def _sequences(frames: Iterable[VSPWVideo]) -> tuple[VSPWVideo, ...]:
    """Joins stills into videos by what stands before the "_" of their names; frames by name, that is, by time."""
    ordered = sorted(frames, key=lambda video: video.name)
    groups = groupby(ordered, key=lambda video: video.name.rpartition("_")[0] or video.name)
    return tuple(VSPWVideo(name, tuple(video.frames[0] for video in videos)) for name, videos in groups)
