"""The reader against pixels that were read, or made, without it."""

import os

import datasets
import numpy as np
import pytest
import torch
from make_tree import CAMVID, NAMES, frame_pixels, make_tree, mask_values, write_mask
from PIL import Image

from vss_hf.data import ClassList, VSPWVideo, decode_frame, load_vspw, scan_split
from vss_hf.modeling.configuration_st_ppm import STPPMConfig


TRAIN = {"1_a-b_C": [12, 20, 28, 36, 44], "22_x_y-Z_-": [7, 9]}


@pytest.fixture
def root(tmp_path):
    return make_tree(tmp_path, {"train": TRAIN, "val": {"3_v": [5, 6, 7]}, "test": {"4_t": [1, 2]}})


def to_labels(disk: np.ndarray) -> np.ndarray:
    """The label rule, pixel by pixel, for the class list of the test trees."""
    classes = sorted(value for value in NAMES.values() if value)
    return np.array([[classes.index(v) if v in classes else 255 for v in row] for row in disk.tolist()], np.uint8)


def check_sample(sample, video, numbers, labelled=True):
    """`numbers`: the source numbers of the frames that the sample must hold."""
    expected = np.stack([frame_pixels(video, number).transpose(2, 0, 1) for number in numbers])
    assert sample["frames"].dtype == torch.uint8 and np.array_equal(sample["frames"], expected)
    assert sample["video"] == video and sample["frame"] == f"{numbers[-1]:08d}"
    assert ("labels" in sample) == labelled
    if labelled:
        assert sample["labels"].dtype == torch.uint8
        assert np.array_equal(sample["labels"], to_labels(mask_values(video, numbers[-1])))


# --- samples


@pytest.mark.parametrize("streaming", [False, True])
def test_every_sample_is_right_in_file_order(root, streaming):
    samples = list(load_vspw(root, "train", streaming=streaming))
    expected = [(video, i, number) for video, numbers in TRAIN.items() for i, number in enumerate(numbers)]
    assert [(s["video"], s["index"], int(s["frame"])) for s in samples] == expected
    for sample, (video, _, number) in zip(samples, expected, strict=True):
        check_sample(sample, video, [number])


def test_kinds_of_data_set(root):
    assert isinstance(load_vspw(root, "train"), datasets.Dataset)
    stream = load_vspw(root, "train", streaming=True)
    assert isinstance(stream, datasets.IterableDataset) and stream.num_shards == len(TRAIN)


def test_batches_and_selections_decode_too(root):
    data = load_vspw(root, "train")
    assert len(data) == 7
    batch = data[1:3]
    check_sample({key: column[1] for key, column in batch.items()}, "1_a-b_C", [28])
    check_sample(data.select([6])[0], "22_x_y-Z_-", [9])


def test_split_without_masks(root):
    samples = list(load_vspw(root, "test", frame_offsets=(-1,)))
    check_sample(samples[0], "4_t", [1, 1], labelled=False)
    check_sample(samples[1], "4_t", [1, 2], labelled=False)


def test_raw_labels_are_the_values_on_disk(root):
    for sample in load_vspw(root, "train", raw_labels=True):
        assert np.array_equal(sample["raw_labels"], mask_values(sample["video"], int(sample["frame"])))
        check_sample(sample, sample["video"], [int(sample["frame"])])


@pytest.mark.parametrize(
    ("clip_start", "clips"),
    [
        ("repeat", [[12, 12, 12], [12, 12, 20], [12, 20, 28], [12, 28, 36], [20, 36, 44]]),
        ("mirror", [[12, 12, 12], [20, 12, 20], [20, 20, 28], [12, 28, 36], [20, 36, 44]]),
        ("drop", [[12, 28, 36], [20, 36, 44]]),
    ],
)
def test_clips(root, clip_start, clips):
    samples = [s for s in load_vspw(root, "train", frame_offsets=(-3, -1), clip_start=clip_start)]
    samples = [s for s in samples if s["video"] == "1_a-b_C"]
    assert [s["index"] for s in samples] == list(range(5 - len(clips), 5))
    for sample, numbers in zip(samples, clips, strict=True):
        check_sample(sample, "1_a-b_C", numbers)


