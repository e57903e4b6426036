"""The page over loopback, as a program talks to it; and the command's errors."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import httpx
import pytest
from tiny_models import moving_frames, write_video

from vss_hf.cli import main
from vss_hf.demo import serving
from vss_hf.demo.storage import Storage
from vss_hf.demo.uploads import Limits
from vss_hf.inference import VideoSegmenter, predict
from vss_hf.install import install_advice


gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")
pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def server(folders):
    page = serving.create_page([str(folders[0])], device="cpu")
    address = serving.serve(page, wait=False)
    yield page, address
    page.blocks.close()
    page.close()


@pytest.fixture
def client(server):
    return gradio_client.Client(server[1], verbose=False)


def label(client, path, kind="video"):
    """The last values of the parts that tell something: status, and the zip file if there is one."""
    file = gradio_client.handle_file(str(path))
    *_, last = client.submit(file, 0.5, api_name=f"/label_{kind}")
    text = [value for value in last if isinstance(value, str)]
    return next(t for t in text if "vss-status" in t), next((t for t in text if t.endswith(".zip")), None), last


def test_a_video_comes_back_as_masks(server, client, folders, clip, tmp_path):
    status, masks, last = label(client, clip)
    assert "5 frames, " in status and "vss-error" not in status
    predict(VideoSegmenter.from_pretrained(folders[0], "cpu"), clip, tmp_path)
    with zipfile.ZipFile(masks) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}
    expected = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("*/*.png"))}
    assert members == {f"my_clip/{name}": data for name, data in expected.items()} and len(members) == 5
    shown = " ".join(str(value) for value in last)
    assert 'data-choice="' in shown and "changed pixels (%)" in shown


def test_a_picture(client, clip, tmp_path):
    from PIL import Image

    Image.fromarray(moving_frames(1)[0]).save(tmp_path / "one.png")
    status, masks, _ = label(client, tmp_path / "one.png", "picture")
    assert "1 frame, " in status
    with zipfile.ZipFile(masks) as archive:
        assert archive.namelist() == ["classes.json", "one/one.png"]


def test_what_is_no_video_gets_a_sentence(client, tmp_path):
    (tmp_path / "diary.mp4").write_text("Dear diary " * 100)
    status, masks, _ = label(client, tmp_path / "diary.mp4")
    assert "vss-error" in status and "diary.mp4 is not a video that can be read" in status and masks is None
    assert "/tmp" not in status and str(Path(client.output_dir).parent) not in status


def test_a_broken_video_keeps_its_beginning(client, tmp_path):
    video = write_video(tmp_path / "whole.mkv", moving_frames(12))
    (tmp_path / "broken.mkv").write_bytes(video.read_bytes()[: int(0.7 * video.stat().st_size)])
    status, masks, _ = label(client, tmp_path / "broken.mkv")
    assert "frames" in status
    with zipfile.ZipFile(masks) as archive:
        assert 1 < len(archive.namelist()) < 13


def test_files_of_the_server_are_not_for_visitors(server, clip):
    """A path in the request that no upload made; with the path of an upload the same request is answered."""
    _, address = server
    foreign = clip.with_name("foreign.mp4")
    shutil.copy(clip, foreign)
    assert "event: error" in asked_for(address, foreign)
    with open(clip, "rb") as file:
        (uploaded,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("clip.mp4", file)}).json()
    assert "event: complete" in asked_for(address, uploaded)
    assert httpx.get(f"{address}gradio_api/file={foreign}").status_code in (403, 404)


def asked_for(address: str, path) -> str:
    """The events that a request for the labels of a file gives."""
    call = f"{address}gradio_api/call/label_video"
    data = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}, 0.5]
    number = httpx.post(call, json={"data": data}).json()["event_id"]
    return httpx.get(f"{call}/{number}", timeout=60).text


# --- the command


def failure(capsys, *words) -> str:
    """The one line that a command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        main(["demo", *[str(word) for word in words]])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_port_in_use(capsys, folders):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = failure(capsys, folders[0], "--port", port)
    assert f"--port {port}: cannot listen" in line and "another program" in line


def test_without_gradio(capsys, folders, monkeypatch):
    def missing(name):
        raise serving.PackageNotFoundError(name)

    monkeypatch.setattr(serving, "version", missing)
    assert install_advice("demo") in failure(capsys, folders[0])
    monkeypatch.setattr(serving, "version", lambda name: "5.49.1")
    assert "Gradio 6 or newer, found 5.49.1" in failure(capsys, folders[0])


def test_models_of_different_classes(capsys, folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folders[0], other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"sand"', '"snow"'))
    line = failure(capsys, folders[0], "--compare", other)
    assert "--compare" in line and "its class 4 is 'snow' instead of 'sand'" in line


def test_what_is_no_model_and_no_video(capsys, folders, tmp_path):
    assert "nowhere" in failure(capsys, tmp_path / "nowhere")
    assert "no such file" in failure(capsys, folders[0], "--video", tmp_path / "no.mp4")
    (tmp_path / "text.mp4").write_text("text")
    assert "text.mp4 is not a video" in failure(capsys, folders[0], "--video", tmp_path / "text.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_ends(folders, clip, tmp_path, number, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "vss_hf", "demo", str(folders[0]), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, env=environment)
    try:
        client = connected(f"http://127.0.0.1:{port}", process)
        assert "5 frames, " in label(client, clip)[0]
        assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} >= {".mp4", ".zip", ".png", ".npz"}
        process.send_signal(number)
        assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    finally:
        process.kill()
    if number == signal.SIGKILL:
        assert len(list(tmp_path.glob("vss_hf_demo_*/results/*/*.zip"))) == 1
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        Storage(Limits()).close()  # the next page
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def connected(address: str, process: subprocess.Popen):
    """A client of a server that is about to start."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        try:
            return gradio_client.Client(address, verbose=False)
        except (OSError, ValueError, httpx.HTTPError):
            time.sleep(0.3)
    raise AssertionError(f"no server, exit code {process.poll()}")
