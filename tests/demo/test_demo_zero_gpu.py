"""Hardware that Spaces share (ZeroGPU) labels in a process of its own, with pickled arguments and frames."""

import multiprocessing
import pickle
from types import SimpleNamespace

import pytest
import torch
from demo_clip import FRAMES

from vss_hf.demo.labelling import labelled_frames
from vss_hf.demo.uploads import Limits, Refused, open_upload


pytest.importorskip("gradio", reason="the extra demo is not installed")


def in_another_process(labelled):
    """A stand-in for `spaces.GPU`; `labelled` counts the frames of the other process.

    As there, the process goes on by itself: whoever stops reading waits for its end.
    """

    def wrap(function):
        context = multiprocessing.get_context("fork")

        def work(arguments, answers):
            torch.set_num_threads(1)  # threads do not come along
            try:
                for value in function(*pickle.loads(arguments)):
                    labelled.value += 1
                    answers.put(("value", pickle.dumps(value)))
                answers.put(("end", None))
            except Exception as error:
                answers.put(("error", pickle.dumps(error)))

        def outside(*arguments):
            answers = context.SimpleQueue()
            process = context.Process(target=work, args=(pickle.dumps(arguments), answers), daemon=True)
            process.start()
            kind = "value"
            try:
                while kind == "value":
                    kind, data = answers.get()
                    if kind == "value":
                        yield pickle.loads(data)
                if kind == "error":
                    raise pickle.loads(data)
            finally:
                while kind == "value":
                    kind, _ = answers.get()
                process.join()

        return outside

    return wrap


@pytest.fixture
def labelled():
    return multiprocessing.get_context("fork").Value("i", 0)


@pytest.fixture
def page(models, labelled):
    from vss_hf.demo.page import Page

    made = Page(models, Limits(), gpu=in_another_process(labelled))
    yield made
    made.close()


VISITOR = SimpleNamespace(session_hash="a")


def test_labels_are_the_same(page, models, clip, labelled):
    *_, last = page.label(str(clip), 0.5, VISITOR)
    assert f"{FRAMES} frames, " in last[page.parts.status] and labelled.value == FRAMES
    result = page.results.of("a")
    for number, frame in enumerate(labelled_frames(models, open_upload(clip, Limits()), Limits())):
        for model, labels in enumerate(frame.labels):
            assert (result.labels(number, model) == labels).all()
            assert result.scores(number, model, 3, 4) is not None


def test_stopping_reaches_the_other_process(page, clip, labelled, monkeypatch):
    stopped = multiprocessing.get_context("fork").Event()
    begin_result = page.results.begin

    def begin(*arguments):
        """A result that is stopped when it has two frames."""
        result = begin_result(*arguments)
        keep = result.add

        def stop_after_two(frame):
            keep(frame)
            if len(result.frames) == 2:
                page.stop(VISITOR)
                stopped.set()

        monkeypatch.setattr(result, "add", stop_after_two)
        return result

    monkeypatch.setattr(page.results, "begin", begin)
    segmenter = page.models.segmenters[0]
    quick = segmenter.score_maps

    def not_before_it_was_stopped(frames):
        assert labelled.value < 2 or stopped.wait(30)
        return quick(frames)

    monkeypatch.setattr(segmenter, "score_maps", not_before_it_was_stopped)
    *_, last = page.label(str(clip), 0.5, VISITOR)
    assert f"Stopped after 2 frames of {FRAMES}" in last[page.parts.status]
    assert labelled.value in (2, 3)  # at most the frame at hand came to its end


def test_what_is_refused_there_is_said_here(page, clip, tmp_path, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes())
    monkeypatch.setattr("vss_hf.demo.labelling.check_size", refuse)
    *_, last = page.label(str(broken), 0.5, VISITOR)
    assert "broken.mp4 is too large there" in last[page.parts.status] and page.results.of("a") is None


def refuse(name, height, width, limits):
    raise Refused("broken.mp4 is too large there")
