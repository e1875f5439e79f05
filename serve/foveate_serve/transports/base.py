"""What a transport does."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import grpc

from foveate_serve.transports.tls import TlsFiles

FLUSH_SECONDS = 1.0
"""The time in which the last answers are written, after all calls have ended."""

SERVER_FAILED = "the server failed; its log says why"
"""The message that a client gets for an unforeseen error."""


_KINDS: Mapping[tuple[bool, bool], str] = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
"""The names that gRPC gives kinds of methods, by whether requests and responses stream."""

if TYPE_CHECKING:
    MethodHandler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:  # it is generic in its stubs alone
    MethodHandler = grpc.RpcMethodHandler


def behaviour_of(handler: MethodHandler) -> Any:
    """Return the function that answers the calls of a method."""
    return getattr(handler, _KINDS[handler.request_streaming, handler.response_streaming])


def make_handler(
    behaviour: Any,
    *,
    streaming: tuple[bool, bool],
    read: Callable[[bytes], Any] | None,
    write: Callable[[Any], bytes] | None,
) -> MethodHandler:
    """Return the handler of a method; `streaming` is whether requests and responses stream."""
    make = getattr(grpc, f"{_KINDS[streaming]}_rpc_method_handler")
    handler: MethodHandler = make(behaviour, request_deserializer=read, response_serializer=write)
    return handler


class Services:
    """The handlers of a transport, registered as generated code does with `grpc.aio.Server`."""

    def __init__(self) -> None:
        self.generic_handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Register the handlers of services."""
        self.generic_handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Do nothing: grpc.aio starts a task for each registered method at every call."""


class Transport(Protocol):
    """A server of gRPC on the running event loop.

    Handlers are registered before `listen` or `listen_unix`, of which one is called
    once.
    """

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Register the handlers of services."""
        ...

    def add_channelz(self) -> None:
        """Register grpc.channelz.v1, which describes the transport's own state."""
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
        """Stop listening, and send GOAWAY: clients make their next calls on another connection."""
        ...

    async def finish(self, seconds: float) -> None:
        """Send GOAWAY, and stop after the calls in flight.

        Calls that take longer than so many seconds end with UNAVAILABLE.
        """
        ...

    async def stop(self) -> None:
        """Stop at once: calls in flight end with UNAVAILABLE."""
        ...


def services_of(transport: Transport) -> Any:
    """Return a transport as the type that generated code takes: a `grpc.aio.Server`."""
    return transport
