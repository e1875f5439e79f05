import asyncio
import random
import time

import grpc
import numpy as np
import pytest

from foveate_client import Credentials
from foveate_client.load.driver import poisson_times
from foveate_client.load.workload import CAM, FEATURE_MAPS, PLAIN, Mix


def test_arrivals_are_a_poisson_process():
    times = np.array(list(poisson_times(200, 5, 105, random.Random(1))))  # noqa: S311
    assert times.min() > 5
    assert times.max() < 105
    # The count has the mean and the variance 20,000.
    assert len(times) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    gaps = np.sort(np.diff(times))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    # Kolmogorov and Smirnov's distance from the exponential distribution, at the level 0.001.
    expected = 1 - np.exp(-200 * gaps)
    distance = np.abs(expected - np.arange(len(gaps)) / len(gaps)).max()
    assert distance < 1.95 / len(gaps) ** 0.5


async def test_the_closed_loop_keeps_its_concurrency(served):
    served.service.seconds = 0.02
    async with served.driver() as driver:
        found = await driver.closed(4, seconds=1.0, warmup=0.1)
    latencies = found.overall
    assert latencies.minimum >= 0.02
    # Little's law: the requests in flight are the rate times the latency.
    assert found.rate * latencies.mean == pytest.approx(4, abs=0.9)
    assert not found.errors


async def test_percentiles_tell_the_slow_from_the_fast(served):
    async with served.driver() as driver:
        fast = await driver.closed(1, seconds=0.3, warmup=0.0)
        served.service.seconds = 1.0
        slow = await driver.closed(10, seconds=0.9, warmup=0.0)
    assert len(slow.overall) == 10
    fast.merge(slow)
    share = 100 * (1 - 10 / len(fast.overall))
    below, above = fast.overall.percentiles([share - 1, share + 0.9 * (100 - share)]).values()
    assert below < 1.0 <= above


async def test_the_open_loop_sends_at_its_rate_however_slow_the_answers(served):
    served.service.seconds = 0.2
    async with served.driver() as driver:
        found = await driver.open(100, seconds=2.0, warmup=0.0)
    times = poisson_times(100, 0, 2.0, random.Random(0))  # noqa: S311
    assert found.requests == len(served.service.asked) == len(list(times))
    assert found.overall.minimum >= 0.2


async def test_the_open_loop_counts_what_waits_behind_a_stall(served):
    async def stalled(run):
        waiting = asyncio.create_task(run)
        await asyncio.sleep(0.4)  # within the measurement
        served.service.stall(0.6)
        return await waiting

    def slow(measurement):
        """Return how many answers took 0.3 s or more."""
        latencies, below, above = measurement.overall, 0.0, 100.0
        while above - below > 0.01:
            share = (below + above) / 2
            if latencies.percentiles([share])[share] < 0.3:
                below = share
            else:
                above = share
        return round(len(latencies) * (1 - above / 100))

    async with served.driver() as driver:
        closed = await stalled(driver.closed(1, seconds=1.5, warmup=0.0))
        opened = await stalled(driver.open(50, seconds=1.5, warmup=0.0))
    # One caller meets the stall once; the fifteen that were due in its first half meet it too.
    assert slow(closed) <= 3
    assert 5 <= slow(opened) <= 60
    assert opened.overall.maximum > 0.5


async def test_the_generators_own_lateness_counts_and_is_told(served):
    async def block():
        await asyncio.sleep(0.2)  # within the measurement
        time.sleep(0.3)  # noqa: ASYNC251 - the event loop is what is to be late

    async with served.driver() as driver:
        blocked = asyncio.create_task(block())
        found = await driver.open(100, seconds=0.7, warmup=0.0)
        await blocked
    assert found.delays.maximum > 0.15
    assert found.overall.maximum >= found.delays.maximum


async def test_the_warm_up_does_not_count(served):
    served.service.seconds = 0.05
    async with served.driver() as driver:
        found = await driver.closed(2, seconds=0.3, warmup=0.3)
    assert 0 < found.requests < len(served.service.asked)
    assert found.seconds == 0.3


async def test_errors_are_counted_by_code_and_not_timed(served):
    async with served.driver() as driver:
        served.service.code = grpc.StatusCode.RESOURCE_EXHAUSTED
        refused = await driver.closed(2, seconds=0.2, warmup=0.0)
    served.service.code = None
    async with served.driver(timeout=0.1) as driver:
        served.service.seconds = 5.0
        late = await driver.closed(2, seconds=0.15, warmup=0.0)
    assert set(refused.errors) == {"RESOURCE_EXHAUSTED"}
    assert set(late.errors) == {"DEADLINE_EXCEEDED"}
    for found in (refused, late):
        assert found.error_share == 1
        assert found.completed == len(found.overall) == 0
        assert found.overall.percentiles() == {}


@pytest.mark.parametrize("connections", [1, 3])
async def test_connections_are_as_many_as_asked_for(served, connections):
    async with served.driver(connections=connections) as driver:
        await driver.closed(6, seconds=0.2, warmup=0.0)
    assert len(served.service.peers) == connections


async def test_a_mix_asks_for_maps_at_their_shares(served):
    async with served.driver(mix=Mix(cam=0.3, feature_maps=0.2), seed=4) as driver:
        found = await driver.closed(8, seconds=0.7, warmup=0.0)
    asked = served.service.asked
    counts = {
        CAM: sum(x.HasField("cam") for x in asked),
        FEATURE_MAPS: sum(x.feature_maps[:1] != [] for x in asked),
    }
    counts[PLAIN] = len(asked) - sum(counts.values())
    assert {kind: len(x) for kind, x in found.latencies.items()} == counts
    for kind, share in {CAM: 0.3, FEATURE_MAPS: 0.2, PLAIN: 0.5}.items():
        allowed = 4 * (share * (1 - share) / len(asked)) ** 0.5
        assert counts[kind] / len(asked) == pytest.approx(share, abs=allowed)
    assert {x.feature_maps[0].layer for x in asked if x.feature_maps} == {"last"}
    assert len({x.encoded for x in asked}) == 2


async def test_a_token_travels_with_every_request(served):
    credentials = Credentials(tls=False, token="open-sesame")  # noqa: S106 - a test's own
    async with served.driver(credentials=credentials) as driver:
        found = await driver.closed(2, seconds=0.2, warmup=0.0)
    assert found.requests
    assert served.service.tokens == {"Bearer open-sesame"}


async def test_the_same_seed_sends_the_same(served):
    async def sent(seed):
        async with served.driver(mix=Mix(cam=0.5), seed=seed) as driver:
            await driver.open(100, seconds=0.3, warmup=0.0)
            return [request.HasField("cam") for request in served.service.asked]

    first, again, other = [await sent(seed) for seed in (1, 1, 2)]
    assert first == again != other
