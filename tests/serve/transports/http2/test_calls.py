"""What grpc's own client finds: calls of every kind, their limits, ends and contexts."""

import asyncio
import gzip
import logging
import random
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest
import trustme
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.http2.channelz import SERVER_ID
from foveate_serve.transports.http2.frames import ErrorCode, Flag, Kind, Setting
from foveate_serve.transports.http2.server import Http2Transport
from foveate_serve.transports.http2.stream import STREAM_WINDOW
from foveate_serve.transports.tls import TlsFiles

from ....waiting import LIMIT_SECONDS, until
from ..service import LEAST_STEP, SECRET, SNOW, Context, path
from .conftest import (
    LARGE_WINDOWS,
    RawClient,
    Served,
    call,
    data,
    make_server,
    message,
    opening,
    request,
    reset,
    serving,
    window,
)

Code = grpc.StatusCode


def unary(channel: grpc.aio.Channel, method: str, body: bytes = b"", **options: Any) -> Any:
    """Call a method that has one request and one answer."""
    options.setdefault("timeout", LIMIT_SECONDS)
    return channel.unary_unary(path(method))(body, **options)


async def sent(*messages: bytes) -> AsyncIterator[bytes]:
    for body in messages:
        yield body


async def steady(count: Callable[[], int]) -> int:
    """Wait until a number grows no more, and return it."""
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(0.1)  # what goes on would count within it
    return last


async def asked(served: Served, handler: Callable[[Any, Context], Awaitable[Any]]) -> Any:
    """Have a handler answer one call, and return what the client gets."""
    served.service.custom = handler
    async with served.channel() as channel:
        return await unary(channel, "Custom", b"x")


# The four kinds of call.


async def test_what_is_written_is_sent_at_once(served: Served, client: RawClient) -> None:
    sock = served.connection.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_request_is_answered(channel: grpc.aio.Channel) -> None:
    for body in (b"", b"x", bytes(range(256))):
        assert await unary(channel, "Echo", body) == body


async def test_a_request_is_answered_with_a_stream(channel: grpc.aio.Channel) -> None:
    found = channel.unary_stream(path("Count"))(b"300")
    assert [int(answer) async for answer in found] == list(range(300))
    assert await found.code() == Code.OK


async def test_a_stream_may_be_answered_with_nothing(channel: grpc.aio.Channel) -> None:
    assert [answer async for answer in channel.unary_stream(path("Count"))(b"0")] == []


async def test_a_stream_is_answered_once(channel: grpc.aio.Channel) -> None:
    parts = [str(number).encode() for number in range(300)]
    assert await channel.stream_unary(path("Join"))(sent(*parts)) == b"".join(parts)
    assert await channel.stream_unary(path("Join"))(sent()) == b""


async def test_a_stream_is_answered_with_a_stream(channel: grpc.aio.Channel) -> None:
    found = channel.stream_stream(path("EchoAll"))()
    for body in (b"one", b"", b"three"):
        await found.write(body)
        assert await found.read() == body
    await found.done_writing()
    assert await found.read() == grpc.aio.EOF
    assert await found.code() == Code.OK


async def test_the_synchronous_client_is_answered(served: Served) -> None:
    def ask() -> tuple[bytes, list[bytes]]:
        with grpc.insecure_channel(served.address) as channel:
            one = channel.unary_unary(path("Echo"))(b"one", timeout=LIMIT_SECONDS)
            many = channel.stream_stream(path("EchoAll"))(iter([b"two", b"three"]))
            return one, list(many)

    assert await asyncio.to_thread(ask) == (b"one", [b"two", b"three"])


# Metadata and statuses.


async def test_metadata_goes_both_ways(channel: grpc.aio.Channel) -> None:
    given = (
        ("test-text", "a b,c"),
        ("test-raw-bin", bytes(range(256))),
        ("test-text", "another of this name"),
        ("test-empty-bin", b""),
    )
    found = unary(channel, "Metadata", metadata=given)
    assert sorted(await found.initial_metadata()) == sorted(given)
    assert sorted(await found.trailing_metadata()) == sorted(given)
    assert "test-raw-bin" in (await found).decode()


async def test_an_error_has_a_code_details_and_metadata(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "Abort")
    assert raised.value.code() == Code.NOT_FOUND
    assert raised.value.details() == SNOW
    trailing = dict(raised.value.trailing_metadata())
    assert trailing == {"why": "for a reason", "why-bin": b"\x00\xff\n"}


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "Nothing")
    assert raised.value.code() == Code.UNIMPLEMENTED
    assert await unary(channel, "Echo", b"x") == b"x"


async def test_a_failure_is_logged_and_its_text_kept_back(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "Fail")
    assert raised.value.code() == Code.UNKNOWN
    assert SECRET not in raised.value.details()
    assert SECRET in caplog.text


async def test_a_failure_in_the_midst_of_a_stream_follows_what_was_sent(served: Served) -> None:
    async def handler(requests: AsyncIterator[bytes], context: Context) -> None:
        async for body in requests:
            await context.write(body)
            raise KeyError(SECRET)

    served.service.custom = handler
    async with served.channel() as channel:
        found = channel.stream_stream(path("CustomStream"))(sent(b"one"))
        assert await found.read() == b"one"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await found.read()
        assert raised.value.code() == Code.UNKNOWN


