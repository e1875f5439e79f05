"""Bounds the connections of a server, and shares them among the addresses of its clients."""

import ipaddress
from collections import defaultdict
from typing import Protocol

IDLE_SECONDS = 1.0
"""The seconds without a call after which a connection may be closed to make room."""

_LOOKED_AT = 64
"""The most connections among which an idle one is searched: a new one must not cost more."""

_IPV6_NETWORK = 64
"""The bits of an IPv6 address that identify a client: a host has all addresses below them."""


class Connection(Protocol):
    """A connection that has a place."""

    def idle_for(self) -> float:
        """Return for how many seconds there has been no call; 0 while there is one."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Place:
    """What one connection takes of the bound, from its acceptance to `release`."""

    __slots__ = ("_places", "client", "connection")

    def __init__(self, places: "Places", client: str) -> None:
        self._places = places
        self.client = client
        self.connection: Connection | None = None
        """The handshake at first, then what `opened` it."""

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        self._places.forget(self)


class Places:
    """Places for `most` connections. Used from one event loop.

    An address may hold as many as are still free: half of all, two addresses a third each
    (dynamic thresholds, Choudhury and Hahne 1998). So there is always room for an address
    that has none. Where an address has its share, each connection that it opens closes one of
    its connections without calls.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        # By address, those that were looked at last at the end.
        self._held: defaultdict[str, dict[Place, None]] = defaultdict(dict)

    def take(self, host: str) -> Place | None:
        """Return a place for a connection from an address; None where there is none."""
        client = client_of(host)
        held = len(self._held.get(client, ()))
        if self._count + held >= self._most and not self._make_room(client):
            return None
        place = Place(self, client)
        self._held[client][place] = None
        self._count += 1
        return place

    def forget(self, place: Place) -> None:
        """Free a place; where it is free already, do nothing."""
        held = self._held.get(place.client, {})
        if place in held:
            del held[place]
            self._count -= 1
            if not held:
                del self._held[place.client]

    def _make_room(self, client: str) -> bool:
        """Close a connection of the address that has no call; return whether there was one."""
        held = self._held.get(client, {})
        for place in list(held)[:_LOOKED_AT]:
            connection = place.connection
            if connection is not None and connection.idle_for() >= IDLE_SECONDS:
                self.forget(place)
                connection.abort()
                return True
            # The next search begins with the others.
            del held[place]
            held[place] = None
        return False


def client_of(host: str) -> str:
    """Return the part of an address that identifies a client: of IPv6 the network, of IPv4 all."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_NETWORK), strict=False))
