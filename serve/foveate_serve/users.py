"""Those who use a loaded model, and those who wait for its engine."""

import asyncio
from contextlib import AbstractContextManager
from types import TracebackType

from foveate_serve.errors import EngineHungError

# Classes, as every request enters both: a generator takes four times as long.


class Users(AbstractContextManager[None]):
    """Counts those who are within a block of it."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def gone(self) -> None:
        """Wait until there are none."""
        await self._none.wait()


class EngineWait(AbstractContextManager[None]):
    """A task's block in which it is among the `waiting`.

    Raises EngineHungError where it was cancelled and put among the `given_up`.
    """

    def __init__(
        self,
        task: asyncio.Task[object],
        waiting: set[asyncio.Task[object]],
        given_up: set[asyncio.Task[object]],
    ) -> None:
        self._task = task
        self._waiting = waiting
        self._given_up = given_up
        self._cancelling = task.cancelling()

    def __enter__(self) -> None:
        self._waiting.add(self._task)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        given_up = self._task in self._given_up
        self._waiting.discard(self._task)
        self._given_up.discard(self._task)
        # As in asyncio.timeout: the caller may have left at the same time.
        if (
            given_up
            and isinstance(error, asyncio.CancelledError)
            and self._task.uncancel() <= self._cancelling
        ):
            raise EngineHungError from None