@pytest.mark.parametrize("broken", ["request_deserializer", "response_serializer"])
async def test_what_cannot_be_converted_fails_its_call(served: Served, broken: str) -> None:
    def fails(_: bytes) -> bytes:
        raise ValueError(SECRET)

    unary_handler: Any = grpc.unary_unary_rpc_method_handler
    handler = unary_handler(served.service.echo, **{broken: fails})
    served.server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("transports.Broken", {"Echo": handler})]
    )
    async with served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/transports.Broken/Echo")(b"x")
    assert raised.value.code() == Code.UNKNOWN
    assert served.server.counts().succeeded == 0
    assert served.server.counts().failed == 1


BAD_METADATA: dict[str, tuple[str, Any]] = {
    "no_ascii": ("schl\u00fcssel", "x"),
    "no_text": ("key", 5),
    "upper_case": ("Key", "x"),
    "two_lines": ("key", "a\nb"),
    "no_key": ("", "x"),
    "space": ("a key", "x"),
    "pseudo": (":status", "200"),
}


@pytest.mark.parametrize("pair", BAD_METADATA.values(), ids=BAD_METADATA.keys())
@pytest.mark.parametrize("place", ["trailing", "initial", "abort"])
async def test_metadata_that_cannot_be_sent_fails_its_call_alone(
    served: Served, client: RawClient, pair: tuple[str, Any], place: str
) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        if place == "abort":
            await context.abort(Code.NOT_FOUND, "", (pair,))
        elif place == "initial":
            await context.send_initial_metadata((pair,))
        else:
            context.set_trailing_metadata((pair,))
        return b"answer"

    served.service.custom = handler
    client.send(call(1, "Custom"), call(3, "Echo", b"x"))
    assert (await client.answer(3)).body == message(b"x")
    async with asyncio.timeout(2):
        answer = await client.answer(1)
    # As grpc.aio says, or as of any failure.
    assert answer.status in (str(Code.INTERNAL.value[0]), str(Code.UNKNOWN.value[0]))
    assert answer.heads[0][":status"] == "200"
    assert all(pair not in head.items() for head in answer.heads if pair[0] != ":status")
    await served.has_forgotten()
    counts = served.server.counts()
    assert (counts.succeeded, counts.failed) == (1, 1)


async def test_details_that_are_no_unicode_still_end_their_call(
    served: Served, client: RawClient
) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        await context.abort(Code.NOT_FOUND, "a file named \udcff")

    served.service.custom = handler
    client.send(call(1, "Custom"))
    async with asyncio.timeout(2):
        assert (await client.answer(1)).status is not None


# Deadlines and cancelling.


@pytest.mark.parametrize("given", ["60m", "60000u", "600m"])
async def test_the_server_ends_a_call_that_is_late(
    served: Served, client: RawClient, given: str
) -> None:
    start = asyncio.get_running_loop().time()
    client.send(opening(1, request("Wait", ("grpc-timeout", given))), data(1, message(b"")))
    answer = await client.answer(1)
    assert answer.status == str(Code.DEADLINE_EXCEEDED.value[0])
    assert asyncio.get_running_loop().time() - start >= 0.06
    assert served.service.cancelled == 1
    await served.has_forgotten()


async def test_the_client_learns_that_it_was_late(
    served: Served, channel: grpc.aio.Channel
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "Wait", timeout=0.5)
    assert raised.value.code() == Code.DEADLINE_EXCEEDED
    await until(lambda: served.service.cancelled == 1)
    await served.has_forgotten()


async def test_a_handler_knows_the_time_that_remains(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        return repr(context.time_remaining()).encode()

    served.service.custom = handler
    async with served.channel() as channel:
        # The client rounds up what it says of it.
        assert 20 < float(await unary(channel, "Custom", timeout=30)) < 31
        assert await unary(channel, "Custom", timeout=None) == b"None"


async def test_a_handler_that_keeps_the_deadline_itself_says_more_of_it(
    served: Served, client: RawClient
) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        with suppress(TimeoutError):
            async with asyncio.timeout(context.time_remaining()):
                await asyncio.Event().wait()
        await context.abort(Code.DEADLINE_EXCEEDED, "in the queue")

    served.service.custom = handler
    client.send(opening(1, request("Custom", ("grpc-timeout", "50m"))), data(1, message(b"")))
    assert (await client.answer(1)).heads[-1]["grpc-message"] == "in the queue"


async def test_the_clients_cancel_cancels_the_handler(
    served: Served, channel: grpc.aio.Channel
) -> None:
    found = unary(channel, "Wait")
    await until(lambda: served.service.entered == 1)
    found.cancel()
    await until(lambda: served.service.cancelled == 1)
    await served.has_forgotten()
    assert await unary(channel, "Echo", b"x") == b"x"


async def test_cancelling_a_stream_ends_its_handler(
    served: Served, channel: grpc.aio.Channel
) -> None:
    found = channel.unary_stream(path("Pour"))(b"100000")
    assert len(await found.read()) == LEAST_STEP
    found.cancel()
    await served.has_forgotten()
    assert served.service.written < 100_000


# Messages.


async def test_messages_larger_than_the_windows_go_both_ways() -> None:
    body = random.Random(0).randbytes(5 << 20)  # noqa: S311
    async with serving(max_message_bytes=8 << 20) as served, served.channel() as channel:
        assert await unary(channel, "Echo", body) == body
        assert await channel.stream_unary(path("Join"))(sent(body, body[:9])) == body + body[:9]


async def test_many_messages_at_one_time_each_get_their_own_answer(served: Served) -> None:
    sizes = random.Random(1)  # noqa: S311
    bodies = [
        sizes.randbytes(sizes.choice([10, 1000, 70_000, 1 << 20, 2 << 20])) for _ in range(30)
    ]
    bodies += [str(number).encode() for number in range(300)]
    async with served.channel() as channel:
        found = await asyncio.gather(*(unary(channel, "Echo", body) for body in bodies))
        assert len(served.server.connections) == 1
    assert [bytes(body) for body in found] == bodies


async def test_large_streams_run_side_by_side(served: Served) -> None:
    parts = [bytes([number]) * 300_000 for number in range(10)]

    async def echoed(channel: grpc.aio.Channel) -> list[bytes]:
        return [body async for body in channel.stream_stream(path("EchoAll"))(sent(*parts))]

    async with served.channel() as channel:
        found = await asyncio.gather(*(echoed(channel) for _ in range(3)))
    assert found == [parts] * 3


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_inflated(
    served: Served, compression: grpc.Compression
) -> None:
    body = b"compressible " * 50_000
    async with served.channel() as channel:
        assert await unary(channel, "Echo", body, compression=compression) == body
        joined = channel.stream_unary(path("Join"), request_serializer=None)
        assert await joined(sent(body, b"", b"x"), compression=compression) == body + b"x"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"x" * 9)),
        ("deflate", zlib.compress(b"x" * 9)),
        ("gzip", gzip.compress(random.Random(2).randbytes(600_000))),  # noqa: S311
    ],
    ids=["gzip", "deflate", "in_a_thread"],
)
async def test_a_message_says_that_it_is_compressed(
    served: Served, encoding: str, body: bytes
) -> None:
    expected = (gzip if encoding == "gzip" else zlib).decompress(body)
    async with await served.open(LARGE_WINDOWS) as client:
        client.send(opening(1, request("Echo", ("grpc-encoding", encoding))))
        client.send(data(1, message(body, flag=1), end=True))
        assert (await client.answer(1)).body == message(expected)


