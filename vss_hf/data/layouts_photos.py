"""Image sets as their authors or mmsegmentation's converters lay them out: COCO-Stuff, ADE20K, Pascal Context, folder.

One function per source: (root, split) -> `LabelledSplit` with the source's own classes. What a value in a mask means
is told by the files' names and folders, never by looking at values.
"""

from __future__ import annotations

from pathlib import Path

from .labels import IGNORE_INDEX, LABEL_FILE, ClassList
from .layouts import (
    PNG,
    chosen,
    class_list,
    find_folder,
    find_images,
    list_files,
    named_split,
    read_list,
    still_images,
    subfolders,
)
from .masks import LabelReader, lookup_table
from .remap import source_names
from .splits import LabelledSplit
from .vspw import IMAGE_SUFFIXES


TRAIN_IDS = "_labeltrainids.png"  # how mmsegmentation names converted masks, in lower case

COCO_STUFF = (
    "COCO-Stuff 164k: images/train2017/000000000009.jpg and stuffthingmaps/train2017/000000000009.png "
    "(or train2017/ and annotations/train2017/, there also ..._labelTrainIds.png)"
)
COCO_STUFF_10K = (
    "COCO-Stuff 10k v1.1: images/COCO_train2014_000000000077.jpg, annotations/COCO_train2014_000000000077.mat and "
    "imageLists/train.txt, or mmsegmentation's images/train2014/ and annotations/train2014/..._labelTrainIds.png"
)
ADE20K = (
    "ADE20K (SceneParse150): ADEChallengeData2016/images/training/ADE_train_00000001.jpg and "
    "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
)
PASCAL_CONTEXT = (
    "Pascal Context: VOCdevkit/VOC2010/JPEGImages/2008_000008.jpg, "
    "VOCdevkit/VOC2010/SegmentationClassContext/2008_000008.png (converted to 0..59) and "
    "VOCdevkit/VOC2010/ImageSets/SegmentationContext/train.txt"
)
FOLDER = "a plain folder: images/train/a.jpg and masks/train/a.png (or images/a.jpg, masks/a.png and train.txt)"


# --- COCO-Stuff


def open_coco_stuff(root: Path, split: str) -> LabelledSplit:
    """COCO-Stuff 164k: 171 classes, masks with id - 1 and 255 = unlabelled, or converted ones with 0..170.

    Both give the same labels. Where a folder holds both, the original masks are read.
    """
    images = find_folder(root, ("images", "train2017", "val2017"), COCO_STUFF)
    if images.name == "images":
        found = subfolders(images)
    else:  # COCO's own archives, unpacked beside each other
        images, found = root, [name for name in ("train2017", "val2017", "test2017") if (root / name).is_dir()]
    split = named_split(split, found, images, {"train": "train2017", "val": "val2017"})
    classes, ids = coco_classes()
    files = find_images(images / split)
    if split.startswith("test"):
        return _unlabelled(root, split, classes, "coco_stuff", files)
    places = [f"{folder}/{split}" for folder in ("stuffthingmaps", "annotations", "stuffthingmaps_trainval2017")]
    place = find_folder(root, places, COCO_STUFF)
    masks, values = list_files(place, PNG, but_not=(TRAIN_IDS,)), {coco_id - 1: i for i, coco_id in enumerate(ids)}
    if not masks:
        masks, values = list_files(place, (TRAIN_IDS,)), {i: i for i in range(len(ids))}
    videos = still_images(files, masks, place)
    return LabelledSplit(root, split, classes, LabelReader(lookup_table(values)), videos, "coco_stuff")


def open_coco_stuff10k(root: Path, split: str) -> LabelledSplit:
    """COCO-Stuff 10k v1.1: 171 classes; MATLAB files with ids (0 = unlabelled), or converted masks with 1..171.

    "train", "test" and "all" are the official lists; "val" means "test". "train2014" and "test2014" are the converted
    ones, which also stand in for the lists where there are no MATLAB files.
    """
    images = find_folder(root, ("images",), COCO_STUFF_10K)
    annotations = find_folder(root, ("annotations",), COCO_STUFF_10K)
    lists = list_files(root / "imageLists", (".txt",))
    matrices = list_files(annotations, (".mat",)) if lists else {}
    converted = set(subfolders(annotations))
    usual = {"val": "test"} if matrices else {"train": "train2014", "test": "test2014", "val": "test2014"}
    split = named_split(split, converted | (set(lists) if matrices else set()), root, usual)
    classes, ids = coco_classes()
    if split in converted:
        masks = list_files(annotations / split, (TRAIN_IDS,))
        files = find_images(images / split)
        reader = LabelReader(lookup_table({i + 1: i for i in range(len(ids))}))
        videos = still_images(files, masks, annotations / split)
    else:
        names = read_list(lists[split])
        files = chosen(find_images(images), names, lists[split], images)
        masks = {name: matrices[name] for name in names if name in matrices}
        reader = LabelReader(lookup_table({coco_id: i for i, coco_id in enumerate(ids)}), "matlab")
        videos = still_images(files, masks, annotations)
    return LabelledSplit(root, split, classes, reader, videos, "coco_stuff10k")


def coco_classes() -> tuple[ClassList, list[int]]:
    """The 171 classes and their ids 1..182, of which 11 are not used."""
    rows = [(coco_id, name) for coco_id, name in source_names("coco_stuff") if coco_id > 0]
    return class_list(name for _, name in rows), [coco_id for coco_id, _ in rows]


# --- ADE20K


