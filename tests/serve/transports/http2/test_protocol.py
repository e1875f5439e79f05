"""HTTP/2 frame by frame (RFC 9113): what is right, what is not, and what is too much."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from hpack import Decoder, Encoder

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.http2 import connection
from foveate_serve.transports.http2.connection import CONNECTION_WINDOW, Connection
from foveate_serve.transports.http2.frames import (
    FRAME_BYTES,
    PREFACE,
    ErrorCode,
    Flag,
    Kind,
    Setting,
)
from foveate_serve.transports.http2.headers import MAX_LIST_BYTES
from foveate_serve.transports.http2.stream import STREAM_WINDOW
from foveate_serve.transports.places import Place

from ....waiting import LIMIT_SECONDS, until
from ..service import Context, Service
from .conftest import (
    LARGE_WINDOWS,
    Fields,
    Frame,
    RawClient,
    Served,
    block,
    call,
    data,
    frame,
    make_server,
    message,
    opening,
    ping,
    request,
    reset,
    serving,
    settings,
    window,
)

END = Flag.END_HEADERS | Flag.END_STREAM
ECHO = block(request("Echo"))
WAIT = opening(1, request("Wait"))
NO_HPACK = b"\x80"
ACK = frame(Kind.SETTINGS, Flag.ACK, 0)
CALM = ErrorCode.ENHANCE_YOUR_CALM


def priority(stream: int, depends_on: int) -> bytes:
    return frame(Kind.PRIORITY, 0, stream, struct.pack(">IB", depends_on, 16))


# Violations that end the connection.

CONNECTION_ERRORS: dict[str, tuple[bytes, ErrorCode]] = {
    "frame_too_large": (
        struct.pack(">I", FRAME_BYTES + 1)[1:] + bytes([Kind.DATA, 0]) + bytes(4),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "ping_too_large": (
        struct.pack(">I", 100_000)[1:] + bytes([Kind.PING, 0]) + bytes(4),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "headers_too_large": (
        struct.pack(">I", 2 * MAX_LIST_BYTES + 1)[1:] + bytes([Kind.HEADERS, 0]) + bytes(4),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "data_on_the_connection": (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "padded_data_on_the_connection": (
        frame(Kind.DATA, Flag.PADDED, 0, b"\x00x"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "headers_on_the_connection": (opening(0), ErrorCode.PROTOCOL_ERROR),
    "priority_on_the_connection": (priority(0, 1), ErrorCode.PROTOCOL_ERROR),
    "reset_of_the_connection": (reset(0), ErrorCode.PROTOCOL_ERROR),
    "even_stream": (opening(2), ErrorCode.PROTOCOL_ERROR),
    "stream_goes_down": (opening(5) + opening(3), ErrorCode.PROTOCOL_ERROR),
    "block_interrupted_by_ping": (
        frame(Kind.HEADERS, 0, 1, ECHO) + ping(),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "block_interrupted_by_data": (
        WAIT + frame(Kind.HEADERS, 0, 3, ECHO) + data(1, b"x"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "block_interrupted_by_headers": (
        frame(Kind.HEADERS, 0, 1, ECHO) + opening(3),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "block_interrupted_by_the_unknown": (
        frame(Kind.HEADERS, 0, 1, ECHO) + frame(99, 0, 1),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "block_continued_elsewhere": (
        frame(Kind.HEADERS, 0, 1, ECHO) + frame(Kind.CONTINUATION, Flag.END_HEADERS, 3),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "nothing_to_continue": (
        WAIT + frame(Kind.CONTINUATION, Flag.END_HEADERS, 1),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "padding_too_long_in_data": (
        WAIT + frame(Kind.DATA, Flag.PADDED, 1, b"\x03xx"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "padding_too_long_in_headers": (
        frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PADDED, 1, b"\x06" + bytes(5)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "padding_without_length": (
        WAIT + frame(Kind.DATA, Flag.PADDED, 1),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "priority_cut_off_in_headers": (
        frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PRIORITY, 1, bytes(4)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "window_opened_by_nothing": (window(0, 0), ErrorCode.PROTOCOL_ERROR),
    "window_too_large": (window(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "window_of_three_bytes": (
        frame(Kind.WINDOW_UPDATE, 0, 0, b"abc"),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "settings_of_five_bytes": (frame(Kind.SETTINGS, 0, 0, b"abcde"), ErrorCode.FRAME_SIZE_ERROR),
    "settings_of_a_stream": (frame(Kind.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings_acknowledged_with_more": (
        frame(Kind.SETTINGS, Flag.ACK, 0, bytes(6)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "push_neither_on_nor_off": (settings({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
    "initial_window_too_large": (
        settings({Setting.INITIAL_WINDOW_SIZE: 2**31}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "frames_too_small": (settings({Setting.MAX_FRAME_SIZE: 16_383}), ErrorCode.PROTOCOL_ERROR),
    "frames_too_large": (settings({Setting.MAX_FRAME_SIZE: 2**24}), ErrorCode.PROTOCOL_ERROR),
    "ping_of_seven_bytes": (ping(b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "ping_of_a_stream": (WAIT + frame(Kind.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "goaway_of_a_stream": (WAIT + frame(Kind.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "push": (WAIT + frame(Kind.PUSH_PROMISE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "depends_on_itself": (WAIT + priority(1, 1), ErrorCode.PROTOCOL_ERROR),
    "depends_on_itself_from_the_start": (
        frame(Kind.HEADERS, END | Flag.PRIORITY, 1, struct.pack(">IB", 1, 16) + ECHO),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "reset_of_three_bytes": (
        WAIT + frame(Kind.RST_STREAM, 0, 1, b"abc"),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "idle_reset": (WAIT + reset(3), ErrorCode.PROTOCOL_ERROR),
    "idle_window": (WAIT + window(3, 1), ErrorCode.PROTOCOL_ERROR),
    "idle_data": (WAIT + data(3, b"x"), ErrorCode.PROTOCOL_ERROR),
    "idle_data_of_ours": (opening(3) + data(2, b"x"), ErrorCode.PROTOCOL_ERROR),
    "idle_window_of_ours": (opening(3) + window(2, 1), ErrorCode.PROTOCOL_ERROR),
    "idle_reset_of_ours": (opening(3) + reset(2), ErrorCode.PROTOCOL_ERROR),
    "no_hpack": (frame(Kind.HEADERS, END, 1, NO_HPACK), ErrorCode.COMPRESSION_ERROR),
    "no_hpack_in_parts": (
        frame(Kind.HEADERS, 0, 1, ECHO) + frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, NO_HPACK),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "hpack_cut_off": (frame(Kind.HEADERS, END, 1, ECHO[:-1]), ErrorCode.COMPRESSION_ERROR),
    "no_hpack_in_trailers": (
        WAIT + frame(Kind.HEADERS, END, 1, NO_HPACK),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "table_too_large": (
        frame(Kind.HEADERS, END, 1, b"\x3f\xff\xff\x7f" + ECHO),
        ErrorCode.COMPRESSION_ERROR,
    ),
}


@pytest.mark.parametrize(("sent", "code"), CONNECTION_ERRORS.values(), ids=CONNECTION_ERRORS.keys())
async def test_a_violation_ends_the_connection(
    served: Served, client: RawClient, sent: bytes, code: ErrorCode
) -> None:
    client.send(sent, ping(b"too late"))
    assert await client.failure() == code
    assert Frame(Kind.PING, Flag.ACK, 0, b"too late") not in client.seen
    await until(lambda: not served.server.connections)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
        (PREFACE[:-1] + b"?", ErrorCode.PROTOCOL_ERROR),
        (bytes(24), ErrorCode.PROTOCOL_ERROR),
        (PREFACE + ping(), ErrorCode.PROTOCOL_ERROR),
        (PREFACE + opening(1), ErrorCode.PROTOCOL_ERROR),
        (PREFACE + ACK + ping(), ErrorCode.PROTOCOL_ERROR),
    ],
)
async def test_another_protocol_is_refused(served: Served, sent: bytes, code: ErrorCode) -> None:
    async with await served.open(greet=False) as client:
        client.send(sent)
        assert await client.failure() == code


async def test_a_stream_that_was_answered_is_not_opened_again(client: RawClient) -> None:
    client.send(call(1, "Echo"))
    await client.answer(1)
    client.send(opening(1))
    assert await client.failure() == ErrorCode.STREAM_CLOSED


# Violations that end a stream.


def with_fields(*more: tuple[str, str]) -> bytes:
    return opening(1, request("Wait", *more))


def without(*names: str) -> bytes:
    return opening(1, [pair for pair in request("Wait") if pair[0] not in names])


STREAM_ERRORS: dict[str, tuple[bytes, bytes, ErrorCode]] = {
    "priority_of_four_bytes": (
        WAIT,
        frame(Kind.PRIORITY, 0, 1, bytes(4)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "window_opened_by_nothing": (WAIT, window(1, 0), ErrorCode.PROTOCOL_ERROR),
    "window_too_large": (WAIT, window(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "window_not_kept": (
        opening(1, request("Take")) + data(1, message(b"x")) + data(1, message(b"y")),
        data(1, bytes(FRAME_BYTES - 11)) + data(1, b"12345678"),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "data_after_the_end": (call(1, "Wait"), data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "empty_data_after_the_end": (call(1, "Wait"), data(1), ErrorCode.STREAM_CLOSED),
    "trailers_after_the_end": (
        call(1, "Wait"),
        frame(Kind.HEADERS, END, 1, block([("a", "b")])),
        ErrorCode.STREAM_CLOSED,
    ),
    "data_after_a_reset": (WAIT, reset(1) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "trailers_without_an_end": (
        WAIT,
        frame(Kind.HEADERS, Flag.END_HEADERS, 1, block([("a", "b")])),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "trailers_with_a_pseudo_header": (
        WAIT,
        frame(Kind.HEADERS, END, 1, block([(":path", "/")])),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "trailers_in_upper_case": (
        WAIT,
        frame(Kind.HEADERS, END, 1, block([("A", "b")])),
        ErrorCode.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize(
    ("before", "sent", "code"), STREAM_ERRORS.values(), ids=STREAM_ERRORS.keys()
)
async def test_a_violation_ends_its_stream_alone(
    served: Served, client: RawClient, before: bytes, sent: bytes, code: ErrorCode
) -> None:
    client.send(before)
    await client.has_answered()
    client.send(sent, call(3, "Echo", b"good"))
    assert (await client.answer(3)).body == message(b"good")
    assert await client.was_reset(1) == code
    await served.has_forgotten()


MALFORMED: dict[str, bytes] = {
    "upper_case": with_fields(("Upper", "x")),
    "space_in_a_name": with_fields(("a b", "x")),
    "no_name": with_fields(("", "x")),
    "two_lines": with_fields(("a", "x\r\ny: z")),
    "null": with_fields(("a", "x\0")),
    "pseudo_header_unknown": opening(1, [(":protocol", "x"), *request("Wait")]),
    "pseudo_header_of_an_answer": opening(1, [(":status", "200"), *request("Wait")]),
    "pseudo_header_twice": opening(1, [(":path", "/x"), *request("Wait")]),
    "pseudo_header_late": opening(1, [*request("Wait")[1:], (":method", "POST")]),
    "no_method": without(":method"),
    "no_scheme": without(":scheme"),
    "no_path": without(":path"),
    "empty_path": (
        opening(1, [(":path", ""), *(pair for pair in request("Wait") if pair[0] != ":path")])
    ),
    "nothing_at_all": opening(1, []),
    "connection": with_fields(("connection", "close")),
    "keep_alive": with_fields(("keep-alive", "1")),
    "chunked": with_fields(("transfer-encoding", "chunked")),
    "upgrade": with_fields(("upgrade", "h2c")),
    "te": with_fields(("te", "gzip")),
    **{
        f"timeout_{name}": with_fields(("grpc-timeout", value))
        for name, value in {
            "without_a_unit": "1",
            "without_a_number": "S",
            "empty": "",
            "of_nine_digits": "123456789S",
            "negative": "-1S",
            "of_no_unit": "1s",
            "with_a_fraction": "1.5S",
            "with_a_space": "1S ",
            "of_another_script": "\u0661S",
        }.items()
    },
    "no_base64": with_fields(("a-bin", "!")),
    "base64_cut_off": with_fields(("a-bin", "AAAAA")),
    "base64_in_part": with_fields(("a-bin", "AAAA,?")),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_headers_end_their_stream_alone(
    served: Served, client: RawClient, sent: bytes
) -> None:
    client.send(sent, data(1, message(b"x"), end=True), call(3, "Echo", b"good"))
    assert (await client.answer(3)).body == message(b"good")
    assert await client.was_reset(1) == ErrorCode.PROTOCOL_ERROR
    assert served.server.counts().started == 1


# What is right, and what is let be.


def answer_to(*fields: tuple[str, str]) -> Fields:
    own = dict(fields)
    return [(name, own.get(name, value)) for name, value in request("Echo")]


async def test_what_is_no_post_is_not_allowed(client: RawClient) -> None:
    client.send(opening(1, answer_to((":method", "GET")), end=True))
    answer = await client.answer(1)
    assert [head[":status"] for head in answer.heads] == ["405"]
    assert answer.ended


@pytest.mark.parametrize("kind", ["application/json", "application/grpc-web", "text/html", ""])
async def test_another_content_type_is_not_supported(client: RawClient, kind: str) -> None:
    client.send(opening(1, answer_to(("content-type", kind))))
    assert [head[":status"] for head in (await client.answer(1)).heads] == ["415"]
    assert await client.was_reset(1) == ErrorCode.NO_ERROR


async def test_no_content_type_is_not_supported_either(client: RawClient) -> None:
    client.send(opening(1, request("Echo")[:-1], end=True))
    assert [head[":status"] for head in (await client.answer(1)).heads] == ["415"]


@pytest.mark.parametrize(
    "kind", ["application/grpc+proto", "application/grpc;charset=utf-8", "Application/GRPC"]
)
async def test_a_call_may_say_what_its_messages_are(client: RawClient, kind: str) -> None:
    client.send(opening(1, answer_to(("content-type", kind))), data(1, message(b"x"), end=True))
    assert (await client.answer(1)).body == message(b"x")


async def test_an_initial_window_may_be_too_large_for_a_stream(client: RawClient) -> None:
    # The streams are looked at once what has been read at one time is taken.
    client.send(WAIT + window(1, 100) + settings({Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}))
    assert await client.failure() == ErrorCode.FLOW_CONTROL_ERROR


async def test_a_ping_is_answered(client: RawClient) -> None:
    client.send(ping(b"abcdefgh"))
    assert await client.until_kind(Kind.PING) == Frame(Kind.PING, Flag.ACK, 0, b"abcdefgh")


async def test_settings_are_acknowledged_each_time(client: RawClient) -> None:
    client.send(settings({}), settings({99: 1}), ACK, settings({Setting.ENABLE_PUSH: 0}))
    await client.has_answered()
    # And those that the client began with.
    assert client.seen.count(Frame(Kind.SETTINGS, Flag.ACK, 0, b"")) == 4


async def test_the_server_says_what_it_takes(client: RawClient) -> None:
    found = next(found for found in client.seen if found.kind == Kind.SETTINGS)
    assert dict(struct.iter_unpack(">HI", found.payload)) == {
        Setting.MAX_CONCURRENT_STREAMS: TransportSettings().max_concurrent_streams,
        Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        Setting.MAX_FRAME_SIZE: FRAME_BYTES,
        Setting.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
    }
    assert Frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", CONNECTION_WINDOW - 65_535)) in (
        client.seen
    )


@pytest.mark.parametrize(
    "ignored",
    [
        frame(99, 0xFF, 0, b"x" * 100),
        frame(99, 0xFF, 1),
        frame(Kind.GOAWAY, 0, 0, bytes(8) + b"bye"),
        ping(ack=True),
        ping(b"goaway 1", ack=True),
        ACK,
        priority(1, 3),
        priority(99, 0),
        window(1, 5),
    ],
    ids=[
        "unknown",
        "unknown_of_a_stream",
        "goaway",
        "ping_acknowledged",
        "goaway_acknowledged",
        "settings_acknowledged",
        "priority",
        "priority_of_an_idle_stream",
        "window",
    ],
)
async def test_what_means_nothing_changes_nothing(client: RawClient, ignored: bytes) -> None:
    client.send(opening(1), ignored, data(1, message(b"x"), end=True))
    assert (await client.answer(1)).body == message(b"x")
    client.send(ignored)
    await client.has_answered()


async def test_the_connections_window_is_to_be_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECTION_WINDOW", 100_000)
    async with await served.open() as client:
        client.send(WAIT, data(1, bytes(100_001)))
        assert await client.failure() == ErrorCode.FLOW_CONTROL_ERROR


async def test_what_comes_late_for_a_stream_is_let_be(client: RawClient) -> None:
    client.send(call(1, "Echo"))
    await client.answer(1)
    client.send(window(1, 5), reset(1), priority(1, 0), window(1, 5), call(3, "Echo", b"x"))
    assert (await client.answer(3)).body == message(b"x")
    assert client.found[1].reset is None


async def test_flags_that_a_frame_has_not_are_ignored(client: RawClient) -> None:
    client.send(
        frame(Kind.SETTINGS, 0xFE, 0),
        frame(Kind.PING, 0xFE, 0, bytes(8)),
        frame(Kind.HEADERS, Flag.END_HEADERS | 0xD2, 1, ECHO),
        frame(Kind.WINDOW_UPDATE, 0xFF, 1, struct.pack(">I", 1)),
        frame(Kind.DATA, 0xF6 | Flag.END_STREAM, 1, message(b"x")),
    )
    assert (await client.answer(1)).body == message(b"x")


async def test_reserved_bits_are_ignored(client: RawClient) -> None:
    client.send(
        frame(Kind.HEADERS, Flag.END_HEADERS, 1 | 1 << 31, ECHO),
        frame(Kind.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1 | 1 << 31)),
        frame(Kind.DATA, Flag.END_STREAM, 1 | 1 << 31, message(b"x")),
    )
    assert (await client.answer(1)).body == message(b"x")


async def test_padding_and_priority_are_taken_off(client: RawClient) -> None:
    dependency = struct.pack(">IB", 1 << 31 | 7, 255)
    flags = Flag.END_HEADERS | Flag.PADDED | Flag.PRIORITY
    body = message(b"x" * 100)
    client.send(
        frame(Kind.HEADERS, flags, 1, b"\x09" + dependency + ECHO + bytes(9)),
        frame(Kind.DATA, Flag.PADDED, 1, b"\x00" + body[:50]),
        frame(Kind.DATA, Flag.PADDED, 1, b"\x03" + bytes(3)),
        frame(Kind.DATA, Flag.PADDED | Flag.END_STREAM, 1, b"\xff" + body[50:] + bytes(255)),
    )
    assert (await client.answer(1)).body == body


async def test_padding_is_given_back_to_the_windows(served: Served, client: RawClient) -> None:
    client.send(opening(1, request("Join")), data(1, message(b"x")))
    part = frame(Kind.DATA, Flag.PADDED, 1, b"\xff" + bytes(255))
    for _ in range(2 * STREAM_WINDOW // 256):
        client.send(part)
    await client.has_answered()
    client.send(data(1, end=True))
    assert (await client.answer(1)).body == message(b"x")
    given = [found.number for found in client.seen if found.kind == Kind.WINDOW_UPDATE]
    assert sum(given[1:]) >= STREAM_WINDOW


async def test_headers_come_in_many_parts(client: RawClient) -> None:
    head, *parts, last = [ECHO[start : start + 1] for start in range(len(ECHO))]
    client.send(
        frame(Kind.HEADERS, 0, 1, head),
        *(frame(Kind.CONTINUATION, 0, 1, part) for part in [*parts, b""]),
        frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, last),
        data(1, message(b"x"), end=True),
    )
    assert (await client.answer(1)).body == message(b"x")


async def test_a_call_may_end_with_trailers(client: RawClient) -> None:
    client.send(opening(1), data(1, message(b"x")))
    client.send(frame(Kind.HEADERS, Flag.END_STREAM, 1), frame(Kind.CONTINUATION, 4, 1, b""))
    answer = await client.answer(1)
    assert (answer.body, answer.reset) == (message(b"x"), None)


async def test_trailers_stay_in_step_with_the_table(client: RawClient) -> None:
    encoder = Encoder()
    flags = Flag.END_HEADERS
    for stream in (1, 3, 5):
        client.send(
            frame(Kind.HEADERS, flags, stream, encoder.encode(request("Echo", ("a", "b")))),
            data(stream, message(b"x")),
            frame(Kind.HEADERS, END, stream, encoder.encode([(f"trailer-{stream}", "c")])),
        )
    for stream in (1, 3, 5):
        assert (await client.answer(stream)).status == "0"


async def test_headers_of_a_stream_that_is_gone_stay_in_step_with_the_table(
    client: RawClient,
) -> None:
    encoder = Encoder()
    client.send(frame(Kind.HEADERS, Flag.END_HEADERS, 1, encoder.encode(request("Echo"))))
    client.send(data(1, message(b"x")))
    # It is answered, and what comes for it is for nobody.
    assert await client.was_reset(1) == ErrorCode.NO_ERROR
    client.send(frame(Kind.HEADERS, END, 1, encoder.encode([("late", "x")])))
    fields = request("Echo", ("late", "x"))
    client.send(frame(Kind.HEADERS, Flag.END_HEADERS, 3, encoder.encode(fields)))
    client.send(data(3, message(b"y"), end=True))
    assert (await client.answer(3)).body == message(b"y")


async def test_a_peer_without_a_table_is_told_that_none_is_used(served: Served) -> None:
    async with await served.open({Setting.HEADER_TABLE_SIZE: 0}) as client:
        client._decoder.max_allowed_table_size = 0
        client.send(call(1, "Echo", b"x"), call(3, "Metadata", b"y"))
        assert (await client.answer(1)).body == message(b"x")
        assert (await client.answer(3)).status == "0"
        blocks = [found.payload for found in client.seen if found.kind == Kind.HEADERS]
        assert [block[:1] == b"\x20" for block in blocks] == [True] + [False] * 3


async def test_a_stream_may_end_before_its_request_does(client: RawClient) -> None:
    client.send(opening(1), data(1, message(b"x")))
    assert await client.was_reset(1) == ErrorCode.NO_ERROR
    assert client.found[1].ended
    assert client.found[1].body == message(b"x")
    # The client may have sent these before it heard of it.
    client.send(data(1, b"more"), data(1, end=True), call(3, "Echo", b"y"))
    assert (await client.answer(3)).body == message(b"y")


async def test_what_comes_too_late_still_counts_for_the_connection(client: RawClient) -> None:
    client.send(opening(1), data(1, message(b"x")))
    await client.was_reset(1)
    for _ in range(2 * CONNECTION_WINDOW // FRAME_BYTES):
        client.send(data(1, bytes(FRAME_BYTES)))
        await client.writer.drain()
    client.send(call(3, "Echo", b"y"))
    assert (await client.answer(3)).body == message(b"y")
    given = [found.number for found in client.seen if found.kind == Kind.WINDOW_UPDATE]
    assert sum(given[1:]) >= 2 * CONNECTION_WINDOW


# The client's windows.


async def received(client: RawClient, stream: int) -> int:
    """Return how many bytes came on a stream, once no more do."""
    await client.has_answered()
    return len(client.found[stream].body)


async def test_nothing_is_sent_beyond_a_streams_window(served: Served) -> None:
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.send(call(1, "Make", b"25"))
        assert await received(client, 1) == 10
        client.send(window(1, 15))
        assert await received(client, 1) == 25
        assert not client.found[1].ended
        client.send(window(1, 100))
        assert (await client.answer(1)).sizes == [10, 15, 5]


async def test_nothing_is_sent_beyond_the_connections_window(served: Served) -> None:
    async with await served.open(LARGE_WINDOWS) as client:
        client.send(call(1, "Make", b"50000"), call(3, "Make", b"50000"))
        assert await received(client, 1) + await received(client, 3) == 65_535
        # Whoever comes now waits as well, and nobody waits for ever.
        client.send(call(5, "Echo", b"x" * 20))
        assert await received(client, 5) == 0
        client.send(window(0, 200_000))
        for stream in (1, 3, 5):
            assert (await client.answer(stream)).status == "0"


async def test_a_small_window_is_shared(served: Served) -> None:
    async with await served.open(LARGE_WINDOWS) as client:
        streams = range(1, 9, 2)
        client.send(*(call(stream, "Make", b"100000") for stream in streams))
        await client.has_answered()
        before = {stream: len(client.found[stream].body) for stream in streams}
        for _ in range(8):
            client.send(window(0, 10_000))
            await client.has_answered()
        grown = [len(client.found[stream].body) - before[stream] for stream in streams]
        assert sum(grown) == 80_000
        assert min(grown) >= 10_000


async def test_an_empty_message_waits_for_the_window_of_its_frame(served: Served) -> None:
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 0}) as client:
        client.send(call(1, "Echo"))
        await client.until_kind(Kind.HEADERS, 1)
        assert await received(client, 1) == 0
        client.send(window(1, 5))
        assert (await client.answer(1)).body == message(b"")


async def test_a_reset_ends_an_answer_that_waits_for_its_window(served: Served) -> None:
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.send(call(1, "Make", b"100"), call(3, "Pour", b"100"))
        assert await received(client, 1) == 10
        client.send(reset(1), reset(3))
        await served.has_forgotten()
        client.send(window(0, 1000), call(5, "Echo"))
        assert (await client.answer(5)).body == message(b"")
        assert len(client.found[1].body) == 10


async def test_a_full_window_does_not_keep_an_error_back(served: Served) -> None:
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 0}) as client:
        client.send(call(1, "Echo", b"x"), call(3, "Abort"))
        assert (await client.answer(3)).status == "5"
        assert not client.found[1].ended


async def test_a_new_initial_window_holds_for_open_streams(served: Served) -> None:
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 100}) as client:
        client.send(call(1, "Make", b"1000"))
        assert await received(client, 1) == 100
        client.send(settings({Setting.INITIAL_WINDOW_SIZE: 50}), window(1, 50))
        assert await received(client, 1) == 100
        client.send(window(1, 1))
        assert await received(client, 1) == 101
        client.send(settings({Setting.INITIAL_WINDOW_SIZE: 200}))
        assert await received(client, 1) == 251
        client.send(call(3, "Make", b"1000"))
        assert await received(client, 3) == 200
        client.send(settings({Setting.INITIAL_WINDOW_SIZE: 10_000}))
        assert len((await client.answer(1)).body) == 1005
        assert len((await client.answer(3)).body) == 1005


async def test_a_larger_window_is_used_once_it_is_acknowledged(served: Served) -> None:
    # grpc's client fails a call whose bytes come sooner.
    async with await served.open({Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.send(call(1, "Make", b"100"))
        assert await received(client, 1) == 10
        client.send(settings({Setting.INITIAL_WINDOW_SIZE: 50}))
        assert (await client.next()).kind == Kind.SETTINGS
        assert (await client.next()).kind == Kind.DATA


@pytest.mark.parametrize(
    ("size", "largest"), [(None, 16_384), (20_000, 20_000), (2**24 - 1, 1 << 20)]
)
async def test_no_frame_is_larger_than_the_peer_takes(
    served: Served, size: int | None, largest: int
) -> None:
    values = LARGE_WINDOWS | ({} if size is None else {Setting.MAX_FRAME_SIZE: size})
    async with await served.open(values) as client:
        client.send(window(0, 10 << 20), call(1, "Make", b"3000000"))
        answer = await client.answer(1)
        assert len(answer.body) == 3_000_005
        assert max(answer.sizes) == largest


async def test_headers_larger_than_a_frame_are_continued(served: Served) -> None:
    async def handler(body: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("large", "x" * 40_000),))
        return b"answer"

    served.service.custom = handler
    async with await served.open() as client:
        client.send(call(1, "Custom"))
        found = await client.until_kind(Kind.CONTINUATION, 1)
        assert not found.flags
        await client.until_kind(Kind.CONTINUATION, 1)
        answer = await client.answer(1)
        assert (answer.heads[-1]["large"], answer.ended) == ("x" * 40_000, True)


# Leaving.


async def leaving(served: Served, client: RawClient) -> "asyncio.Task[None]":
    """Have the server stop once it has let its client know, and one call runs."""
    client.send(call(1, "Wait", b"x"))
    await until(lambda: served.service.entered == 1)
    stopping = asyncio.create_task(served.server.finish(LIMIT_SECONDS))
    found = await client.until_kind(Kind.GOAWAY)
    assert (found.last, found.number) == (2**31 - 1, ErrorCode.NO_ERROR)
    return stopping


async def test_streams_that_were_opened_before_goaway_was_read_are_answered(
    served: Served, client: RawClient
) -> None:
    stopping = await leaving(served, client)
    goaway = await client.until_kind(Kind.PING)
    client.send(call(3, "Echo", b"y"))
    assert (await client.answer(3)).body == message(b"y")
    client.send(ping(goaway.payload, ack=True))
    found = await client.until_kind(Kind.GOAWAY)
    assert (found.last, found.number) == (3, ErrorCode.NO_ERROR)
    served.service.gate.set()
    assert (await client.answer(1)).body == message(b"x")
    await stopping
    with pytest.raises(EOFError):
        await client.next()


async def test_a_stop_waits_for_streams_that_were_opened_meanwhile(
    served: Served, client: RawClient
) -> None:
    stopping = await leaving(served, client)
    other = asyncio.Event()

    async def handler(body: bytes, context: Context) -> bytes:
        await other.wait()
        return b"z"

    served.service.custom = handler
    client.send(call(3, "Custom"))
    await client.has_answered()
    served.service.gate.set()
    assert (await client.answer(1)).body == message(b"x")
    await client.has_answered()
    other.set()
    assert (await client.answer(3)).body == message(b"z")
    await stopping


async def test_streams_that_were_opened_after_the_goaway_are_let_be(
    served: Served, client: RawClient
) -> None:
    stopping = await leaving(served, client)
    client.send(ping((await client.until_kind(Kind.PING)).payload, ack=True))
    assert (await client.until_kind(Kind.GOAWAY)).last == 1
    client.send(call(3, "Echo", b"y"), opening(5), window(5, 1), reset(5))
    await client.has_answered()
    served.service.gate.set()
    assert (await client.answer(1)).body == message(b"x")
    await stopping
    assert 3 not in client.found


async def test_an_idle_client_is_told_of_the_last_stream_as_well(
    served: Served, client: RawClient
) -> None:
    client.send(call(1, "Echo"), call(3, "Echo"))
    await client.answer(3)
    await served.server.stop()
    await client.has_lost()
    last = [found.last for found in client.seen if found.kind == Kind.GOAWAY]
    assert last == [2**31 - 1, 3]


async def test_a_client_that_does_not_answer_the_goaway_is_not_waited_for(
    served: Served, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "GOAWAY_SECONDS", 0.05)
    stopping = await leaving(served, client)
    assert (await client.until_kind(Kind.GOAWAY)).last == 1
    served.service.gate.set()
    assert (await client.answer(1)).status == "0"
    await stopping


# The same bytes, cut in any way.


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Take apart what was written."""
        position = 0
        while position < len(self.written):
            head = self.written[position : position + 9]
            position += 9 + int.from_bytes(head[:3])
            payload = self.written[position - int.from_bytes(head[:3]) : position]
            yield head[3], head[4], int.from_bytes(head[5:]), payload


