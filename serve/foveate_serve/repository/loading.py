"""Loads on threads of their own, which are given up where they take too long."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class LoadTimeoutError(Exception):
    """A load takes longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it has not loaded within {seconds:g} s")


class LoadEndedError(Exception):
    """A load ended by what is no error, such as SystemExit, and would end the event loop."""


class Loads:
    """Runs loads, each on a thread of its own, for at most `limit` seconds; 0 is for ever.

    A thread in an engine cannot be stopped. A load that is given up goes on,
    and what it brings after all is handed to `discard`. Used from one event
    loop.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit or None
        self._under_way: set[asyncio.Future[Any]] = set()
        self._given_up: set[asyncio.Future[Any]] = set()

    @property
    def stuck(self) -> bool:
        """Whether a load that was given up has not ended."""
        return bool(self._given_up)

    async def run(self, load: Callable[[], T], discard: Callable[[T], None]) -> T:
        """Return what `load` returns, or raise its error.

        Raises LoadTimeoutError, and LoadEndedError where it raised what is no Exception.
        A load whose caller is cancelled goes on as well.
        """
        ended = self._start(load)
        try:
            await asyncio.wait((ended,), timeout=self._limit)
            if ended.done():
                return ended.result()
        except asyncio.CancelledError:
            ended.add_done_callback(partial(_discard, discard))
            raise
        self._given_up.add(ended)
        ended.add_done_callback(partial(_discard, discard))
        raise LoadTimeoutError(self._limit or 0.0)

    async def finish(self) -> None:
        """Wait for the loads under way, as long as a load may take; the others are given up."""
        waiting = self._under_way - self._given_up
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self._limit)
            self._given_up |= late

    def _start(self, load: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()
        self._under_way.add(ended)
        ended.add_done_callback(self._under_way.discard)
        ended.add_done_callback(self._given_up.discard)

        def work() -> None:
            try:
                finish = partial(ended.set_result, load())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                finish = partial(ended.set_exception, _settable(error))
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:
                # The server did not wait for it, and nobody is left to want it.
                if not loop.is_closed():
                    raise

        thread = threading.Thread(target=work, name="foveate-load", daemon=True)
        # It has only to return, and nobody is to find it after its load.
        ended.add_done_callback(lambda _: thread.join())
        thread.start()
        return ended


def _settable(error: BaseException) -> Exception:
    """Return an error as a future takes it, and as an event loop survives it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    ended = LoadEndedError(f"it ended by {type(error).__name__}")
    ended.__cause__ = error
    return ended


def _discard(discard: Callable[[T], None], ended: asyncio.Future[T]) -> None:
    # An error that everybody has left behind is no news.
    if ended.exception() is None:
        discard(ended.result())
