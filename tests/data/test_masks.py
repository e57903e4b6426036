"""Mask encodings one by one: the numbers in a file, what is refused, and the same bytes inside a Parquet shard."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vss_hf.data.labels import ClassList
from vss_hf.data.masks import LabelReader, lookup_table, read_colours, read_matlab, read_panoptic
from vss_hf.data.packed import packed_path


RNG = np.random.default_rng(3)
NUMBERS = RNG.integers(0, 12500, (7, 9)).astype(np.uint16)
PIXELS = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
IDS = RNG.integers(0, 183, (7, 9)).astype(np.uint8)
NAMES = np.array([f"class {i}" for i in range(182)], object)[:, None]


def refused(read, path, *found):
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for text in found:
        assert text in message


def test_panoptic_numbers_of_16_and_8_bits(tmp_path):
    Image.fromarray(NUMBERS).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "I;16"
    assert np.array_equal(read_panoptic(tmp_path / "a.png"), NUMBERS)
    small = (NUMBERS % 256).astype(np.uint8)
    for mode in "LP":
        image = Image.fromarray(small)
        if mode == "P":
            image.putpalette([255 - i // 3 for i in range(768)])
        image.save(tmp_path / "b.png")
        read = read_panoptic(tmp_path / "b.png")
        assert read.dtype == np.uint16 and np.array_equal(read, small)
    Image.fromarray(PIXELS).save(tmp_path / "c.png")
    refused(read_panoptic, tmp_path / "c.png", "image of mode RGB")
    Image.fromarray(NUMBERS).save(tmp_path / "d.tif")
    refused(read_panoptic, tmp_path / "d.tif", "TIFF", "must be a PNG")


def test_colours_are_exact_and_unknown_ones_are_0(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    expected = [[r + 256 * g + 65536 * b for r, g, b in row] for row in PIXELS.tolist()]
    assert read_colours(tmp_path / "a.png").tolist() == expected
    known = {expected[0][0]: 1, expected[3][4]: 2, expected[3][4] + 1: 9}  # 9: a neighbouring colour that is not there
    by_folder = LabelReader(lookup_table({1: 0, 2: 1, 9: 3}), "colour", {"other": {}, "": known})
    values = by_folder.values(tmp_path / "a.png")
    assert values.tolist() == [[known.get(colour, 0) for colour in row] for row in expected]
    assert by_folder.labels(tmp_path / "a.png")[0, 0] == 0 and (by_folder.labels(tmp_path / "a.png") == 255).sum() > 50
    named = LabelReader(by_folder.lookup, "colour", {"": {}, tmp_path.name: {expected[0][0]: 2}})
    assert named.values(tmp_path / "a.png")[0, 0] == 2
    assert not LabelReader(by_folder.lookup, "colour", {"": {}}).values(tmp_path / "a.png").any()
    nowhere = LabelReader(by_folder.lookup, "colour", {"other": known})
    refused(nowhere.values, tmp_path / "a.png", f"nothing says what the colours in folder {tmp_path.name!r} mean")
    Image.fromarray(PIXELS).quantize(64).save(tmp_path / "p.png")  # a palette's colours are colours
    palette = np.array(Image.open(tmp_path / "p.png").convert("RGB"), int) @ [1, 256, 65536]
    assert np.array_equal(read_colours(tmp_path / "p.png"), palette)
    Image.fromarray(IDS).save(tmp_path / "grey.png")
    refused(read_colours, tmp_path / "grey.png", "PNG image of mode L", "exact colours")
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    refused(read_colours, tmp_path / "a.jpg", "JPEG image of mode RGB")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_matrix(tmp_path, dtype, compressed):
    savemat(tmp_path / "a.mat", {"S": IDS.astype(dtype), "names": NAMES}, do_compression=compressed)
    read = read_matlab(tmp_path / "a.mat")
    assert read.dtype == np.uint8 and np.array_equal(read, IDS)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"T": IDS}, "no matrix of numbers named S"),
        ({"S": "text"}, "no matrix of numbers named S"),
        ({"S": np.zeros((3, 3, 3))}, "no matrix of numbers named S"),
        ({"S": np.zeros((0, 4))}, "no matrix of numbers named S"),
        ({"S": np.full((3, 3), 183)}, "S holds 183..183; expected whole numbers 0..182"),
        ({"S": np.array([[1.5, 2.0]])}, "S holds 1.5..2.0; expected whole numbers"),
        ({"S": np.array([[-1.0, 2.0]])}, "S holds -1.0..2.0; expected whole numbers"),
        ({"S": np.array([[np.nan, 2.0]])}, "expected whole numbers"),
        ({"S": IDS, "names": NAMES[:172]}, "version 1.0, whose numbers mean other classes"),
    ],
)
def test_matlab_files_that_are_refused(tmp_path, content, found):
    savemat(tmp_path / "a.mat", content)
    refused(read_matlab, tmp_path / "a.mat", found)


def test_damaged_matlab_files(tmp_path):
    """Cut off and overwritten anywhere: numbers or an error that names the file, nothing else."""
    path = tmp_path / "a.mat"
    savemat(path, {"S": IDS, "names": NAMES}, do_compression=True)
    whole = path.read_bytes()
    outcomes = set()
    for place in range(0, len(whole), 7):
        for data in (whole[:place], whole[:place] + b"\xff" + whole[place + 1 :]):
            path.write_bytes(data)
            try:
                outcomes.add(read_matlab(path).dtype)
            except ValueError as error:
                assert str(error).startswith(f"{path}: ")
                outcomes.add(ValueError)
    assert ValueError in outcomes
    path.write_bytes(b"")
    refused(read_matlab, path, "empty file (0 bytes); expected a MATLAB file")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.mat: no such file"):
        read_matlab(path)


def test_every_encoding_inside_a_shard(tmp_path):
    """A packed file is a stretch of bytes of a shard, under a virtual path."""
    Image.fromarray(NUMBERS).save(tmp_path / "n.png")
    Image.fromarray(PIXELS).save(tmp_path / "c.png")
    Image.fromarray(IDS).save(tmp_path / "i.png")
    savemat(tmp_path / "m.mat", {"S": IDS, "names": NAMES})
    colours = {"": {int(PIXELS[0, 0] @ np.array([1, 256, 65536])): 5}}
    lookup = np.full(65536, 255, np.uint8)
    shard, start = tmp_path / "train.parquet", 4
    shard.write_bytes(
        b"PAR1" + b"".join((tmp_path / name).read_bytes() for name in ("n.png", "c.png", "i.png", "m.mat"))
    )
    end = shard.stat().st_size
    for name, encoding in (("n.png", "panoptic"), ("c.png", "colour"), ("i.png", "index"), ("m.mat", "matlab")):
        reader, size = LabelReader(lookup, encoding, colours), (tmp_path / name).stat().st_size
        packed = f"{shard}{packed_path((4, end), (start, start + size), 'mask', name)}"
        assert np.array_equal(reader.values(packed), reader.values(tmp_path / name))
        start += size


def test_remapping_changes_the_lookup_only():
    reader = LabelReader(lookup_table({7: 0, 9: 1, 4000: 2}, size=65536), "panoptic")
    new = reader.remapped(np.array([40, 255, 3], np.uint8))
    assert (new.encoding, new.lookup.shape) == ("panoptic", (65536,))
    assert [new.lookup[value] for value in (7, 9, 4000, 0, 65535)] == [40, 255, 3, 255, 255]
    classes = ClassList(("a", "b"), ((0, 0, 0), (1, 1, 1)), (3, 254))
    assert [LabelReader.of_classes(classes).lookup[value] for value in (3, 254, 0)] == [0, 1, 255]