class Fed:
    """A connection without a socket."""

    def __init__(self) -> None:
        server = make_server()
        server.add_generic_rpc_handlers([Service().handlers()])
        self.server = server
        self.connection: Connection = server._placed(Place(server._places, ""))
        self.transport = Transport()
        self.connection.connection_made(self.transport)

    def feed(self, *parts: bytes) -> None:
        for part in parts:
            for start in range(0, len(part), 200_000):
                piece = part[start : start + 200_000]
                self.connection.get_buffer(-1)[: len(piece)] = piece
                self.connection.buffer_updated(len(piece))

    async def has_ended(self) -> None:
        await until(lambda: not self.connection.running)
        await asyncio.sleep(0)

    def close(self) -> None:
        self.connection.connection_lost(None)


TALK = b"".join(
    (
        PREFACE,
        settings({Setting.MAX_FRAME_SIZE: 20_000}),
        frame(Kind.HEADERS, Flag.PADDED, 1, b"\x02" + ECHO[:20] + b"xx"),
        frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, ECHO[20:]),
        frame(Kind.DATA, Flag.PADDED, 1, b"\x01" + message(b"hello")[:7] + b"x"),
        data(1, message(b"hello")[7:]),
        ping(),
        data(1, end=True),
        frame(99, 1, 1, b"unknown"),
        opening(3, request("EchoAll"), end=False),
        data(3, message(b"a") + message(b"") + message(b"bc"), end=True),
        opening(5, answer_to((":method", "GET")), end=True),
        opening(7, [("A", "b")]),
    )
)


