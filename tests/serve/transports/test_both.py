"""What both transports do alike, whatever their clients send."""

import asyncio
import gc
import logging
import socket
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub

from foveate_serve.transports.base import SERVER_FAILED, Transport
from foveate_serve.transports.http2.frames import Kind

from ...waiting import LIMIT_SECONDS, until
from .conftest import Serve
from .http2.conftest import call, data, frame, message, opening
from .service import LEAST_STEP, SECRET, SNOW, Context, Service, path

Code = grpc.StatusCode
END_STREAM, END_HEADERS = 0x1, 0x4


def unary(channel: grpc.aio.Channel, method: str, body: bytes = b"") -> Any:
    """Call a method that has one request and one answer."""
    return channel.unary_unary(path(method))(body, timeout=LIMIT_SECONDS)


async def code_of(asking: Awaitable[object]) -> grpc.StatusCode:
    """Return the code of a call."""
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def test_calls_of_every_kind_are_answered(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        parts = [b"1", b"2", b"3"]
        assert await unary(channel, "Echo", b"x") == b"x"
        counted = channel.unary_stream(path("Count"))(b"3")
        assert [part async for part in counted] == [b"0", b"1", b"2"]
        assert await channel.stream_unary(path("Join"))(iter(parts)) == b"123"
        echoed = channel.stream_stream(path("EchoAll"))(iter(parts))
        assert [part async for part in echoed] == parts
        assert await code_of(unary(channel, "Nothing")) == Code.UNIMPLEMENTED


async def test_metadata_and_errors_reach_the_client(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        mine = (("test-text", "x"), ("test-bin", b"\x00\xff"))
        found = channel.unary_unary(path("Metadata"))(b"", metadata=mine)
        await found
        assert set(mine) <= set(await found.initial_metadata())
        assert set(mine) <= set(await found.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Abort")
        assert (raised.value.code(), raised.value.details()) == (Code.NOT_FOUND, SNOW)
        trailing = dict(raised.value.trailing_metadata())
        assert (trailing["why"], trailing["why-bin"]) == ("for a reason", b"\x00\xff\n")


class Broken(grpc.aio.ServerInterceptor):
    """Fails at the calls of one method."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method == path("Custom"):
            raise RuntimeError(SECRET)
        return await continuation(handler_call_details)


async def test_the_text_of_an_unforeseen_error_stays_in_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_late(requests: AsyncIterator[bytes], context: Context) -> None:
        await context.write(b"first")
        raise KeyError(SECRET)

    async with serve(interceptors=[Broken()]) as served, served.channel() as channel:
        served.service.custom = fail_late
        stream = channel.stream_stream(path("CustomStream"))(iter([b"x"]))
        assert await stream.read() == b"first"
        for where, asking in (
            ("a handler", unary(channel, "Fail")),
            ("a stream", stream.read()),
            ("a generator", channel.unary_stream(path("Count"))(b"no number").read()),
            ("an interceptor", unary(channel, "Custom")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asking
            found = raised.value.code(), raised.value.details()
            assert found == (Code.UNKNOWN, SERVER_FAILED), where
        assert await unary(channel, "Echo", b"x") == b"x"
    assert caplog.text.count(SECRET) >= 3


async def test_a_message_over_the_limit_is_refused(serve: Serve) -> None:
    async with serve(max_message_bytes=1000) as served, served.channel() as channel:
        assert await unary(channel, "Echo", bytes(1000)) == bytes(1000)
        assert await code_of(unary(channel, "Echo", bytes(1001))) == Code.RESOURCE_EXHAUSTED
        assert await unary(channel, "Echo", b"x") == b"x"


async def test_a_call_is_refused_before_its_message_is_read(serve: Serve) -> None:
    class Refuse(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            async def refuse(requests: object, context: Context) -> None:
                await context.abort(Code.RESOURCE_EXHAUSTED, "full")

            return grpc.stream_stream_rpc_method_handler(refuse)

    async with serve(interceptors=[Refuse()]) as served, await served.open() as client:
        client.send(opening(1), data(1, message(bytes(1000))[:500]))
        assert (await client.answer(1)).status == str(Code.RESOURCE_EXHAUSTED.value[0])


class Large:
    """Stands for what a handler makes of a request."""


async def test_what_a_refused_call_held_is_freed_at_once(serve: Serve) -> None:
    held: list[weakref.ref[Large]] = []

    async def refuse(request: bytes, context: Context) -> None:
        large = Large()
        held.append(weakref.ref(large))
        await context.abort(Code.INVALID_ARGUMENT, "no")

    async with serve() as served, served.channel() as channel:
        served.service.custom = refuse
        gc.collect()
        gc.disable()
        try:
            assert await code_of(unary(channel, "Custom")) == Code.INVALID_ARGUMENT
            await until(lambda: held[0]() is None)
        finally:
            gc.enable()


async def test_a_path_that_is_no_text_ends_no_server(serve: Serve) -> None:
    async with serve() as served, served.channel() as channel:
        waiting = unary(channel, "Wait", b"x")
        await until(lambda: served.service.entered == 1)
        async with await served.open() as stranger:
            # The names are entries of the static table (RFC 7541, appendix A).
            head = b"".join(
                (
                    b"\x83\x86",  # POST and http
                    b"\x04\x03/\xff\xfe",  # :path
                    b"\x01\x04host",  # :authority
                    b"\x0f\x10\x10application/grpc",
                    b"\x00\x02te\x08trailers",
                )
            )
            stranger.send(frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, head))
            with suppress(EOFError):
                await stranger.answer(1)

        async def answered() -> bool:
            async with served.channel() as other:
                return await code_of(unary(other, "Echo", b"x")) == Code.OK

        async with asyncio.timeout(LIMIT_SECONDS):
            while not await answered():  # noqa: ASYNC110 - the other side is a server
                await asyncio.sleep(0.05)
        # What was in flight is answered as well.
        served.service.gate.set()
        assert await waiting == b"x"


async def test_calls_that_wait_for_a_busy_loop_are_answered(serve: Serve) -> None:
    async def block(request: bytes, context: Context) -> bytes:
        time.sleep(1)  # noqa: ASYNC251 - the loop is to be busy
        return b""

    def burst(port: int) -> list[object]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with ExitStack() as channels:
            calls = [
                channels.enter_context(
                    grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
                ).unary_unary(path("Echo"))
                for _ in range(4)
            ]
            asked = [call.future(b"x", timeout=LIMIT_SECONDS) for _ in range(500) for call in calls]
            return [future.exception() for future in asked]

    async with serve() as served, served.channel() as channel:
        served.service.custom = block
        blocked = asyncio.ensure_future(unary(channel, "Custom"))
        assert set(await asyncio.to_thread(burst, served.port)) == {None}
        await blocked


async def test_a_cancel_ends_the_handler_in_its_own_task(serve: Serve) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    class Noting(Service):
        async def pour(self, request: Any, context: Context) -> AsyncIterator[bytes]:
            tasks.append(asyncio.current_task())
            try:
                while True:
                    yield bytes(LEAST_STEP)
            finally:
                tasks.append(asyncio.current_task())

    async with serve(service=Noting()) as served, served.channel() as channel:
        waiting = unary(channel, "Wait")
        await until(lambda: served.service.entered == 1)
        waiting.cancel()
        await until(lambda: served.service.cancelled == 1)
        pouring = channel.unary_stream(path("Pour"))(b"")
        await pouring.read()
        pouring.cancel()
        await until(lambda: len(tasks) == 2)
        assert tasks[0] is tasks[1]


async def test_a_stop_tells_clients_to_go_elsewhere_and_answers_what_runs(serve: Serve) -> None:
    async with serve() as served, await served.open() as client, served.channel() as channel:
        client.send(call(1, "Wait", b"x"))
        waiting = unary(channel, "Wait", b"y")
        await until(lambda: served.service.entered == 2)
        finishing = asyncio.create_task(served.transport.finish(LIMIT_SECONDS))
        goaway = await client.until_kind(Kind.GOAWAY)
        assert goaway.number == 0
        assert not finishing.done()
        # A new connection gets nothing.
        await until(lambda: not can_connect(served.port))
        served.service.gate.set()
        assert (await client.answer(1)).body == message(b"x")
        assert await waiting == b"y"
        await finishing


async def test_no_call_is_lost_while_clients_learn_of_a_stop(serve: Serve) -> None:
    async with serve() as served:
        codes: list[grpc.StatusCode] = []

        async def ask_again_and_again() -> None:
            async with served.channel() as channel:
                while Code.UNAVAILABLE not in codes:
                    codes.append(await code_of(unary(channel, "Echo", b"x")))

        clients = [asyncio.create_task(ask_again_and_again()) for _ in range(8)]
        await until(lambda: len(codes) > 50)
        await served.transport.finish(LIMIT_SECONDS)
        await asyncio.wait(clients)
        # What comes after the stop finds nobody who listens.
        assert set(codes) == {Code.OK, Code.UNAVAILABLE}


def can_connect(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.parametrize("seconds", [None, 0.05])
async def test_calls_that_a_stop_cuts_off_are_unavailable(
    serve: Serve, seconds: float | None
) -> None:
    async with serve() as served, served.channel() as channel:
        waiting = unary(channel, "Wait")
        stream = channel.stream_stream(path("EchoAll"))()
        await stream.write(b"x")
        assert await stream.read() == b"x"
        await until(lambda: served.service.entered == 1)
        if seconds is None:
            await served.transport.stop()
        else:
            await served.transport.finish(seconds)
        assert await code_of(waiting) == Code.UNAVAILABLE
        assert await code_of(stream.read()) == Code.UNAVAILABLE
        assert served.service.cancelled == 1


async def test_a_stop_before_the_start_does_nothing(make: Callable[..., Transport]) -> None:
    transport = make()
    await transport.finish(1)
    await transport.stop()


async def test_a_connection_ends_at_its_age_and_its_calls_are_finished(serve: Serve) -> None:
    async with serve(max_connection_age=0.2) as served, await served.open() as client:
        client.send(call(1, "Wait", b"x"))
        goaway = await client.until_kind(Kind.GOAWAY)
        assert goaway.number == 0
        served.service.gate.set()
        assert (await client.answer(1)).body == message(b"x")
        await client.has_lost()
        # The server is there as before.
        async with served.channel() as channel:
            assert await unary(channel, "Echo", b"x") == b"x"


async def test_calls_longer_than_the_grace_of_an_old_connection_are_cut_off(serve: Serve) -> None:
    limits = {"max_connection_age": 0.1, "max_connection_age_grace": 0.1}
    async with serve(**limits) as served, served.channel() as channel:
        assert await code_of(unary(channel, "Wait")) == Code.UNAVAILABLE
        await until(lambda: served.service.cancelled == 1)


async def test_a_connection_without_calls_ends(serve: Serve) -> None:
    async with serve(max_connection_idle=0.2) as served, await served.open() as client:
        client.send(call(1, "Wait", b"x"))
        await until(lambda: served.service.entered == 1)
        await asyncio.sleep(0.5)  # longer than a connection may be idle
        assert all(found.kind != Kind.GOAWAY for found in client.seen)
        served.service.gate.set()
        assert (await client.answer(1)).body == message(b"x")
        await client.until_kind(Kind.GOAWAY)
        await client.has_lost()


async def test_who_does_not_answer_a_ping_is_gone(serve: Serve) -> None:
    limits = {"keepalive_time": 1, "keepalive_timeout": 0.2}
    async with serve(**limits) as served, await served.open() as client:
        client.send(call(1, "Wait"))
        client.answers_pings = False
        await client.has_lost()
        assert any(found.kind == Kind.PING for found in client.seen)
        await until(lambda: served.service.cancelled == 1)


async def test_a_port_that_is_taken_is_an_error(make: Callable[..., Transport]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):  # noqa: S104 - nothing listens
            with pytest.raises(OSError, match="in use"):
                await make().listen(f"{host}:{port}")


async def test_an_address_of_another_machine_is_an_error(
    make: Callable[..., Transport], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="assign"):
        await make().listen("192.0.2.1:0")
    assert capfd.readouterr() == ("", "")


async def test_a_port_may_be_shared(make: Callable[..., Transport]) -> None:
    first, second = make(), make()
    port = await first.listen("127.0.0.1:0", share_port=True)
    assert await second.listen(f"127.0.0.1:{port}", share_port=True) == port
    await first.stop()
    await second.stop()


async def test_a_unix_socket_is_listened_on(make: Callable[..., Transport], tmp_path: Path) -> None:
    transport = make()
    transport.add_generic_rpc_handlers([Service().handlers()])
    await transport.listen_unix(tmp_path / "socket")
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel:
        assert await unary(channel, "Echo", b"x") == b"x"
    await transport.stop()


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("0.0.0.0", ["127.0.0.1"]),  # noqa: S104 - of the test
        ("[::]", ["127.0.0.1", "[::1]"]),
        ("[::1]", ["[::1]"]),
        ("localhost", ["localhost"]),
    ],
)
async def test_addresses_are_listened_on(
    make: Callable[..., Transport], address: str, hosts: list[str]
) -> None:
    transport = make()
    transport.add_generic_rpc_handlers([Service().handlers()])
    port = await transport.listen(f"{address}:0")
    for host in hosts:
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            assert await unary(channel, "Echo", b"x") == b"x", host
    await transport.stop()


async def test_channelz_shows_the_server(serve: Serve) -> None:
    async with serve(channelz=True) as served, served.channel() as channel:
        await unary(channel, "Echo", b"x")
        found = await ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest())
        assert any(server.data.calls_started >= 2 for server in found.server)


async def test_nothing_is_logged_of_an_ordinary_life(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serve() as served, served.channel() as channel:
            assert await unary(channel, "Echo", b"x") == b"x"
            cancelled = unary(channel, "Wait")
            await until(lambda: served.service.entered == 1)
            cancelled.cancel()
            await until(lambda: served.service.cancelled == 1)
            await served.transport.finish(LIMIT_SECONDS)
    assert not caplog.records
