"""Several visitors at once, and those who leave: whose turn it is, what is kept for whom, and what an error says."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from demo_clip import FRAMES

from vss_hf.demo import results as results_module
from vss_hf.demo import serving
from vss_hf.demo.line import Line
from vss_hf.demo.uploads import Limits, Refused


gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")
pytest.importorskip("gradio", reason="the extra demo is not installed")
PATIENCE = 30


@pytest.fixture(scope="module")
def server(folders):
    page = serving.create_page([str(folders[0])], device="cpu", limits=Limits(waiting=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.3")  # how soon Gradio's client looks whether it was closed
        address = serving.serve(page, wait=False)
        yield page, address
    page.blocks.close()
    page.close()


@pytest.fixture
def held(server, monkeypatch):
    """The model waits before each frame until the event that this gives is set; nobody is left at the end."""
    page, _ = server
    segmenter = page.models.segmenters[0]
    quick, go = segmenter.score_maps, threading.Event()

    def slow(frames):
        assert go.wait(PATIENCE)
        return quick(frames)

    monkeypatch.setattr(segmenter, "score_maps", slow)
    yield go
    go.set()
    until(lambda: not page.line._places)
    for visitor in list(page.results._of_visitor):
        page.results.end(visitor)


def until(happened):
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def visit(server, clip):
    """A visitor who has pressed the button, and the function that tells what the page's status was, one by one."""
    client = gradio_client.Client(server[1], verbose=False)
    job = client.submit(gradio_client.handle_file(str(clip)), 0.5, api_name="/label_video")

    def said():
        values = [value for values in job.outputs() for value in values if isinstance(value, str)]
        return [value for value in values if "vss-status" in value]

    return client, job, said


def test_who_waits_is_told_at_once_and_served_in_turn(server, held, clip):
    page, _ = server
    _, first, _ = visit(server, clip)
    until(lambda: page.results._of_visitor)
    _, second, said = visit(server, clip)
    until(said)
    assert "Waiting for 1 other" in said()[0]
    _, third, said_third = visit(server, clip)
    until(said_third)
    assert "Waiting for 2 others" in said_third()[0]
    _, _, said_fourth = visit(server, clip)  # the line is full
    until(said_fourth)
    assert "3 others are waiting already; try again" in said_fourth()[0]
    held.set()
    for job in (first, second, third):
        assert f"{FRAMES} frames, " in str(job.result(PATIENCE))
    assert any("Waiting for 1 other:" in text for text in said_third())


@pytest.mark.slow
def test_nothing_is_kept_for_who_left_while_waiting(server, held, clip, monkeypatch):
    page, _ = server
    _, first, _ = visit(server, clip)
    until(lambda: page.results._of_visitor)
    client, _, said = visit(server, clip)
    until(said)
    gone = client.session_hash
    client.close()
    until(lambda: gone not in [place.visitor for place in page.line._places])
    begun = []
    begin = page.results.begin
    monkeypatch.setattr(page.results, "begin", lambda visitor, *a: begun.append(visitor) or begin(visitor, *a))
    held.set()
    assert f"{FRAMES} frames, " in str(first.result(PATIENCE))
    third, job, _ = visit(server, clip)
    job.result(PATIENCE)
    assert begun == [third.session_hash] and gone not in page.results._of_visitor


@pytest.mark.slow
def test_who_left_while_frames_came_does_not_hold_up_others(server, held, clip):
    page, _ = server
    client, _, _ = visit(server, clip)
    until(lambda: page.results._of_visitor)
    (result,) = page.results._of_visitor.values()
    client.close()
    until(lambda: not result.folder.exists())
    held.set()
    _, job, _ = visit(server, clip)
    assert f"{FRAMES} frames, " in str(job.result(PATIENCE)) and not result.folder.exists()


@pytest.mark.slow
def test_a_request_that_breaks_off_leaves_nothing(server, held, clip):
    """Without a page or Gradio's client nothing tells that somebody has left."""
    page, address = server
    with open(clip, "rb") as file:
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("clip.mp4", file)}).json()
    call = f"{address}gradio_api/call/label_video"
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, 0.5]
    number = httpx.post(call, json={"data": data}).json()["event_id"]
    with httpx.stream("GET", f"{call}/{number}", timeout=PATIENCE) as events:
        next(events.iter_lines())
    until(lambda: page.results._of_visitor)
    (result,) = page.results._of_visitor.values()
    held.set()
    until(lambda: not page.line._places)
    _, job, _ = visit(server, clip)
    assert f"{FRAMES} frames, " in str(job.result(PATIENCE))
    assert not result.folder.exists()


def test_an_error_that_nobody_foresaw(server, clip, monkeypatch, caplog):
    page, _ = server
    segmenter = page.models.segmenters[0]
    before = set(page.results.storage.results.iterdir())

    def broken(frames):
        raise KeyError("/secret/place/of/the/owner.txt")

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "score_maps", broken)
        client, job, said = visit(server, clip)
        job.result(PATIENCE)
    last = said()[-1]
    assert "Something went wrong here (KeyError)" in last and "\n" not in last and "vss-error" in last
    assert "secret" not in last and "Traceback" not in last and "/" not in last.replace("</p>", "")
    (record,) = [record for record in caplog.records if record.exc_info and record.name.startswith("vss_hf")]
    assert "owner.txt" in str(record.exc_info[1]) and record.exc_info[2].tb_next is not None
    assert client.session_hash not in page.results._of_visitor
    assert set(page.results.storage.results.iterdir()) == before
    _, job, _ = visit(server, clip)
    assert f"{FRAMES} frames, " in str(job.result(PATIENCE))


def test_errors_of_files_do_not_name_folders(server, tmp_path, monkeypatch):
    from vss_hf.demo.page import told

    path = str(tmp_path / "a folder" / "clip.mp4")
    error = OSError(f"{path}: frame 3 is damaged,\n see /etc/other place, 3.5 frames/s and 1/2")
    assert told(error, path) == "clip.mp4: frame 3 is damaged, see other place, 3.5 frames/s and 1/2"
    assert told(Refused("it is longer than 3 frames"), path) == "It is longer than 3 frames"


def test_idle_results_go_without_anybody_coming(monkeypatch):
    monkeypatch.setattr(results_module, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(results_module, "IDLE_SECONDS", 0.1)
    others = set(threading.enumerate())
    results = results_module.Results(Limits())
    (sweeper,) = set(threading.enumerate()) - others
    idle = results.begin("a", "clip", 2, [(0, 0, 0), (9, 9, 9)], None)
    until(lambda: not idle.folder.exists())
    assert sweeper.daemon
    results.close()
    until(lambda: not sweeper.is_alive())


def test_the_line():
    line, served = Line(30), []

    def visitor(number):
        with line.place(str(number)) as place:
            list(line.wait(place))
            if not place.left:
                served.append(number)
                time.sleep(0.01)
                assert len(served) == len(set(served))

    with ThreadPoolExecutor(8) as pool, line.place("first"):
        jobs = []
        for number in range(8):
            jobs.append(pool.submit(visitor, number))
            until(lambda number=number: len(line._places) == number + 2)
        line.leave("3")
        until(jobs[3].done)
    for job in jobs:
        job.result()
    assert served == [0, 1, 2, 4, 5, 6, 7] and line._places == []