async def told(*parts: bytes) -> list[tuple[int, int, int, bytes]]:
    fed = Fed()
    fed.feed(*parts)
    await fed.has_ended()
    fed.close()
    return sorted(fed.transport.frames())


async def test_bytes_mean_the_same_wherever_they_are_cut() -> None:
    expected = await told(TALK)
    bodies = [payload for kind, _, stream, payload in expected if (kind, stream) == (Kind.DATA, 1)]
    assert bodies == [message(b"hello")]
    for cut in range(1, len(TALK)):
        assert await told(TALK[:cut], TALK[cut:]) == expected, cut
    assert await told(*(bytes([byte]) for byte in TALK)) == expected


async def test_bytes_mean_the_same_wherever_the_socket_cuts_them(served: Served) -> None:
    async with await served.open(greet=False) as client:
        for byte in TALK:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer(1)).body == message(b"hello")
        assert (await client.answer(3)).body == message(b"a") + message(b"") + message(b"bc")
        assert (await client.answer(5)).heads[0][":status"] == "405"
        assert await client.was_reset(7) == ErrorCode.PROTOCOL_ERROR


async def test_a_call_that_is_cancelled_before_it_begins_is_not_answered_with_ok() -> None:
    fed = Fed()
    fed.feed(PREFACE, settings(), call(1, "Echo"))
    # As a stop does, which may come on the same round of the event loop.
    (begun,) = fed.server._calls()
    begun.cancel()
    await until(begun.task.done)
    fed.close()
    (head,) = [payload for kind, _, _, payload in fed.transport.frames() if kind == Kind.HEADERS]
    assert ("grpc-status", "1") in Decoder().decode(head)


