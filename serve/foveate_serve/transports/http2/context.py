"""The context of a call that a handler gets: grpcio's `ServicerContext`."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from foveate_serve.transports.http2 import headers
from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.headers import Metadata

if TYPE_CHECKING:
    from foveate_serve.transports.http2.call import Call


class Context(grpc.aio.ServicerContext[Any, Any]):
    """The context of a call, with its status and its trailing metadata."""

    def __init__(self, call: "Call") -> None:
        self._call = call
        self._trailing: Metadata = ()
        self.trailing_block = b""
        """The header block of the metadata that ends the call."""
        self._code: grpc.StatusCode | int = grpc.StatusCode.OK
        self._details = ""
        self._callbacks: list[Callable[[Any], None]] = []

    def set_status(self, code: grpc.StatusCode, details: str) -> None:
        """Set the code and the text with which the call is to end."""
        self._code, self._details = code, details

    def has_ended(self) -> None:
        """Call the callbacks of the call's end."""
        for callback in self._callbacks:
            callback(self)

    # Messages.

    async def read(self) -> Any:
        """Return the next request, or grpc.aio.EOF after the last."""
        try:
            return await self._call.next_request()
        except StopAsyncIteration:
            return grpc.aio.EOF

    async def write(self, message: Any) -> None:
        """Send a response, and wait until it is written."""
        await self._call.send(message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the metadata that comes before the responses, unless some was sent."""
        self._call.begin_answer(initial_metadata)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Refuse every compression but none: answers are not compressed."""
        if compression != grpc.Compression.NoCompression:
            raise grpc.aio.UsageError("answers are not compressed")

    def disable_next_message_compression(self) -> None:
        """Do nothing, as no message is compressed."""

    # The end.

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Any = (),
    ) -> NoReturn:
        """End the call with an error."""
        if code == grpc.StatusCode.OK:
            raise grpc.aio.UsageError("a call is not aborted with OK")
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self.set_status(code, details)
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with an error."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the metadata that ends the call."""
        trailing = tuple(trailing_metadata)
        self.trailing_block = headers.write_metadata(trailing)
        self._trailing = trailing

    def trailing_metadata(self) -> Any:
        """Return what was set of the metadata that ends the call."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the code with which the call is to end."""
        self._code = code

    def code(self) -> Any:
        """Return the code with which the call is to end."""
        return self._code

    def set_details(self, details: str) -> None:
        """Set the text that goes with the code."""
        self._details = details

    def details(self) -> str:
        """Return the text that goes with the code."""
        return self._details

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call a function when the call has ended."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Return whether the client has cancelled the call, or its deadline has expired."""
        return self._call.cancelled

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._call.over

    # Properties of the call.

    def invocation_metadata(self) -> Any:
        """Return the metadata of the call."""
        return self._call.head.metadata

    def time_remaining(self) -> float | None:  # type: ignore[override] # None without a deadline
        """Return the seconds until the deadline, None where there is none."""
        return self._call.time_remaining()

    def peer(self) -> str:
        """Return the client's address as gRPC writes it, such as ipv4:127.0.0.1:1234."""
        return peer_of(self._call.connection)

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names in the client's certificate, None where it has shown none."""
        names = self.auth_context()
        key = self.peer_identity_key()
        return None if key is None else names[key]

    def peer_identity_key(self) -> str | None:
        """Return the key of `auth_context` that holds the client's names."""
        names = self.auth_context()
        for key in ("x509_subject_alternative_name", "x509_common_name"):
            if names.get(key):
                return key
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the properties of the client's certificate."""
        transport = self._call.connection.transport
        if transport.get_extra_info("ssl_object") is None:
            return {}
        certificate: Any = transport.get_extra_info("peercert") or {}
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        return {
            "transport_security_type": [b"ssl"],
            "x509_common_name": [value.encode() for name, value in subject if name == "commonName"],
            "x509_subject_alternative_name": [
                value.encode() for _, value in certificate.get("subjectAltName", ())
            ],
        }


def peer_of(connection: Connection) -> str:
    """Return a client's address as gRPC writes it."""
    place = connection.transport.get_extra_info("peername")
    if isinstance(place, tuple):
        host, port = place[:2]
        # As the kernel writes an address of IPv4 on a socket for both.
        host = host.removeprefix("::ffff:") if "." in host else host
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    return "unix:"
