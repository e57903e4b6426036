"""Whatever goes wrong while a file is written, the previous one is whole. The full disks are real ones."""

import errno
import json
import os
import random
import re
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

from vss_hf.cli_common import write_results
from vss_hf.data import ClassList
from vss_hf.files import (
    check_new_folder,
    full_disk_message,
    is_full_disk,
    new_folder,
    replacing,
    write_bytes,
    write_json,
    write_text,
)
from vss_hf.hub_cards import write_card, write_eval_results
from vss_hf.inference.submission import write_submission
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.overlay_video import FramePainter, OverlayWriter
from vss_hf.training.recipe_yaml import to_yaml
from vss_hf.video_io import VideoWriter
from vss_hf.visualize import overlay_sheet, plot_training_curve, save_label_png


RESULTS = {"dataset": "d", "split": "val", "protocol": "vspw", "mean_iou": 0.5}
FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
LABELS = np.zeros((48, 64), np.uint8)
CLASSES = ClassList(names=("road", "sky"), disk_ids=(1, 2), palette=((1, 2, 3), (4, 5, 6)))


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "part" in path.name]


# --- in general


def test_the_old_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first", "ä\r\nsecond, longer", ""):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    write_json(path, {"ü": [1, None, 0.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1, None, 0.5]} and "ü" in path.read_text("utf-8")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_missing_folder_is_the_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a.txt", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (".", r"--out \.: a new folder needs a name"),
        ("..", r"--out \.\.: a new folder needs a name"),
        ("/", "--out /: a new folder needs a name"),
        ("file", "file is already there"),
        ("file/new", "--out file/new: .*file is no folder"),
        ("file/a/b", "--out file/a/b: .*file is no folder"),
    ],
)
def test_folders_that_cannot_be_made(place, error, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    Path("file").touch()
    for use in (check_new_folder, lambda path: new_folder(path).__enter__()):
        with pytest.raises((ValueError, OSError), match=error):
            use(Path(place))
    assert os.listdir(tmp_path) == ["empty"] and os.listdir(".") == ["file"]


def test_50_kills_leave_the_old_or_the_new_file(tmp_path):
    """A process that is killed (SIGKILL) at a random byte, or right after the last step."""
    path, old = tmp_path / "a.bin", b"old" * 100
    numbers = random.Random(0)
    for _ in range(50):
        write_bytes(path, old)
        new = numbers.randbytes(5000)
        stop = numbers.choice([0, len(new), None, *(numbers.randrange(len(new)) for _ in range(3))])
        child = os.fork()
        if child == 0:
            with replacing(path) as partial, open(partial, "wb", buffering=0) as file:
                file.write(new[:stop])
                if stop is not None:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert path.read_bytes() == (new if stop is None else old)
    write_bytes(path, b"after")  # what a killed process left does not disturb
    assert path.read_bytes() == b"after" and left_over(tmp_path) == []


def test_full_disk_message_says_what_is_known(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    text = full_disk_message(tmp_path / "not" / "there" / "x.bin", 12_345)
    said = int(re.search(r"([\d,]+) bytes free", text)[1].replace(",", ""))
    assert "x.bin: no space left" in text and "12,345 bytes needed" in text
    assert abs(said - free) < 2**30  # others write to this disk too
    assert "needed" not in full_disk_message(tmp_path / "x")
    assert "more than 7 bytes needed" in full_disk_message(tmp_path / "x", at_least=7)


def test_which_errors_mean_a_full_disk():
    assert is_full_disk(OSError(errno.ENOSPC, "x")) and is_full_disk(OSError(errno.EDQUOT, "x"))
    assert not is_full_disk(OSError(errno.EACCES, "x")) and not is_full_disk(ValueError("28"))


def test_safetensors_on_a_full_disk_is_recognised(small_disk):
    with pytest.raises(Exception, match="No space left") as caught:
        save_file({"a": zeros(1_000_000)}, small_disk / "a.safetensors")
    assert is_full_disk(caught.value)


# --- everything that the package writes for people, on a full disk


def write_video(path: Path) -> None:
    with VideoWriter(path, 15, (48, 64)) as writer:
        for shift in range(40):
            writer.write(np.roll(FRAME, shift, 1))


def write_overlay_picture(path: Path) -> None:
    with OverlayWriter(path.parent / "clip_overlay", FramePainter(CLASSES.names, CLASSES.palette), 15.0) as writer:
        writer.add(FRAME, LABELS)


def write_overlay_video(path: Path) -> None:
    with OverlayWriter(path.parent / "clip_overlay", FramePainter(CLASSES.names, CLASSES.palette), 15.0) as writer:
        for shift in range(40):
            writer.add(np.roll(FRAME, shift, 1), LABELS)


def write_archive(path: Path) -> None:
    picture = path.parent / "label.png"
    if not picture.exists():
        Image.fromarray(FRAME[..., 0] % 124).save(picture)
    write_submission([("video/0.png", picture)], path)


WRITERS = {
    "text.txt": lambda path: write_text(path, "x" * 100),
    "bytes.bin": lambda path: write_bytes(path, b"x" * 100_000),
    "results.json": lambda path: write_results(RESULTS, path),
    "recipe.yaml": lambda path: write_text(path, to_yaml({"a": 1})),
    "labels.png": lambda path: save_label_png(LABELS, path),
    "sheet.jpg": lambda path: overlay_sheet([FRAME], [LABELS], [LABELS], CLASSES, path),
    "curve.png": lambda path: plot_training_curve([{"step": 1, "loss": 2.0}], path),
    "curve.svg": lambda path: plot_training_curve([{"step": 1, "loss": 2.0}], path),
    "video.mp4": write_video,
    "video.mkv": write_video,
    "clip_overlay.jpg": write_overlay_picture,
    "clip_overlay.mp4": write_overlay_video,
    "archive.zip": write_archive,
    ".eval_results/d-val.yaml": lambda path: write_eval_results(path.parent.parent, RESULTS),
    "README.md": lambda path: write_card(path.parent),
}


@pytest.fixture(scope="module")
def model_config(tmp_path_factory):
    """config.json of the default model, for the card."""
    folder = tmp_path_factory.mktemp("model")
    OCRNetForSemanticSegmentation.config_class().save_pretrained(folder)
    return folder / "config.json"


def check_full_disk(path: Path, write, fill) -> None:
    """Write once with room, then on a full disk: the first file survives, and one line says what is the matter."""
    write(path)
    whole = path.read_bytes()
    assert len(whole) > 0
    fill()
    with warnings.catch_warnings(), pytest.raises(OSError) as caught:
        warnings.simplefilter("ignore")  # of video encoders
        write(path)
    message = str(caught.value)
    assert re.search(rf"{re.escape(path.name)}: no space left on the disk", message), message
    assert re.search(r"[\d,]+ bytes free; the previous one is untouched$", message) and "\n" not in message
    if path.suffix not in (".mp4", ".mkv", ".zip", ".jpg"):
        assert re.search(r"[\d,]+ bytes needed", message), message
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", WRITERS)
def test_full_device(tmp_path, model_config, name, fill_up):
    shutil.copy(model_config, tmp_path)
    path = tmp_path / name
    check_full_disk(path, WRITERS[name], lambda: fill_up(path))
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("name", WRITERS)
def test_small_disk(small_disk, model_config, name):
    shutil.copy(model_config, small_disk)

    def fill():
        with pytest.raises(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    check_full_disk(small_disk / name, WRITERS[name], fill)
    assert left_over(small_disk) == []