# What is too much.


def endless_continuation() -> Iterator[bytes]:
    yield frame(Kind.HEADERS, 0, 1, ECHO)
    while True:
        yield frame(Kind.CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100)


def empty_continuation() -> Iterator[bytes]:
    yield frame(Kind.HEADERS, 0, 1, ECHO)
    while True:
        yield frame(Kind.CONTINUATION, 0, 1) * 100


def huge_headers() -> Iterator[bytes]:
    # Two bytes for a thousand.
    entry = b"\x40\x01a\x7f\xe1\x06" + b"x" * 992
    yield frame(Kind.HEADERS, END, 1, ECHO + entry + b"\xbe" * 40)


def many_headers() -> Iterator[bytes]:
    yield frame(Kind.HEADERS, END, 1, ECHO + b"\x00\x01a\x00" * 2000)


def empty_data() -> Iterator[bytes]:
    yield WAIT
    while True:
        yield data(1) * 100


def unknown_frames() -> Iterator[bytes]:
    while True:
        yield frame(99, 0, 0) * 100


def pings() -> Iterator[bytes]:
    while True:
        yield ping() * 100


def priorities() -> Iterator[bytes]:
    while True:
        yield priority(1, 0) * 100


@pytest.mark.parametrize(
    "flood",
    [
        endless_continuation,
        empty_continuation,
        huge_headers,
        many_headers,
        empty_data,
        unknown_frames,
        pings,
        priorities,
    ],
)
async def test_a_flood_ends_its_connection(
    served: Served, client: RawClient, flood: Callable[[], Iterator[bytes]]
) -> None:
    sent = 0
    for part in flood():
        if not served.server.connections:
            break
        client.send(part)
        sent += len(part)
        assert sent < 2_000_000
        await asyncio.sleep(0)
    with suppress(ConnectionError):
        assert await client.failure() == CALM
    await until(lambda: not served.server.connections)


