"""Official layouts against labels that are recomputed from what was drawn, pixel by pixel."""

import os
import pickle
import time

import numpy as np
import official_trees as trees
import pytest
import torch
from make_tree import CAMVID as CAMVID_VSPW
from make_tree import make_tree
from PIL import Image

from vss_hf.data import VSPW, load_split, open_split
from vss_hf.data.layouts_videos import _usual_camvid_split
from vss_hf.data.sources import SOURCES, usual_classes


SIZE = (60, 40)
# (source, how the tree is made, {split on disk: what else it may be called}, number of own classes)
CASES = {
    "coco_stuff": ("coco_stuff", trees.make_coco_stuff, {}, {"train2017": "train", "val2017": "val"}, 171),
    "coco_stuff annotations": (
        *("coco_stuff", trees.make_coco_stuff, {"masks_in": "annotations"}, {"train2017": "train"}, 171),
    ),
    "coco_stuff converted": (
        *("coco_stuff", trees.make_coco_stuff, {"converted": True, "masks_in": "annotations"}),
        *({"train2017": "train", "val2017": "val"}, 171),
    ),
    "coco_stuff10k": ("coco_stuff10k", trees.make_coco_stuff10k, {}, {"train": "train", "test": "val"}, 171),
    "coco_stuff10k converted": (
        *("coco_stuff10k", trees.make_coco_stuff10k, {"converted": True}),
        *({"train2014": "train", "test2014": "val"}, 171),
    ),
    "ade20k": ("ade20k", trees.make_ade20k, {}, {"training": "train", "validation": "val"}, 150),
    "cityscapes": ("cityscapes", trees.make_cityscapes, {}, {"train": "train", "val": "val"}, 28),
    "cityscapes train ids": (
        *("cityscapes", trees.make_cityscapes, {"masks": ("labelTrainIds",)}, {"train": "train"}, 19),
    ),
    "pascal_context": ("pascal_context", trees.make_pascal_context, {}, {"train": "train", "val": "val"}, 60),
    "vipseg": ("vipseg", trees.make_vipseg, {}, {"train": "train", "val": "val"}, 124),
    "vipseg 720": ("vipseg", trees.make_vipseg, {"layout": "VIPSeg_720P"}, {"train": "train"}, 124),
    "vipseg colours": (
        *("vipseg", trees.make_vipseg, {"layout": "VIPSeg_720P", "colours_only": True}, {"train": "train"}, 124),
    ),
    "camvid": ("camvid", trees.make_camvid, {}, {"train": "train", "val": "val", "test": "test"}, 31),
    "camvid segnet": ("camvid", trees.make_camvid_segnet, {}, {"train": "train", "val": "val", "test": "test"}, 11),
    "folder": ("folder", trees.make_folder, {}, {"train": "train", "val": "val"}, 8),
    "folder with lists": (
        *("folder", trees.make_folder, {"splits": False, "masks_in": "annotations", "class_file": "classes.txt"}),
        *({"train": "train", "val": "val"}, 8),
    ),
}


ENCODINGS = ("ade20k", "vipseg", "camvid", "coco_stuff10k")  # a case for each


@pytest.fixture(params=CASES, ids=lambda case: case.replace(" ", "_"))
def case(request, tmp_path):
    source, make, options, splits, num_classes = CASES[request.param]
    return source, make(tmp_path, size=SIZE, **options), splits, num_classes


def check(opened, tree, names, classes):
    """Names, order, pixels and labels of every sample of a split against the drawings."""
    drawings = tree.drawings[opened.name]
    expected = [(video, stem) for video, frames in drawings.items() for stem in frames]
    samples = list(load_split(opened))
    assert [(sample["video"], sample["frame"]) for sample in samples] == expected
    for sample, (video, stem) in zip(samples, expected, strict=True):
        drawing = drawings[video][stem]
        assert np.array_equal(sample["labels"], tree.expected(drawing, names, classes)), (video, stem)
        record = next(r for v in opened.videos if v.name == video for r in v.frames if r.stem == stem)
        frame = sample["frames"][-1].permute(1, 2, 0).numpy()
        assert np.array_equal(frame, np.array(Image.open(record.image_path).convert("RGB")))
        assert np.abs(frame.astype(int) - drawing.pixels).mean() < 12  # JPEG's loss, but that picture


