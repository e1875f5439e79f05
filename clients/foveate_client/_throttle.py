"""Client-side throttling: fewer calls are sent to a server that refuses them.

A refusal costs the server time as well. Most of the calls that it would refuse are
therefore not sent, and the server has that time for the others.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """How many calls are sent to a server that refuses them because it is overloaded.

    As long as the server accepts at least one call in `headroom`, every call is
    sent. Otherwise some calls fail in the client, at random, so that about `headroom`
    are sent for each that is accepted. Calls of more than `memory` seconds ago count
    little. Raises ValueError where a number is out of range.
    """

    headroom: float = 2.0
    memory: float = 10.0

    def __post_init__(self) -> None:
        if not 1 < self.headroom < math.inf:
            raise ValueError(f"headroom must be above 1, not {self.headroom:g}")
        if not 0 < self.memory < math.inf:
            raise ValueError(f"memory must be above 0, not {self.memory:g}")


class Throttle:
    """Decides for each call whether it is sent. Several threads may use it.

    Adaptive throttling (Beyer et al., Site Reliability Engineering, 2016,
    chapter 21): of `requests` calls the server accepted `accepts`, and the next
    call is held back with the probability
    max(0, (requests - headroom accepts) / (requests + 1)). Both counts decay by
    a factor e in `memory` seconds.
    """

    def __init__(
        self,
        throttling: Throttling,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._throttling = throttling
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._requests = 0.0
        self._accepts = 0.0
        self._faded = clock()

    def admits(self) -> bool:
        """Count a call, and return whether it may be sent."""
        with self._lock:
            self._fade()
            excess = self._requests - self._throttling.headroom * self._accepts
            held_back = self._chance() < excess / (self._requests + 1)
            self._requests += 1
            return not held_back

    def accepted(self) -> None:
        """Count a call that was sent and not refused."""
        with self._lock:
            self._fade()
            self._accepts += 1

    def _fade(self) -> None:
        now = self._clock()
        left = math.exp((self._faded - now) / self._throttling.memory)
        self._requests *= left
        self._accepts *= left
        self._faded = now
