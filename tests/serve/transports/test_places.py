"""Connections are bounded, and shared among the addresses of clients."""

from typing import Any

import pytest

from foveate_serve.transports.places import IDLE_SECONDS, Place, Places, client_of


class Held:
    """A connection that says for how long it has had no call."""

    def __init__(self, idle: float) -> None:
        self.idle = idle
        self.aborted = False

    def idle_for(self) -> float:
        return self.idle

    def abort(self) -> None:
        self.aborted = True


def take(places: Places, host: str, count: int, idle: float = 0.0) -> list[Place]:
    """Take as many places as there are, at most `count`, with connections that idle so long."""
    taken = []
    for _ in range(count):
        place = places.take(host)
        if place is None:
            break
        connection: Any = Held(idle)
        place.connection = connection
        taken.append(place)
    return taken


def test_an_address_leaves_half_of_the_places_for_others() -> None:
    places = Places(100)
    assert len(take(places, "192.0.2.1", 200)) == 50
    assert len(take(places, "192.0.2.2", 200)) == 25
    assert places.take("192.0.2.1") is None
    assert len(take(places, "192.0.2.3", 1)) == 1


def test_places_that_are_given_back_are_free_once() -> None:
    places = Places(4)
    first, second = take(places, "192.0.2.1", 4)
    assert places.take("192.0.2.1") is None
    first.release()
    first.release()
    assert len(take(places, "192.0.2.1", 4)) == 1
    second.release()


def test_an_address_that_holds_its_share_loses_a_connection_without_calls() -> None:
    places = Places(200)
    busy = take(places, "192.0.2.1", 99)
    (idle,) = take(places, "192.0.2.1", 1, idle=IDLE_SECONDS)
    # No newcomer costs more than a look at some of them, so that it may take a few.
    newcomers = [place for _ in range(4) if (place := places.take("192.0.2.1")) is not None]
    assert len(newcomers) == 1
    connection: Any = idle.connection
    assert connection.aborted
    assert not any(place.connection.aborted for place in busy)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "192.0.2.1", False),
    ],
)
def test_hosts_of_one_ipv6_network_are_one_client(one: str, other: str, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same
