"""What is drawn has the right values at the right pixels; what is saved can be read back."""

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vss_hf.visualize import colorize, overlay, overlay_sheet, plot_training_curve, save_label_png


PALETTE = ((120, 120, 120), (255, 0, 6), (4, 200, 3))
CLASSES = SimpleNamespace(names=("wall", "storage_rack", "goal"), palette=PALETTE)
CAMVID = Path(os.environ.get("VSS_HF_CAMVID", Path(__file__).resolve().parents[1] / "../shared/data/camvid_vspw"))


@pytest.fixture
def scene():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    labels = generator.choice(np.array([0, 1, 2, 255], np.uint8), (7, 9))
    return image, labels


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_overlay_against_a_slow_loop(scene, alpha):
    image, labels = scene
    painted = overlay(image, labels, PALETTE, alpha)
    assert painted.dtype == np.uint8
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] == 255:
            expected = image[y, x]  # void: exactly as it was
        else:
            expected = (1 - alpha) * image[y, x] + alpha * np.array(PALETTE[labels[y, x]])
        assert np.abs(painted[y, x] - expected.astype(float)).max() <= 1  # alpha is rounded to 256ths


def test_overlay_takes_tensors_and_leaves_its_input_alone(scene):
    image, labels = scene
    before = image.copy()
    tensor = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
    expected = overlay(image, labels, PALETTE)
    np.testing.assert_array_equal(overlay(tensor, torch.from_numpy(labels).long(), PALETTE), expected)
    np.testing.assert_array_equal(image, before)


def test_a_tensor_three_pixels_wide_is_still_channels_first():
    image = torch.zeros(3, 2, 3, dtype=torch.uint8)
    image[0] = 200  # red everywhere
    painted = overlay(image, torch.full((2, 3), 255), PALETTE)
    assert painted.shape == (2, 3, 3)
    assert (painted == [200, 0, 0]).all()


def test_colorize_void_is_black(scene):
    _, labels = scene
    colors = colorize(labels, PALETTE)
    for value, color in [*enumerate(PALETTE), (255, (0, 0, 0))]:
        assert (colors[labels == value] == color).all()


@pytest.mark.parametrize("value", [3, 254, -1, 256])
def test_a_label_without_a_colour_is_named(value):
    labels = np.zeros((4, 4), np.int64)
    labels[1, 2] = value
    with pytest.raises(ValueError, match=rf"labels hold the value {value}: expected 0..2, or 255 = void"):
        colorize(labels, PALETTE)


def test_wrong_arguments_are_named(scene):
    image, labels = scene
    with pytest.raises(ValueError, match=r"labels are \(6, 9\) \(H, W\), the image is \(7, 9\)"):
        overlay(image, labels[:6], PALETTE)
    with pytest.raises(ValueError, match=r"image is float32 \(7, 9, 3\): expected uint8"):
        overlay(image.astype(np.float32), labels, PALETTE)
    with pytest.raises(ValueError, match=r"labels are float64 \(7, 9\): expected integers"):
        overlay(image, labels.astype(float), PALETTE)
    with pytest.raises(ValueError, match="alpha=1.5"):
        overlay(image, labels, PALETTE, alpha=1.5)


@pytest.mark.parametrize("palette", [None, PALETTE, PALETTE[:2]])
@pytest.mark.parametrize("num_values", [2, 4, 17, 256])  # Pillow would write 1, 2 and 8 bits a pixel
def test_label_png_holds_the_labels(tmp_path, palette, num_values):
    labels = (np.arange(35 * 29) % num_values).astype(np.uint8).reshape(35, 29)
    path = tmp_path / "00000170.png"
    save_label_png(labels, path, palette)

    bit_depth, color_type = struct.unpack_from(">BB", path.read_bytes(), 24)  # of the IHDR chunk
    assert (bit_depth, color_type) == (8, 3)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), labels)
        color = picture.convert("RGB").getpixel((1, 0))
    assert color == ((1, 1, 1) if palette is None else PALETTE[1])
    assert list(tmp_path.iterdir()) == [path]