@pytest.mark.parametrize("source", [source for source in SOURCES if source not in ("vspw", "camvid", "folder")])
def test_classes_are_known_without_the_files(source, tmp_path):
    make = getattr(trees, f"make_{source.removesuffix('19').removesuffix('59')}")
    opened = open_split(make(tmp_path, size=SIZE).root, "val", source=source)
    assert usual_classes(source) == opened.classes


def test_own_classes(case):
    source, tree, splits, num_classes = case
    for on_disk, alias in splits.items():
        opened = open_split(tree.root, on_disk, source=source)
        assert (opened.name, opened.source, opened.table) == (on_disk, source, None)
        assert opened.classes.num_labels == num_classes and not opened.packed
        check(opened, tree, tree.names, opened.classes.names)
        assert open_split(str(tree.root), alias, source=source).videos == opened.videos


def test_remapped(case):
    source, tree, splits, _ = case
    if source == "folder":
        with pytest.raises(ValueError, match="'folder' has no remap table"):
            open_split(tree.root, "train", source=source, table="default")
        return
    opened = open_split(tree.root, next(iter(splits)), source=source, table="default")
    assert opened.classes == VSPW and opened.table == "default" and opened.source == source
    check(opened, tree, tree.vspw, VSPW.names)


def test_raw_labels_are_the_numbers_on_disk(case):
    source, tree, splits, _ = case
    opened = open_split(tree.root, next(iter(splits)), source=source)
    again = pickle.loads(pickle.dumps(opened))  # as DataLoader workers get it
    sample = load_split(again, raw_labels=True)[0]
    raw = sample["raw_labels"]
    assert raw.dtype in (torch.uint8, torch.uint16)
    assert np.array_equal(again.reader.lookup[raw.numpy()], sample["labels"])
    mask = again.videos[0].frames[0].mask_path
    if again.reader.encoding in ("index", "panoptic"):
        assert np.array_equal(raw, np.array(Image.open(mask)))


def test_streams_and_clips(tmp_path):
    tree = trees.make_vipseg(tmp_path)
    opened = open_split(tmp_path, "train", source="vipseg")
    video, frames = next(iter(tree.drawings["train"].items()))
    stream = load_split(opened, streaming=True, frame_offsets=(-1,), reference_labels=True)
    samples = [sample for sample in stream if sample["video"] == video]
    drawn = list(frames.values())
    for sample, drawing, before in zip(samples, drawn, [drawn[0], *drawn], strict=False):
        assert np.array_equal(sample["labels"], tree.expected(drawing, tree.names, VSPW.names))
        assert np.array_equal(sample["reference_labels"][0], tree.expected(before, tree.names, VSPW.names))


# --- what is particular to one source


def test_coco_stuff_reads_the_originals_where_both_are_there(tmp_path):
    trees.make_coco_stuff(tmp_path, masks_in="annotations")
    tree = trees.make_coco_stuff(tmp_path, masks_in="annotations", converted=True)
    opened = open_split(tmp_path, "train", source="coco_stuff")
    assert all("label" not in video.frames[0].mask_path.name for video in opened.videos)
    check(opened, tree, tree.names, opened.classes.names)


def test_coco_stuff_beside_coco(tmp_path):
    tree = trees.make_coco_stuff(tmp_path, size=SIZE)
    for split in ("train2017", "val2017"):
        (tmp_path / "images" / split).rename(tmp_path / split)
    (tmp_path / "images").rmdir()
    opened = open_split(tmp_path, "val", source="coco_stuff")
    check(opened, tree, tree.names, opened.classes.names)
    message = error(ValueError, tmp_path, "stuffthingmaps", source="coco_stuff")
    assert message.endswith("unknown split 'stuffthingmaps'; found: train2017, val2017")


def test_coco_stuff10k_converted_in_place(tmp_path):
    """The converter writes beside the MATLAB files: lists mean those, folders mean the PNGs."""
    converted = trees.make_coco_stuff10k(tmp_path, converted=True)
    official = trees.make_coco_stuff10k(tmp_path)  # last, because both write the lists
    for split, tree, suffix in (("train", official, ".mat"), ("train2014", converted, ".png")):
        opened = open_split(tmp_path, split, source="coco_stuff10k")
        assert {video.frames[0].mask_path.suffix for video in opened.videos} == {suffix}
        check(opened, tree, tree.names, opened.classes.names)
    assert open_split(tmp_path, "all", source="coco_stuff10k").num_frames == 3