@pytest.mark.parametrize("offsets", [(-9, -6, -3), (-4,), (-3, -1), (-1,), ()])
@pytest.mark.parametrize("clip_start", ["repeat", "mirror", "existing"])
def test_clips_are_those_of_the_models(root, clip_start, offsets):
    """A model is trained with the frames that it will see; where it takes what exists, with its whole clips."""
    config = STPPMConfig(frame_offsets=list(offsets), clip_start=clip_start)
    policy = "drop" if clip_start == "existing" else clip_start
    root = make_tree(root / "long", {"train": {"a": list(range(12)), "b": [3, 4]}})
    rows = load_vspw(root, "train", frame_offsets=offsets, clip_start=policy).with_format(None)
    found = {(row["video"], row["index"]): [int(name[-12:-4]) for name in row["images"]] for row in rows}
    numbers = {"a": list(range(12)), "b": [3, 4]}
    expected = {
        (video, index): [frames[i] for i in config.clip_indices(index)]
        for video, frames in numbers.items()
        for index in range(len(frames))
        if clip_start != "existing" or index >= config.num_past_frames
    }
    assert found == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("clip_start", ["repeat", "mirror", "drop"])
def test_labels_of_all_frames_of_a_clip(root, clip_start, streaming):
    settings = dict(frame_offsets=(-2, -1), clip_start=clip_start, streaming=streaming)
    plain, labelled = (list(load_vspw(root, "train", reference_labels=flag, **settings)) for flag in (False, True))
    rows = load_vspw(root, "train", frame_offsets=(-2, -1), clip_start=clip_start).with_format(None)
    for sample, other, row in zip(labelled, plain, rows, strict=True):
        assert "reference_labels" not in other and torch.equal(sample["frames"], other["frames"])
        assert torch.equal(sample["labels"], other["labels"])
        numbers = [int(name[-12:-4]) for name in row["images"]]
        expected = np.stack([to_labels(mask_values(row["video"], number)) for number in numbers[:-1]])
        assert sample["reference_labels"].dtype == torch.uint8
        assert np.array_equal(sample["reference_labels"], expected)


def test_cache_reads_every_file_once(root):
    """And holds it once, in however many clips it is: after a pass the files are not needed any more."""
    settings = dict(frame_offsets=(-2, -1), reference_labels=True, raw_labels=True)
    expected = list(load_vspw(root, "train", **settings))
    data = load_vspw(root, "train", **settings, cache=True)
    single = load_vspw(root, "test", cache=True)
    list(data)
    pixels = single[0]["frames"].data_ptr()
    for path in (root / "data").rglob("*.png"):
        path.unlink()
    for sample, other in zip(list(data) + list(data.select(range(7))), expected * 2, strict=True):
        assert sample.keys() == other.keys()
        for key, value in other.items():
            assert torch.equal(sample[key], value) if isinstance(value, torch.Tensor) else sample[key] == value
    decoder = data.format["format_kwargs"]["transform"].__self__
    assert len(decoder.cache) == 2 * 7  # frames and masks
    assert single[0]["frames"].data_ptr() == pixels  # a single frame is not even copied


def test_damaged_labels_of_another_frame(root):
    write_mask(root / "data/3_v/mask/00000005.png", np.ones((18, 24), np.uint8))
    load_vspw(root, "val", frame_offsets=(-1,))[1]  # not needed here
    with pytest.raises(ValueError, match="mask/00000005.png: 24x18.*00000005.png has 23x18"):
        load_vspw(root, "val", frame_offsets=(-1,), reference_labels=True)[1]


@pytest.mark.parametrize("offsets", [(0,), (1,), (-1, -3), (-2, -2)])
def test_wrong_offsets(root, offsets):
    with pytest.raises(ValueError, match="frame_offsets"):
        load_vspw(root, "train", frame_offsets=offsets)


def test_wrong_arguments(root):
    with pytest.raises(ValueError, match="clip_start is 'wrap'"):
        load_vspw(root, "train", clip_start="wrap")
    with pytest.raises(ValueError, match="leaves no sample"):
        load_vspw(root, "train", frame_offsets=(-9,), clip_start="drop")
    with pytest.raises(ValueError, match="no masks"):
        load_vspw(root, "test", raw_labels=True)
    with pytest.raises(ValueError, match="streaming=True"):
        load_vspw(root, "train", shuffle_seed=0)
    with pytest.raises(ValueError, match="reference_labels=True, but split 'test' of .* has no masks"):
        load_vspw(root, "test", frame_offsets=(-1,), reference_labels=True)
    with pytest.raises(ValueError, match="reference_labels=True without frame_offsets"):
        load_vspw(root, "train", reference_labels=True)
    with pytest.raises(ValueError, match="cache=True with streaming=True"):
        load_vspw(root, "train", cache=True, streaming=True)


