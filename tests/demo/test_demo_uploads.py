"""What visitors give is looked at first; what they leave behind has limits and goes."""

import numpy as np
import pytest
from demo_clip import FRAMES
from PIL import Image
from tiny_models import moving_frames, write_video

from vss_hf.demo.labelling import Progress, labelled_frames, open_models, short_name
from vss_hf.demo.results import Results
from vss_hf.demo.uploads import Limits, Refused, open_upload, safe_name


def refusal(path, **limits) -> str:
    with pytest.raises(Refused) as refused:
        open_upload(path, Limits(**limits))
    assert str(path.parent) not in str(refused.value)
    return str(refused.value)


def test_no_video_and_no_picture(tmp_path):
    for name in ["notes.mp4", "notes.png", "notes.svg", "notes"]:
        (tmp_path / name).write_text("<svg>Dear diary</svg>" * 50)
        assert name in refusal(tmp_path / name) and "read" in refusal(tmp_path / name)
    assert "upload it again" in refusal(tmp_path / "gone.mp4")


def test_play_lists_are_not_followed(clip, tmp_path):
    """FFmpeg would show the frames of another file."""
    playlists = {
        "concat.mp4": f"ffconcat version 1.0\nfile '{clip.name}'\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
    }
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        assert "not a video that can be read" in refusal(tmp_path / name)


def test_limits_of_uploads(clip, tmp_path):
    assert "has 5 frames (0 seconds)" in refusal(clip, frames=4)
    assert "64 x 48 pixels" in refusal(clip, pixels=48 * 64 - 1)
    assert "at most 0 MB" in refusal(clip, upload_bytes=100)
    Image.new("RGB", (300, 20)).save(tmp_path / "wide.png")
    assert "300 x 20 pixels" in refusal(tmp_path / "wide.png", pixels=5999)
    assert open_upload(clip, Limits(frames=FRAMES)).length == FRAMES


def test_a_video_that_is_longer_than_it_says_ends_at_the_limit(models, clip):
    source = open_upload(clip, Limits())
    frames = labelled_frames(models, source, Limits(frames=3))
    assert [next(frames).name for _ in range(3)] == ["00000000", "00000001", "00000002"]
    with pytest.raises(Refused, match="3 frames"):
        next(frames)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("holiday 2026", "holiday_2026"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "upload"),
        ("", "upload"),
        ("C:\\x\0y", "C_x_y"),
        ("été", "été"),
        ("x" * 300, "x" * 60),
    ],
)
def test_safe_names(stem, name):
    assert safe_name(stem) == name


def test_what_a_visitor_leaves_has_a_limit(models, clip, monkeypatch):
    monkeypatch.setattr("vss_hf.demo.results.SCORES_SHARE", 0.3)
    results = Results(Limits(result_bytes=60_000))
    result = results.begin("a", "clip", len(models.classes), models.palette, None)
    frame = next(labelled_frames(models, open_upload(clip, Limits()), Limits()))
    with pytest.raises(Refused, match="are full after"):
        for _ in range(100):
            result.add(frame)
    kept = [one.has_scores for one in result.frames]
    assert kept[0] == [True, True] and kept[-1] == [False, False]  # frames and label maps go on without scores
    assert result.scores(len(kept) - 1, 0, 0, 0) is None and result.scores(0, 0, 0, 0) is not None
    files = [path for path in result.folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".npz") <= result.bytes <= 60_000
    assert len(list(result.folder.glob("*.jpg"))) == len(kept) > 1
    results.close()
    assert not results.storage.folder.exists()


def test_the_result_that_nobody_used_for_the_longest_time_goes(models, clip):
    results = Results(Limits(results=2))
    frame = next(labelled_frames(models, open_upload(clip, Limits()), Limits()))
    made = {}
    for visitor in ["a", "b"]:
        made[visitor] = results.begin(visitor, "clip", len(models.classes), models.palette, None)
        assert results.of(visitor) is None  # no frame yet
        made[visitor].add(frame)
    assert results.of("a") is made["a"]  # used later than b
    made["c"] = results.begin("c", "clip", len(models.classes), models.palette, None)
    assert results.of("b") is None and made["b"].stopped and not made["b"].folder.exists()
    assert results.of("a") is made["a"] and made["c"].folder.exists()
    again = results.begin("a", "clip", len(models.classes), models.palette, None)
    assert not made["a"].folder.exists() and again.folder.exists()
    results.end("a")
    results.end("nobody")
    assert not again.folder.exists()
    results.close()


def test_frames_of_different_sizes(models, tmp_path):
    results = Results(Limits())
    result = results.begin("a", "x", len(models.classes), models.palette, None)
    for size in [(48, 64), (48, 64), (64, 48)]:
        path = tmp_path / f"{size[0]}.png"
        Image.fromarray(moving_frames(1, *size)[0]).save(path)
        result.add(next(labelled_frames(models, open_upload(path, Limits()), Limits())))
    assert [frame.changed for frame in result.frames] == [[None, None], [0.0, 0.0], [None, None]]
    results.close()


def test_models_are_called_by_their_runs(tmp_path):
    (tmp_path / "my-run" / "model").mkdir(parents=True)
    assert short_name(str(tmp_path / "my-run" / "model")) == "my-run"
    assert short_name(str(tmp_path / "my-run")) == "my-run"
    assert short_name("owner/name") == "owner/name"


def test_the_same_model_twice_has_two_names(folders):
    assert open_models([str(folders[0])] * 2, "cpu").names == ("still-ocrnet (1)", "still-ocrnet (2)")


def test_progress(monkeypatch):
    clock = iter([10.0, 14.0, 14.0])
    monkeypatch.setattr("vss_hf.demo.labelling.time.monotonic", lambda: next(clock))
    progress = Progress(20)
    assert progress.seconds_left is None
    progress.done = 8
    assert progress.rate == 2 and progress.seconds_left == 6


def test_an_uploaded_video_is_read_as_predict_reads_it(clip):
    first, second = [frame.image for frame in open_upload(clip, Limits())][:2]
    assert first.shape == (48, 64, 3) and not np.array_equal(first, second)
    assert open_upload(write_video(clip.parent / "b" / "clip.webm.mp4", [first]), Limits()).name == "clip.webm"
