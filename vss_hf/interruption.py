"""Stopping on request (Ctrl-C, a scheduler's signal): the work at hand is finished first."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


ECHO_SECONDS = 2.0  # torchrun passes on the Ctrl-C that its processes have received from the terminal already


class StopRequest:
    """Whether somebody asked to stop.

    Args:
        signals: those that ask.
        announce: called with the number of the first one.
    """

    def __init__(self, signals: Sequence[int], announce: Callable[[int], None] | None = None):
        self.signals, self.announce = signals, announce
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context a signal only sets the request; a second one, a while later, acts as it always does."""
        self.signal_number = None
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        handlers = {number: signal.getsignal(number) for number in self.signals}
        # A shell starts background jobs with Ctrl-C ignored; None: a handler that is not Python's.
        before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
        first = 0.0

        def request(number, frame):
            nonlocal first
            if self.signal_number is None:
                self.signal_number, first = number, time.monotonic()
                if self.announce:
                    self.announce(number)
            elif time.monotonic() - first > ECHO_SECONDS:
                restore()
                signal.raise_signal(number)

        def restore():
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, request)
        try:
            yield
        finally:
            restore()