def test_coco_ids_have_eleven_gaps(tmp_path):
    trees.make_coco_stuff(tmp_path)
    opened = open_split(tmp_path, "train", source="coco_stuff")
    used = np.flatnonzero(opened.reader.lookup != 255)
    assert set(range(182)) - set(used.tolist()) == {gap - 1 for gap in trees.COCO_GAPS}
    assert opened.reader.lookup[181] == 170 and opened.classes.names[170] == "wood"


def test_ade20k_from_inside_and_without_masks(tmp_path):
    tree = trees.make_ade20k(tmp_path)
    home = tmp_path / "ADEChallengeData2016"
    assert open_split(home, "val", source="ade20k").videos == open_split(tmp_path, "val", source="ade20k").videos
    opened = open_split(tmp_path, "testing", source="ade20k")
    assert not opened.has_masks and "labels" not in load_split(opened)[0]
    assert [video.name for video in opened.videos] == list(tree.drawings["testing"])


def test_cityscapes_benchmark_from_either_kind_of_mask(tmp_path):
    tree = trees.make_cityscapes(tmp_path, masks=("labelIds", "labelTrainIds"))
    assert open_split(tmp_path, "train", source="cityscapes").classes.num_labels == 28
    names = {part: name for part, (_, train_id, name) in trees.CITYSCAPES.items() if train_id != 255}
    by_ids = open_split(tmp_path, "train", source="cityscapes19")
    check(by_ids, tree, names, by_ids.classes.names)
    for mask in tmp_path.glob("gtFine/*/*/*_labelIds.png"):
        mask.unlink()
    by_train_ids = open_split(tmp_path, "train", source="cityscapes19")
    check(by_train_ids, tree, names, by_train_ids.classes.names)
    order = {train_id: name for _, train_id, name in trees.CITYSCAPES.values() if train_id != 255}
    assert all(by_ids.classes.names[train_id] == name for train_id, name in order.items())


