"""Several instances of one model: runners beside each other, each on cores of its own."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from foveate_serve.backends.base import Runner
from foveate_serve.bundle.bundle import Bundle

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


def make_instances(
    make_runner: Callable[[Bundle], Runner], bundle: Bundle, cores: Sequence[Cores]
) -> list[Runner]:
    """Load a bundle once for each entry of `cores`, and return the runners.

    An engine starts its threads while it loads, and they inherit the cores of
    the thread that starts them. Raises BackendError; then no runner stays open.
    """
    with ExitStack() as opened:
        runners = []
        for own in cores:
            with pinned(own):
                runners.append(opened.enter_context(make_runner(bundle)))
        opened.pop_all()
        return runners
