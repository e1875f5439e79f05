"""The memory of the pictures that are decoded at one time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from foveate_runtime.cores import count_cores

SMALL_BYTES = 8 << 20
"""A picture of so many bytes or fewer is not counted."""

_BYTES_A_CORE = 96 << 20


class Room:
    """Memory for pictures, which wait until there is room for them. Used from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes until the context ends; wait while others leave too few.

        A picture that is larger than the room waits until it is alone.
        """
        if size <= SMALL_BYTES:
            yield
            return
        with self._changed:
            while self._used and self._used + size > self._most:
                self._changed.wait()
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


ROOM = Room(_BYTES_A_CORE * count_cores())
"""The room of this process: on two cores for one picture of 50 million pixels at a time."""
