"""A thread that stays a few items ahead of whoever uses them."""

import atexit
import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar


T = TypeVar("T")
PATIENCE = 5.0  # seconds to wait, when the consumer stops early, for a read that is under way


def read_ahead(items: Generator[T, None, None], depth: int, *, newest_only: bool = False) -> Generator[T, None, None]:
    """The items of a generator, in their order, made in a thread of their own.

    The thread ends, and closes the generator, when the items end, when one raises, or when the consumer stops early.

    Args:
        items: what to read; only this thread may use it.
        depth: how many items may wait for the consumer, beside the one that is being made.
        newest_only: whether an item that nobody fetched makes room for a new one, instead of holding it up.

    Raises:
        Whatever `items` raises, after the items before it.
    """
    waiting: deque[T] = deque()
    changed = threading.Condition()
    ended = stopped = False
    failure: BaseException | None = None

    def read() -> None:
        nonlocal ended, failure
        try:
            with closing(items):
                for item in items:
                    with changed:
                        if newest_only and len(waiting) == depth:
                            waiting.popleft()
                        changed.wait_for(lambda: stopped or len(waiting) < depth)
                        if stopped:
                            return
                        waiting.append(item)
                        changed.notify_all()
        except BaseException as error:  # raised again at the consumer's
            failure = error
        finally:
            with changed:
                ended = True
                changed.notify_all()

    thread = threading.Thread(target=read, name="read_ahead", daemon=True)

    def end() -> None:
        nonlocal stopped
        with changed:
            stopped = True
            changed.notify_all()
        thread.join(PATIENCE)

    thread.start()
    atexit.register(end)  # a consumer may be forgotten, and Python aborts when such a thread outlives it
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                item = waiting.popleft()
                changed.notify_all()
            yield item
        if failure is not None:
            raise failure
    finally:
        atexit.unregister(end)
        end()
