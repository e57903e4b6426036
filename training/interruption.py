"""Ctrl-C and SIGTERM: the step is finished, a checkpoint saved, and the user told how to go on."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


logger = logging.get_logger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # SIGTERM: what schedulers send before they take the machine away
ECHO_SECONDS = 2.0  # torchrun passes on the Ctrl-C that its processes have received from the terminal already


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request.

    Args:
        message: what was saved and how to continue.
        signal_number: which signal asked for it.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self):
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
        before = {number: signal.getsignal(number) for number in SIGNALS}

        first = 0.0

        def request(number, frame):
            nonlocal first
            if self.signal_number is not None:
                if time.monotonic() - first > ECHO_SECONDS:
                    for each, handler in before.items():
                        signal.signal(each, handler)
                    signal.raise_signal(number)
                return
            self.signal_number, first = number, time.monotonic()
            logger.warning(
                f"{signal.Signals(number).name}: the run stops after this step and saves a checkpoint (again: at once)"
            )

        for number in SIGNALS:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
