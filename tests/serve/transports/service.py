"""A handler of every kind, for a transport to call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE = "transports.Test"
SNOW = "nicht gefunden: \u2603 \U0001f600 100%\n"
SECRET = "/secret/path"  # noqa: S105 - of a file
LEAST_STEP = 64 << 10


def path(method: str) -> str:
    return f"/{SERVICE}/{method}"


class Service:
    """The handlers, and what they have seen."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = 0
        self.cancelled = 0
        self.finished = 0
        self.written = 0
        self.taken = 0
        self.custom: Callable[[Any, Context], Awaitable[Any]] = self.echo

    async def echo(self, request: bytearray, context: Context) -> bytes:
        return bytes(request)

    async def make(self, request: bytearray, context: Context) -> bytes:
        return bytes(int(request))

    async def count(self, request: bytearray, context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    async def pour(self, request: bytearray, context: Context) -> AsyncIterator[bytes]:
        step = bytes(LEAST_STEP)
        for _ in range(int(request)):
            self.written += 1
            yield step

    async def join(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"".join([request async for request in requests])

    async def echo_all(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def take(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Take each request once the gate is open."""
        await self.gate.wait()
        async for _ in requests:
            self.taken += 1
        return str(self.taken).encode()

    async def wait(self, request: bytearray, context: Context) -> bytes:
        self.entered += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return bytes(request)

    async def fail(self, request: bytearray, context: Context) -> bytes:
        raise ValueError(SECRET)

    async def abort(self, request: bytearray, context: Context) -> bytes:
        trailing = (("why", "for a reason"), ("why-bin", b"\x00\xff\n"))
        await context.abort(grpc.StatusCode.NOT_FOUND, SNOW, trailing)

    async def metadata(self, request: bytearray, context: Context) -> bytes:
        """Send the metadata of the test back, before the answer and after it."""
        mine = tuple(pair for pair in context.invocation_metadata() if pair[0].startswith("test-"))
        await context.send_initial_metadata(mine)
        context.set_trailing_metadata(mine)
        return repr(mine).encode()

    async def anything(self, request: bytearray, context: Context) -> Any:
        return await self.custom(request, context)

    def handlers(self) -> grpc.GenericRpcHandler:
        unary: Any = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Echo": unary(self.echo),
                "Make": unary(self.make),
                "Wait": unary(self.wait),
                "Fail": unary(self.fail),
                "Abort": unary(self.abort),
                "Metadata": unary(self.metadata),
                "Custom": unary(self.anything),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Pour": grpc.unary_stream_rpc_method_handler(self.pour),
                "Join": grpc.stream_unary_rpc_method_handler(self.join),
                "Take": grpc.stream_unary_rpc_method_handler(self.take),
                "EchoAll": grpc.stream_stream_rpc_method_handler(self.echo_all),
                "CustomStream": grpc.stream_stream_rpc_method_handler(self.anything),
            },
        )
