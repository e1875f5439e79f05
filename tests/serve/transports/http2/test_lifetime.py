"""The ages of connections differ."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.http2.lifetime import Lifetime


async def test_connections_that_came_together_do_not_end_together() -> None:
    connection: Any = SimpleNamespace()
    now = asyncio.get_running_loop().time()
    lifetimes = [
        Lifetime(connection, TransportSettings(max_connection_age=1000)) for _ in range(50)
    ]
    ages = [lifetime._timers[lifetime._age].when() - now for lifetime in lifetimes]
    assert min(ages) >= 900
    assert max(ages) <= 1100 + 60  # of a machine that is slow here
    assert max(ages) - min(ages) > 50
    for lifetime in lifetimes:
        lifetime.stop()


@pytest.mark.parametrize("name", ["max_connection_age", "max_connection_idle", "keepalive_time"])
async def test_nothing_is_timed_that_is_not_wanted(name: str) -> None:
    connection: Any = SimpleNamespace()
    names = ("max_connection_age", "max_connection_idle", "keepalive_time")
    nothing = dict.fromkeys(names, 0.0)
    lifetime = Lifetime(connection, TransportSettings(**{**nothing, name: 5.0}))
    assert len(lifetime._timers) == 1
    lifetime.stop()
