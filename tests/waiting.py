"""Waiting for a condition, for as long as the slowest machine may need."""

import asyncio
import time
from collections.abc import Callable

LIMIT_SECONDS = 60.0
"""What a wait may take, at most: a test that meets it has failed, however slow its machine."""

PAUSE_SECONDS = 0.02
"""Between two looks from outside a process, which take of the time that is waited for."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait on an event loop until `condition` holds; raises TimeoutError."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - threads and timers change it
            await asyncio.sleep(0.001)


def wait_until(
    condition: Callable[[], bool], told: Callable[[], str] = str, limit: float = LIMIT_SECONDS
) -> None:
    """Wait until `condition` holds; where it does not come to that, fail with what is `told`."""
    give_up = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < give_up, told()
        time.sleep(PAUSE_SECONDS)