def open_ade20k(root: Path, split: str) -> LabelledSplit:
    """ADE20K's 150 classes of SceneParse150: masks with 1..150, 0 = none of them."""
    home = find_folder(root, ("images", "ADEChallengeData2016/images"), ADE20K).parent
    usual = {"train": "training", "val": "validation", "test": "testing"}
    split = named_split(split, subfolders(home / "images"), home / "images", usual)
    rows = source_names("ade20k")
    classes = ade20k_classes()
    files = find_images(home / "images" / split)
    if split.startswith("test") and not (home / "annotations" / split).is_dir():
        return _unlabelled(home, split, classes, "ade20k", files)
    place = find_folder(home, (f"annotations/{split}",), ADE20K)
    reader = LabelReader(lookup_table({value: i for i, (value, _) in enumerate(rows)}))
    return LabelledSplit(home, split, classes, reader, still_images(files, list_files(place, PNG), place), "ade20k")


def ade20k_classes() -> ClassList:
    """SceneParse150's classes."""
    return class_list(name for _, name in source_names("ade20k"))


# --- Pascal Context


def open_pascal_context(root: Path, split: str) -> LabelledSplit:
    """Pascal Context with 60 classes: 0 = background is one of them, 1..59."""
    return _pascal_context(root, split, "pascal_context")


def open_pascal_context59(root: Path, split: str) -> LabelledSplit:
    """Pascal Context with 59 classes: background is ignored."""
    return _pascal_context(root, split, "pascal_context59")


def _pascal_context(root: Path, split: str, source: str) -> LabelledSplit:
    places = tuple(f"{inside}SegmentationClassContext" for inside in ("", "VOC2010/", "VOCdevkit/VOC2010/"))
    place = find_folder(root, places, PASCAL_CONTEXT)
    home = place.parent
    lists = list_files(find_folder(home, ("ImageSets/SegmentationContext",), PASCAL_CONTEXT), (".txt",))
    split = named_split(split, lists, home)
    names = read_list(lists[split])
    images = find_folder(home, ("JPEGImages",), PASCAL_CONTEXT)
    files = chosen(find_images(images), names, lists[split], images)
    wanted = set(names)  # the folder holds the masks of all splits
    masks = {name: path for name, path in list_files(place, PNG).items() if name in wanted}
    classes, values = pascal_context_classes(source)
    reader = LabelReader(lookup_table({value: i for i, value in enumerate(values)}))
    return LabelledSplit(home, split, classes, reader, still_images(files, masks, place), source)


def pascal_context_classes(source: str) -> tuple[ClassList, list[int]]:
    """The classes of "pascal_context" or "pascal_context59", and their values in masks."""
    rows = [(value, name) for value, name in source_names("pascal_context") if value > 0 or source == "pascal_context"]
    return class_list(name for _, name in rows), [value for value, _ in rows]


# --- plain folders


def open_folder(root: Path, split: str) -> LabelledSplit:
    """Images and masks of the same names in two folders, with a class list beside them.

    With folders images/<split>; or, where images lie in images/ itself, a list file <split>.txt with one image name a
    line, and "all" for every image.
    """
    images = find_folder(root, ("images",), FOLDER)
    below = subfolders(images)
    lists = {} if below else {**list_files(root, (".txt",), but_not=("classes.txt",)), "all": root}
    split = named_split(split, below or lists, root)
    classes, reader = _folder_classes(root)
    folder = images / split if below else images
    files = find_images(folder)
    inside = f"/{split}" if below else ""
    places = [f"{name}{inside}" for name in ("masks", "annotations", "labels")]
    if not below and split != "all":
        names = [_without_suffix(line) for line in read_list(lists[split])]
        files = chosen(files, names, lists[split], folder)
    if split.startswith("test") and not any((root / place).is_dir() for place in places):
        return _unlabelled(root, split, classes, "folder", files)
    place = find_folder(root, places, FOLDER)
    masks = list_files(place, PNG)
    if not below and split != "all":
        masks = {name: masks[name] for name in files if name in masks}  # the folder holds the masks of all lists
    return LabelledSplit(root, split, classes, reader, still_images(files, masks, place), "folder")


def _without_suffix(line: str) -> str:
    """The name of an image in a list, which may have its suffix and folders."""
    path = Path(line)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _folder_classes(root: Path) -> tuple[ClassList, LabelReader]:
    """The class list of a plain folder: VSPW's label file, or classes.txt, which can also give the value 0 a name."""
    path = root / "classes.txt"
    if (root / LABEL_FILE).is_file():
        classes = ClassList.from_root(root)
        return classes, LabelReader.of_classes(classes)
    if not path.is_file():
        raise FileNotFoundError(
            f'{root}: no class list; write {LABEL_FILE} ({{"road": 1, "sky": 2}}; 0 is void) or classes.txt '
            '(a mask value and its class per line, such as "0 road"; values that are not listed are void)'
        )
    values: dict[int, str] = {}
    for line in read_list(path):
        number, *name = line.split(maxsplit=1)
        if not number.isdecimal() or not name or int(number) >= IGNORE_INDEX:
            raise ValueError(f'{path}: {line!r}; expected a mask value 0..254 and a class name, such as "0 road"')
        if int(number) in values:
            raise ValueError(f"{path}: the value {number} is given twice")
        values[int(number)] = name[0]
    try:
        classes = class_list(values.values())
    except ValueError as error:  # a doubled name, too many
        raise ValueError(f"{path}: {error}") from None
    return classes, LabelReader(lookup_table({value: i for i, value in enumerate(values)}))


def _unlabelled(root: Path, split: str, classes: ClassList, source: str, files: dict[str, Path]) -> LabelledSplit:
    """A split without masks, as the authors keep those of their test sets."""
    reader = LabelReader.of_classes(classes)
    return LabelledSplit(root, split, classes, reader, still_images(files, None, root), source)
