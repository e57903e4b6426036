"""The thread that reads ahead: nothing lost, nothing out of order, and it ends whatever happens."""

import subprocess
import sys
import threading
import time

import pytest

from vss_hf.inference.read_ahead import read_ahead


class Source:
    """Counts, and knows how far it was read and whether it was closed."""

    def __init__(self, length=10**9, raising=None, seconds=0.0):
        self.length, self.raising, self.seconds = length, raising, seconds
        self.made, self.closed, self.thread = 0, False, None

    def items(self):
        self.thread = threading.current_thread()
        try:
            for number in range(self.length):
                time.sleep(self.seconds)
                self.made += 1
                yield number
            if self.raising:
                raise self.raising
        finally:
            self.closed = True

    def check_over(self):
        """What must be so as soon as the consumer is done."""
        assert self.closed and not self.thread.is_alive()
        assert self.thread is not threading.current_thread()


@pytest.mark.parametrize("slow", ["neither", "consumer", "source"])
@pytest.mark.parametrize("depth", [1, 3])
def test_everything_comes_in_order_and_no_more_is_held_than_allowed(depth, slow):
    source = Source(40, seconds=0.002 if slow == "source" else 0)
    got, most = [], 0
    for item in read_ahead(source.items(), depth):
        time.sleep(0.002 if slow == "consumer" else 0)
        got.append(item)
        most = max(most, source.made - len(got))
    assert got == list(range(40))
    assert most <= depth + 1  # those that wait, and the one that is being handed over
    if slow == "consumer":
        assert most == depth + 1  # it does run ahead
    source.check_over()


@pytest.mark.parametrize("how", ["break", "close", "raise", "forget"])
def test_a_consumer_that_stops_early_ends_the_thread(how):
    source = Source()
    items = read_ahead(source.items(), 2)
    assert [next(items), next(items)] == [0, 1]
    if how == "break":
        for _ in items:
            break
        items.close()
    elif how == "close":
        items.close()
    elif how == "forget":
        del items
    else:
        with pytest.raises(KeyError):
            with_error(items)
    source.check_over()
    assert source.made <= 6


def with_error(items):
    try:
        for item in items:
            raise KeyError(item)
    finally:
        items.close()


@pytest.mark.parametrize("error", [ValueError("frame 7 is broken"), KeyboardInterrupt(), MemoryError("no room")])
def test_an_error_comes_after_the_items_before_it(error):
    source = Source(7, raising=error)
    got = []
    with pytest.raises(type(error)) as caught:
        for item in read_ahead(source.items(), 2):
            time.sleep(0.001)
            got.append(item)
    assert caught.value is error and got == list(range(7))
    assert any(entry.name == "items" for entry in caught.traceback)  # it shows where it arose
    source.check_over()


def test_python_ends_while_the_thread_works():
    """A camera that nobody closed: without care, Python aborts where such a thread is inside torch."""
    program = (
        "import sys, itertools, torch\n"
        "from vss_hf.inference.read_ahead import read_ahead\n"
        "items = (torch.ones(200, 200) @ torch.ones(200, 200) for _ in itertools.count())\n"
        "sys.kept = read_ahead(items, 1, newest_only=True)\n"
        "next(sys.kept)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_empty_source():
    source = Source(0)
    assert list(read_ahead(source.items(), 2)) == []
    source.check_over()


def test_a_live_source_is_not_held_up():
    """A slow consumer sees what is new: it falls behind by what it did meanwhile, not by everything."""
    source = Source(100, seconds=0.002)
    got = []
    for item in read_ahead(source.items(), 1, newest_only=True):
        assert source.made - 1 - item <= 2  # what came is hardly old
        got.append(item)
        time.sleep(0.02)
    assert got == sorted(set(got)) and 3 <= len(got) < 40
    source.check_over()


def test_nobody_waits_for_a_source_that_hangs(monkeypatch):
    monkeypatch.setattr("vss_hf.inference.read_ahead.PATIENCE", 0.05)
    release = threading.Event()

    def hanging():
        yield 1
        release.wait(30)

    items = read_ahead(hanging(), 1)
    assert next(items) == 1
    began = time.perf_counter()
    items.close()
    assert time.perf_counter() - began < 5
    release.set()