def test_map_style_works_in_loader_workers(root):
    loader = torch.utils.data.DataLoader(load_vspw(root, "train"), batch_size=4, num_workers=2)
    batch = next(iter(loader))
    assert batch["frames"].shape == (4, 1, 3, 18, 23)
    assert np.array_equal(batch["labels"][3], to_labels(mask_values("1_a-b_C", 36)))


# --- the index


def test_scan_split_lists_without_decoding(root):
    for path in root.glob("data/*/*/*.png"):
        path.write_bytes(b"no image")
    videos = scan_split(root, "train")
    assert [(v.name, [int(f.stem) for f in v.frames]) for v in videos] == list(TRAIN.items())
    assert isinstance(videos[0], VSPWVideo) and videos[0].has_masks
    assert videos[1].frames[0].image_path == root / "data/22_x_y-Z_-/origin/00000007.png"
    assert videos[1].frames[0].mask_path == root / "data/22_x_y-Z_-/mask/00000007.png"
    (test,) = scan_split(root, "test")
    assert test.frames[0].mask_path is None and not test.has_masks


def test_decode_frame(root):
    video = scan_split(root, "val")[0]
    frame, labels = decode_frame(video.frames[1], ClassList.from_root(root))
    assert np.array_equal(frame, frame_pixels("3_v", 6).transpose(2, 0, 1))
    assert np.array_equal(labels, to_labels(mask_values("3_v", 6)))
    assert decode_frame(scan_split(root, "test")[0].frames[0])[1] is None


@pytest.mark.parametrize(
    "text", ["1_a-b_C\n22_x_y-Z_-", "1_a-b_C\r\n22_x_y-Z_-\r\n", "\ufeff\n 1_a-b_C \n\n22_x_y-Z_-\n\n"]
)
def test_list_files_of_all_endings(root, text):
    (root / "train.txt").write_bytes(text.encode())
    assert [video.name for video in scan_split(root, "train")] == list(TRAIN)


def test_foreign_files_are_skipped(root):
    for folder in ("origin", "mask"):
        for name in (".DS_Store", "._00000012.png", "._00000013.jpg", "Thumbs.db", "notes.txt"):
            (root / "data/1_a-b_C" / folder / name).write_bytes(b"\0")
    (root / "data/1_a-b_C/mask/00000099.png").write_bytes(b"a mask without a frame")
    assert [int(f.stem) for f in scan_split(root, "train")[0].frames] == TRAIN["1_a-b_C"]


def test_numbers_without_leading_zeros_are_ordered_as_numbers(root):
    folder = root / "data/1_a-b_C"
    for path in [*folder.glob("origin/*"), *folder.glob("mask/*")]:
        path.rename(path.with_stem(str(int(path.stem) - 11)))
    assert [f.stem for f in scan_split(root, "train")[0].frames] == ["1", "9", "17", "25", "33"]


def test_jpg_frames(root):
    folder = root / "data/3_v/origin"
    for path in list(folder.iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    for sample, path in zip(load_vspw(root, "val"), sorted(folder.iterdir()), strict=True):
        with Image.open(path) as image:
            assert np.array_equal(sample["frames"][0], np.array(image).transpose(2, 0, 1))


def test_a_mask_of_few_palette_entries(root):
    # four indices make PIL write 2 bits per pixel; they are indices all the same
    values = mask_values("3_v", 5, values=(0, 1, 2, 3))
    image = Image.fromarray(values, mode=None)
    image.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7, 6, 6, 6])
    path = root / "data/3_v/mask/00000005.png"
    image.save(path, bits=2)
    assert path.read_bytes()[24] == 2  # bit depth in the PNG header
    assert np.array_equal(load_vspw(root, "val", raw_labels=True)[0]["raw_labels"], values)


# --- errors


def break_and_expect(root, split, kind, *messages):
    with pytest.raises(kind) as caught:
        list(load_vspw(root, split))
    for message in messages:
        assert message in str(caught.value)


def test_unknown_split_and_root(root, tmp_path):
    break_and_expect(root, "vall", ValueError, "unknown split 'vall'", "test, train, val")
    break_and_expect(root, "../train", ValueError, "unknown split")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        scan_split(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "lists no video"), ("3_v\n3_v\n", "twice"), ("../3_v\n", "no video name"), (".\n", "name")],
)
def test_wrong_list_files(root, text, message):
    (root / "val.txt").write_text(text)
    break_and_expect(root, "val", ValueError, "val.txt", message)


