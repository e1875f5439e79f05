"""The cases of gRPC's interoperability tests, by the real client, on both transports.

They are those of "gRPC Interop Test Case Descriptions" that a server can be asked in, with
the sizes, the codes and the texts given there.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from ...waiting import LIMIT_SECONDS, until
from .conftest import Serve
from .service import Context, Service, path

Code = grpc.StatusCode
REQUESTS = (27182, 8, 1828, 45904)
RESPONSES = (31415, 9, 2653, 58979)
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
INITIAL = ("x-grpc-test-echo-initial", "test_initial_metadata_value")
TRAILING = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")


async def pour(request: bytes, context: Context) -> AsyncIterator[bytes]:
    """Return the sizes that are asked for, one message each."""
    for size in request.split():
        yield bytes(int(size))


async def echo_metadata(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    found: Any = dict(context.invocation_metadata())
    await context.send_initial_metadata([(INITIAL[0], found[INITIAL[0]])])
    context.set_trailing_metadata([(TRAILING[0], found[TRAILING[0]])])
    async for request in requests:
        yield request


async def fail(request: bytes, context: Context) -> bytes:
    await context.abort(Code.UNKNOWN, request.decode())


async def fail_stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        await context.abort(Code.UNKNOWN, request.decode())
    yield b""


class Interop(Service):
    """The handlers of the tests, beside those of every kind."""

    def handlers(self) -> grpc.GenericRpcHandler:
        known: Any = super().handlers()
        more: Any = grpc.method_handlers_generic_handler(
            "interop.Test",
            {
                "Pour": grpc.unary_stream_rpc_method_handler(pour),
                "EchoMetadata": grpc.stream_stream_rpc_method_handler(echo_metadata),
                "Fail": grpc.unary_unary_rpc_method_handler(fail),
                "FailStream": grpc.stream_stream_rpc_method_handler(fail_stream),
            },
        )

        class Both(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> Any:
                return known.service(details) or more.service(details)

        return Both()


def own(method: str) -> str:
    return f"/interop.Test/{method}"


async def status_of(asking: Any) -> tuple[grpc.StatusCode, str]:
    """Await a call, or read a stream to its end; return the code and the details."""
    try:
        if hasattr(asking, "__aiter__"):
            async for _ in asking:
                pass
        else:
            await asking
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return Code.OK, ""


async def test_empty_unary(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        assert await channel.unary_unary(path("Echo"))(b"") == b""


async def test_large_unary(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        request = bytes(271_828)
        assert await channel.unary_unary(path("Echo"))(request) == request
        assert len(await channel.unary_unary(path("Make"))(b"314159")) == 314_159


async def test_client_streaming(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        joined = await channel.stream_unary(path("Join"))(map(bytes, REQUESTS))
        assert len(joined) == 74_922


async def test_server_streaming(serve: Serve) -> None:
    async with serve(Interop()) as served, served.channel() as channel:
        asked = channel.unary_stream(own("Pour"))(" ".join(map(str, RESPONSES)).encode())
        assert [len(part) async for part in asked] == list(RESPONSES)


async def test_ping_pong(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        talk = channel.stream_stream(path("EchoAll"))()
        for size in REQUESTS:
            await talk.write(bytes(size))
            assert len(await talk.read()) == size
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        assert await talk.code() == Code.OK


async def test_empty_stream(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        talk = channel.stream_stream(path("EchoAll"))()
        await talk.done_writing()
        assert [part async for part in talk] == []
        assert await talk.code() == Code.OK


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_client_compressed(serve: Serve, compression: grpc.Compression) -> None:
    """`client_compressed_unary` and `client_compressed_streaming`."""
    async with serve() as served, served.channel() as channel:
        request = bytes(271_828)
        answer = await channel.unary_unary(path("Echo"))(request, compression=compression)
        assert answer == request
        joined = channel.stream_unary(path("Join"))(map(bytes, REQUESTS), compression=compression)
        assert len(await joined) == 74_922


async def test_custom_metadata(serve: Serve) -> None:
    async with serve(Interop()) as served, served.channel() as channel:
        talk = channel.stream_stream(own("EchoMetadata"))(metadata=(INITIAL, TRAILING))
        await talk.write(bytes(271_828))
        await talk.done_writing()
        assert [len(part) async for part in talk] == [271_828]
        assert INITIAL in tuple(await talk.initial_metadata())
        assert TRAILING in tuple(await talk.trailing_metadata())


@pytest.mark.parametrize("message", ["test status message", SPECIAL], ids=["plain", "special"])
async def test_status_code_and_message(serve: Serve, message: str) -> None:
    """`status_code_and_message` and `special_status_message`."""
    async with serve(Interop()) as served, served.channel() as channel:
        unary = channel.unary_unary(own("Fail"))(message.encode())
        assert await status_of(unary) == (Code.UNKNOWN, message)
        stream = channel.stream_stream(own("FailStream"))(iter([message.encode()]))
        assert await status_of(stream) == (Code.UNKNOWN, message)


@pytest.mark.parametrize("method", ["/transports.Test/None", "/no.Service/Echo"])
async def test_unimplemented(serve: Serve, method: str) -> None:
    """`unimplemented_method` and `unimplemented_service`."""
    async with serve() as served, served.channel() as channel:
        code, _ = await status_of(channel.unary_unary(method)(b""))
        assert code == Code.UNIMPLEMENTED


async def test_cancel_after_begin(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        joined = channel.stream_unary(path("Join"))()
        await joined.wait_for_connection()
        joined.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joined
        assert await joined.code() == Code.CANCELLED
        assert await channel.unary_unary(path("Echo"))(b"x") == b"x"


async def test_cancel_after_first_response(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        talk = channel.stream_stream(path("EchoAll"))()
        await talk.write(bytes(REQUESTS[0]))
        assert len(await talk.read()) == REQUESTS[0]
        talk.cancel()
        assert await talk.code() == Code.CANCELLED
        assert await channel.unary_unary(path("Echo"))(b"x") == b"x"


async def test_timeout_on_sleeping_server(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        await channel.unary_unary(path("Echo"))(b"")
        asleep = channel.unary_unary(path("Wait"))(bytes(27_182), timeout=0.2)
        assert (await status_of(asleep))[0] == Code.DEADLINE_EXCEEDED
        await until(lambda: served.service.cancelled == served.service.entered)


async def test_concurrent_large_unary(serve: Serve) -> None:
    """`concurrent_large_unary`, of fewer calls."""
    async with serve() as served, served.channel() as channel:
        sizes: Sequence[int] = range(271_828, 271_828 + 64)
        calls = [
            channel.unary_unary(path("Echo"))(bytes(size), timeout=LIMIT_SECONDS) for size in sizes
        ]
        assert [len(answer) for answer in await asyncio.gather(*calls)] == list(sizes)
