"""Frames survive a round trip through a file; sources are read in the right order; errors name the file."""

import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vss_hf import video_writer
from vss_hf.video_io import VideoWriter, open_source, read_frames


def moving_frames(count: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth colour ramps that move a little each frame: something an encoder likes."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for step in range(count):
        planes = [255 * x / width, 255 * y / height, 127 + 100 * np.sin((x + y + 4 * step) / 9)]
        frames.append(np.stack(planes, -1).astype(np.uint8))
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(np.float64) - b) ** 2), 1e-9)))


def write_video(path: Path, frames: list[np.ndarray], fps: float = 15) -> Path:
    with VideoWriter(path, fps=fps, size=frames[0].shape[:2]) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.mark.parametrize("suffix", video_writer.VIDEO_OUT_SUFFIXES)
@pytest.mark.parametrize("size", [(48, 64), (47, 65)])
def test_round_trip_keeps_count_size_and_picture(tmp_path, suffix, size):
    frames = moving_frames(7, *size)
    path = write_video(tmp_path / f"clip{suffix}", frames)

    read = list(read_frames(path))
    assert [name for name, _ in read] == [f"{index:08d}" for index in range(7)]
    height, width = size
    for (_, frame), original in zip(read, frames, strict=True):
        assert frame.dtype == np.uint8
        assert frame.shape == (height + height % 2, width + width % 2, 3)  # even in the file
        assert psnr(frame[:height, :width], original) > 30
    if height % 2:  # the added row repeats the last one
        assert psnr(read[0][1][-1, :width], frames[0][-1]) > 25
    assert list(tmp_path.iterdir()) == [path]  # no temporary file left


@pytest.mark.parametrize("fps", [15, 25.0, 30000 / 1001])
def test_frame_rate_is_kept(tmp_path, fps):
    path = write_video(tmp_path / "clip.mp4", moving_frames(4, 32, 32), fps)
    assert open_source(path).rate == pytest.approx(fps, rel=1e-6)