@pytest.mark.parametrize(
    ("encoding", "sent_message", "code"),
    [
        ("gzip", message(b"no gzip", flag=1), Code.INTERNAL),
        ("gzip", message(gzip.compress(bytes(99))[:-1], flag=1), Code.INTERNAL),
        ("gzip", message(gzip.compress(bytes(80 << 20)), flag=1), Code.RESOURCE_EXHAUSTED),
        ("identity", message(b"x", flag=1), Code.INTERNAL),
        ("identity", message(b"x", flag=2), Code.INTERNAL),
        ("identity", message(b"x" * 9)[:-1], Code.INTERNAL),
        ("identity", message(b"x")[:3], Code.INTERNAL),
        ("identity", b"", Code.INTERNAL),
        ("snappy", message(b"x", flag=1), Code.UNIMPLEMENTED),
    ],
    ids=[
        "no_gzip",
        "cut_gzip",
        "bomb",
        "no_encoding",
        "bad_flag",
        "cut_off",
        "cut_prefix",
        "none",
        "unknown_encoding",
    ],
)
async def test_a_bad_message_fails_its_call_alone(
    served: Served, client: RawClient, encoding: str, sent_message: bytes, code: grpc.StatusCode
) -> None:
    client.send(opening(1, request("Echo", ("grpc-encoding", encoding))))
    client.send(data(1, sent_message, end=True), call(3, "Echo", b"good"))
    assert (await client.answer(1)).status == str(code.value[0])
    assert (await client.answer(3)).body == message(b"good")
    await served.has_forgotten()


async def test_who_compresses_in_vain_learns_how_to(client: RawClient) -> None:
    client.send(opening(1, request("Echo", ("grpc-encoding", "snappy"))), data(1, b"", end=True))
    (head,) = (await client.answer(1)).heads
    assert head["grpc-accept-encoding"] == "identity,deflate,gzip"


async def test_a_message_over_the_limit_is_refused_and_the_connection_lives_on() -> None:
    async with serving(max_message_bytes=1000) as served, served.channel() as channel:
        assert await unary(channel, "Echo", bytes(1000)) == bytes(1000)
        for size, options in (
            (1001, {}),
            (5 << 20, {}),
            (100_000, {"compression": grpc.Compression.Gzip}),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=r"vs\. 1000\)") as raised:
                await unary(channel, "Echo", bytes(size), **options)
            assert raised.value.code() == Code.RESOURCE_EXHAUSTED
        assert await unary(channel, "Echo", b"x") == b"x"
        assert served.server._numbers == 1


# The budget of what is on its way.


async def test_messages_on_their_way_have_a_limit_together() -> None:
    limits = {"max_message_bytes": 1 << 20, "max_request_bytes": 1 << 20}
    async with serving(**limits) as served, await served.open() as client:
        half = message(bytes(700_000))[:600_000]
        client.send(opening(1), data(1, half), opening(3), data(3, half))
        answer = await client.answer(3)
        assert answer.status == str(Code.RESOURCE_EXHAUSTED.value[0])
        assert f"limit is {1 << 20} bytes" in answer.heads[-1]["grpc-message"]
        assert served.held == len(half)
        client.send(data(1, message(bytes(700_000))[600_000:], end=True))
        assert len((await client.answer(1)).body) == 700_005
        assert served.held == 0


async def test_one_connection_leaves_others_a_part_of_the_limit() -> None:
    limits = {"max_message_bytes": 1 << 20, "max_request_bytes": 1 << 20}
    part = message(bytes(400_000))[:300_000]
    async with (
        serving(**limits) as served,
        await served.open() as greedy,
        await served.open() as other,
    ):
        greedy.send(*(opening(n) + data(n, part) for n in (1, 3, 5)))
        answer = await greedy.answer(5)
        assert answer.status == str(Code.RESOURCE_EXHAUSTED.value[0])
        assert "this connection" in answer.heads[-1]["grpc-message"]
        assert served.held == 2 * len(part)
        other.send(call(1, "Echo", bytes(150_000)))
        assert len((await other.answer(1)).body) == 150_005
        greedy.send(reset(1), reset(3))
        await until(lambda: not served.held)


