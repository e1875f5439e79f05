"""One call of gRPC: its messages, its handler, its end (gRPC over HTTP/2, PROTOCOL-HTTP2.md)."""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from urllib.parse import quote

import grpc

from foveate_serve.deadlines import Deadlines, Timer
from foveate_serve.transports.base import SERVER_FAILED, MethodHandler, behaviour_of
from foveate_serve.transports.http2 import headers
from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.context import Context
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

Find: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]]

_GRACE_SECONDS = 0.005
"""The wait after a deadline: a handler that checks its deadline gives a better message."""

STALL_SECONDS = 15.0
"""The seconds between two checks whether an incomplete message has grown: its bytes count
against `max_request_bytes`."""

_MESSAGE_BYTES = 256
"""The memory of a message beside its bytes."""

_HEAD = b"\x88" + headers.write([("content-type", "application/grpc")])
"""`:status` 200 is in HPACK's static table."""
_OK = headers.write([("grpc-status", "0")])
_OVER = MessageError(grpc.StatusCode.CANCELLED, "the call has ended")
_ENOUGH = MessageError(grpc.StatusCode.INTERNAL, "the method takes one message")
# grpc-message encodes the percent sign, and all but printable ASCII, by percent signs.
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


_SHARE = 2
"""A connection that is alone may hold two thirds of the budget."""


@dataclass(kw_only=True, slots=True)
class Budget:
    """The bytes of the messages, of all calls together, that no handler has read yet."""

    limit: int
    held: int = 0

    def check(self, own: int, message: int) -> None:
        """Raise MessageError where they are too many.

        A connection, which holds `own` bytes, may hold `_SHARE` times as many as are free
        (dynamic thresholds, Choudhury and Hahne 1998), and a `message` that is alone all.
        """
        if self.held > self.limit:
            whose = "the messages"
        elif own > _SHARE * (self.limit - self.held) and self.held > message:
            whose = "the messages of this connection"
        else:
            return
        raise MessageError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{whose} that are being received have too many bytes; "
            f"the limit is {self.limit} bytes of all together (max_request_bytes)",
        )


@dataclass(slots=True)
class CallDetails(grpc.HandlerCallDetails):
    """What is known of a call before its first message."""

    method: str
    invocation_metadata: Metadata


