"""Addresses are bound for http2 and HTTP alike."""

import socket

import pytest

from foveate_serve.transports.listener import bind


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::]"])
async def test_what_is_written_is_sent_at_once(host: str) -> None:
    for listening in await bind(f"{host}:0"):
        # Every address of this machine is reached by each of its own.
        at, port = listening.getsockname()[:2]
        with (
            listening,
            socket.create_connection(("::1" if at == "::" else at, port)),
            listening.accept()[0] as accepted,
        ):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
