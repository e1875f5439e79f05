"""Ends connections that are old or idle, or whose client does not answer."""

import asyncio
import random
from collections.abc import Callable

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.http2.connection import Connection

JITTER = 0.1
"""The largest random change of an age, as a share of it: clients do not all reconnect at once."""


class Lifetime:
    """The timers of one connection, which run until `stop`.

    Calls do not restart them. A timer that is due computes what is left from the times that
    the connection keeps, and waits for that.
    """

    def __init__(self, connection: Connection, settings: TransportSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._after(settings.max_connection_age * random.uniform(1 - JITTER, 1 + JITTER), self._age)  # noqa: S311
        self._after(settings.max_connection_idle, self._idle)
        self._after(settings.keepalive_time, self._ask)

    def stop(self) -> None:
        """End the timers: the connection is closed."""
        for timer in self._timers.values():
            timer.cancel()

    def _after(self, seconds: float, due: Callable[[], None]) -> None:
        """Call a function after some seconds; 0 means never."""
        if seconds:
            self._timers[due] = self._loop.call_later(seconds, due)

    def _age(self) -> None:
        self._connection.go_away()
        self._after(self._settings.max_connection_age_grace, self._connection.cut_off)

    def _idle(self) -> None:
        idle_at = self._connection.idle_since + self._settings.max_connection_idle
        if self._connection.streams:
            self._after(self._settings.max_connection_idle, self._idle)
        elif self._loop.time() < idle_at:
            self._after(idle_at - self._loop.time(), self._idle)
        else:
            self._connection.go_away()

    def _ask(self) -> None:
        silent_at = self._connection.received_at + self._settings.keepalive_time
        if self._loop.time() < silent_at:
            self._after(silent_at - self._loop.time(), self._ask)
        else:
            self._connection.ping()
            self._after(self._settings.keepalive_timeout, self._answered)

    def _answered(self) -> None:
        if self._loop.time() - self._connection.received_at >= self._settings.keepalive_timeout:
            self._connection.abort()
        else:
            self._ask()
