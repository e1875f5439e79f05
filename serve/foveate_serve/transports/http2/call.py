"""One call of gRPC: its messages, its handler, its end (gRPC over HTTP/2, PROTOCOL-HTTP2.md)."""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, cast
from urllib.parse import quote

import grpc

from foveate_serve.deadlines import Deadlines, Timer
from foveate_serve.transports.http2 import headers
from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.headers import Head, Metadata
from foveate_serve.transports.http2.messages import (
    ENCODINGS,
    PREFIX,
    Assembler,
    Message,
    MessageError,
)
from foveate_serve.transports.http2.stream import Stream

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Find: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

_GRACE_SECONDS = 0.005
"""A handler that keeps the deadline itself says more of it."""

_INFLATE_AT_ONCE = 256 << 10
"""Inflating fewer bytes takes less time than others can be kept waiting for."""

_HEAD = b"\x88" + headers.write([("content-type", "application/grpc")])
"""`:status` 200 is in HPACK's static table."""
_OK = headers.write([("grpc-status", "0")])
_OVER = MessageError(grpc.StatusCode.CANCELLED, "the call has ended")
# Percent-encoded in grpc-message is what is no printable ASCII, and the percent sign.
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@dataclass(kw_only=True, slots=True)
class Budget:
    """The bytes of messages that no handler has taken yet, in all calls together."""

    limit: int
    held: int = 0

    def check(self) -> None:
        """Raise MessageError where they are too many."""
        if self.held > self.limit:
            raise MessageError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many bytes of messages are on their way; "
                f"the limit is {self.limit} bytes (max_request_bytes)",
            )


@dataclass(slots=True)
class CallDetails(grpc.HandlerCallDetails):
    """What is known of a call before its first message."""

    method: str
    invocation_metadata: Metadata


