"""The command line as people use it: right results, and one clear line with exit code 2 for everyday bad input."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

from vss_hf import OCRNetConfig, OCRNetForSemanticSegmentation
from vss_hf.cli import main
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


NAMES = ["road", "tree", "sky"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    backbone = AutoConfig.for_model(
        "resnet", embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model = OCRNetForSemanticSegmentation(
        OCRNetConfig(backbone_config=backbone, channels=8, ocr_channels=8, coarse_channels=8, **labels)
    )
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    """Two videos to evaluate on and one to train on, three frames of 40x56 each, classes 1..3 on disk and void 0."""
    root = tmp_path / "videos"
    random = np.random.default_rng(0)
    for video in ("1_a-b_c", "2_d", "3_train"):
        for kind in ("origin", "mask"):
            (root / "data" / video / kind).mkdir(parents=True)
        for frame in ("00000010", "00000011", "00000020"):
            image = random.integers(0, 255, (40, 56, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "data" / video / "origin" / f"{frame}.jpg")
            mask = random.integers(0, 4, (40, 56), dtype=np.uint8)
            Image.fromarray(mask).save(root / "data" / video / "mask" / f"{frame}.png")
    (root / "val.txt").write_text("1_a-b_c\n2_d")
    (root / "train.txt").write_text("3_train\n")
    (root / "label_num_dic_final.json").write_text(json.dumps({name: i + 1 for i, name in enumerate(NAMES)}))
    return root


def failure(capsys, *arguments) -> str:
    """The one line that a command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def run(*arguments) -> None:
    """A command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code in (0, None)


# --- what the commands give


def test_evaluate_and_score_of_predictions_agree(model_folder, data, tmp_path):
    words = ("--confusion", tmp_path / "confusion.json", "--num-workers", "0")
    run("evaluate", model_folder, "--data", data, "--json", tmp_path / "a.json", *words)
    run("predict", model_folder, data, "--split", "val", "--out", tmp_path / "p", "--submission", tmp_path / "s.zip")
    run("score", "--predictions", tmp_path / "p", "--data", data, "--json", tmp_path / "b.json")
    evaluated, scored = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    # Other batches may round the logits of a tie differently: compare up to a few pixels.
    assert scored["mean_iou"] == pytest.approx(evaluated["mean_iou"], abs=2e-3)
    assert (evaluated["videos"], evaluated["frames"], evaluated["vc8"]) == (2, 6, None)
    assert list(evaluated["per_class_iou"]) == NAMES and evaluated["frames_per_second"] > 0
    counts = np.array(json.loads((tmp_path / "confusion.json").read_text()))
    ious = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert list(evaluated["per_class_iou"].values()) == pytest.approx(ious.tolist(), rel=1e-6)
    assert "confusion" not in evaluated
    label = np.array(Image.open(tmp_path / "p" / "1_a-b_c" / "00000020.png"))
    assert label.shape == (40, 56) and label.max() < 3
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert "result_submission/2_d/00000011.png" in archive.namelist() and len(archive.namelist()) == 6


def test_score_counts_every_pixel(data, tmp_path):
    """Perfect predictions on all but one video, which is all wrong: checked against counting by hand."""
    for mask in data.glob("data/[12]_*/mask/*.png"):
        labels = np.array(Image.open(mask)).astype(int) - 1
        wrong = (labels + 1) % 3
        prediction = np.where(labels < 0, 0, labels if "2_d" in mask.parts else wrong).astype(np.uint8)
        target = tmp_path / "p" / mask.parent.parent.name / mask.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prediction).save(target)
    run("score", "--predictions", tmp_path / "p", "--data", data, "--json", tmp_path / "s.json")
    pairs = {"right": [0, 0, 0], "union": [0, 0, 0]}
    for mask in data.glob("data/[12]_*/mask/*.png"):
        labels = np.array(Image.open(mask)).astype(int) - 1
        prediction = np.array(Image.open(tmp_path / "p" / mask.parent.parent.name / mask.name)).astype(int)
        valid = labels >= 0
        for c in range(3):
            pairs["right"][c] += ((labels == c) & (prediction == c) & valid).sum()
            pairs["union"][c] += (((labels == c) | (prediction == c)) & valid).sum()
    expected = np.mean([a / b for a, b in zip(pairs["right"], pairs["union"], strict=True)])
    assert json.loads((tmp_path / "s.json").read_text())["mean_iou"] == pytest.approx(expected, abs=1e-12)


def test_predict_takes_one_image_a_folder_and_a_video(model_folder, data, tmp_path):
    frames = data / "data" / "2_d" / "origin"
    run("predict", model_folder, frames, "--out", tmp_path / "f", "--overlay")
    assert (tmp_path / "f" / "2_d_overlay.mp4").stat().st_size > 0
    run("predict", model_folder, tmp_path / "f" / "2_d_overlay.mp4", "--out", tmp_path / "v")
    assert len(list((tmp_path / "v" / "2_d_overlay").glob("*.png"))) == 3
    run("predict", model_folder, frames / "00000010.jpg", "--out", tmp_path / "i", "--overlay")
    assert (tmp_path / "i" / "00000010_overlay.jpg").is_file()
    assert len(list((tmp_path / "i" / "00000010").glob("*.png"))) == 1


def test_data_verify_ends_with_1_on_damage(data, tmp_path):
    run("data", "verify", data)
    frame = data / "data" / "2_d" / "origin" / "00000010.jpg"
    frame.write_bytes(frame.read_bytes()[:300])
    with pytest.raises(SystemExit) as stop:
        main(["data", "verify", str(data), "--json", str(tmp_path / "r.json")])
    assert stop.value.code == 1
    assert "00000010.jpg" in (tmp_path / "r.json").read_text()


def test_card_is_written(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    run("card", folder, "--license", "apache-2.0")
    assert "license: apache-2.0" in (folder / "README.md").read_text()


def test_module_and_debug(data):
    """`python -m vss_hf` is the same program, and --debug shows the traceback."""
    command = [sys.executable, "-m", "vss_hf", "data", "verify", str(data / "nothing")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert plain.returncode == 2 and plain.stderr.startswith("error: ") and "Traceback" not in plain.stderr
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert debug.returncode != 0 and "Traceback" in debug.stderr


# --- everyday bad input


def test_empty_folder(model_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = failure(capsys, "evaluate", model_folder, "--data", tmp_path / "empty")
    assert "empty" in line and ("val.txt" in line or "label_num_dic_final.json" in line)
    line = failure(capsys, "predict", model_folder, tmp_path / "empty", "--out", tmp_path / "o")
    assert "empty" in line


def test_missing_mask(model_folder, data, capsys):
    (data / "data" / "2_d" / "mask" / "00000011.png").unlink()
    line = failure(capsys, "evaluate", model_folder, "--data", data)
    assert "2_d" in line and "00000011" in line


def test_mask_of_another_size(model_folder, data, capsys):
    mask = data / "data" / "2_d" / "mask" / "00000011.png"
    Image.fromarray(np.ones((40, 50), dtype=np.uint8)).save(mask)
    line = failure(capsys, "evaluate", model_folder, "--data", data, "--num-workers", "0")
    assert "00000011.png" in line and "50x40" in line and "56x40" in line


def test_value_out_of_table_is_void_and_reported(model_folder, data, tmp_path, capsys):
    """VSPW's own masks hold 252..254: such pixels do not count, and verify names the file."""
    mask = data / "data" / "2_d" / "mask" / "00000011.png"
    labels = np.array(Image.open(mask))
    labels[:5] = 77
    Image.fromarray(labels).save(mask)
    run("data", "verify", data, "--json", tmp_path / "r.json")
    assert "00000011.png" in (tmp_path / "r.json").read_text() and "77" in (tmp_path / "r.json").read_text()
    run("evaluate", model_folder, "--data", data, "--json", tmp_path / "e.json", "--num-workers", "0")
    assert 0 <= json.loads((tmp_path / "e.json").read_text())["mean_iou"] <= 1


