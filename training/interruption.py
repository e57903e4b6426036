"""Ctrl-C and SIGTERM: the step is finished, a checkpoint saved, and the user told how to go on."""

import signal

from transformers.utils import logging

from vss_hf.interruption import StopRequest


logger = logging.get_logger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request.

    Args:
        message: what was saved and how to continue.
        signal_number: which signal asked for it.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def stop_request() -> StopRequest:
    """Ctrl-C, or SIGTERM: what schedulers send before they take the machine away."""

    def announce(number: int) -> None:
        logger.warning(
            f"{signal.Signals(number).name}: the run stops after this step and saves a checkpoint (again: at once)"
        )

    return StopRequest((signal.SIGINT, signal.SIGTERM), announce)
