"""The cores of this process, and threads that keep to some of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

Cores = frozenset[int]
"""Cores by their numbers; none means those of the process, whichever they are."""

ANY_CORE: Cores = frozenset()

CAN_PIN = hasattr(os, "sched_setaffinity")
"""Whether this system lets a thread choose its cores: Linux does."""


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if CAN_PIN else os.cpu_count() or 1


def deal_cores(instances: int) -> tuple[Cores, ...]:
    """Deal the cores of this process out to so many instances, in blocks of one size.

    Neighbours share caches, hence blocks. With more instances than cores,
    several share a core.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // instances)
    return tuple(
        frozenset(cores[(index * share + offset) % len(cores)] for offset in range(share))
        for index in range(instances)
    )


@contextmanager
def pinned(cores: Cores) -> Iterator[None]:
    """Keep the calling thread, and those it starts in the block, to `cores`."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
