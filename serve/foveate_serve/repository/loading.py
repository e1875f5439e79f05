"""Loads on threads of their own, with a timeout."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class LoadTimeoutError(Exception):
    """A load has passed its timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it has not loaded within {seconds:g} s")


class LoadEndedError(Exception):
    """A load raised something like SystemExit, which would end the event loop."""


class Loads:
    """Runs loads, each on a thread of its own, with a timeout of `limit` seconds; 0 is none.

    A thread in an engine cannot be stopped: a load continues after its timeout, and its
    late result is passed to `discard`. Used from one event loop.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit or None
        self._under_way: set[asyncio.Future[Any]] = set()
        self._given_up: set[asyncio.Future[Any]] = set()

    @property
    def stuck(self) -> bool:
        """Whether a load still runs after its timeout."""
        return bool(self._given_up)

    async def load(self, load: Callable[[], T], discard: Callable[[T], None]) -> T:
        """Return what `load` returns, or raise its error.

        Raises LoadTimeoutError, and LoadEndedError where `load` raised anything but an
        Exception. A load whose caller is cancelled also continues.
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
        """Wait for the running loads up to the timeout, and no longer for the rest."""
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
                # The loop was closed without waiting for this load.
                if not loop.is_closed():
                    raise

        thread = threading.Thread(target=work, name="foveate-load", daemon=True)
        # The thread has nothing left to do but return.
        ended.add_done_callback(lambda _: thread.join())
        thread.start()
        return ended


def _settable(error: BaseException) -> Exception:
    """Return an error that a future accepts and that does not end the event loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    ended = LoadEndedError(f"it ended by {type(error).__name__}")
    ended.__cause__ = error
    return ended


def _discard(discard: Callable[[T], None], ended: asyncio.Future[T]) -> None:
    # `exception` also marks an error as seen, or asyncio would log it.
    if ended.exception() is None:
        discard(ended.result())
