from math import log

import pytest

from foveate_client.load.recorder import Measurement
from foveate_client.load.search import Objective, find_rate

OBJECTIVE = Objective(p99=0.1)


def queue(capacity):
    """Measure a queue of one server with Poisson arrivals and exponential service times.

    Its 99th percentile is known: ln(100) / (capacity - rate).
    """

    async def measure(rate):
        found = Measurement(seconds=10.0)
        found.record("plain", log(100) / (capacity - rate) if rate < capacity else 30.0)
        return found

    return measure


@pytest.mark.parametrize("start", [1, 10, 100, 5000])
async def test_the_search_finds_the_highest_rate_that_holds(start):
    steps = []
    found = await find_rate(queue(300), OBJECTIVE, start=start, note=steps.append)
    highest = 300 - log(100) / OBJECTIVE.p99
    assert highest / 1.05 <= found.rate <= highest
    assert found in steps
    assert found.holds
    assert len(steps) < 20
    assert all(step.holds == (step.rate <= highest) for step in steps)


async def test_a_server_that_never_holds_has_no_rate():
    assert await find_rate(queue(1), OBJECTIVE, start=10, note=lambda step: None) is None


async def test_errors_break_an_objective():
    measurement = await queue(300)(1)
    assert OBJECTIVE.holds(measurement)
    measurement.errors["UNAVAILABLE"] += 1
    assert not OBJECTIVE.holds(measurement)


def test_nothing_measured_keeps_no_objective():
    assert not OBJECTIVE.holds(Measurement(seconds=1.0))