def test_pascal_context_roots_and_59_classes(tmp_path):
    tree = trees.make_pascal_context(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2010"
    found = [open_split(root, "train", source="pascal_context").videos for root in (tmp_path, home.parent, home)]
    assert found[0] == found[1] == found[2]
    opened = open_split(home, "val", source="pascal_context59")
    assert opened.classes.num_labels == 59 and opened.classes.names[0] == "aeroplane"
    names = {part: name if name != "background" else None for part, name in tree.names.items()}
    check(opened, tree, names, opened.classes.names)
    remapped = open_split(home, "val", source="pascal_context59", table="default")
    check(remapped, tree, tree.vspw, VSPW.names)


def test_vipseg_masks_are_16_bit_and_instances_are_one_class(tmp_path):
    trees.make_vipseg(tmp_path)
    opened = open_split(tmp_path, "train", source="vipseg")
    values = opened.reader.values(opened.videos[0].frames[0].mask_path)
    assert values.dtype == np.uint16 and {4901, 4902, 4977, 65535} <= set(np.unique(values).tolist())
    lookup = opened.reader.lookup
    assert lookup.shape == (65536,) and lookup[0] == 255 and lookup[1] == 0 and lookup[124] == 123
    for number in range(125, 65536, 7):
        expected = number // 100 - 1 if 3 <= number // 100 <= 124 else 255
        assert lookup[number] == expected
    # wall and ceiling, 1 and 2, have no instances; what would be some is void as others write it
    assert (lookup[125:300] == 255).all() and lookup[300] == VSPW.label2id["door"]
    assert not open_split(tmp_path, "test", source="vipseg").has_masks
    (tmp_path / "panomasks/7_0b4cQa1").rename(tmp_path / "panomasks/9_no_masks")  # a test set with masks
    assert open_split(tmp_path, "test", source="vipseg").has_masks


def test_vipseg_prefers_panomasks_and_finds_lists_above(tmp_path):
    trees.make_vipseg(tmp_path, layout="VIPSeg_720P")
    by_root, by_home = (open_split(root, "val", source="vipseg") for root in (tmp_path, tmp_path / "VIPSeg_720P"))
    assert by_root.videos == by_home.videos and by_root.reader.encoding == "panoptic"


def test_camvid_in_vspw_layout_keeps_its_own_names(tmp_path):
    ids = {"others": 0, "road": 1, "sky": 2, "pavement": 5}
    make_tree(tmp_path, {"train": {"a": [1, 2]}}, names=ids)
    opened = open_split(tmp_path, "train", source="camvid")
    assert opened.classes.names == ("road", "sky", "pavement") and opened.source == "camvid"
    plain = open_split(tmp_path, "train")
    remapped = open_split(tmp_path, "train", source="camvid", table="default")
    mask = opened.videos[0].frames[0].mask_path
    new = np.array([VSPW.label2id["road"], VSPW.label2id["sky"], VSPW.label2id["path"]] + [255] * 253, np.uint8)
    assert np.array_equal(remapped.reader.labels(mask), new[plain.reader.labels(mask)])


@pytest.mark.skipif(not CAMVID_VSPW.is_dir(), reason=f"CamVid in VSPW's layout is not at {CAMVID_VSPW}")
@pytest.mark.parametrize(("split", "frames"), [("train", 367), ("val", 101)])
def test_real_camvid_is_split_as_the_rule_for_official_files_says(split, frames):
    opened = open_split(CAMVID_VSPW, split, source="camvid", table="default")
    assert opened.classes == VSPW and opened.num_frames == frames
    names = [f"{video.name.split('_')[0]}_{frame.stem}" for video in opened.videos for frame in video.frames]
    assert {_usual_camvid_split(name) for name in names} == {split}


def test_camvid_official_needs_no_colour_list_and_takes_lists(tmp_path):
    tree = trees.make_camvid(tmp_path)
    by_file = open_split(tmp_path, "train", source="camvid")
    (tmp_path / "label_colors.txt").unlink()
    built_in = open_split(tmp_path, "train", source="camvid")
    check(built_in, tree, tree.names, built_in.classes.names)
    assert built_in.classes == by_file.classes  # names, order and colours: the official 32 without Void
    by_name = dict(zip(built_in.classes.names, built_in.classes.palette, strict=True))
    assert all(by_name[name] == colour for colour, name, _ in trees.CAMVID.values())
    assert open_split(tmp_path, "all", source="camvid").num_frames == 11
    trees.write_list(tmp_path / "mine.txt", ["0016E5_07959.png", "0001TP_006690"])
    mine = open_split(tmp_path, "mine", source="camvid")
    assert [video.name for video in mine.videos] == ["0001TP", "0016E5"]


def test_folder_class_lists(tmp_path):
    tree = trees.make_folder(tmp_path, masks_in="labels")
    (tmp_path / "label_num_dic_final.json").unlink()
    with pytest.raises(FileNotFoundError, match=r'no class list; write label_num.*classes\.txt .*"0 road"'):
        open_split(tmp_path, "train", source="folder")
    by_value = {value: tree.names[part] for part, value in trees.FOLDER.items()}
    lines = ["0 void after all", *(f"{value} {name}" for value, name in by_value.items())]
    trees.write_list(tmp_path / "classes.txt", lines)
    opened = open_split(tmp_path, "train", source="folder")
    assert opened.classes.names[0] == "void after all" and opened.reader.lookup[0] == 0
    trees.write_list(tmp_path / "classes.txt", [line.replace(" ", "\t", 1) for line in lines])
    assert open_split(tmp_path, "train", source="folder").classes.names == opened.classes.names
    for wrong in ("road", "255 road", "-1 road", "3"):
        trees.write_list(tmp_path / "classes.txt", [wrong])
        with pytest.raises(ValueError, match=f"classes.txt: '{wrong}'; expected a mask value"):
            open_split(tmp_path, "train", source="folder")
    trees.write_list(tmp_path / "classes.txt", ["1 road", "2 road"])
    with pytest.raises(ValueError, match="classes.txt: names holds"):
        open_split(tmp_path, "train", source="folder")


def test_own_table_for_a_folder(tmp_path):
    tree = trees.make_folder(tmp_path / "data")
    table = tmp_path / "mine.csv"
    rows = [f"{name},{'lake' if name == 'lake' else ''}\n" for name in sorted(set(tree.names.values()))]
    table.write_text("name,vspw\n" + "".join(rows))
    opened = open_split(tree.root, "train", source="folder", table=table)
    check(opened, tree, {"lake": "lake"}, VSPW.names)


@pytest.mark.filterwarnings("ignore:min_labelled")  # that some classes are in no image any more
def test_min_labelled_drops_images_after_remapping(tmp_path):
    tree = trees.make_coco_stuff(tmp_path)
    opened = open_split(tmp_path, "train", source="coco_stuff", table="default")
    drawings = tree.drawings["train2017"]
    labels = {video: tree.expected(frames[video], tree.vspw, VSPW.names) for video, frames in drawings.items()}
    share = {video: (expected != 255).mean() for video, expected in labels.items()}
    border = sorted(share.values())[1]
    kept = open_split(tmp_path, "train", source="coco_stuff", table="default", min_labelled=float(border))
    assert [v.name for v in kept.videos] == [v.name for v in opened.videos if share[v.name] >= border]
    assert 0 < kept.num_frames < opened.num_frames


# --- errors


def error(kind, *args, **options):
    with pytest.raises(kind) as caught:
        opened = open_split(*args, **options)
        list(load_split(opened))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_names(tmp_path):
    trees.make_ade20k(tmp_path)
    assert error(ValueError, tmp_path, "train", source="ade20") == "unknown source 'ade20'; nearest: 'ade20k'"
    message = error(ValueError, tmp_path, "trainin", source="ade20k")
    assert "found: no .txt file; a data set in another layout needs its source" in error(ValueError, tmp_path, "train")
    assert "unknown split 'trainin'; nearest: 'training'; found: testing, training, validation" in message
    assert "unknown remap table" in error(ValueError, tmp_path, "train", source="ade20k", table="libral")
    message = error(ValueError, tmp_path, "train", source="ade20k", classes=VSPW)
    assert "source 'ade20k': it has a class list of its own" in message


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "vspw"])
def test_missing_folders_say_what_was_expected(source, tmp_path):
    expected = {"cityscapes19": "Cityscapes: ", "pascal_context59": "Pascal Context: ", "folder": "a plain folder: "}
    for root, problem in ((tmp_path, "no folder "), (tmp_path / "gone", "no such folder")):
        message = error(FileNotFoundError, root, "train", source=source)
        assert message.startswith(f"{root}: {problem}") and "; expected " in message
        assert expected.get(source, source.split("_")[0]).lower()[:6] in message.lower() and ".png" in message