def hold_little(connection: Connection, client: RawClient) -> None:
    """Keep the kernel from taking megabytes that nobody reads."""
    for end, size in (
        (connection.transport, socket.SO_SNDBUF),
        (client.writer.transport, socket.SO_RCVBUF),
    ):
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, size, 4096)


async def flooded(served: Served, client: RawClient, part: bytes) -> Connection:
    """Send without reading until the server has had enough."""
    connection = served.connection
    client.stop_reading()
    hold_little(connection, client)
    sent = 0
    while not connection.transport.is_closing():
        client.send(part)
        sent += len(part)
        assert sent < 200_000_000
        await asyncio.sleep(0.001)  # the server reads meanwhile
    return connection


@pytest.mark.parametrize(
    "part",
    [ping() * 5000, settings() * 9000, window(1, 0) * 5000],
    ids=["pings", "settings", "resets"],
)
async def test_a_client_that_never_reads_is_not_answered_for_ever(
    served: Served, client: RawClient, part: bytes
) -> None:
    client.send(call(1, "Wait"))
    await until(lambda: served.service.entered == 1)
    connection = await flooded(served, client, part)
    assert connection.transport.get_write_buffer_size() < 3 << 20


async def test_a_client_that_never_reads_is_left_in_the_end(
    served: Served, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "GOAWAY_SECONDS", 0.05)
    client.send(call(1, "Wait"))
    await until(lambda: served.service.entered == 1)
    await flooded(served, client, ping() * 5000)
    async with asyncio.timeout(5):
        await until(lambda: not served.server.connections)
        await until(lambda: served.service.cancelled == 1)