def test_missing_things(root):
    (root / "val.txt").write_text("3_v\n9_gone\n")
    break_and_expect(root, "val", FileNotFoundError, "9_gone", "lists this video")
    (root / "data/9_gone/origin").mkdir(parents=True)
    break_and_expect(root, "val", ValueError, os.path.join("9_gone", "origin"), "no frames")
    (root / "val.txt").write_text("3_v\n")
    (root / "data/3_v/mask/00000006.png").unlink()
    break_and_expect(root, "val", FileNotFoundError, "00000006.png", "no mask", "1 of 3")


def test_masks_in_some_videos_only(root):
    (root / "val.txt").write_text("3_v\n4_t\n")
    break_and_expect(root, "val", ValueError, "4_t", "1 of 2 videos")


def test_two_files_for_one_frame(root):
    Image.fromarray(frame_pixels("3_v", 6)).save(root / "data/3_v/origin/00000006.jpg")
    break_and_expect(root, "val", ValueError, "00000006.jpg", "one frame")


def test_sizes(root):
    write_mask(root / "data/3_v/mask/00000006.png", np.ones((18, 24), np.uint8))
    break_and_expect(root, "val", ValueError, "mask/00000006.png", "24x18", "23x18")
    Image.new("RGB", (5, 4)).save(root / "data/1_a-b_C/origin/00000020.png")
    with pytest.raises(ValueError, match="5x4.*00000028.png.*23x18"):
        load_vspw(root, "train", frame_offsets=(-1,))[2]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_masks_that_hold_no_indices(root, mode):
    Image.new(mode, (23, 18)).save(root / "data/3_v/mask/00000006.png")
    break_and_expect(root, "val", ValueError, "mask/00000006.png", f"mode {mode}", "indices")


def test_a_jpeg_under_a_png_name_is_no_mask(root):
    Image.new("L", (23, 18)).save(root / "data/3_v/mask/00000006.png", format="JPEG")
    break_and_expect(root, "val", ValueError, "mask/00000006.png", "must be a PNG")


def test_four_bit_grey_is_refused(root):
    # PIL would return 17 where the file says 1
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + b"\x11" * 12) * 18)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 23, 18, 4, 0, 0, 0, 0))
    (root / "data/3_v/mask/00000006.png").write_bytes(png + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    break_and_expect(root, "val", ValueError, "mask/00000006.png", "L;4")


@pytest.mark.parametrize("folder", ["origin", "mask"])
def test_damaged_files(root, folder):
    path = root / "data/3_v" / folder / "00000006.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    break_and_expect(root, "val", ValueError, str(path), "cannot be read")
    path.write_bytes(b"")
    break_and_expect(root, "val", ValueError, str(path), "0 bytes")
    path.write_bytes(b"hello")
    break_and_expect(root, "val", ValueError, str(path), "cannot be read")


def test_a_file_gone_after_the_scan(root):
    data = load_vspw(root, "val")
    (root / "data/3_v/origin/00000005.png").unlink()
    with pytest.raises(FileNotFoundError, match="00000005.png"):
        data[0]


# --- a real data set


@pytest.mark.skipif(not CAMVID.is_dir(), reason="set VSS_HF_CAMVID to CamVid in VSPW's layout")
def test_camvid():
    train, val = scan_split(CAMVID, "train"), scan_split(CAMVID, "val")
    assert (len(train), sum(len(v.frames) for v in train)) == (3, 367)
    assert (len(val), sum(len(v.frames) for v in val)) == (1, 101)
    classes = ClassList.from_root(CAMVID)
    names = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist"
    assert classes.names == tuple(names.split())
    data = load_vspw(CAMVID, "val", frame_offsets=(-2,))
    sample = data[50]
    record, earlier = val[0].frames[50], val[0].frames[48]
    disk = np.array(Image.open(record.mask_path)).astype(int)
    assert np.array_equal(sample["labels"], np.where((disk >= 1) & (disk <= 11), disk - 1, 255))
    assert np.array_equal(sample["frames"][0].permute(1, 2, 0), np.array(Image.open(earlier.image_path)))
    assert sample["frame"] == record.stem and sample["index"] == 50