def test_images_without_masks_and_masks_without_images(tmp_path):
    trees.make_coco_stuff(tmp_path)
    (tmp_path / "images/train2017/000000000030.jpg").unlink()
    with pytest.warns(UserWarning, match="1 masks have no image and are left out: 000000000030$"):
        assert open_split(tmp_path, "train", source="coco_stuff").num_frames == 2
    (tmp_path / "stuffthingmaps/val2017/000000000285.png").unlink()
    message = error(FileNotFoundError, tmp_path, "val", source="coco_stuff")
    assert "1 of 2 images have no mask: 000000000285; every image" in message


def test_listed_files_that_are_missing(tmp_path):
    trees.make_pascal_context(tmp_path / "voc")
    (tmp_path / "voc/VOCdevkit/VOC2010/JPEGImages/2008_000015.jpg").unlink()
    message = error(FileNotFoundError, tmp_path / "voc", "train", source="pascal_context")
    assert "1 of the 2 images in" in message and message.endswith("train.txt are missing: 2008_000015")
    trees.make_vipseg(tmp_path / "vip")
    trees.write_list(tmp_path / "vip/val.txt", ["7_0b4cQa1", "8_nowhere"])
    assert "1 of the 2 videos in" in error(FileNotFoundError, tmp_path / "vip", "val", source="vipseg")
    trees.write_list(tmp_path / "vip/val.txt", ["7_0b4cQa1", "7_0b4cQa1"])
    assert "val.txt: lists '7_0b4cQa1' twice" in error(ValueError, tmp_path / "vip", "val", source="vipseg")
    (tmp_path / "vip/val.txt").write_text("\n")
    assert "val.txt: empty list" in error(ValueError, tmp_path / "vip", "val", source="vipseg")
    (tmp_path / "vip/val.txt").write_bytes(b"\xff\xfe\0")
    assert "val.txt: not UTF-8 text" in error(ValueError, tmp_path / "vip", "val", source="vipseg")