def test_prediction_out_of_range(data, tmp_path, capsys):
    for mask in data.glob("data/[12]_*/mask/*.png"):
        target = tmp_path / "p" / mask.parent.parent.name / mask.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 56), 3, dtype=np.uint8)).save(target)
    line = failure(capsys, "score", "--predictions", tmp_path / "p", "--data", data)
    assert ".png" in line and "3" in line
    next((tmp_path / "p").glob("*/*.png")).unlink()
    line = failure(capsys, "score", "--predictions", tmp_path / "p", "--data", data)
    assert "1 of 6 predictions are missing" in line


def test_other_number_of_classes(model_folder, data, capsys):
    (data / "label_num_dic_final.json").write_text(json.dumps({"road": 1, "tree": 2}))
    line = failure(capsys, "evaluate", model_folder, "--data", data)
    assert "3 classes" in line and "2" in line


def test_other_class_names(model_folder, data, capsys):
    (data / "label_num_dic_final.json").write_text(json.dumps({"road": 1, "sea": 2, "sky": 3}))
    assert "'tree'" in failure(capsys, "evaluate", model_folder, "--data", data)


def test_recipe_typo(data, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("training:\n  learning_rat: 0.1\n")
    assert "did you mean 'learning_rate'?" in failure(capsys, "train", recipe, "--data.root", data)
    assert "did you mean 'data'?" in failure(capsys, "train", "camvid-ocrnet", "--dta.root", data)


def test_unwritable_output(model_folder, data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = failure(capsys, "predict", model_folder, data, "--split", "val", "--out", tmp_path / "file" / "deeper")
    assert "file" in line
    line = failure(capsys, "evaluate", model_folder, "--data", data, "--json", tmp_path / "none" / "r.json")
    assert "none" in line
    line = failure(capsys, "train", "camvid-ocrnet", "--data.root", data, "--output_dir", tmp_path / "file")
    assert "--output_dir" in line


def test_unknown_model_folder(data, tmp_path, capsys):
    line = failure(capsys, "evaluate", tmp_path / "no_model", "--data", data)
    assert "no_model" in line and "no such model folder" in line
    (tmp_path / "bare").mkdir()
    assert "config.json" in failure(capsys, "evaluate", tmp_path / "bare", "--data", data)


def test_damaged_model_folder(model_folder, data, tmp_path, capsys):
    folder = shutil.copytree(model_folder, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: os.path.getsize(weights) // 2])
    assert "cut" in failure(capsys, "evaluate", folder, "--data", data)


def test_unknown_protocol(model_folder, data, capsys):
    """Said before any frame is read: here the first one is damaged."""
    (data / "data" / "1_a-b_c" / "origin" / "00000010.jpg").write_bytes(b"")
    line = failure(capsys, "evaluate", model_folder, "--data", data, "--protocol", "voc", "--num-workers", "0")
    assert "voc" in line and "vspw" in line and "evaluate" in line
