"""Damaged and missing files: always an error that names them, never pixels that were made up."""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from make_tree import make_tree
from PIL import Image, ImageFile

from vss_hf.data import load_vspw, scan_split
from vss_hf.data.vspw import naming_damage, read_image, read_mask
from vss_hf.video_io import read_frames


def picture(height=40, width=56):
    """Something a JPEG can compress: a gradient with a little noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    return np.clip(np.stack([4 * x, 5 * y, 2 * (x + y)], -1) + noise, 0, 255).astype(np.uint8)


def encoded(image, **settings):
    buffer = io.BytesIO()
    image.save(buffer, **settings)
    return buffer.getvalue()


FILES = {
    "frame.jpg": (encoded(Image.fromarray(picture()), format="JPEG", quality=90), read_image),
    "progressive.jpg": (encoded(Image.fromarray(picture()), format="JPEG", progressive=True), read_image),
    "frame.png": (encoded(Image.fromarray(picture()), format="PNG"), read_image),
    "mask.png": (encoded(Image.fromarray(picture()[..., 0]), format="PNG"), read_mask),
}


@pytest.fixture(params=[False, True], ids=["strict", "tolerant"])
def pil(request, monkeypatch):
    """PIL as it is, and as any other library may have set it: told to fill what is missing with grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_anywhere_is_an_error_or_whole(tmp_path, pil, name):
    data, read = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    whole = read(path)
    lengths = sorted({*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 30, len(data))})
    refused = 0
    for length in lengths:
        path.write_bytes(data[:length])
        try:
            pixels = read(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), error
            assert "\n" not in str(error)
            refused += 1
        else:  # only marks that follow the last pixel are missing
            assert np.array_equal(pixels, whole), f"{length} of {len(data)} bytes"
    assert refused >= len(lengths) - 25  # PNG: check sums and an end mark, 20 bytes


def test_the_setting_of_pil_is_put_back(tmp_path, pil):
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    for data in (FILES["frame.jpg"][0], b"nonsense"):
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            read_image(tmp_path / "a.jpg")
        except ValueError:
            pass
        assert ImageFile.LOAD_TRUNCATED_IMAGES is before


def test_pictures_to_predict_are_read_as_strictly(tmp_path, pil):
    data = FILES["frame.jpg"][0]
    for stem, part in (("1", data), ("2", data[: len(data) // 2]), ("3", data)):
        (tmp_path / f"{stem}.jpg").write_bytes(part)
    frames = read_frames(tmp_path)
    assert next(frames)[0] == "1"
    with pytest.raises(ValueError, match="2.jpg: cannot be read as an image"):
        next(frames)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# what is done to frame 2 of video b -> what the message says
DAMAGE = {
    "frame cut off": (lambda frame, mask: cut(frame), "origin/00000002.png: cannot be read"),
    "mask cut off": (lambda frame, mask: cut(mask), "mask/00000002.png: cannot be read"),
    "frame empty": (lambda frame, mask: frame.write_bytes(b""), r"origin/00000002.png: empty file \(0 bytes\)"),
    "mask empty": (lambda frame, mask: mask.write_bytes(b""), r"mask/00000002.png: empty file \(0 bytes\)"),
    "frame gone": (lambda frame, mask: frame.unlink(), "origin/00000002.png: no such file$"),
    "mask gone": (lambda frame, mask: mask.unlink(), "mask/00000002.png: no such file$"),
    "video gone": (
        lambda frame, mask: shutil.rmtree(frame.parents[1]),
        "origin/00000002.png: no such file; its folder is gone too",
    ),
    "a folder instead": (lambda frame, mask: (frame.unlink(), frame.mkdir()), "origin/00000002.png: not a file"),
    "text instead": (lambda frame, mask: frame.write_text("<html>404"), "origin/00000002.png: cannot be read"),
    "mask of another size": (
        lambda frame, mask: Image.fromarray(np.ones((9, 7), np.uint8)).save(mask),
        "mask/00000002.png: 7x9 pixels, its frame 00000002.png has 23x18",
    ),
    "coloured mask": (
        lambda frame, mask: Image.fromarray(np.ones((18, 23, 3), np.uint8)).save(mask),
        "mask/00000002.png: PNG image of mode RGB.*8-bit class indices",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_after_the_scan_is_named(tmp_path, pil, damage):
    root = make_tree(tmp_path, {"train": {"a": [1, 2], "b": [1, 2, 3]}})
    data = load_vspw(root, "train")
    record = scan_split(root, "train")[1].frames[1]
    spoil, message = DAMAGE[damage]
    spoil(record.image_path, record.mask_path)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        data[3]
    assert "\n" not in str(caught.value)
    assert data[0]["frame"] == "00000001"  # the others are as they were


def test_threads_that_read_at_once_all_refuse_what_is_cut_off(tmp_path, pil):
    """Each of them changes a setting of the whole process for as long as it reads."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    data = FILES["frame.jpg"][0]
    for name, part in (("whole.jpg", data), ("cut.jpg", data[: len(data) // 2])):
        (tmp_path / name).write_bytes(part)
    inside, leave = threading.Event(), threading.Event()

    def linger():
        with naming_damage("another file"):
            inside.set()
            leave.wait(30)

    lingering = threading.Thread(target=linger)
    with naming_damage("a file that is done first"):
        lingering.start()
        assert inside.wait(30)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # not put back: the other one still reads
    with pytest.raises(ValueError, match="truncated"):
        read_image(tmp_path / "cut.jpg")
    leave.set()
    lingering.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before

    def outcome(number: int) -> bool:
        try:
            read_image(tmp_path / ("cut.jpg" if number % 2 else "whole.jpg"))
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(outcome, range(400))) == [True, False] * 200
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before
