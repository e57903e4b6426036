"""What visitors bring: odd files get their labels or an answer in words."""

import io
import zipfile

import av
import numpy as np
import pytest
from PIL import Image
from tiny_models import moving_frames, write_video

from vss_hf.demo import serving


gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")
pytest.importorskip("gradio", reason="the extra demo is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(folders):
    page = serving.create_page([str(folders[0])], device="cpu")
    address = serving.serve(page, wait=False)
    yield gradio_client.Client(address, verbose=False)
    page.blocks.close()
    page.close()


def rotated_video(path):
    """A phone held upright: the frames lie on their side, and the file says so."""
    write_video(path, moving_frames(3, 48, 64))
    data = path.read_bytes()
    upright, turned = (
        b"".join(int(n * 2**16).to_bytes(4, "big", signed=True) for n in m)
        for m in ((1, 0, 0, 0, 1, 0, 0, 0, 2**14), (0, 1, 0, -1, 0, 0, 48, 0, 2**14))
    )
    track = data.index(b"tkhd")
    assert data.count(upright, track) >= 1
    path.write_bytes(data[:track] + data[track:].replace(upright, turned, 1))


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])


def animation(path):
    frames = [Image.fromarray(frame) for frame in moving_frames(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def exif_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(moving_frames(1, 48, 64)[0]).save(path, exif=exif)


def with_alpha(path):
    Image.fromarray(np.dstack([moving_frames(1)[0], np.full((48, 64), 9, np.uint8)])).save(path)


def sixteen_bits(path):
    Image.fromarray(moving_frames(1)[0][..., 0].astype(np.uint16) * 257).save(path)


CASES = {
    "one.mp4": (lambda path: write_video(path, moving_frames(1)), "1 frame, ", (64, 48)),
    "phone.mp4": (rotated_video, "3 frames, ", (48, 64)),
    "odd.mp4": (lambda path: write_video(path, moving_frames(2, 49, 67)), "2 frames, ", (68, 50)),
    "slow then fast.mp4": (
        lambda path: write_video(path, moving_frames(4), times=[0.0, 1.0, 1.1, 1.2]),
        "4 frames, ",
        (64, 48),
    ),
    "sound.mp4": (sound, "sound.mp4 has no pictures; expected a video", None),
    "empty.mp4": (lambda path: path.touch(), "empty.mp4 is empty", None),
    "moving.gif": (animation, "3 frames, ", (64, 48)),
    "text.mp4": (lambda path: path.write_text("Dear diary"), "text.mp4 is not a video that can be read", None),
    "empty.png": (lambda path: path.touch(), "empty.png is empty", None),
    "moving.webp": (animation, "1 frame, ", (64, 48)),
    "alpha.png": (with_alpha, "1 frame, ", (64, 48)),
    "deep.png": (sixteen_bits, "deep.png has more than 8 bits per channel", None),
    "turned.jpg": (exif_rotated, "1 frame, ", (48, 64)),
    "huge.png": (lambda path: Image.new("1", (8000, 6000)).save(path), "huge.png is 8000 x 6000 pixels", None),
    "tiny.png": (lambda path: Image.new("RGB", (40, 9)).save(path), "tiny.png is 40 x 9 pixels", None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file(client, tmp_path, name):
    write, said, size = CASES[name]
    path = tmp_path / name
    write(path)
    kind = "video" if path.suffix in (".mp4", ".gif") else "picture"
    *_, last = client.submit(gradio_client.handle_file(str(path)), 0.5, api_name=f"/label_{kind}")
    text = " ".join(value for value in last if isinstance(value, str))
    assert said in text and str(tmp_path) not in text and ("vss-error" in text) == (size is None)
    if size is not None:
        with zipfile.ZipFile(next(value for value in last if str(value).endswith(".zip"))) as archive:
            labels = [Image.open(io.BytesIO(archive.read(one))) for one in archive.namelist()[1:]]
        assert {one.size for one in labels} == {size}
