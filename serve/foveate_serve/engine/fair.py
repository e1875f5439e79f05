"""A thread pool that several users share fairly, by processor time."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from foveate_serve.log_context import CLIENT
from foveate_serve.niceness import DECODER, raise_niceness

T = TypeVar("T")

_AHEAD = 1
"""Work queued beyond the number of threads, so that no thread waits for the event loop."""


class FairThreads:
    """Runs work on `threads` threads. Used from one event loop.

    Of several users with queued work, the one that has used the least of the threads'
    time is next (start-time fair queuing, Goyal et al. 1996): many or long pieces of
    one user's work do not delay another's. A user gets no credit for idle time. The
    connections whose requests wait for one user take turns.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=partial(raise_niceness, DECODER)
        )
        self._free = threads + _AHEAD
        # By user and connection; the connection whose turn is next comes first.
        self._waiting: defaultdict[str, dict[str, deque[asyncio.Future[None]]]] = defaultdict(dict)
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
            await self._wait_for_thread(user)
        self._clock = max(self._clock, self._used[user])
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work_on_thread() -> None:
            result, error, started = None, None, time.perf_counter()
            if not future.cancelled():
                try:
                    result = work()
                except BaseException as caught:  # noqa: BLE001 - the caller gets it
                    error = caught
            seconds = time.perf_counter() - started
            loop.call_soon_threadsafe(self._finish, user, seconds, future, result, error)

        self._threads.submit(work_on_thread)
        return await future

    def close(self) -> None:
        """Finish the work that runs, and end the threads."""
        self._threads.shutdown()

    async def _wait_for_thread(self, user: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[user].setdefault(CLIENT.get()(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release_thread()
            raise

    def _release_thread(self) -> None:
        """Give a thread that has become free to the user that has used the least time."""
        while self._waiting:
            user = min(self._waiting, key=lambda user: self._used[user])
            clients = self._waiting[user]
            client = next(iter(clients))
            turns = clients.pop(client)
            turn = turns.popleft()
            if turns:
                clients[client] = turns
            if not clients:
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
        self._release_thread()
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
