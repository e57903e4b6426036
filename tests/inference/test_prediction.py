"""Prediction files of every kind of source: right labels, right times, and whole files however the run ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny_models import NAMES, moving_frames, save_model, write_video

from vss_hf import video_io
from vss_hf.cli import main
from vss_hf.data.labels import palette_of
from vss_hf.inference.prediction import predict
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.overlay_video import GAP
from vss_hf.video_io import open_source
from vss_hf.visualize import overlay


TIMES = [0, 0.1, 0.15, 0.5, 0.9, 1.0, 1.25, 1.3]


@pytest.fixture(scope="module", params=["image", "video"])
def segmenter(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp(request.param), video=request.param == "video")
    return VideoSegmenter.from_pretrained(folder, "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "clip.mp4", moving_frames(len(TIMES)), times=TIMES)


def run(*words) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def failure(capsys, *words) -> str:
    """The one line that a command prints before it ends with code 2."""
    assert run(*words) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def label_maps(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def half_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


# --- what is written


@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_and_overlay_of_a_video_file(segmenter, video, tmp_path, batch_size):
    out = tmp_path / "out"
    results = predict(segmenter, video, out, overlay_video=True, batch_size=batch_size)
    expected = list(segmenter.label_video(open_source(video)))
    written = label_maps(out / "clip")
    assert len({m.tobytes() for m in expected}) > 2  # the model tells frames apart
    for ours, theirs in zip(written, expected, strict=True):
        assert (ours == theirs).mean() > 0.999  # batches may round a tie differently

    counts = np.bincount(np.stack(written).ravel(), minlength=len(NAMES))
    assert results["class_share"] == {n: c / counts.sum() for n, c in zip(NAMES, counts, strict=True) if c}
    assert (results["videos"], results["frames"], results["interrupted"]) == (1, len(TIMES), False)
    assert results["files"] == [str(out / "clip_overlay.mp4")] and results["frames_per_second"] > 0
    shown = list(open_source(out / "clip_overlay.mp4"))
    np.testing.assert_allclose([frame.time for frame in shown], TIMES, atol=2e-5)
    last = list(open_source(video))[-1]
    painted = np.kron(overlay(last.image, written[-1], palette_of(NAMES), 0.6), np.ones((5, 5, 1)))
    assert np.abs(shown[-1].image[:240, :320] - np.kron(last.image, np.ones((5, 5, 1)))).mean() < 6
    assert np.abs(shown[-1].image[:240, 320 + GAP : 640 + GAP] - painted).mean() < 6  # x264 and its colours
    assert half_files(out) == []


def test_vspw_root_folder_of_a_video_and_picture(segmenter, tmp_path):
    root = tmp_path / "root"
    frames = {"a": moving_frames(3, seed=1), "b": moving_frames(2, seed=2)}
    for name, images in frames.items():
        (root / "data" / name / "origin").mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / "data" / name / "origin" / f"{number:08d}.png")
    (root / "test.txt").write_text("a\nb\n")
    results = predict(segmenter, root, tmp_path / "all", overlay_video=True, overlay_style="painted", max_frames=2)
    assert (results["videos"], results["frames"]) == (2, 4)
    assert [open_source(path).length for path in results["files"]] == [2, 2]
    assert next(iter(open_source(results["files"][0]))).image.shape == (48, 64, 3)
    predict(segmenter, root / "data" / "a", tmp_path / "one")
    for ours, theirs in zip(label_maps(tmp_path / "one" / "a"), segmenter.label_video(frames["a"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    single = root / "data" / "b" / "origin" / "00000000.png"
    assert predict(segmenter, single, tmp_path / "picture", overlay_video=True)["files"][0].endswith("_overlay.jpg")


def test_another_resolution_in_mid_stream(segmenter, tmp_path):
    """Every label map has its frame's size; the overlay video keeps the first one's."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, size in enumerate([(48, 64), (48, 64), (40, 40), (48, 64)]):
        Image.fromarray(moving_frames(1, *size)[0]).save(folder / f"{number}.png")
    with pytest.warns(RuntimeWarning, match=r"frame 2 is 40x40 \(width x height\).*the overlay video"):
        results = predict(segmenter, folder, tmp_path / "out", overlay_video=True)
    assert [m.shape for m in label_maps(tmp_path / "out" / "frames")] == [(48, 64), (48, 64), (40, 40), (48, 64)]
    shapes = {frame.image.shape for frame in open_source(results["files"][0])}
    assert len(shapes) == 1 and len(list(open_source(results["files"][0]))) == 4


def test_json_of_the_command(model, video, tmp_path, capsys):
    assert run("predict", model, video, "--out", tmp_path / "o", "--json", tmp_path / "r.json", "--max-frames", 3) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["model"] == Path(model).name and (results["videos"], results["frames"]) == (1, 3)
    assert set(results["class_share"]) <= set(NAMES) and sum(results["class_share"].values()) == pytest.approx(1)
    assert "frame" in capsys.readouterr().err  # the bar and its frames per second


