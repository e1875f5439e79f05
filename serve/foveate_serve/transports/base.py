"""What a transport does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import grpc

from foveate_serve.transports.tls import TlsFiles

FLUSH_SECONDS = 1.0
"""What the last answers get to leave the server, after all calls have ended."""


SERVER_FAILED = "the server failed; its log says why"
"""What a client learns of an error that nobody foresaw."""


class Transport(Protocol):
    """A server of gRPC on the running event loop.

    Generated code registers handlers with the two functions that it knows from
    `grpc.aio.Server`, before `listen` or `listen_unix`, of which one is called once.
    """

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Answer the methods that some handlers know."""
        ...

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Do nothing: generated code registers the same methods in both ways."""
        ...

    def add_channelz(self) -> None:
        """Answer what can be asked of the transport's own state (grpc.channelz.v1)."""
        ...

    async def listen(
        self, address: str, *, tls: TlsFiles | None = None, share_port: bool = False
    ) -> int:
        """Listen on HOST:PORT, and return the port; 0 picks a free one.

        With `share_port` other processes may listen there as well. Raises OSError,
        and SettingsError where the files of `tls` cannot be read.
        """
        ...

    async def listen_unix(self, path: Path) -> None:
        """Listen on a socket in the file system; raises OSError."""
        ...

    async def go_away(self) -> None:
        """Listen no more, and have clients make their next calls elsewhere (GOAWAY)."""
        ...

    async def finish(self, seconds: float) -> None:
        """Go away, and stop after the calls in flight.

        Calls that take longer than so many seconds end with UNAVAILABLE.
        """
        ...

    async def stop(self) -> None:
        """Stop at once: calls in flight end with UNAVAILABLE."""
        ...


def services_of(transport: Transport) -> Any:
    """Return a transport as what generated code wants: a `grpc.aio.Server`."""
    return transport