def test_label_png_refuses_what_a_byte_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="the value 300: expected 0..255"):
        save_label_png(torch.full((3, 3), 300), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def legend_colors(sheet: np.ndarray) -> set[tuple[int, ...]]:
    """Colours below the pictures, without the paper and the greys of letters and outlines."""
    found = np.unique(sheet.reshape(-1, 3), axis=0).astype(int)
    return {tuple(color) for color in found.tolist() if max(color) - min(color) > 60}


def test_sheet_has_its_columns_and_only_the_classes_that_occur(tmp_path):
    frame = np.full((30, 40, 3), 128, np.uint8)
    labels = np.full((30, 40), 1, np.uint8)
    labels[:5] = 255
    path = overlay_sheet([frame] * 2, [labels] * 2, [labels] * 2, CLASSES, tmp_path / "sheet.png", alpha=1.0)
    sheet = np.array(Image.open(path).convert("RGB"))
    # Three pictures of 400 x 300 in a row, gaps of 10, a header of 35, two rows.
    assert sheet.shape[1] == 3 * 410 + 10
    row = sheet[35 + 200]
    assert (row[10:410] == 128).all()
    assert (row[425:800] == PALETTE[1]).all() and (row[835:1200] == PALETTE[1]).all()
    assert (sheet[35 + 20, 425:800] == 128).all()  # void is unpainted
    assert legend_colors(sheet[35 + 2 * 310 :]) == {PALETTE[1]}


def test_sheet_without_ground_truth_is_narrower(tmp_path):
    frame = torch.zeros(3, 20, 30, dtype=torch.uint8)
    path = overlay_sheet([frame], None, [torch.zeros(20, 30, dtype=torch.uint8)], CLASSES, tmp_path / "sheet.jpg")
    with Image.open(path) as sheet:
        assert sheet.format == "JPEG" and sheet.width == 2 * 410 + 10


def test_legend_wraps_inside_the_sheet(tmp_path):
    count = 60
    palette = tuple((255, value, 0) for value in range(count))
    classes = SimpleNamespace(names=tuple(f"a_rather_long_class_name_{i}" for i in range(count)), palette=palette)
    labels = np.arange(count, dtype=np.uint8).reshape(6, 10)
    path = overlay_sheet([np.zeros((6, 10, 3), np.uint8)], None, [labels], classes, tmp_path / "sheet.png")
    legend = np.array(Image.open(path).convert("RGB"))[35 + 250 :]
    assert {tuple(color) for color in palette} <= legend_colors(legend)
    assert (legend[:, -5:] == 255).all()  # nothing runs over the edge
    assert (legend[-5:] == 255).all()


def test_sheet_of_unequal_lists(tmp_path, scene):
    image, labels = scene
    with pytest.raises(ValueError, match="1 maps of prediction for 2 frames"):
        overlay_sheet([image] * 2, None, [labels], CLASSES, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="for 0 frames: expected one per frame, at least one"):
        overlay_sheet([], None, [], CLASSES, tmp_path / "sheet.png")


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no camvid_vspw beside the checkout; set VSS_HF_CAMVID")
def test_real_frames_and_masks(tmp_path):
    video = CAMVID / "data" / (CAMVID / "val.txt").read_text().split()[0]
    stem = sorted(file.stem for file in (video / "mask").glob("[!.]*.png"))[0]
    frame = np.array(Image.open(video / "origin" / f"{stem}.jpg"))
    disk = np.array(Image.open(video / "mask" / f"{stem}.png")).astype(int)
    labels = np.where(disk == 0, 255, disk - 1)
    palette = [(20 * i, 255 - 20 * i, 128) for i in range(11)]

    painted = overlay(frame, labels, palette, alpha=1.0)
    np.testing.assert_array_equal(painted[disk == 0], frame[disk == 0])
    np.testing.assert_array_equal(painted[disk != 0], np.array(palette)[disk[disk != 0] - 1])
    save_label_png(labels, tmp_path / "mask.png", palette)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "mask.png")), labels)


def test_curve_is_drawn_without_touching_pyplot(tmp_path):
    history = [{"step": 10 * i, "loss": 1 / i, "learning_rate": 1e-4} for i in range(1, 60)]
    history += [{"step": 300, "eval_mean_iou": 0.25}, {"step": 590, "eval_mean_iou": 0.4375}, {"train_runtime": 3.0}]
    path = plot_training_curve(history, tmp_path / "curve.svg")
    text = path.read_text()
    assert "best 0.4375 at step 590" in text  # svg comments carry the texts
    assert "training loss" in text and "mean IoU" in text and "optimizer step" in text

    with Image.open(plot_training_curve(history[:59], tmp_path / "loss.png")) as loss_only:
        with Image.open(plot_training_curve(history, tmp_path / "both.png")) as both:
            assert both.height > 1.5 * loss_only.height


def test_curve_of_an_empty_log(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw in .*curve.png: the log has no entry with 'loss'"):
        plot_training_curve([{"step": 1}], tmp_path / "curve.png")
