"""The folder of a running page: what may be in it, and who removes it."""

import time

import httpx
import pytest
from demo_clip import FRAMES

from vss_hf.demo import answers, storage
from vss_hf.demo.labelling import labelled_frames
from vss_hf.demo.results import Results
from vss_hf.demo.storage import Storage, bytes_in
from vss_hf.demo.uploads import Limits, Refused, open_upload


def test_the_next_page_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    """A page that was killed does not hold its lock any more; `test_demo_page` kills one."""
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    dead, alive = Storage(Limits()), Storage(Limits())
    for kept in (dead, alive):
        (kept.uploads / "clip.mp4").write_bytes(bytes(1000))
    dead._lock.close()
    for name in ["vss_hf_demo_notes", "vss_hf_demo_empty", "other", "elsewhere"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("kept")
    (tmp_path / "vss_hf_demo_empty" / "lock").touch()  # of a page that is about to lock it
    (tmp_path / "elsewhere" / "lock").write_text("1")
    (tmp_path / "vss_hf_demo_link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "vss_hf_demo_file").touch()
    before = {path.name for path in tmp_path.iterdir()}
    new = Storage(Limits())
    assert {path.name for path in tmp_path.iterdir()} == before - {dead.folder.name} | {new.folder.name}
    assert bytes_in(alive.uploads) == 1000 and (tmp_path / "elsewhere" / "mine.txt").exists()
    for kept in (alive, new):
        kept.close()
        assert not kept.folder.exists()


def test_uploads_of_all_visitors_have_a_limit():
    kept = Storage(Limits(disk_bytes=2000, upload_bytes=700))
    (kept.uploads / "one.mp4").write_bytes(bytes(500))
    first = kept.expect(400)
    with pytest.raises(Refused, match="no room for more uploads"):
        kept.expect(200)  # 500 lie there, 400 are on the way
    with pytest.raises(Refused):
        kept.expect(None)
    kept.arrived(first)
    assert kept.expect(200) == 200
    kept.arrived(200)
    kept.close()


def test_old_uploads_go(monkeypatch):
    kept = Storage(Limits())
    (kept.uploads / "hash").mkdir()
    for path in [kept.uploads / "hash" / "clip.mp4", kept.uploads / "tmpbroken"]:
        path.write_bytes(bytes(10))
    kept.drop_old_uploads()
    assert bytes_in(kept.uploads) == 20
    later = time.time() + storage.UPLOAD_SECONDS + 60
    monkeypatch.setattr(storage.time, "time", lambda: later)
    kept.drop_old_uploads()
    assert list(kept.uploads.iterdir()) == []
    kept.close()


def frames_of(models, clip):
    return list(labelled_frames(models, open_upload(clip, Limits()), Limits()))


def test_results_of_all_visitors_have_a_limit(models, clip):
    """The result that was not used for the longest time goes when a new one needs its room."""
    frames = frames_of(models, clip)
    results = Results(Limits())
    result = results.begin("a", "clip", len(models.classes), models.palette, None)
    for frame in frames:
        result.add(frame)
    size = bytes_in(result.folder)
    results.close()

    limits = Limits(disk_bytes=2 * round(3.5 * size), result_bytes=round(1.5 * size))
    results, made = Results(limits), {}
    for visitor in "abcde":
        made[visitor] = results.begin(visitor, "clip", len(models.classes), models.palette, None)
        for frame in frames:
            made[visitor].add(frame)
        assert bytes_in(results.storage.results) <= limits.disk_bytes // 2
    assert [results.of(visitor) is made[visitor] for visitor in "abcde"] == [False, False, True, True, True]
    assert len(made["e"].frames) == FRAMES
    results.close()
    assert made["e"].limit == round(1.5 * size)

    results = Results(Limits(disk_bytes=2 * size // 2))  # half of what one needs
    result = results.begin("a", "clip", len(models.classes), models.palette, None)
    with pytest.raises(Refused, match="are full after"):
        for frame in frames:
            result.add(frame)
    assert 0 < bytes_in(result.folder) <= size // 2
    results.close()


def test_an_overlay_video_has_the_room_that_is_left(models, clip, monkeypatch):
    monkeypatch.setattr(answers, "FRAMES_BETWEEN_LOOKS", 3)
    results = Results(Limits())
    result = results.begin("a", "clip", len(models.classes), models.palette, 15.0)
    for frame in frames_of(models, clip):
        result.add(frame)
    result.limit = 100
    with pytest.raises(Refused, match="are full"):
        answers.write_overlay(result, models, 0, 0.5, result.folder / "overlay", lambda *at: None)
    assert list(result.folder.glob("*overlay*")) == []
    results.close()


def test_the_page_refuses_uploads_without_room(folders, clip):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    from vss_hf.demo import serving

    page = serving.create_page([str(folders[0])], device="cpu", limits=Limits(disk_bytes=200_000))
    address = serving.serve(page, wait=False)
    try:
        upload, data = f"{address}gradio_api/upload", bytes(60_000)
        assert httpx.post(upload, files={"files": ("clip.mp4", data)}).status_code == 200
        assert bytes_in(page.results.storage.uploads) == 60_000
        refused = httpx.post(upload, files={"files": ("other.mp4", data)})
        assert refused.status_code == 413 and "There is no room for more uploads on this page" in refused.text
        assert bytes_in(page.results.storage.uploads) == 60_000
        assert page.results.storage._coming == 0
        refused = httpx.post(upload, content=iter([data]), headers={"content-type": "multipart/form-data; boundary=x"})
        assert refused.status_code == 413  # it does not say its length
    finally:
        page.blocks.close()
        page.close()
    assert not page.results.storage.folder.exists()
