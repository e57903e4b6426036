"""Prediction of a split that goes on where it stopped: the same files after kills, signals and other processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import killed_prediction
import numpy as np
import pytest
import torch
from colour_model import NAMES, files_of, scene, segmenter, write_data
from PIL import Image
from tiny_models import save_model

from vss_hf.cli import main
from vss_hf.inference import TTA
from vss_hf.inference.prediction import predict


@pytest.fixture
def data(tmp_path):
    """Three videos: odd sizes, one whose frames change their size, one single frame; and another split of one."""
    videos = {
        "b_odd": scene(0, 5, 37, 53),
        "a changing": [*scene(1, 2, 40, 48), *scene(2, 2, 33, 47)],
        "single": scene(3, 1, 32, 40),
        "other": scene(4, 2, 32, 40),
    }
    root = write_data(tmp_path / "data set", videos)
    (root / "test.txt").write_text("b_odd\na changing\nsingle\n")
    (root / "val.txt").write_text("other\n")
    (root / "label_num_dic_final.json").write_text(json.dumps({name: i + 1 for i, name in enumerate(NAMES)}))
    return root


def check_kills(data: Path, folder: Path, stride: int) -> None:
    command = [sys.executable, killed_prediction.__file__, str(data), str(folder / "runs"), str(stride)]
    (folder / "runs").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["different"] == [] and set(found["codes"]) == {0}, done.stderr[-3000:]
    assert found["kills"] >= 4 and max(found["videos_before"]) >= 1  # some runs went on with something
    first, other = found["killed_together"]
    assert first == -signal.SIGKILL and other != 0  # nobody waits for ever


def test_killed_anywhere_and_shared_it_comes_to_the_same_files(data, tmp_path):
    """Label maps, overlays, records, archive and results, byte for byte."""
    check_kills(data, tmp_path, stride=12)


@pytest.mark.slow
def test_killed_at_every_file_operation(data, tmp_path):
    check_kills(data, tmp_path, stride=1)


@pytest.mark.parametrize("damage", ["signal", "picture"])
def test_only_complete_videos_can_be_seen(data, tmp_path, damage):
    """Ended in the second of three videos, by a signal or by a broken picture; then the same call again."""
    straight = predict(segmenter(), data, tmp_path / "straight", overlay_video=True)
    out, archive = tmp_path / "out", tmp_path / "s.zip"
    broken = data / "data" / "a changing" / "origin" / "00000012.jpg"
    whole = broken.read_bytes()

    def interrupted(frames, length, name):
        for number, frame in enumerate(frames):
            if (damage, name, number) == ("signal", "a changing", 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield frame

    if damage == "picture":
        broken.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="00000012.jpg: cannot be read"):
            predict(segmenter(), data, out, overlay_video=True)
        broken.write_bytes(whole)
    else:
        results = predict(segmenter(), data, out, overlay_video=True, submission=archive, progress=interrupted)
        assert (results["videos"], results["frames"], results["stop_signal"]) == (1, 5, signal.SIGTERM)
        assert not archive.exists()
    assert {path.name for path in out.iterdir()} == {".prediction", "b_odd", "b_odd_overlay.mp4"}
    assert len(list((out / ".prediction" / "partial").glob("a changing/*.png"))) >= 1

    seen = []
    again = predict(segmenter(), data, out, overlay_video=True, progress=lambda x, n, name: (seen.append(name), x)[1])
    assert seen == ["a changing", "single"] and again["videos_before"] == 1
    assert files_of(out) == files_of(tmp_path / "straight")
    for key in ("videos", "frames", "class_share"):
        assert again[key] == straight[key], key


def test_nothing_is_left_to_do(data, tmp_path):
    """All numbers come from the records: no picture is read."""
    first = predict(segmenter(), data, tmp_path / "o")
    maps = [np.array(Image.open(path)) for path in (tmp_path / "o").glob("*/*.png")]
    counts = np.bincount(np.concatenate([one.ravel() for one in maps]), minlength=len(NAMES))
    assert first["class_share"] == {n: c / counts.sum() for n, c in zip(NAMES, counts.tolist(), strict=True) if c}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").glob("*/*.png")}
    again = predict(segmenter(), data, tmp_path / "o")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o").glob("*/*.png")} == before
    changed = {key for key in first if first[key] != again[key]}
    assert changed == {"videos_before", "frames_per_second"}
    assert again["videos_before"] == 3 and again["frames_per_second"] is None


def test_a_video_that_was_removed_is_labelled_again(data, tmp_path):
    predict(segmenter(), data, tmp_path / "o", overlay_video=True)
    reference = files_of(tmp_path / "o")
    shutil.rmtree(tmp_path / "o" / "b_odd")
    (tmp_path / "o" / "a changing" / "00000011.png").unlink()
    (tmp_path / "o" / "single_overlay.jpg").unlink()
    assert predict(segmenter(), data, tmp_path / "o", overlay_video=True)["videos_before"] == 0
    assert files_of(tmp_path / "o") == reference


def test_two_splits_in_one_folder(data, tmp_path):
    predict(segmenter(), data, tmp_path / "o")
    results = predict(segmenter(), data, tmp_path / "o", split="val")
    assert (results["videos"], results["videos_before"]) == (1, 0) and (tmp_path / "o" / "other").is_dir()
    assert predict(segmenter(), data, tmp_path / "o")["videos_before"] == 3


def test_another_model_or_setting_is_refused(data, tmp_path):
    out = tmp_path / "o"
    predict(segmenter(), data, out)
    reference = files_of(out)
    other = segmenter()
    with torch.no_grad():
        other.model.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"run\.json: begun with model\.weights_sha256 .*--overwrite"):
        predict(other, data, out)
    with pytest.raises(ValueError, match=r"begun with settings\.max_frames None, now it is 2"):
        predict(segmenter(), data, out, max_frames=2)
    with pytest.raises(ValueError, match=r"begun with settings\.overlay"):
        predict(segmenter(), data, out, overlay_video=True)
    flipped = segmenter()
    flipped = type(flipped)(flipped.model, flipped.processor, tta=TTA(flip=True))
    with pytest.raises(ValueError, match=r"begun with settings\.tta"):
        predict(flipped, data, out)
    picture = data / "data" / "b_odd" / "origin" / "00000012.jpg"
    picture.write_bytes(picture.read_bytes() + b"x")
    with pytest.raises(ValueError, match="b_odd was labelled from other pictures"):
        predict(segmenter(), data, out)
    assert files_of(out) == reference
    predict(segmenter(), data, out, batch_size=3, overwrite=True)  # a batch does not count


def test_overwrite_begins_anew(data, tmp_path):
    """Nothing of the old model is left, not even in another split."""
    out = tmp_path / "o"
    predict(segmenter(), data, out, overlay_video=True)
    predict(segmenter(), data, out, split="val", overlay_video=True)
    other = segmenter()
    with torch.no_grad():
        other.model.weight.copy_(other.model.weight.flip(0))
    predict(other, data, out, overwrite=True)
    predict(other, data, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_overwrite_removes_nothing_before_it_has_looked_at_everything(data, tmp_path):
    out = tmp_path / "o"
    videos = predict(segmenter(), data, out)["videos"]
    last = sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("."))[-1]
    (last / "notes.txt").write_text("mine")
    before = files_of(out)
    with pytest.raises(FileExistsError, match="notes.txt"):
        predict(segmenter(), data, out, overwrite=True)
    assert videos > 1 and files_of(out) == before


def test_files_of_others_are_not_touched(data, tmp_path):
    out = tmp_path / "o"
    (out / "b_odd").mkdir(parents=True)
    (out / "b_odd" / "00000010.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"b_odd is already there \(1 of 3 videos\).*--overwrite"):
        predict(segmenter(), data, out)
    (out / "b_odd" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="b_odd: holds notes.txt, which is no label map"):
        predict(segmenter(), data, out, overwrite=True)
    assert (out / "b_odd" / "00000010.png").read_bytes() == b"mine"
    pictures = files_of(data)
    with pytest.raises(ValueError, match="b_odd: label maps would replace the pictures there"):
        predict(segmenter(), data, data / "data", overwrite=True)
    assert files_of(data) == pictures


def test_a_single_source_in_the_same_folder(data, tmp_path):
    """Its label maps appear one by one, so the record of the split's video of this name no longer holds."""
    out = tmp_path / "o"
    predict(segmenter(), data, out)
    reference = files_of(out)
    predict(segmenter(), data / "data" / "b_odd", out, max_frames=2)
    assert predict(segmenter(), data, out)["videos_before"] == 2
    assert files_of(out) == reference


def test_the_command(data, tmp_path, capsys):
    model = save_model(tmp_path / "model")
    words = ["predict", str(model), str(data), "--out", str(tmp_path / "o")]
    texts = []
    for more in ([], [], ["--overwrite"], ["--max-frames", "1"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        texts.append(capsys.readouterr())
        assert int(stop.value.code or 0) == (2 if "--max-frames" in more else 0)
    assert texts[0].out.startswith(f"10 label maps of 3 videos in {tmp_path / 'o'}, ")
    assert texts[1].out.strip() == f"10 label maps of 3 videos in {tmp_path / 'o'} (3 were there before)"
    assert "before" not in texts[2].out and "settings.max_frames" in texts[3].err