async def test_messages_count_for_more_than_their_bytes() -> None:
    limits = {"max_message_bytes": 1 << 20, "max_request_bytes": 1 << 20}
    async with serving(**limits) as served, await served.open() as client:
        client.send(opening(1, request("Take")), data(1, message(b"") * 5000))
        await client.has_answered()
        served.service.gate.set()
        assert (await client.answer(1)).status == str(Code.RESOURCE_EXHAUSTED.value[0])
        assert served.held == 0


async def test_more_messages_than_the_method_takes_are_dropped(
    served: Served, client: RawClient
) -> None:
    client.send(opening(1, request("Wait")), data(1, message(b"x")))
    await until(lambda: served.service.entered == 1)
    assert served.held == 0
    client.send(data(1, message(b"y") * 1000 + message(b"z")[:3], end=True))
    await client.has_answered()
    assert served.held == 0
    served.service.gate.set()
    assert (await client.answer(1)).body == message(b"x")


class Hand:
    """Deadlines that come when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def at(self, when: float, callback: Callable[[], None]) -> Any:
        self.due.append(callback)
        return SimpleNamespace(cancel=lambda: self.due.remove(callback))

    def come(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


async def test_a_message_that_does_not_go_on_fails_its_call(
    served: Served, client: RawClient
) -> None:
    hand = served.server._deadlines = Hand()  # type: ignore[assignment]
    client.send(opening(1), data(1, message(b"12345")[:7]))
    await client.has_answered()
    assert len(hand.due) == 1
    # One that goes on has as much time again.
    client.send(data(1, b"3"))
    await client.has_answered()
    hand.come()
    assert len(hand.due) == 1
    hand.come()
    assert (await client.answer(1)).status == str(Code.DEADLINE_EXCEEDED.value[0])
    assert (served.held, hand.due) == (0, [])
    client.send(opening(3, request("Join")), data(3, message(b"12")[:3]))
    await client.has_answered()
    client.send(data(3, message(b"12")[3:]))
    await client.has_answered()
    # Between two messages a client may be silent.
    hand.come()
    assert hand.due == []
    client.send(data(3, message(b"3"), end=True))
    assert (await client.answer(3)).body == message(b"123")


PART = data(1, message(bytes(1000))[:900])
WHOLE = data(1, message(bytes(1000)))
PAUSE, LET_GO = b"the server does what it was sent", b"the handler goes on"
TAKE = opening(1, request("Take"))
GET = [(":method", "GET"), *request("Echo")[1:]]
ENDS: dict[str, tuple[bytes, ...]] = {
    "answered": (call(1, "Echo", bytes(1000)),),
    "answered_early": (opening(1), WHOLE, data(1, bytes(99))),
    "failed": (call(1, "Fail", bytes(1000)),),
    "aborted": (opening(1, request("Abort")), WHOLE, PART),
    "unknown": (opening(1, request("Nothing")), WHOLE, PART),
    "cut_off": (opening(1), PART, data(1, end=True)),
    "bad": (TAKE, WHOLE, data(1, b"\x02" + bytes(50)), LET_GO),
    "too_large": (TAKE, WHOLE, data(1, b"\x00" + b"\xff" * 50), LET_GO),
    "no_call": (opening(1, GET), PART),
    "reset": (opening(1), PART, PAUSE, reset(1)),
    "reset_at_once": (opening(1), PART, reset(1)),
    "reset_unread": (TAKE, WHOLE, WHOLE, PART, PAUSE, reset(1)),
    "reset_while_it_waits": (opening(1, request("Wait")), WHOLE, PAUSE, reset(1)),
    "late": (opening(1, request("Take", ("grpc-timeout", "20m"))), WHOLE, WHOLE, PART),
    "late_at_once": (opening(1, request("Take", ("grpc-timeout", "0n"))), WHOLE, WHOLE, PART),
    "violated": (TAKE, WHOLE, PART, PAUSE, window(1, 0)),
    "violated_at_once": (TAKE, WHOLE, window(1, 0)),
    "connection_violated": (TAKE, WHOLE, PART, PAUSE, window(0, 0)),
    "connection_violated_at_once": (TAKE, WHOLE, window(0, 0)),
}


@pytest.mark.parametrize("parts", ENDS.values(), ids=ENDS.keys())
async def test_the_budget_is_given_back_however_a_call_ends(
    served: Served, client: RawClient, parts: tuple[bytes, ...]
) -> None:
    for part in parts:
        if part == PAUSE:
            await client.has_answered()
        elif part == LET_GO:
            served.service.gate.set()
        else:
            client.send(part)
    await until(lambda: served.server.counts().started == 1)
    await served.has_forgotten()


@pytest.mark.parametrize("method", ["Take", "Wait", "Echo"])
async def test_a_client_that_vanishes_leaves_nothing_behind(served: Served, method: str) -> None:
    client = await served.open()
    await client.settle()
    client.send(opening(1, request(method)), WHOLE, PART)
    await client.has_answered()
    client.send(opening(3, request(method)), data(3, bytes(300)))
    client.vanish()
    await until(lambda: not served.server.connections)
    await until(lambda: not served.held)
    await until(lambda: served.service.cancelled == served.service.entered)
    assert not [task for task in asyncio.all_tasks() if "Call._run" in repr(task)]


async def test_what_comes_after_the_answer_is_not_held(served: Served) -> None:
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 0}) as client:
        await client.settle()
        client.send(opening(1), data(1, message(b"x")))
        await client.until_kind(Kind.HEADERS, 1)
        # The answer waits for the window, and the stream is open on both sides.
        client.send(data(1, message(bytes(1000))), data(1, message(bytes(5000))[:3000]))
        await client.has_answered()
        client.send(window(1, 1000))
        assert await client.was_reset(1) == ErrorCode.NO_ERROR
        assert served.held == 0


# Flow control.


async def test_a_client_that_reads_slowly_stops_the_handler(served: Served) -> None:
    async with await served.open() as client:
        client.send(call(1, "Pour", b"100"))
        size = len(message(bytes(LEAST_STEP)))
        await client.has_answered()
        assert served.service.written == 1
        client.send(window(0, 3 * size), window(1, 3 * size))
        await client.has_answered()
        # One more than has gone.
        assert served.service.written == 4


async def test_the_real_client_stops_the_handler_as_well(
    served: Served, channel: grpc.aio.Channel
) -> None:
    found = channel.unary_stream(path("Pour"))(b"1000")
    await found.read()
    assert await steady(lambda: served.service.written) < 500
    for _ in range(999):
        assert len(await found.read()) == LEAST_STEP
    assert await found.read() == grpc.aio.EOF


async def test_a_socket_that_is_not_read_stops_the_handler(served: Served) -> None:
    # The windows let everything through, and the handler never waits for anything else.
    async with await served.open(LARGE_WINDOWS) as client:
        client.send(window(0, 2**31 - 1 - 65_535))
        await client.settle()
        client.stop_reading()
        client.send(call(1, "Pour", b"500"))
        await until(lambda: served.service.written > 0)
        assert await steady(lambda: served.service.written) < 300
        client.go_on_reading()
        answer = await client.answer(1)
        assert len(answer.body) == 500 * len(message(bytes(LEAST_STEP)))


async def test_answers_that_are_not_read_do_not_pile_up() -> None:
    # CVE-2019-9517: windows that are open on a socket that is not read.
    async with (
        serving(max_concurrent_streams=4) as served,
        await served.open(LARGE_WINDOWS) as client,
    ):
        client.send(window(0, 2**31 - 1 - 65_535))
        await client.settle()
        client.stop_reading()
        for stream in range(1, 201, 2):
            client.send(call(stream, "Make", b"2000000"))
            await asyncio.sleep(0.001)  # the server reads and answers meanwhile
        own = served.connection
        waiting = sum(len(part) for stream in own.streams.values() for part in stream.outbox)
        assert waiting + own.transport.get_write_buffer_size() < 50_000_000


async def test_calls_wait_while_the_answers_of_others_are_not_read() -> None:
    async with serving() as served, await served.open(LARGE_WINDOWS) as client:
        client.send(window(0, 2**31 - 1 - 65_535))
        await client.settle()
        client.stop_reading()
        streams = range(1, 401, 2)
        client.send(*(call(stream, "Make", b"100000") for stream in streams))
        await until(lambda: served.connection.sender.waiting > 1_000_000)
        assert await steady(lambda: served.connection.sender.waiting) < 2_000_000
        client.go_on_reading()
        for stream in streams:
            assert len((await client.answer(stream)).body) == 100_005
        assert served.connection.sender.waiting == 0


async def test_a_call_that_waits_for_others_answers_keeps_its_deadline() -> None:
    async with serving() as served, await served.open() as client:
        await client.settle()
        # The connection's window takes none of the second answer.
        client.send(call(1, "Make", b"3000000"), call(3, "Make", b"1"))
        await until(lambda: served.connection.sender.waiting > 1_000_000)
        late = request("Make", ("grpc-timeout", "50m"))
        client.send(opening(5, late), data(5, message(b"1"), end=True))
        answer = await client.answer(5)
        assert answer.status == str(Code.DEADLINE_EXCEEDED.value[0])
        assert served.connection.sender.full


async def test_a_handler_that_is_slow_stops_the_client(
    served: Served, channel: grpc.aio.Channel
) -> None:
    found = channel.stream_unary(path("Take"))()
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(200):
            await found.write(bytes(LEAST_STEP))
            written += 1
        await found.done_writing()

    writing = asyncio.create_task(write())
    await until(lambda: served.held > STREAM_WINDOW // 2)
    assert await steady(lambda: written) < 100
    assert served.held <= STREAM_WINDOW + LEAST_STEP + 5
    served.service.gate.set()
    await writing
    assert await found == b"200"
    assert served.held == 0


async def test_a_handler_that_is_slow_lets_a_client_send_one_window(
    served: Served, client: RawClient
) -> None:
    client.send(opening(1, request("Take")))
    body = message(bytes(LEAST_STEP - 5))
    for _ in range(STREAM_WINDOW // LEAST_STEP):
        client.send(data(1, body))
    await client.has_answered()
    given = [found for found in client.seen if found.kind == Kind.WINDOW_UPDATE and found.stream]
    assert sum(found.number for found in given) <= STREAM_WINDOW // 2
    served.service.gate.set()
    # The handler has taken all, and so all may be sent again.
    await client.until_kind(Kind.WINDOW_UPDATE, 1)
    client.send(data(1, end=True))
    assert (await client.answer(1)).body == message(b"16")


# Stopping.


async def test_a_stop_finishes_what_runs(served: Served, channel: grpc.aio.Channel) -> None:
    found = unary(channel, "Wait", b"x")
    await until(lambda: served.service.entered == 1)
    stopping = asyncio.create_task(served.server.finish(LIMIT_SECONDS))
    await until(lambda: all(each._leaving for each in served.server.connections.values()))
    assert not stopping.done()
    served.service.gate.set()
    assert await found == b"x"
    await stopping
    assert not served.server.connections


async def test_a_stop_cancels_what_is_too_slow(served: Served, channel: grpc.aio.Channel) -> None:
    found = unary(channel, "Wait", b"x")
    await until(lambda: served.service.entered == 1)
    await served.server.finish(0.05)
    assert served.service.cancelled == 1
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await found
    assert raised.value.code() == Code.UNAVAILABLE


async def test_nobody_can_connect_after_a_stop(served: Served) -> None:
    await served.server.stop()
    with pytest.raises(ConnectionError):
        await served.open()


async def test_a_stop_lets_go_what_has_been_answered(served: Served, client: RawClient) -> None:
    client.send(call(1, "Make", b"200000"))
    await client.until_kind(Kind.HEADERS, 1)
    stopping = asyncio.create_task(served.server.finish(LIMIT_SECONDS))
    # The rest of the answer waits for the client's windows.
    assert len((await client.answer(1)).body) == 200_005
    await stopping


# Addresses.


async def say_peer(body: bytes, context: Context) -> bytes:
    return context.peer().encode()


async def test_a_unix_socket_is_listened_on(served: Served, tmp_path: Path) -> None:
    served.service.custom = say_peer
    place = tmp_path / "socket"
    await served.server.listen_unix(place)
    async with grpc.aio.insecure_channel(f"unix:{place}") as channel:
        assert await unary(channel, "Custom") == b"unix:"


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as found:
        found.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
async def test_ipv6_is_listened_on(served: Served) -> None:
    served.service.custom = say_peer
    port = await served.server.listen("[::1]:0")
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        assert unquote(await unary(channel, "Custom")).startswith("ipv6:[::1]:")


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
async def test_every_address_is_that_of_ipv4_as_well(served: Served) -> None:
    served.service.custom = say_peer
    port = await served.server.listen("[::]:0")
    for host in ("127.0.0.1", "[::1]"):
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            expected = "ipv4:127.0.0.1:" if host == "127.0.0.1" else "ipv6:[::1]:"
            assert unquote(await unary(channel, "Custom")).startswith(expected)


async def test_a_name_is_listened_on_at_each_of_its_addresses(served: Served) -> None:
    port = await served.server.listen("localhost:0")
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        assert await unary(channel, "Echo", b"x") == b"x"


async def test_a_port_that_is_taken_is_an_error(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        await make_server().listen(served.address)


async def test_a_port_may_be_shared() -> None:
    first, second = make_server(), make_server()
    port = await first.listen("127.0.0.1:0", share_port=True)
    assert await second.listen(f"127.0.0.1:{port}", share_port=True) == port
    await first.stop()
    await second.stop()


# Contexts.


async def test_a_context_knows_its_peer(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        assert context.auth_context() == {}
        assert context.peer_identities() is None
        assert context.peer_identity_key() is None
        return context.peer().encode()

    host, port = (await asked(served, handler)).decode().rsplit(":", 1)
    assert host == "ipv4:127.0.0.1"
    assert 0 < int(port) < 2**16


async def test_a_clients_certificate_names_it(served: Served, tmp_path: Path) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        assert context.auth_context()["transport_security_type"] == [b"ssl"]
        return b" ".join(context.peer_identities() or ())

    served.service.custom = handler
    authority = trustme.CA()
    mine, theirs = authority.issue_cert("localhost"), authority.issue_cert("client.example")
    tls = TlsFiles(
        certificate=tmp_path / "server.pem",
        key=tmp_path / "server.key",
        client_ca=tmp_path / "clients.pem",
    )
    mine.cert_chain_pems[0].write_to_path(tls.certificate)
    mine.private_key_pem.write_to_path(tls.key)
    authority.cert_pem.write_to_path(tls.client_ca)
    port = await served.server.listen("127.0.0.1:0", tls=tls)
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        theirs.private_key_pem.bytes(),
        b"".join(part.bytes() for part in theirs.cert_chain_pems),
    )
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        assert await unary(channel, "Custom") == b"client.example"
        body = bytes(3 << 20)
        assert await unary(channel, "Echo", body) == body


async def test_a_code_and_details_may_be_set(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        assert (context.code(), context.details()) == (Code.OK, "")
        context.set_code(Code.DATA_LOSS)
        context.set_details(SNOW)
        assert (context.code(), context.details()) == (Code.DATA_LOSS, SNOW)
        return b"nobody sees this"

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asked(served, handler)
    assert (raised.value.code(), raised.value.details()) == (Code.DATA_LOSS, SNOW)


async def test_a_call_is_aborted_with_a_status(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        status: Any = SimpleNamespace(
            code=Code.ABORTED, details="so", trailing_metadata=(("why", "not"),)
        )
        await context.abort_with_status(status)

    with pytest.raises(grpc.aio.AioRpcError, match="so") as raised:
        await asked(served, handler)
    assert raised.value.code() == Code.ABORTED
    assert dict(raised.value.trailing_metadata()) == {"why": "not"}


async def test_an_abort_keeps_the_metadata_that_was_set(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("why", "not"),))
        assert context.trailing_metadata() == (("why", "not"),)
        await context.abort(Code.ABORTED)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asked(served, handler)
    assert dict(raised.value.trailing_metadata()) == {"why": "not"}


async def test_an_abort_is_an_error(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        with pytest.raises(grpc.aio.UsageError):
            await context.abort(Code.OK)
        return b"went on"

    assert await asked(served, handler) == b"went on"


async def test_answers_are_not_compressed(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        with pytest.raises(grpc.aio.UsageError):
            context.set_compression(grpc.Compression.Gzip)
        context.set_compression(grpc.Compression.NoCompression)
        context.disable_next_message_compression()
        return b"went on"

    assert await asked(served, handler) == b"went on"


async def test_a_handler_may_read_and_write_by_itself(served: Served) -> None:
    async def handler(requests: object, context: Context) -> None:
        while (body := await context.read()) is not grpc.aio.EOF:
            await context.write(bytes(body) * 2)
        assert await context.read() is grpc.aio.EOF

    served.service.custom = handler
    async with served.channel() as channel:
        found = channel.stream_stream(path("CustomStream"))(sent(b"a", b"b"))
        assert [body async for body in found] == [b"aa", b"bb"]


async def test_what_a_handler_reads_and_writes_is_converted(served: Served) -> None:
    async def double(requests: object, context: Context) -> None:
        while (number := await context.read()) is not grpc.aio.EOF:
            await context.write(2 * number)

    stream: Any = grpc.stream_stream_rpc_method_handler
    handler = stream(double, request_deserializer=int, response_serializer=b"%d".__mod__)
    served.server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("transports.Numbers", {"Double": handler})]
    )
    async with served.channel() as channel:
        found = channel.stream_stream("/transports.Numbers/Double")(sent(b"1", b"20"))
        assert [body async for body in found] == [b"2", b"40"]


async def test_initial_metadata_is_sent_once(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        await context.send_initial_metadata((("first", "1"),))
        await context.send_initial_metadata((("second", "2"),))
        return b"answer"

    served.service.custom = handler
    async with served.channel() as channel:
        found = unary(channel, "Custom")
        assert dict(await found.initial_metadata()) == {"first": "1"}
        assert await found == b"answer"


async def test_initial_metadata_does_not_wait_for_the_answer(
    served: Served, client: RawClient
) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        await context.send_initial_metadata((("first", "1"),))
        return await served.service.wait(bytearray(body), context)

    served.service.custom = handler
    client.send(call(1, "Custom", b"x"))
    found = await client.until_kind(Kind.HEADERS, 1)
    assert not found.flags & Flag.END_STREAM
    served.service.gate.set()
    await client.until(lambda found: bool(found.flags & Flag.END_STREAM))


async def test_an_interceptor_comes_before_the_message_and_the_first_before_the_others() -> None:
    seen: list[str] = []

    class Note(grpc.aio.ServerInterceptor):
        def __init__(self, name: str) -> None:
            self._name = name

        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.append(f"{self._name} {details.method} {dict(details.invocation_metadata)['a']}")
            return await continuation(details)

    class Refuse(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            async def refuse(requests: Any, context: Context) -> None:
                await context.abort(Code.PERMISSION_DENIED, "not you")

            return grpc.stream_stream_rpc_method_handler(refuse)

    server = Http2Transport(TransportSettings(), (Note("first"), Note("second"), Refuse()))
    port = await server.listen("127.0.0.1:0")
    async with await RawClient.open(port, {}) as client:
        client.send(opening(1, request("Echo", ("a", "b"))))
        assert (await client.answer(1)).status == str(Code.PERMISSION_DENIED.value[0])
    assert seen == [f"first {path('Echo')} b", f"second {path('Echo')} b"]
    await server.stop()


Seen = list[tuple[bool, bool, grpc.StatusCode]]


def noting(seen: Seen, handler: Callable[[Any, Context], Awaitable[Any]]) -> Any:
    """Have a handler note what its context says once its call has ended."""

    def note(context: Context) -> None:
        seen.append((context.done(), context.cancelled(), context.code()))

    async def noted(body: bytes, context: Context) -> Any:
        assert (context.done(), context.cancelled()) == (False, False)
        context.add_done_callback(note)
        return await handler(body, context)

    return noted


@pytest.mark.parametrize(
    ("method", "code"), [("echo", Code.OK), ("abort", Code.NOT_FOUND), ("fail", Code.UNKNOWN)]
)
async def test_a_callback_is_told_how_a_call_has_ended(
    served: Served, client: RawClient, method: str, code: grpc.StatusCode
) -> None:
    seen: Seen = []
    served.service.custom = noting(seen, getattr(served.service, method))
    client.send(call(1, "Custom"))
    await client.answer(1)
    assert seen == [(True, False, code)]


async def test_a_callback_is_told_of_an_answer_that_still_waits_for_a_window(
    served: Served, client: RawClient
) -> None:
    seen: Seen = []
    served.service.custom = noting(seen, served.service.make)
    client.send(call(1, "Custom", b"100000"))
    await client.answer(1)
    assert seen == [(True, False, Code.OK)]


async def test_a_callback_is_told_of_a_cancel(served: Served, client: RawClient) -> None:
    seen: Seen = []
    contexts: list[Context] = []

    async def handler(body: bytes, context: Context) -> Any:
        contexts.append(context)
        return await served.service.wait(bytearray(body), context)

    served.service.custom = noting(seen, handler)
    client.send(call(1, "Custom"))
    await until(lambda: served.service.entered == 1)
    client.send(reset(1))
    await served.has_forgotten()
    assert seen == [(True, True, Code.CANCELLED)]
    assert contexts[0].done()
    assert contexts[0].cancelled()


async def test_a_callback_is_told_of_a_deadline(served: Served, client: RawClient) -> None:
    seen: Seen = []
    served.service.custom = noting(seen, served.service.wait)
    client.send(opening(1, request("Custom", ("grpc-timeout", "20m"))), data(1, message(b"")))
    await client.answer(1)
    assert [code for _, _, code in seen] == [Code.DEADLINE_EXCEEDED]


# Channelz.


async def test_channelz_counts_calls_and_messages(served: Served) -> None:
    served.server.add_channelz()
    async with served.channel() as other, served.channel() as channel:
        await unary(other, "Echo", b"x")
        await other.stream_unary(path("Join"))(sent(b"1", b"2"))
        assert len([part async for part in other.unary_stream(path("Count"))(b"3")]) == 3
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(other, "Abort")
        stub = ChannelzStub(channel)
        (server,) = (await stub.GetServers(channelz_pb2.GetServersRequest())).server
        assert server.ref.server_id == SERVER_ID
        # Its own call has begun, and not ended.
        counted = server.data
        assert (counted.calls_started, counted.calls_succeeded, counted.calls_failed) == (5, 3, 1)
        assert counted.last_call_started_timestamp.seconds > 0
        sockets = await stub.GetServerSockets(
            channelz_pb2.GetServerSocketsRequest(server_id=SERVER_ID)
        )
        assert [ref.socket_id for ref in sockets.socket_ref] == [1, 2]
        assert sockets.end
        found = await stub.GetSocket(channelz_pb2.GetSocketRequest(socket_id=1))
        data = found.socket.data
        assert (data.streams_started, data.streams_succeeded, data.streams_failed) == (4, 3, 1)
        assert (data.messages_received, data.messages_sent) == (5, 5)
        assert found.socket.local.tcpip_address.port == served.port
        assert found.socket.remote.tcpip_address.ip_address == b"\x7f\x00\x00\x01"
        assert data.local_flow_control_window.value > 0
        assert data.remote_flow_control_window.value > 0


async def counted(served: Served, *frames: bytes) -> tuple[int, int, int]:
    """Have calls that end, and return what was counted."""
    async with await served.open() as client:
        client.send(*frames)
        await client.has_answered()
        await client.answer(1)
    await served.has_forgotten()
    counts = served.server.counts()
    return counts.started, counts.succeeded, counts.failed


async def test_a_large_answer_is_counted_once(served: Served) -> None:
    assert await counted(served, call(1, "Make", b"200000")) == (1, 1, 0)


async def test_the_message_after_initial_metadata_is_counted(served: Served) -> None:
    assert await counted(served, call(1, "Metadata")) == (1, 1, 0)
    assert served.server.counts().messages_sent == 1


async def test_a_call_that_the_client_gives_up_has_failed(
    served: Served, client: RawClient
) -> None:
    client.send(call(1, "Wait"))
    await until(lambda: served.service.entered == 1)
    client.send(reset(1))
    await served.has_forgotten()
    counts = served.server.counts()
    assert (counts.started, counts.succeeded, counts.failed) == (1, 0, 1)


async def test_channelz_pages_and_knows_what_is_not_there(served: Served) -> None:
    served.server.add_channelz()
    pb = channelz_pb2
    async with served.channel() as channel, await served.open() as one, await served.open() as two:
        await one.settle()
        await two.settle()
        stub = ChannelzStub(channel)
        page = await stub.GetServerSockets(
            pb.GetServerSocketsRequest(server_id=SERVER_ID, max_results=1, start_socket_id=2)
        )
        assert [ref.socket_id for ref in page.socket_ref] == [2]
        assert not page.end
        assert (await stub.GetTopChannels(pb.GetTopChannelsRequest())).end
        assert not (await stub.GetServers(pb.GetServersRequest(start_server_id=2))).server
        found = await stub.GetServer(pb.GetServerRequest(server_id=SERVER_ID))
        assert found.server.ref.server_id == SERVER_ID
        for asking in (
            stub.GetServer(pb.GetServerRequest(server_id=9)),
            stub.GetServerSockets(pb.GetServerSocketsRequest(server_id=9)),
            stub.GetSocket(pb.GetSocketRequest(socket_id=99)),
            stub.GetChannel(pb.GetChannelRequest(channel_id=1)),
            stub.GetSubchannel(pb.GetSubchannelRequest(subchannel_id=1)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asking
            assert raised.value.code() == Code.NOT_FOUND


async def test_channelz_shows_a_unix_socket_and_forgets_what_is_closed(
    served: Served, tmp_path: Path
) -> None:
    served.server.add_channelz()
    await served.server.listen_unix(tmp_path / "socket")
    async with await served.open() as client:
        client.send(call(1, "Echo"))
        await client.answer(1)
    await until(lambda: not served.server.connections)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel:
        stub = ChannelzStub(channel)
        found = await stub.GetSocket(channelz_pb2.GetSocketRequest(socket_id=2))
        assert found.socket.local.uds_address.filename == str(tmp_path / "socket")
        (server,) = (await stub.GetServers(channelz_pb2.GetServersRequest())).server
        assert (server.data.calls_started, server.data.calls_succeeded) == (3, 2)
        with pytest.raises(grpc.aio.AioRpcError, match="no socket"):
            await stub.GetSocket(channelz_pb2.GetSocketRequest(socket_id=1))