def test_the_pictures_themselves_are_not_replaced(model, tmp_path, capsys):
    """`<out>/<video>/<frame>.png` may be the very name of a frame."""
    folder = tmp_path / "my frames"
    folder.mkdir()
    for number, frame in enumerate(moving_frames(2)):
        Image.fromarray(frame).save(folder / f"{number}.png")
    Image.fromarray(moving_frames(1)[0]).save(folder / "my frames.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for source in (folder, folder / "my frames.png"):
        line = failure(capsys, "predict", model, source, "--out", folder / "..")
        assert "my frames: label maps would replace the pictures there" in line
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert run("predict", model, folder, "--out", folder) == 0  # below them is a place of its own
    assert len(label_maps(folder / "my frames")) == 3


# --- cameras: FFmpeg reads a file as if it were one


@pytest.fixture
def camera(video, monkeypatch):
    monkeypatch.setattr(video_io, "camera_address", lambda number: ("mp4", str(video), {}))


@pytest.mark.parametrize("words", [["0"], ["--camera", "0"]])
def test_a_camera_ends_after_max_frames(model, camera, tmp_path, words):
    assert run("predict", model, *words, "--out", tmp_path / "o", "--overlay", "--max-frames", "2") == 0
    assert len(label_maps(tmp_path / "o" / "camera0")) == 2
    assert len(list(open_source(tmp_path / "o" / "camera0_overlay.mp4"))) == 2


def test_no_camera(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(video_io, "camera_address", lambda number: ("mp4", str(tmp_path / "nothing"), {}))
    assert "no camera 3" in failure(capsys, "predict", model, "--camera", "3", "--out", tmp_path / "o")
    for words in (["0", "--camera", "0"], []):
        assert "either INPUT" in failure(capsys, "predict", model, *words, "--out", tmp_path / "o")


# --- broken videos


def test_a_video_without_frames(model, tmp_path, capsys):
    with av.open(str(tmp_path / "empty.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.width, stream.height = 64, 48
        container.start_encoding()
    line = failure(capsys, "predict", model, tmp_path / "empty.mp4", "--out", tmp_path / "o", "--overlay")
    assert "empty.mp4 is" in line and not (tmp_path / "o").exists()
    (tmp_path / "zero.mp4").touch()
    assert "zero.mp4" in failure(capsys, "predict", model, tmp_path / "zero.mp4", "--out", tmp_path / "o")


def test_what_was_labelled_before_a_broken_frame_stays(model, tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(moving_frames(5)):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:80])
    line = failure(capsys, "predict", model, folder, "--out", tmp_path / "o", "--overlay", "--batch-size", 2)
    assert "frames/003.png: cannot be read as an image" in line
    assert len(label_maps(tmp_path / "o" / "frames")) == 3
    assert len(list(open_source(tmp_path / "o" / "frames_overlay.mp4"))) == 3 and half_files(tmp_path) == []


def test_a_file_that_was_cut_off(model, tmp_path):
    path = write_video(tmp_path / "cut.mp4", moving_frames(40, 96, 128))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.warns(RuntimeWarning, match=r"cut.mp4 announces 40 frames but holds \d+"):
        assert run("predict", model, path, "--out", tmp_path / "o", "--overlay") == 0
    count = len(label_maps(tmp_path / "o" / "cut"))
    assert 0 < count < 40 and len(list(open_source(tmp_path / "o" / "cut_overlay.mp4"))) == count


# --- ended from outside


def wait_for(done, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_keeps_what_is_done(model, tmp_path, capsys, number, name):
    """A real signal, sent when some frames are there."""
    before = signal.getsignal(number)
    path = write_video(tmp_path / "long.mp4", moving_frames(1) * 3000)
    out = tmp_path / "o"

    def interrupt():
        wait_for(lambda: len(list(out.glob("long/*.png"))) > 4)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = run("predict", model, path, "--out", out, "--overlay", "--json", tmp_path / "r.json")
    thread.join()
    assert code == 128 + number and f"stopped by {name}" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    results = json.loads((tmp_path / "r.json").read_text())
    count = len(label_maps(out / "long"))
    assert (results["interrupted"], results["stop_signal"], results["frames"]) == (True, number, count)
    assert 4 < count < 3000
    assert len(list(open_source(out / "long_overlay.mp4"))) == count
    assert half_files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended(model, tmp_path, number):
    """SIGKILL leaves no half file under a final name, and the next run is not disturbed by what it left."""
    path = write_video(tmp_path / "long.mp4", moving_frames(1, 64, 96) * 2000)
    out = tmp_path / "o"
    command = [sys.executable, "-m", "vss_hf", "predict", str(model), str(path), "--out", str(out), "--overlay"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("long/*.png"))) > 20 and (out / "long_overlay.mp4.part").exists(), 300)
    process.send_signal(number)
    code = process.wait(60)
    maps = label_maps(out / "long")  # all can be read
    assert 20 < len(maps) < 2000 and {m.shape for m in maps} == {(64, 96)}
    if number != signal.SIGKILL:
        assert code == 128 + number and half_files(out) == []
        assert len(list(open_source(out / "long_overlay.mp4"))) == len(maps)
        return
    assert code == -number and not (out / "long_overlay.mp4").exists()
    assert {file.name for file in half_files(out)} >= {"long_overlay.mp4.part"}
    assert run("predict", model, path, "--out", out, "--overlay", "--max-frames", "3") == 0
    assert len(list(open_source(out / "long_overlay.mp4"))) == 3
