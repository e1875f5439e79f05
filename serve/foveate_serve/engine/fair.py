"""Threads shared by several users, of which none gets more of their time than another."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from foveate_serve.niceness import DECODER, step_back

T = TypeVar("T")

_AHEAD = 1
"""Pieces of work started beyond the threads, so that no thread waits for the event loop."""


class FairThreads:
    """Runs work on `threads` threads. Used from one event loop.

    Where work of several users waits, the next is that of the user who has had
    the least of the threads' time so far (start-time fair queuing, Goyal et al.
    1996): many pieces of one user's work, or long ones, do not hold up another's.
    A user who comes back is not owed the time of the absence.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=partial(step_back, DECODER)
        )
        self._free = threads + _AHEAD
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)
        self._used: defaultdict[str, float] = defaultdict(float)
        self._clock = 0.0

    async def run(self, user: str, work: Callable[[], T]) -> T:
        """Run `work` on a thread and return its result, or raise its error.

        Cancelling the call drops work that has not been started.
        """
        self._used[user] = max(self._used[user], self._clock)
        if self._free:
            self._free -= 1
        else:
            await self._turn(user)
        self._clock = max(self._clock, self._used[user])
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            result, error, started = None, None, time.perf_counter()
            if not future.cancelled():
                try:
                    result = work()
                except BaseException as caught:  # noqa: BLE001 - the caller gets it
                    error = caught
            seconds = time.perf_counter() - started
            loop.call_soon_threadsafe(self._finish, user, seconds, future, result, error)

        self._threads.submit(run)
        return await future

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._threads.shutdown()

    async def _turn(self, user: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[user].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._next()
            raise

    def _next(self) -> None:
        """Give a thread that has become free to the user who has had the least."""
        while self._waiting:
            user = min(self._waiting, key=lambda user: self._used[user])
            turn = self._waiting[user].popleft()
            if not self._waiting[user]:
                del self._waiting[user]
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1

    def _finish(
        self,
        user: str,
        seconds: float,
        future: asyncio.Future[Any],
        result: object,
        error: BaseException | None,
    ) -> None:
        self._used[user] += seconds
        self._next()
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
