"""Sources of frames: what each gives, when its frames are shown, and what damaged files do."""

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vss_hf import video_io
from vss_hf.video_io import Frame, FrameSource, open_source
from vss_hf.video_writer import VideoWriter


UNEVEN = [0.0, 0.1, 0.15, 0.9, 1.0, 3.0]


def frames(count, height=48, width=64):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def encode(path, images, ticks=None, clock=15, container=None):
    """A video that PyAV alone writes: h264, one B-frame between others, at given ticks of 1/clock seconds."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libx264", rate=15, options={"preset": "ultrafast", "bf": "1"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, clock)
        for number, image in enumerate(images):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = number if ticks is None else ticks[number]
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


def times(path):
    return [frame.time for frame in open_source(path)]


# --- times


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_variable_rate_survives_writing_and_reading(tmp_path, suffix):
    images = frames(6)
    with VideoWriter(tmp_path / f"clip{suffix}", fps=15, size=(48, 64)) as writer:
        for image, time in zip(images, UNEVEN, strict=True):
            writer.write(image, time)
    assert times(writer.path) == pytest.approx(UNEVEN, abs=6e-4)
    with av.open(str(writer.path)) as file:  # and by FFmpeg's own account
        assert [frame.time for frame in file.decode(video=0)] == pytest.approx(UNEVEN, abs=6e-4)


def test_a_variable_rate_of_somebody_elses_file(tmp_path):
    path = encode(tmp_path / "phone.mp4", frames(6), [round(1000 * time) for time in UNEVEN], clock=1000)
    assert times(path) == pytest.approx(UNEVEN)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_frames_without_times_follow_the_rate(tmp_path, suffix, recwarn):
    with VideoWriter(tmp_path / f"clip{suffix}", fps=12.5, size=(48, 64)) as writer:
        for image in frames(9):
            writer.write(image)
    source = open_source(writer.path)
    assert [frame.time for frame in source] == pytest.approx([n / 12.5 for n in range(9)], abs=6e-4)
    assert source.rate == pytest.approx(12.5) and source.length == (None if suffix == ".mkv" else 9)
    assert not recwarn.list


def test_times_begin_at_zero(tmp_path):
    path = encode(tmp_path / "broadcast.ts", frames(4), [45, 46, 47, 50])
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).time > 2
    assert times(path) == pytest.approx([0, 1 / 15, 2 / 15, 5 / 15], abs=1e-4)


@pytest.mark.parametrize(
    ("written", "time", "message"),
    [
        ([0.0, 0.5], 0.25, r"frame 2 of .*clip.mp4 has time 0.25 after 0.5: times must ascend"),
        ([0.0, 0.5], 0.5, "has time 0.5 after 0.5: times must ascend"),
        ([0.0], None, "frame 1 of .* has time None after 0.0: give every frame a time, or none"),
        ([None], 0.5, "has time 0.5 after None: give every frame a time, or none"),
        ([], float("nan"), "has time nan: expected seconds"),
        ([], -0.1, "has time -0.1: expected seconds"),
    ],
)
def test_times_that_a_writer_refuses(tmp_path, written, time, message):
    image = frames(1)[0]
    with pytest.raises(ValueError, match=message):
        with VideoWriter(tmp_path / "clip.mp4", 15, (48, 64)) as writer:
            for value in written:
                writer.write(image, value)
            writer.write(image, time)
    assert not list(tmp_path.iterdir())


def test_times_closer_than_the_clock_ticks_follow_each_other(tmp_path):
    """Cameras and screen recorders write such; a long video must not break off for it."""
    times = [0.0, 0.5, 0.500001, 0.500002, 0.6]
    with VideoWriter(tmp_path / "clip.mp4", 15, (48, 64)) as writer:
        for image, time in zip(frames(5), times, strict=True):
            writer.write(image, time)
    read = [frame.time for frame in open_source(tmp_path / "clip.mp4")]
    np.testing.assert_allclose(read, times, atol=4e-5)
    assert all(np.diff(read) > 0)


def test_avi_has_no_times(tmp_path):
    with pytest.raises(ValueError, match=r"clip.avi has time 0.0: .avi files have a constant rate; expected .*\.mp4"):
        with VideoWriter(tmp_path / "clip.avi", 15, (48, 64)) as writer:
            writer.write(frames(1)[0], 0.0)


# --- a stream that changes


def joined(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_the_size_changes_in_mid_stream(tmp_path):
    """A raw stream with a new sequence header; it has no clock either."""
    small = encode(tmp_path / "small.h264", frames(4), container="h264")
    large = encode(tmp_path / "large.h264", frames(3, 64, 96), container="h264")
    read = list(open_source(joined(tmp_path / "both.h264", small, large)))
    assert [frame.image.shape for frame in read] == [(48, 64, 3)] * 4 + [(64, 96, 3)] * 3
    assert [frame.name for frame in read] == [f"{n:08d}" for n in range(7)]
    assert {frame.time for frame in read} == {None}


def test_times_that_begin_again_are_counted_on(tmp_path):
    parts = [encode(tmp_path / name, frames(4, size)) for name, size in (("a.ts", 48), ("b.ts", 80))]
    path = joined(tmp_path / "both.ts", *parts)
    with pytest.warns(RuntimeWarning, match=r"both.ts: frame 4 has time 0.000 after 0.200 seconds") as caught:
        read = list(open_source(path))
    assert len(caught) == 1
    assert [frame.time for frame in read] == pytest.approx([n / 15 for n in range(8)], abs=1e-4)
    assert [frame.image.shape[0] for frame in read] == [48] * 4 + [80] * 4


# --- damage


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """40 frames of noise, as mp4 and mkv, whose index is at the end of the file."""
    folder = tmp_path_factory.mktemp("long")
    for suffix in (".mp4", ".mkv"):
        encode(folder / f"clip{suffix}", frames(40))
    return folder


def cut(path, folder, share):
    data = path.read_bytes()
    (folder / path.name).write_bytes(data[: round(len(data) * share)])
    return folder / path.name


def test_an_mp4_without_its_end_has_no_index(long_video, tmp_path):
    with pytest.raises(ValueError, match=r"clip.mp4 is not a video that can be read"):
        open_source(cut(long_video / "clip.mp4", tmp_path, 0.9))


def test_an_mkv_without_its_end_warns(long_video, tmp_path):
    source = open_source(cut(long_video / "clip.mkv", tmp_path, 0.5))
    with pytest.warns(RuntimeWarning, match=r"clip.mkv announces 2.7 seconds but ends after 1\.\d: it may have been"):
        assert 15 <= len(list(source)) <= 25


def test_a_whole_file_does_not_warn(long_video, recwarn):
    for suffix in (".mp4", ".mkv"):
        assert len(list(open_source(long_video / f"clip{suffix}"))) == 40
    assert not recwarn.list


def test_damage_in_the_middle_is_an_error_after_the_frames_before_it(long_video, tmp_path):
    data = bytearray((long_video / "clip.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20000] = bytes(20000)
    (tmp_path / "clip.mp4").write_bytes(data)
    read = []
    with pytest.raises(ValueError, match=r"clip.mp4 breaks off: after \d+ frames, Invalid data") as caught:
        read.extend(iter_frames(tmp_path / "clip.mp4", read))
    assert f"after {len(read)} frames" in str(caught.value) and len(read) > 5


def iter_frames(path, read):
    """Collects one by one, so that `read` holds what came before an error."""
    for frame in open_source(path):
        read.append(frame)
    return ()


WRITE_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from vss_hf.video_writer import VideoWriter
rng = np.random.default_rng(0)
folder = Path(sys.argv[1])
with VideoWriter(folder / "clip.mp4", 15, (48, 64)) as mp4, VideoWriter(folder / "clip.mkv", 15, (48, 64)) as mkv:
    for number in range(10**6):
        frame = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mp4.write(frame)
        mkv.write(frame)
        if number == 400:
            print("written", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_a_process_that_was_killed_while_writing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        process.kill()
    # Nothing under the final names. Matroska can be read as far as it goes, mp4 has its index at the end.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv.part", "clip.mp4.part"]
    with pytest.raises(ValueError, match=r"clip.mp4.part is not a video that can be read"):
        open_source(tmp_path / "clip.mp4.part")
    assert len(list(open_source(tmp_path / "clip.mkv.part"))) > 50


@pytest.mark.parametrize(("suffix", "message"), [(".mkv", "can be read"), (".mp4", "no video stream")])
def test_a_video_without_a_frame(tmp_path, suffix, message):
    path = tmp_path / f"empty{suffix}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=15)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        file.start_encoding()
    with pytest.raises(ValueError, match=f"empty{suffix} is not a video.* {message}"):
        open_source(path)


def test_a_video_none_of_whose_frames_is_whole(tmp_path):
    path = encode(tmp_path / "clip.h264", frames(3), container="h264")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x00\x00\x01\x65")])  # the headers, up to the first picture
    with pytest.raises(ValueError, match=r"clip.h264 breaks off: after 0 frames, Invalid data"):
        list(open_source(path))


@pytest.mark.parametrize("cover", [False, True])
def test_sound_with_and_without_a_cover_picture(tmp_path, cover):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=16000, layout="mono")
        picture = None
        if cover:
            picture = file.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        for number in range(20):
            samples = np.zeros((1, 1024), np.float32)
            chunk = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts = 16000, number * 1024
            file.mux(sound.encode(chunk))
        file.mux(sound.encode())
        if picture is not None:
            image = av.VideoFrame.from_ndarray(frames(1)[0], format="rgb24")
            file.mux(picture.encode(image))
            file.mux(picture.encode())
    with av.open(str(path)) as file:
        assert len(file.streams.video) == cover
    with pytest.raises(ValueError, match="song.mp4 is not a video: it has no video stream"):
        open_source(path)


# --- other sources


def test_folders_and_pictures(tmp_path):
    images = frames(3)
    for place in ("frames", "video/origin", "video/mask"):
        (tmp_path / place).mkdir(parents=True)
        for number, image in zip((2, 10, 1), images, strict=True):
            Image.fromarray(image).save(tmp_path / place / f"{number}.png")
    for place, name in (("frames", "frames"), ("video", "video"), ("video/origin", "video")):
        source = open_source(tmp_path / place)
        assert (source.name, source.length, source.rate, source.live) == (name, 3, None, False)
        read = list(source)
        assert [frame.name for frame in read] == ["1", "2", "10"] and {frame.time for frame in read} == {None}
        assert all(np.array_equal(read[i].image, images[j]) for i, j in enumerate((2, 0, 1)))
    picture = open_source(str(tmp_path / "frames" / "10.png"))
    assert (picture.name, picture.length) == ("10", 1) and np.array_equal(next(iter(picture)).image, images[1])


def test_arrays_and_tensors():
    images = frames(3)
    mirrored = [image[..., ::-1] for image in images]
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    for source, length in ((images, 3), (iter(images), None), (np.stack(images), 3), (tensors, 3)):
        opened = open_source(source)
        assert (opened.name, opened.length, opened.rate) == ("frames", length, None)
        read = list(opened)
        assert [frame.name for frame in read] == ["00000000", "00000001", "00000002"]
        assert all(np.array_equal(frame.image, image) for frame, image in zip(read, images, strict=True))
    assert np.array_equal(next(iter(open_source(mirrored))).image, images[0][..., ::-1])
    ready = FrameSource("mine", None, None, lambda: iter([Frame("a", images[0], 1.5)]))
    assert open_source(ready) is ready


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"uint8 \(4, 4, 3\)"),
        ("picture.png", "str"),
    ],
)
def test_frames_of_another_form_are_named(bad, found):
    source = iter(open_source([np.zeros((4, 4, 3), np.uint8), bad]))
    next(source)
    with pytest.raises(ValueError, match=f"frame 1 is .*{found}: expected a uint8"):
        next(source)


def test_an_array_that_is_used_again():
    """Some libraries give one buffer again and again; frames are read ahead of their use."""

    def camera():
        buffer = np.zeros((4, 5, 3), np.uint8)
        for number in range(3):
            buffer[:] = number
            yield buffer

    assert [frame.image.max() for frame in list(open_source(camera()))] == [0, 1, 2]


def test_what_is_no_source():
    with pytest.raises(ValueError, match="a float is no source of frames"):
        open_source(0.5)


# --- cameras: the device is the world outside, FFmpeg's test picture comes in its place


def test_a_camera(monkeypatch):
    picture = ("lavfi", "testsrc=size=64x48:rate=20", {})
    monkeypatch.setattr(video_io, "camera_address", lambda number: picture)
    source = open_source(0)
    assert (source.name, source.length, source.rate, source.live) == ("camera0", None, 20, True)
    read = [frame for frame, _ in zip(source, range(5), strict=False)]
    assert [frame.time for frame in read] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert read[0].name == "00000000" and read[0].image.shape == (48, 64, 3) and read[0].image.std() > 10


def test_a_camera_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"no camera 98\b.*expected the number of a camera"):
        open_source(98)
    with pytest.raises(ValueError, match="camera -1: cameras are counted from 0"):
        open_source(-1)


@pytest.mark.parametrize(("system", "kind"), [("linux", "v4l2"), ("darwin", "avfoundation"), ("win32", "dshow")])
def test_each_system_has_its_own_cameras(monkeypatch, system, kind):
    class Device:
        name, media_types = "USB camera", ["video"]

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(video_io, "enumerate_input_devices", lambda kind: [Device])
    assert video_io.camera_address(0)[0] == kind
    if system == "win32":
        with pytest.raises(FileNotFoundError, match="no camera 1: this machine has 1"):
            video_io.camera_address(1)