def test_vipseg_incomplete_masks(tmp_path):
    trees.make_vipseg(tmp_path / "a")
    mask = tmp_path / "a/panomasks/0_wHveSGjXyDY/00000036.png"
    mask.unlink()
    assert "1 of 3 frames have no mask: 00000036" in error(FileNotFoundError, tmp_path / "a", "train", source="vipseg")
    for left in mask.parent.glob("*"):
        left.unlink()
    message = error(FileNotFoundError, tmp_path / "a", "train", source="vipseg")
    assert "1 of 2 videos have no masks: 0_wHveSGjXyDY" in message
    trees.make_vipseg(tmp_path / "b", layout="VIPSeg_720P", colours_only=True)
    record = tmp_path / "b/VIPSeg_720P/panoptic_gt_VIPSeg_train.json"
    for content in ("{}", "[]", "nonsense", '{"annotations": [{"video_id": 1}]}'):
        record.write_text(content)
        assert "not VIPSeg's panoptic JSON" in error(ValueError, tmp_path / "b", "train", source="vipseg")
    segment = '{"segments_info": [{"id": 5, "category_id": 124}]}'
    record.write_text('{"annotations": [{"video_id": "v", "annotations": [' + segment + "]}]}")
    message = error(ValueError, tmp_path / "b", "train", source="vipseg")
    assert message.endswith("video v has a segment 5 of category 124; expected 0..123")
    record.write_text('{"annotations": []}')
    assert "nothing says what the colours in folder" in error(ValueError, tmp_path / "b", "train", source="vipseg")
    record.unlink()
    message = error(FileNotFoundError, tmp_path / "b", "train", source="vipseg")
    assert "panoptic_gt_VIPSeg_train.json: no such file; only it says" in message


def test_a_list_cannot_lead_out_of_the_data_set(tmp_path):
    trees.make_vipseg(tmp_path / "a")
    for name in ("../imgs/0_wHveSGjXyDY", "..", str(tmp_path / "a/imgs/0_wHveSGjXyDY")):
        (tmp_path / "a/train.txt").write_text(f"{name}\n")
        message = error(ValueError, tmp_path / "a", "train", source="vipseg")
        assert f"train.txt: {name!r} is no video name" in message


@pytest.mark.parametrize("case", ENCODINGS, indirect=True)
@pytest.mark.parametrize("how", ["zero bytes", "truncated", "other size", "colours"])
def test_broken_masks_are_named_when_they_are_decoded(case, how):
    source, tree, splits, _ = case
    split = next(iter(splits))
    opened = open_split(tree.root, split, source=source)
    mask = opened.videos[-1].frames[-1].mask_path
    if mask.suffix == ".mat" and how in ("other size", "colours"):
        pytest.skip("no picture")
    trees.spoil(mask, how)
    if opened.reader.encoding == "colour" and how == "colours":
        Image.open(mask).convert("L").save(mask)  # a grey copy of a colour mask
    message = error(ValueError, tree.root, split, source=source)
    assert str(mask) in message
    found = {"zero bytes": "empty file (0 bytes)", "truncated": "cannot be read as", "other size": "62x40 pixels"}
    assert found.get(how, "of mode L;" if opened.reader.encoding == "colour" else "of mode RGB") in message


def test_broken_image_is_named(tmp_path):
    trees.make_ade20k(tmp_path)
    image = open_split(tmp_path, "val", source="ade20k").videos[0].frames[0].image_path
    trees.spoil(image, "zero bytes")
    assert error(ValueError, tmp_path, "val", source="ade20k") == f"{image}: empty file (0 bytes); expected an image"


def test_two_files_of_one_name(tmp_path):
    trees.make_folder(tmp_path)
    image = tmp_path / "images/train/one.png"
    Image.new("RGB", (96, 64)).save(image)
    assert "one.jpg and one.png are one image" in error(ValueError, tmp_path, "train", source="folder")


def test_colour_list_errors(tmp_path):
    trees.make_camvid(tmp_path)
    for line in ("Animal", "1 2 Animal", "256 0 0 Animal", "a b c Animal"):
        trees.write_list(tmp_path / "label_colors.txt", [line])
        assert f"label_colors.txt: '{line}'; expected red" in error(ValueError, tmp_path, "train", source="camvid")


# --- speed


def test_listing_many_files_opens_none_and_is_fast(tmp_path):
    (tmp_path / "images/train2017").mkdir(parents=True)
    (tmp_path / "stuffthingmaps/train2017").mkdir(parents=True)
    for number in range(1000):
        for folder, suffix in (("images", "jpg"), ("stuffthingmaps", "png")):
            os.close(os.open(tmp_path / folder / "train2017" / f"{number:012d}.{suffix}", os.O_CREAT | os.O_WRONLY))
    start = time.process_time()
    opened = open_split(tmp_path, "train", source="coco_stuff", table="default")  # the files are empty
    assert opened.num_frames == 1000 and time.process_time() - start < 0.25