class Call(Stream, grpc.aio.ServicerContext[Any, Any]):
    """A call, which is its handler's context as well.

    `find` returns the handler of a method, which runs in a task of its own from
    the moment that the call's headers are there: it may refuse the call before
    its message is read. A message has at most `max_message_bytes`, and those of
    all calls that are being received at one time share `budget`; `deadlines` end
    the calls that are late.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        head: Head,
        *,
        find: Find,
        max_message_bytes: int,
        budget: Budget,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(number, connection.sender.stream_window)
        self.connection = connection
        self._head = head
        self._find = find
        self._limit = max_message_bytes
        self._budget = budget
        self._assembler = Assembler(max_message_bytes, head.encoding)
        self._held = 0
        self._deferred = 0
        self._messages: deque[tuple[Message, int]] = deque()
        self._problem: MessageError | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._deserialize: Callable[[bytes], Any] | None = None
        self._serialize: Callable[[Any], bytes] = bytes
        self._begun = False
        self._lost = False
        self._initial_sent = False
        self._answered = False
        self._trailing: Metadata = ()
        self._trailing_block = b""
        self._code: grpc.StatusCode | int = grpc.StatusCode.OK
        self._details = ""
        self._late = False
        self._stopped = False
        self._callbacks: list[Callable[[Any], None]] = []
        self._deadline: float | None = None
        self._timer: Timer | None = None
        if head.timeout is not None:
            self._deadline = time.monotonic() + head.timeout
            self._timer = deadlines.at(self._deadline + _GRACE_SECONDS, self._expire)
        connection.running += 1
        self.task = asyncio.get_running_loop().create_task(self._run())

    # What the connection tells.

    def received(self, data: memoryview) -> None:
        """Take a part of a message."""
        if self._problem is not None:
            return
        size = len(data)
        if self._messages:
            # A handler that is behind is sent no more than a window.
            self._deferred += size
        else:
            self.connection.credit(self, size)
        self._budget.held += size
        self._held += size
        try:
            messages = self._assembler.feed(data)
            self._budget.check()
        except MessageError as error:
            self._problem = error
            self._wake()
            return
        for message in messages:
            # With the first goes what is there of the one after the last.
            self._messages.append((message, self._held))
            self._held = 0
            self.connection.counts.messages_received += 1
        if messages:
            self._wake()

    def ended(self) -> None:
        """Hear that there are no more messages."""
        if self._assembler.within and self._problem is None:
            self._problem = MessageError(grpc.StatusCode.INTERNAL, "the last message is cut off")
        self._wake()

    def lost(self) -> None:
        """Give up: nobody waits for the answer."""
        self._lost = True
        self.cancel()

    def cut_off(self) -> None:
        """Cancel the call's handler, as the server stops."""
        self._stopped = True
        self.cancel()

    def cancel(self) -> None:
        """Cancel the call's handler."""
        self.task.cancel()
        if not self._begun:
            # A task that is cancelled before its first step takes none.
            self._begun = True
            self._note_cancel()
            self._end()

    def _note_cancel(self) -> None:
        if self._late:
            self._set(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline is over")
        elif self._stopped:
            self._set(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
        else:
            self._set(grpc.StatusCode.CANCELLED, "the call was cancelled")

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # The call's own task.

    async def _run(self) -> None:
        self._begun = True
        try:
            if self._head.http_status != 200:
                return
            if self._head.encoding not in ENCODINGS:
                self._set(grpc.StatusCode.UNIMPLEMENTED, "grpc-encoding is not supported")
                return
            handler = await self._find(CallDetails(self._head.path, self._head.metadata))
            if handler is None:
                self._set(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            else:
                await self._handle(handler)
        except grpc.aio.AbortError:
            pass  # abort() has noted why
        except MessageError as error:
            self._set(error.code, error.details)
        except asyncio.CancelledError:
            self._note_cancel()
        except Exception:
            logger.exception("a handler failed")
            self._set(grpc.StatusCode.UNKNOWN, "the server failed; its log says why")
        finally:
            self._end()

    async def _handle(self, handler: Handler) -> None:
        serialize = handler.response_serializer
        if serialize is not None:
            self._serialize = serialize
        behaviour: Any = (
            handler.unary_unary
            or handler.stream_stream
            or handler.unary_stream
            or handler.stream_unary
        )
        self._deserialize = deserialize = handler.request_deserializer
        request: Any
        if handler.request_streaming:
            request = _Requests(self)
        else:
            message = await self._next_message()
            if message is None:
                self._set(grpc.StatusCode.INTERNAL, "the request is missing")
                return
            # Any buffer will do for what deserialises.
            request = bytes(message) if deserialize is None else deserialize(cast("bytes", message))
        if inspect.isasyncgenfunction(behaviour):
            async with aclosing(behaviour(request, self)) as responses:
                async for response in responses:
                    await self.write(response)
            return
        response = await behaviour(request, self)
        if not handler.response_streaming and self._code == grpc.StatusCode.OK:
            self._answer(response)

    def _answer(self, response: object) -> None:
        """Send the only response, and the end of the call with it."""
        data = self._serialize(response)
        self.connection.counts.messages_sent += 1
        if self._initial_sent:
            self.connection.sender.data(self, _framed(data))
            return
        self._initial_sent = self._answered = True
        self.connection.counts.succeeded += 1
        self.connection.sender.answer(self, _HEAD, _framed(data), _OK + self._trailing_block)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.connection.running -= 1
        self._budget.held -= self._held + sum(size for _, size in self._messages)
        self._messages.clear()
        # What the client goes on to send is for nobody.
        self._problem = _OVER
        if self.closed:
            self.connection.counts.failed += not self._answered
        elif not self._answered:
            self._finish()
        for callback in self._callbacks:
            callback(self)

    def _finish(self) -> None:
        status = self._head.http_status
        if status != 200:
            self.connection.counts.failed += 1
            refusal = _status(grpc.StatusCode.UNKNOWN, "this is no call of gRPC")
            self.connection.sender.finish(self, headers.write([(":status", str(status)), *refusal]))
            return
        code = self._code if isinstance(self._code, int) else self._code.value[0]
        if code == 0:
            self.connection.counts.succeeded += 1
        else:
            self.connection.counts.failed += 1
        block = headers.write(_status(code, self._details)) + self._trailing_block
        if self._initial_sent:
            self.connection.sender.finish(self, block)
            return
        if code == grpc.StatusCode.UNIMPLEMENTED.value[0]:
            # A client whose compression is unknown learns of those that are not.
            block = headers.write([("grpc-accept-encoding", ",".join(ENCODINGS))]) + block
        self.connection.sender.finish(self, _HEAD + block)

    def _expire(self) -> None:
        self._late = True
        self.cancel()

    def _set(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    async def _next_message(self) -> bytearray | bytes | None:
        """Return the next message, None where there is none; raises MessageError."""
        while not self._messages:
            if self._problem is not None:
                raise self._problem
            if self.ended_by_client or self.closed:
                return None
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        message, size = self._messages.popleft()
        self._budget.held -= size
        if not self._messages:
            self.connection.credit(self, self._deferred)
            self._deferred = 0
        if not message.encoding:
            return message.body
        if len(message.body) <= _INFLATE_AT_ONCE:
            return message.inflated(self._limit)
        return await asyncio.to_thread(message.inflated, self._limit)

    async def _next_request(self) -> Any:
        """Return the next request of a stream; raises StopAsyncIteration after the last."""
        message = await self._next_message()
        if message is None:
            raise StopAsyncIteration
        data = bytes(message)
        return data if self._deserialize is None else self._deserialize(data)

    # What handlers ask of their context.

    async def read(self) -> Any:
        """Return the next request, or grpc.aio.EOF after the last."""
        return await anext(_Requests(self), grpc.aio.EOF)

    async def write(self, message: Any) -> None:
        """Send a response, and wait until it has left."""
        await self.send_initial_metadata(())
        self.connection.counts.messages_sent += 1
        self.connection.sender.data(self, _framed(self._serialize(message)))
        await self.connection.sender.drain(self)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the metadata that comes before the responses, unless some was sent."""
        if not self._initial_sent:
            block = _HEAD + headers.write_metadata(initial_metadata)
            self._initial_sent = True
            self.connection.sender.headers(self, block)

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
        self._set(code, details)
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with an error."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the metadata that ends the call."""
        trailing = tuple(trailing_metadata)
        self._trailing_block = headers.write_metadata(trailing)
        self._trailing = trailing

    def invocation_metadata(self) -> Any:
        """Return the metadata of the call."""
        return self._head.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the code with which the call is to end."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the text that goes with the code."""
        self._details = details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Refuse, unless it is none: answers are sent as they are."""
        if compression != grpc.Compression.NoCompression:
            raise grpc.aio.UsageError("answers are not compressed")

    def disable_next_message_compression(self) -> None:
        """Do nothing, as no message is compressed."""

    def peer(self) -> str:
        """Return the client's address as gRPC writes it, such as ipv4:127.0.0.1:1234."""
        return peer_of(self.connection)

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names in the client's certificate, None where it has shown none."""
        names = self.auth_context()
        key = self.peer_identity_key()
        return None if key is None else names[key]

    def peer_identity_key(self) -> str | None:
        """Return under which key of `auth_context` the client's names are."""
        names = self.auth_context()
        for key in ("x509_subject_alternative_name", "x509_common_name"):
            if names.get(key):
                return key
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS has shown of the client."""
        transport = self.connection.transport
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

    def time_remaining(self) -> float | None:  # type: ignore[override] # None without a deadline
        """Return the seconds until the deadline, None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def trailing_metadata(self) -> Any:
        """Return what was set of the metadata that ends the call."""
        return self._trailing

    def code(self) -> Any:
        """Return the code with which the call is to end."""
        return self._code

    def details(self) -> str:
        """Return the text that goes with the code."""
        return self._details

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have a function called when the call has ended."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Tell whether the client has given the call up, or its deadline is over."""
        return self._late or self._lost

    def done(self) -> bool:
        """Tell whether the call has ended."""
        return self.closed or self._problem is _OVER


class _Requests(AsyncIterator[Any]):
    """The requests of a stream; whoever stops waiting for one loses none."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __anext__(self) -> Any:
        return await self._call._next_request()  # noqa: SLF001 - a part of the call


def peer_of(connection: Connection) -> str:
    """Return a client's address as gRPC writes it."""
    place = connection.transport.get_extra_info("peername")
    if isinstance(place, tuple):
        host, port = place[:2]
        # As the kernel writes an address of IPv4 on a socket for both.
        host = host.removeprefix("::ffff:") if "." in host else host
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    return "unix:"


def _framed(data: bytes) -> bytes:
    return PREFIX.pack(0, len(data)) + data


def _status(code: grpc.StatusCode | int, details: str) -> list[tuple[str, str]]:
    number = code if isinstance(code, int) else code.value[0]
    fields = [("grpc-status", str(number))]
    if details:
        fields.append(("grpc-message", quote(details, safe=_PRINTABLE, errors="replace")))
    return fields