class Call(Stream):
    """A call, from its headers to its status.

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
        super().__init__(number)
        self.connection = connection
        self.head = head
        self._context = Context(self)
        self._find = find
        self._limit = max_message_bytes
        self._budget = budget
        self._assembler = Assembler(max_message_bytes, head.encoding)
        self._deadlines = deadlines
        self._held = 0
        self._progressed = False
        self._stall: Timer | None = None
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
        self._late = False
        self._stopped = False
        self._deadline: float | None = None
        self._timer: Timer | None = None
        if head.timeout is not None:
            self._deadline = time.monotonic() + head.timeout
            self._timer = deadlines.at(self._deadline + _GRACE_SECONDS, self._expire)
        connection.running += 1
        self.task = asyncio.get_running_loop().create_task(self._run())

    # Methods that the connection calls.

    def received(self, data: memoryview) -> None:
        """Receive a part of a message."""
        if self._problem is not None:
            return
        size = len(data)
        if self._messages:
            # Of a handler that reads slowly, at most one window of bytes is held.
            self._deferred += size
        else:
            self.connection.credit(self, size)
        self._hold(size)
        try:
            messages = self._assembler.feed(data)
            self._hold(_MESSAGE_BYTES * len(messages))
            self._budget.check(self.connection.held, self._held)
        except MessageError as error:
            self._problem = error
            self._wake()
            return
        self._progressed = True
        if self._assembler.within and self._stall is None:
            self._watch()
        if messages:
            # The first is charged for the bytes of the incomplete message after the last.
            size = self._held - _MESSAGE_BYTES * (len(messages) - 1)
            self._held = 0
            for message in messages:
                self._messages.append((message, size))
                size = _MESSAGE_BYTES
            self.connection.counts.messages_received += len(messages)
            self._wake()

    def _watch(self) -> None:
        """Check later whether more of the incomplete message has been received."""
        self._progressed = False
        self._stall = self._deadlines.at(time.monotonic() + STALL_SECONDS, self._check)

    def _check(self) -> None:
        self._stall = None
        if self._problem is not None or not self._assembler.within:
            return
        if self._progressed or self._messages:
            self._watch()
            return
        self._problem = MessageError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"no part of an incomplete message was received for {STALL_SECONDS:.0f} seconds",
        )
        self._wake()

    def _hold(self, size: int) -> None:
        self._budget.held += size
        self.connection.held += size
        self._held += size

    def _release(self, size: int) -> None:
        self._budget.held -= size
        self.connection.held -= size

    def _refuse_more(self, why: MessageError) -> None:
        """Discard the messages that no handler has read, and refuse those that follow."""
        self._release(self._held + sum(size for _, size in self._messages))
        self._held = 0
        self._messages.clear()
        self._problem = why

    def ended(self) -> None:
        """Note the end of the client's messages."""
        if self._assembler.within and self._problem is None:
            self._problem = MessageError(grpc.StatusCode.INTERNAL, "the last message is cut off")
        self._wake()

    def lost(self) -> None:
        """Cancel the call: the client has reset it, or its connection is lost."""
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
            # A task that is cancelled before its first step does not run at all.
            self._begun = True
            self._note_cancel()
            self._end()

    def _note_cancel(self) -> None:
        if self._late:
            self._context.set_status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline is over")
        elif self._stopped:
            self._context.set_status(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
        else:
            self._context.set_status(grpc.StatusCode.CANCELLED, "the call was cancelled")

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # The call's own task.

    async def _run(self) -> None:
        self._begun = True
        try:
            if self.head.http_status != 200:
                return
            if self.head.encoding not in ENCODINGS:
                self._context.set_status(
                    grpc.StatusCode.UNIMPLEMENTED, "grpc-encoding is not supported"
                )
                return
            if self.connection.sender.full:
                await self.connection.sender.room()
            handler = await self._find(CallDetails(self.head.path, self.head.metadata))
            if handler is None:
                self._context.set_status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            else:
                await self._handle(handler)
        except grpc.aio.AbortError:
            pass  # abort() has set the status
        except MessageError as error:
            self._context.set_status(error.code, error.details)
        except asyncio.CancelledError:
            self._note_cancel()
        except Exception:
            logger.exception("a handler failed")
            self._context.set_status(grpc.StatusCode.UNKNOWN, SERVER_FAILED)
        finally:
            self._end()

    async def _handle(self, handler: MethodHandler) -> None:
        serialize = handler.response_serializer
        if serialize is not None:
            self._serialize = serialize
        behaviour = behaviour_of(handler)
        self._deserialize = deserialize = handler.request_deserializer
        request: Any
        if handler.request_streaming:
            request = _Requests(self)
        else:
            message = await self._next_message()
            if message is None:
                self._context.set_status(grpc.StatusCode.INTERNAL, "the request is missing")
                return
            self._refuse_more(_ENOUGH)
            # What deserialises takes any buffer.
            request = bytes(message) if deserialize is None else deserialize(cast("bytes", message))
        if handler.response_streaming and inspect.isasyncgenfunction(behaviour):
            async with aclosing(behaviour(request, self._context)) as responses:
                async for response in responses:
                    await self.send(response)
            return
        response = await behaviour(request, self._context)
        if not handler.response_streaming and self._context.code() == grpc.StatusCode.OK:
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
        self.connection.sender.answer(
            self, _HEAD, _framed(data), _OK + self._context.trailing_block
        )

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stall is not None:
            self._stall.cancel()
        self.connection.running -= 1
        self._refuse_more(_OVER)
        if self.closed:
            self.connection.counts.failed += not self._answered
        elif not self._answered:
            self._finish()
        self._context.has_ended()

    def _finish(self) -> None:
        http_status = str(self.head.http_status)
        if http_status != "200":
            self.connection.counts.failed += 1
            refusal = _status(grpc.StatusCode.UNKNOWN, "this is no call of gRPC")
            self.connection.sender.finish(self, headers.write([(":status", http_status), *refusal]))
            return
        status = self._context.code()
        code = status if isinstance(status, int) else status.value[0]
        if code == 0:
            self.connection.counts.succeeded += 1
        else:
            self.connection.counts.failed += 1
        block = headers.write(_status(code, self._context.details())) + self._context.trailing_block
        if self._initial_sent:
            self.connection.sender.finish(self, block)
            return
        if code == grpc.StatusCode.UNIMPLEMENTED.value[0]:
            # For the client: the encodings that the server takes.
            block = headers.write([("grpc-accept-encoding", ",".join(ENCODINGS))]) + block
        self.connection.sender.finish(self, _HEAD + block)

    def _expire(self) -> None:
        self._late = True
        self.cancel()

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
        self._release(size)
        if not self._messages:
            self.connection.credit(self, self._deferred)
            self._deferred = 0
        if not message.encoding:
            return message.body
        # A long decompression runs in a thread, because it would block the event loop.
        data = message.inflated_at_once(self._limit)
        if data is not None:
            return data
        # One at a time of a connection: each may take max_message_bytes, for a thousandth of it.
        async with self.connection.inflating:
            return await asyncio.to_thread(message.inflated, self._limit)

    # Methods that handlers call, through their context.

    async def next_request(self) -> Any:
        """Return the next request of a stream; raises StopAsyncIteration after the last."""
        message = await self._next_message()
        if message is None:
            raise StopAsyncIteration
        data = bytes(message)
        return data if self._deserialize is None else self._deserialize(data)

    async def send(self, message: object) -> None:
        """Send a response, and wait until it is written."""
        self.begin_answer(())
        self.connection.counts.messages_sent += 1
        self.connection.sender.data(self, _framed(self._serialize(message)))
        await self.connection.sender.drain(self)

    def begin_answer(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the metadata that comes before the responses, unless some was sent."""
        if not self._initial_sent:
            block = _HEAD + headers.write_metadata(initial_metadata)
            self._initial_sent = True
            self.connection.sender.headers(self, block)

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the client has cancelled the call, or its deadline has expired."""
        return self._late or self._lost

    @property
    def over(self) -> bool:
        """Whether the call has ended."""
        return self.closed or self._problem is _OVER


class _Requests(AsyncIterator[Any]):
    """The requests of a stream; a cancelled wait loses none of them."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __anext__(self) -> Any:
        return await self._call.next_request()


def _framed(data: bytes) -> bytes:
    return PREFIX.pack(0, len(data)) + data


def _status(code: grpc.StatusCode | int, details: str) -> list[tuple[str, str]]:
    number = code if isinstance(code, int) else code.value[0]
    fields = [("grpc-status", str(number))]
    if details:
        fields.append(("grpc-message", quote(details, safe=_PRINTABLE, errors="replace")))
    return fields
