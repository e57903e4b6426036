"""Whose turn it is: the models have one memory of a video, so one visitor at a time is served."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .uploads import Refused


SECONDS_BETWEEN_LOOKS = 1.0  # how soon somebody who waits and has gone is noticed


class Place:
    """A visitor's place in the line.

    Args:
        visitor: who stands there.

    Attributes:
        left: the visitor has gone, or has pressed Stop.
    """

    def __init__(self, visitor: str):
        self.visitor, self.left = visitor, False


class Line:
    """Visitors in the order in which they came; the first is served.

    Args:
        longest: places behind the first.
    """

    def __init__(self, longest: int):
        self.longest = longest
        self._places: list[Place] = []
        self._moved = threading.Condition()

    @contextmanager
    def place(self, visitor: str) -> Iterator[Place]:
        """A place at the end of the line, given up at the end of the block.

        Raises:
            Refused: the line is as long as it may be.
        """
        with self._moved:
            if len(self._places) > self.longest:
                raise Refused(f"{others(len(self._places))} are waiting already; try again in a while")
            place = Place(visitor)
            self._places.append(place)
        try:
            yield place
        finally:
            with self._moved:
                self._places.remove(place)
                self._moved.notify_all()

    def wait(self, place: Place) -> Iterator[int]:
        """Wait until a place is the first, or left; the number of others before it, at once and again and again."""
        while (before := self._before(place)) and not place.left:
            yield before
            with self._moved:
                if self._before(place) == before and not place.left:
                    self._moved.wait(SECONDS_BETWEEN_LOOKS)

    def _before(self, place: Place) -> int:
        with self._moved:
            return self._places.index(place)

    def leave(self, visitor: str) -> None:
        """A visitor does not want to wait any more."""
        with self._moved:
            for place in self._places:
                if place.visitor == visitor:
                    place.left = True
            self._moved.notify_all()


def others(count: int) -> str:
    """How many people, in words."""
    return "1 other" if count == 1 else f"{count} others"