@pytest.mark.parametrize("size", [16_384, 1_000_000])
async def test_a_client_may_ping_while_it_reads_a_large_answer(served: Served, size: int) -> None:
    async with await served.open(LARGE_WINDOWS | {Setting.MAX_FRAME_SIZE: size}) as client:
        client.send(window(0, 1 << 30))
        await client.settle()
        client.stop_reading()
        # Nearly all of it waits in the server.
        sock = served.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.send(call(1, "Make", b"3000000"))
        await until(lambda: served.server.counts().messages_sent == 1)
        client.send(ping(b"measured"), settings())
        await until(lambda: served.connection._pings._level > 0)
        client.go_on_reading()
        assert len((await client.answer(1)).body) == 3_000_005
        await client.has_answered()


async def test_who_says_nothing_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 0.05)
    for said in (b"", PREFACE[:9], PREFACE, PREFACE + settings()[:5]):
        async with await served.open(greet=False) as client:
            client.send(said)
            await client.has_lost()


async def test_who_has_said_hello_may_stay(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 0.05)
    async with await served.open() as client:
        await client.settle()
        await asyncio.sleep(0.1)  # longer than a greeting may take
        client.send(call(1, "Echo", b"x"))
        assert (await client.answer(1)).body == message(b"x")


@pytest_asyncio.fixture
async def few_streams() -> AsyncIterator[tuple[Served, RawClient]]:
    """A server that lets a client have two streams, and a client of it."""
    async with serving(max_concurrent_streams=2) as served, await served.open() as client:
        await client.settle()
        yield served, client


