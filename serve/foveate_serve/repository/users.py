"""Those who use a loaded model."""

import asyncio
from contextlib import AbstractContextManager

# A class, as every request enters it: a generator takes four times as long.


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
