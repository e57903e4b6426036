"""Real signals to this process: the first one asks, an echo does nothing, a later one acts as always."""

import signal
import threading

import pytest

from vss_hf import interruption
from vss_hf.interruption import StopRequest


@pytest.fixture(autouse=True)
def handler():
    """What was there before is there again, whatever a test does."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_asks_and_its_echo_does_nothing(handler):
    told = []
    stop = StopRequest([signal.SIGINT], told.append)
    with stop.listening():
        assert not stop
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop and stop.signal_number == signal.SIGINT
    assert told == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is handler
    with stop.listening():
        assert not stop  # another run


def test_a_later_signal_acts_as_always(monkeypatch):
    monkeypatch.setattr(interruption, "ECHO_SECONDS", -1.0)
    caught = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    with StopRequest([signal.SIGINT]).listening():
        signal.raise_signal(signal.SIGINT)
        assert caught == []
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]


def test_what_is_ignored_stays_ignored():
    """As for a background job of a shell, which the terminal's Ctrl-C must not end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest([signal.SIGINT])
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert not stop
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_nothing_listens(handler):
    seen = []

    def work():
        with StopRequest([signal.SIGINT]).listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handler]
