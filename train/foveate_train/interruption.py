"""Ctrl-C as a wish to stop at the next step, so that what was learnt can be kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType


@contextmanager
def interruption() -> Iterator[Event]:
    """Give an event that the first Ctrl-C sets; the second one interrupts as usual.

    To be used in the main thread, where Python delivers signals.
    """
    wanted = Event()
    usual = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: FrameType | None) -> None:
        wanted.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, ask)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, usual)
