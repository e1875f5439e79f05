"""Ports of servers in the tests' own process."""

from typing import Protocol

_given: set[int] = set()


class Listening(Protocol):
    """A server of gRPC, with threads or asyncio."""

    def add_insecure_port(self, address: str) -> int: ...


def listen(server: Listening) -> int:
    """Have a server listen on this machine; return the port, which none had in this process.

    gRPC remembers of an address for a while that nobody listened there, and the
    system may give the port of a server that was stopped to the next one.
    """
    while (port := server.add_insecure_port("127.0.0.1:0")) in _given:
        pass
    _given.add(port)
    return port
