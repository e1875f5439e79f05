"""The highest rate whose latency stays within an objective."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from foveate_client.load.recorder import Measurement

PRECISION = 0.05
_HIGHEST = 1e6
_LOWEST = 0.1


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A limit on the 99th percentile of the latencies, in seconds, and on the share of errors."""

    p99: float
    error_share: float = 0.001

    def holds(self, measurement: Measurement) -> bool:
        """Return whether a measurement, which must hold requests, keeps the objective."""
        if measurement.error_share > self.error_share:
            return False
        found = measurement.overall.percentiles([99.0])
        return bool(found) and found[99.0] <= self.p99


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate that was tried, and whether the objective held."""

    rate: float
    measurement: Measurement
    holds: bool


async def find_rate(
    measure: Callable[[float], Awaitable[Measurement]],
    objective: Objective,
    *,
    start: float,
    note: Callable[[Step], object],
) -> Step | None:
    """Return the step with the highest rate that holds, None where none does.

    From `start`, the rate doubles until the objective breaks, or halves until
    it holds; the gap is then halved, on a scale of ratios, until its ends are
    within `PRECISION` of each other. `note` is called after each step.
    """

    async def attempt(rate: float) -> Step:
        measurement = await measure(rate)
        step = Step(rate=rate, measurement=measurement, holds=objective.holds(measurement))
        note(step)
        return step

    best: Step | None = None
    broken: float | None = None
    rate = start
    while _LOWEST <= rate <= _HIGHEST:
        step = await attempt(rate)
        if step.holds:
            best = step
        else:
            broken = rate
        if best is not None and broken is not None:
            break
        rate = 2 * rate if step.holds else rate / 2
    while best is not None and broken is not None and broken / best.rate > 1 + PRECISION:
        step = await attempt((best.rate * broken) ** 0.5)
        if step.holds:
            best = step
        else:
            broken = step.rate
    return best
