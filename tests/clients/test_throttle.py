"""How a client holds back from a server that refuses."""

import random
from datetime import timedelta

import pytest

from foveate.status import ErrorStatus, StatusError
from foveate_client import (
    AsyncClient,
    Client,
    NotFoundError,
    ResourceExhaustedError,
    Throttling,
)
from foveate_client._throttle import Throttle

CALLS = 100
FULL = ErrorStatus(code=8, reason="QUEUE_FULL", message="full", retry_delay=timedelta(seconds=0.1))
UNKNOWN_MODEL = ErrorStatus(code=5, reason="MODEL_NOT_FOUND", message="no such model")
TOO_LARGE = ErrorStatus(code=8, reason="", message="received message larger than max")


class Fixed:
    """A clock and a chance that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.chance = 0.0

    def throttle(self, **throttling: float) -> Throttle:
        return Throttle(
            Throttling(**throttling), clock=lambda: self.now, chance=lambda: self.chance
        )


def test_the_probability_is_that_of_the_formula():
    fixed = Fixed()
    throttle = fixed.throttle(headroom=2)
    fixed.chance = 0.999
    for _ in range(10):
        assert throttle.admits()
    throttle.accepted()
    # 10 calls, 1 of them taken: (10 - 2) / 11.
    fixed.chance = 8 / 11 - 1e-9
    assert not throttle.admits()
    # Held back, it counts as a call: (11 - 2) / 12.
    fixed.chance = 9 / 12 + 1e-9
    assert throttle.admits()


def test_nothing_is_held_back_while_every_second_call_is_taken():
    fixed = Fixed()
    throttle = fixed.throttle(headroom=2)
    for _ in range(50):
        assert throttle.admits()
        throttle.accepted()
        assert throttle.admits()


def test_what_happened_long_ago_counts_little():
    fixed = Fixed()
    throttle = fixed.throttle(memory=10)
    fixed.chance = 0.999
    for _ in range(20):
        assert throttle.admits()
    fixed.now = 100.0
    # 20 calls by exp(-10) are a thousandth of one.
    fixed.chance = 0.001
    assert throttle.admits()


def test_twice_what_a_server_takes_is_sent_to_it():
    fixed, generator = Fixed(), random.Random(3)  # noqa: S311
    throttle = Throttle(Throttling(), clock=lambda: fixed.now, chance=generator.random)
    sent = taken = 0
    free = 0.0
    # A server that takes a call every 50 ms is asked every 5 ms, for a minute.
    for call in range(12_000):
        fixed.now = 0.005 * call
        if not throttle.admits():
            continue
        sent += 1
        if fixed.now >= free:
            free = fixed.now + 0.05
            throttle.accepted()
            taken += 1
    assert sent / taken == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"headroom": 1.0}, "headroom must be above 1, not 1"),
        ({"headroom": float("nan")}, "headroom must be above 1, not nan"),
        ({"memory": 0.0}, "memory must be above 0, not 0"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Throttling(**wrong)


def refusing(server, status: ErrorStatus) -> None:
    def classify(_):
        raise StatusError(status)

    server.service.classify = classify


def test_calls_are_held_back_from_a_server_that_refuses(server, coffee):
    refusing(server, FULL)
    reasons = []
    with Client(server.address, throttling=Throttling()) as client:
        for _ in range(CALLS):
            with pytest.raises(ResourceExhaustedError) as caught:
                client.classify(coffee)
            reasons.append(caught.value.reason)
    assert set(reasons) == {"QUEUE_FULL", "HELD_BACK"}
    # One in n + 1 of n that were made is sent: five of a hundred on average.
    assert reasons.count("QUEUE_FULL") == len(server.service.asked) < CALLS / 4


async def test_calls_are_held_back_under_asyncio(server, coffee):
    refusing(server, FULL)
    async with AsyncClient(server.address, throttling=Throttling()) as client:
        for _ in range(CALLS):
            with pytest.raises(ResourceExhaustedError):
                await client.classify(coffee)
    assert len(server.service.asked) < CALLS / 4


@pytest.mark.parametrize(
    ("status", "error"),
    [(UNKNOWN_MODEL, NotFoundError), (TOO_LARGE, ResourceExhaustedError)],
    ids=["unknown-model", "too-large"],
)
def test_an_error_that_is_no_refusal_holds_nothing_back(server, coffee, status, error):
    refusing(server, status)
    with Client(server.address, throttling=Throttling()) as client:
        for _ in range(CALLS):
            with pytest.raises(error):
                client.classify(coffee)
    assert len(server.service.asked) == CALLS


def test_without_throttling_every_call_is_sent(server, coffee):
    refusing(server, FULL)
    with Client(server.address) as client:
        for _ in range(CALLS):
            with pytest.raises(ResourceExhaustedError):
                client.classify(coffee)
    assert len(server.service.asked) == CALLS