async def test_more_streams_than_a_client_may_have_are_refused(
    few_streams: tuple[Served, RawClient],
) -> None:
    served, client = few_streams
    client.send(*(call(stream, "Wait") for stream in (1, 3, 5)))
    assert await client.was_reset(5) == ErrorCode.REFUSED_STREAM
    served.service.gate.set()
    await client.answer(1)
    await client.answer(3)
    client.send(call(7, "Echo", b"x"))
    assert (await client.answer(7)).body == message(b"x")


async def test_streams_that_were_reset_count_as_long_as_they_are_worked_on(
    few_streams: tuple[Served, RawClient],
) -> None:
    served, client = few_streams
    gate = asyncio.Event()

    async def stubborn(body: bytes, context: Context) -> bytes:
        served.service.entered += 1
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        return b""

    served.service.custom = stubborn
    for stream in (1, 3):
        client.send(call(stream, "Custom"))
        await until(lambda entered=(stream + 1) // 2: served.service.entered == entered)
        client.send(reset(stream))
    client.send(call(5, "Echo"))
    assert await client.was_reset(5) == ErrorCode.REFUSED_STREAM
    gate.set()
    await served.has_forgotten()
    client.send(call(7, "Echo", b"x"))
    assert (await client.answer(7)).body == message(b"x")


async def test_streams_that_were_reset_at_once_count_no_longer(
    few_streams: tuple[Served, RawClient],
) -> None:
    served, client = few_streams
    for stream in range(1, 21, 2):
        client.send(call(stream, "Echo") + reset(stream))
        await client.has_answered()
    client.send(call(21, "Echo", b"x"))
    answer = await client.answer(21)
    assert (answer.body, answer.reset) == (message(b"x"), None)
    await served.has_forgotten()


# Time that a client can take from the others.


async def open_and_blocked(count: int) -> Fed:
    """Open streams whose answers wait for their windows."""
    fed = Fed()
    fed.feed(PREFACE, settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    fed.feed(*(call(1 + 2 * number, "Echo", b"x") for number in range(count)))
    await fed.has_ended()
    assert len(fed.connection.streams) == count
    return fed


async def test_the_bytes_of_a_frame_are_looked_at_once() -> None:
    fed, takes = Fed(), 0
    take = fed.connection._frames._take

    def counted(received: memoryview) -> int:
        nonlocal takes
        takes += 1
        return take(received)

    fed.feed(PREFACE, settings())
    fed.connection._frames._take = counted  # type: ignore[method-assign]
    large = opening(1, request("Echo", ("long", "x" * 20_000)), end=True)
    fed.feed(*(large[place : place + 1] for place in range(len(large))))
    assert fed.connection.counts.started == 1
    # At its first byte, at the end of its head, and at its own.
    assert takes == 3
    await fed.has_ended()
    fed.close()


async def test_settings_of_one_read_look_at_the_streams_once() -> None:
    fed, looks = await open_and_blocked(10), 0
    settled = fed.connection.sender.settled

    def counted(streams: Any) -> None:
        nonlocal looks
        looks += 1
        settled(streams)

    fed.connection.sender.settled = counted  # type: ignore[method-assign]
    fed.feed(settings({Setting.INITIAL_WINDOW_SIZE: 0}) * 1000)
    assert looks == 1
    fed.feed(settings({Setting.INITIAL_WINDOW_SIZE: 100}))
    assert not fed.connection.streams
    fed.close()


async def test_settings_without_end_end_the_connection() -> None:
    fed = await open_and_blocked(1)
    fed.feed(settings() * 10_001)
    assert fed.transport.closing
    fed.close()


@pytest.mark.parametrize(("a_second", "lost"), [(0, True), (1e6, False)])
async def test_a_client_that_gives_streams_up_without_end_is_sent_away(
    served: Served,
    client: RawClient,
    monkeypatch: pytest.MonkeyPatch,
    a_second: float,
    *,
    lost: bool,
) -> None:
    monkeypatch.setattr(connection, "MOST_RESETS", 10)
    monkeypatch.setattr(connection, "RESETS_A_SECOND", a_second)
    for stream in range(1, 21, 2):
        client.send(call(stream, "Wait"), reset(stream))
    await client.has_answered()
    client.send(call(21, "Wait"), reset(21))
    if lost:
        assert await client.failure() == ErrorCode.ENHANCE_YOUR_CALM
    else:
        await client.has_answered()


@pytest.mark.parametrize(
    "fault",
    [lambda stream: window(stream, 0), lambda stream: window(stream, 2**31 - 1)],
    ids=["window opened by nothing", "window too large"],
)
async def test_a_client_that_has_its_streams_reset_is_sent_away_as_well(
    served: Served,
    client: RawClient,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[int], bytes],
) -> None:
    """CVE-2025-8671: it resets nothing, and has the server do so."""
    monkeypatch.setattr(connection, "MOST_RESETS", 10)
    monkeypatch.setattr(connection, "RESETS_A_SECOND", 0)
    for stream in range(1, 23, 2):
        client.send(opening(stream, request("Wait")), fault(stream))
    assert await client.failure() == ErrorCode.ENHANCE_YOUR_CALM
    await until(lambda: not served.server.connections)


async def test_a_client_that_opens_refused_streams_without_end_is_sent_away() -> None:
    async with serving(max_concurrent_streams=1) as served, await served.open() as client:
        await client.settle()
        client.send(call(1, "Wait"))
        for stream in range(3, 20_011, 2):
            client.send(opening(stream, end=True))
        assert await client.failure() == ErrorCode.ENHANCE_YOUR_CALM
        await until(lambda: not served.server.connections)


async def test_who_does_not_read_answers_gets_no_further_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MOST_WAITING", 5000)
    async with serving() as served, await served.open({Setting.INITIAL_WINDOW_SIZE: 0}) as client:
        await client.settle()
        for stream in (1, 3):
            client.send(call(stream, "Make", b"3000"))
            await client.until_kind(Kind.HEADERS, stream)
        client.send(call(5, "Echo"))
        assert await client.was_reset(5) == ErrorCode.REFUSED_STREAM
        client.send(window(1, 4000))
        assert len((await client.answer(1)).body) == 3005
        client.send(call(7, "Echo", b"x"), window(7, 100))
        assert (await client.answer(7)).body == message(b"x")
        client.send(window(3, 4000))
        assert len((await client.answer(3)).body) == 3005
        assert served.connection.sender.waiting == 0


def seconds_for(fed: Fed, sent: bytes) -> float:
    """Return the processor time for some bytes."""
    started = time.process_time()
    fed.feed(sent)
    return time.process_time() - started


async def test_settings_that_repeat_take_no_longer_for_many_streams() -> None:
    setting = struct.pack(">HI", Setting.INITIAL_WINDOW_SIZE, 0)
    fed = await open_and_blocked(500)
    assert seconds_for(fed, frame(Kind.SETTINGS, 0, 0, 50_000 * setting)) < 0.5
    fed.close()


async def test_opening_the_connections_window_takes_no_longer_for_many_streams() -> None:
    fed = await open_and_blocked(500)
    assert seconds_for(fed, window(0, 1) * 10_000) < 0.5
    fed.close()