def test_pictures_have_no_frame_rate(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert open_source(tmp_path).rate is None
    assert open_source(tmp_path / "a.png").rate is None


def test_h264_where_the_build_has_it(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_frames(2, 32, 32))
    with av.open(str(path)) as container:
        expected = "h264" if "libx264" in av.codecs_available else "mpeg4"
        assert container.streams.video[0].codec_context.name == expected


def test_mpeg4_without_x264_warns_once(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    video_writer.video_encoder.cache_clear()
    try:
        frames = moving_frames(3, 32, 48)
        with pytest.warns(RuntimeWarning, match="without libx264") as caught:
            first = write_video(tmp_path / "first.mp4", frames)
            write_video(tmp_path / "second.mp4", frames)
        assert len(caught) == 1
        with av.open(str(first)) as container:
            assert container.streams.video[0].codec_context.name == "mpeg4"
        assert psnr(next(read_frames(first))[1], frames[0]) > 30
    finally:
        video_writer.video_encoder.cache_clear()


def test_folder_is_read_in_natural_order(tmp_path):
    names = ["frame10.png", "frame2.png", "frame1.jpg", "00000170.png", "00000045.png"]
    for value, name in enumerate(names):
        Image.new("RGB", (6, 5), (value * 40, 0, 0)).save(tmp_path / name, quality=100)
    (tmp_path / "._frame1.png").write_bytes(b"\x00")  # what macOS leaves on a shared disk
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    (tmp_path / "notes.txt").write_text("not a picture")

    read = list(read_frames(tmp_path))
    assert [name for name, _ in read] == ["00000045", "00000170", "frame1", "frame2", "frame10"]
    assert all(frame.shape == (5, 6, 3) and frame.dtype == np.uint8 for _, frame in read)
    assert [int(frame[0, 0, 0]) for _, frame in read] == pytest.approx([160, 120, 80, 40, 0], abs=2)


def test_one_picture_of_any_mode_becomes_rgb(tmp_path):
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    [(name, frame)] = read_frames(tmp_path / "grey.png")
    assert name == "grey"
    np.testing.assert_array_equal(frame, np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("L", (5, 4), 255).convert(mode).save(tmp_path / f"a.{suffix}")
    [(_, frame)] = read_frames(tmp_path / f"a.{suffix}")
    assert frame.shape == (4, 5, 3) and frame.dtype == np.uint8 and frame.min() > 250


def test_more_than_eight_bits_are_refused(tmp_path):
    """PIL would show all of it white."""
    Image.fromarray(np.full((4, 5), 300, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png: PNG image of mode I;16; a frame must have 8 bits"):
        list(read_frames(tmp_path / "deep.png"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["12:30.mp4", "a b%03d é.mp4"])
def test_names_that_mean_something_to_ffmpeg(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name, 15, (48, 64)) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(list(read_frames(name))) == 1


def test_exif_orientation_is_applied(tmp_path):
    upright = np.zeros((40, 24, 3), np.uint8)
    upright[:20] = 250  # bright above, dark below
    stored = Image.fromarray(np.rot90(upright))  # lies on its side in the file ...
    exif = Image.Exif()
    exif[0x0112] = 6  # ... which says: turn me 90 degrees clockwise
    stored.save(tmp_path / "phone.png", exif=exif)
    [(_, frame)] = read_frames(tmp_path / "phone.png")
    np.testing.assert_array_equal(frame, upright)


def test_rotated_video_comes_out_upright(tmp_path):
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:16] = 200  # a bright bar at the top
    path = write_video(tmp_path / "phone.mp4", [np.ascontiguousarray(np.rot90(upright))] * 3)
    # Write "turn 90 degrees clockwise" into the track header, as phones do (ISO 14496-12, 8.3.2: a b u c d v x y w).
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 1 << 30)
    path.write_bytes(data)

    _, frame = next(read_frames(path))
    assert frame.shape == upright.shape
    assert psnr(frame, upright) > 30


def test_writer_refuses_a_frame_of_another_size(tmp_path):
    with pytest.raises(ValueError, match=r"frame 1 of .*clip.mp4 is uint8 \(32, 30, 3\): expected uint8 \(32"):
        with VideoWriter(tmp_path / "clip.mp4", 15, (32, 32)) as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8))
            writer.write(np.zeros((32, 30, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []  # no half-written file


def test_a_failure_keeps_the_older_file(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_frames(3, 32, 32))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(path, 15, (32, 32)) as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8))
            raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_without_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frame was written to .*empty.mp4"):
        with VideoWriter(tmp_path / "empty.mp4", 15, (32, 32)):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "fps", "size", "message"),
    [
        ("clip.webm", 15, (32, 32), r"clip.webm: expected a name in .mp4"),
        ("clip.mp4", 0, (32, 32), "fps=0: expected"),
        ("clip.mp4", 15, (0, 32), r"size=\(0, 32\): expected \(height, width\)"),
    ],
)
def test_writer_arguments(tmp_path, name, fps, size, message):
    with pytest.raises(ValueError, match=message):
        VideoWriter(tmp_path / name, fps, size)


def test_missing_source_is_named_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere.mp4"):
        read_frames(tmp_path / "nowhere.mp4")


def test_folder_without_pictures(tmp_path):
    with pytest.raises(ValueError, match=f"no pictures in the folder {tmp_path}"):
        read_frames(tmp_path)
    (tmp_path / "frames").mkdir()
    with pytest.raises(ValueError, match="sub-folders frames: name one of them"):
        read_frames(tmp_path)


def test_two_pictures_of_one_stem(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match="a.jpg and .*a.png have the same stem"):
        read_frames(tmp_path)


@pytest.mark.parametrize("name", ["fake.mp4", "notes.txt", "zero.mp4"])
def test_files_that_are_no_video(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"" if name.startswith("zero") else b"just some words\n" * 20)
    with pytest.raises(ValueError, match=f"{name} is not a video"):
        read_frames(path)


def test_broken_picture_is_named(tmp_path):
    (tmp_path / "00000001.jpg").write_bytes(b"")  # VSPW has such files
    with pytest.raises(ValueError, match="00000001.jpg: empty file"):
        list(read_frames(tmp_path))


def test_a_file_that_was_cut_off_warns(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_frames(40, 120, 160))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.warns(RuntimeWarning, match=r"clip.mp4 announces 40 frames but holds \d+"):
        assert 0 < len(list(read_frames(path))) < 40


def test_sound_is_not_a_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.wav is not a video"):
        read_frames(path)
