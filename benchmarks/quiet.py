"""Keeps the rounds of a benchmark in which the machine did nothing else.

A program that takes one of two cores slows the engines and precisions by
different amounts, so that the ratio of two of them can come out anywhere:
EfficientNet-Lite0 in OpenVINO was 1.4 to 3 times as fast in int8 as in fp32 while
something else ran, and 2.2 to 2.3 times in seven rounds in a row in which nothing did.
Taking the fastest runs does not help where the disturbance outlasts a round.
So the processor time that others took is read from the system, and a round in
which they had more than `LARGEST_SHARE` of a core is played again. The rule
knows nothing of the result.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

T = TypeVar("T")

LARGEST_SHARE = 0.1
"""Of one core; a system at rest takes some hundredths."""

TRIES = 6
"""Rounds that are played at most, for each that is wanted."""


class BusyError(Exception):
    """The machine did other work in nearly every round."""


@dataclass(frozen=True)
class Rounds(Generic[T]):
    """What the undisturbed rounds gave, and how many others were thrown away."""

    results: list[T]
    disturbed: int


def play(one: Callable[[], T], processes: Sequence[int], wanted: int) -> Rounds[T]:
    """Call `one` until `wanted` calls were undisturbed, and return what these gave.

    Args:
        one: plays a round; some tenths of a second at least, as the system
            counts processor time in hundredths.
        processes: the ids of the processes whose work it is.
        wanted: how many rounds to keep.

    Raises:
        BusyError: `TRIES` times as many rounds did not hold them.
    """
    kept: list[T] = []
    owners = [psutil.Process(), *map(psutil.Process, processes)]
    for number in range(TRIES * wanted):
        began, before = time.perf_counter(), _others(owners)
        result = one()
        if _others(owners) - before <= LARGEST_SHARE * (time.perf_counter() - began):
            kept.append(result)
        if len(kept) == wanted:
            return Rounds(kept, disturbed=number + 1 - wanted)
    raise BusyError(f"other programs ran in all but {len(kept)} of {TRIES * wanted} rounds")


def _others(owners: Sequence[psutil.Process]) -> float:
    """Return the processor seconds of everything but `owners` so far."""
    total = psutil.cpu_times()
    own = [process.cpu_times() for process in owners]
    return float(
        sum(total) - total.idle - total.iowait - total.guest - total.guest_nice
        - sum(times.user + times.system for times in own)
    )  # fmt: skip
