"""A use count, so that a model is released only when it is not in use."""

import asyncio
from contextlib import AbstractContextManager

# A class, because every request enters it: a generator takes four times as long.


class Users(AbstractContextManager[None]):
    """Counts the `with` blocks of it that are active."""

    def __init__(self) -> None:
        self._count = 0
        self._none: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count and self._none is not None:
            self._none.set()

    @property
    def count(self) -> int:
        """How many blocks are active."""
        return self._count

    async def wait_until_none(self) -> None:
        """Wait until no block is active."""
        while self._count:
            self._none = asyncio.Event()
            await self._none.wait()
