"""Whatever a client sends, the server goes on."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from foveate_serve.transports.http2.frames import PREFACE, Flag, Kind

from .conftest import (
    block,
    call,
    data,
    frame,
    message,
    opening,
    ping,
    request,
    reset,
    serving,
    window,
)
from .conftest import settings as settings_frame


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Fail where something is logged: no client can make the server fail."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Of the client's own socket, where the server has closed it.
            if record.getMessage() != "socket.send() raised exception.":
                records.append(record)

    handler = Keep(level=logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
    assert not [record.getMessage() for record in records]


async def survives(parts: list[bytes], *, pauses: bool, whole: bool) -> None:
    """Send bytes, `whole` frames or not, and have a good call afterwards."""
    async with serving() as served:
        async with await served.open(greet=False) as bad:
            for part in parts:
                bad.send(part)
                if pauses:
                    await asyncio.sleep(0)
            if whole:
                with suppress(EOFError):
                    await bad.has_answered()
            else:
                await asyncio.sleep(0.001)  # no whole frame is there to be answered
        async with await served.open() as good:
            good.send(call(1, "Echo", b"x"))
            assert (await good.answer(1)).body == message(b"x")
        # What is found here is made smaller many times.
        async with asyncio.timeout(5):
            await served.has_forgotten()


def run(parts: list[bytes], *, pauses: bool, whole: bool) -> None:
    with nothing_logged():
        asyncio.run(survives(parts, pauses=pauses, whole=whole))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([b"", PREFACE, PREFACE + settings_frame()]), st.lists(st.binary()))
def test_random_bytes_do_no_harm(start: bytes, parts: list[bytes]) -> None:
    run([start, *parts], pauses=False, whole=False)


ECHO = block(request("Echo"))
STREAMS = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 0, 2, 2**31 - 1])
METHODS = st.sampled_from(["Echo", "EchoAll", "Join", "Wait", "Abort", "Metadata", "Nothing"])
MORE = st.sampled_from(
    [
        (),
        (("grpc-timeout", "1m"),),
        (("grpc-encoding", "gzip"),),
        (("Upper", "x"),),
        (("a-bin", "?"),),
        (("test-a", "b"), ("test-b-bin", "AAAA")),
    ]
)
BODIES = st.one_of(
    st.builds(message, st.binary(max_size=20), st.sampled_from([0, 0, 0, 1, 2])),
    st.binary(max_size=20),
)
FRAMES = st.one_of(
    st.builds(
        lambda stream, method, more, end: opening(stream, request(method, *more), end=end),
        *(STREAMS, METHODS, MORE, st.booleans()),
    ),
    st.builds(
        lambda stream, body, end: data(stream, body, end=end), STREAMS, BODIES, st.booleans()
    ),
    st.builds(call, STREAMS, METHODS, st.binary(max_size=20)),
    # More than the client's windows take.
    st.builds(lambda stream: call(stream, "Make", b"70000"), STREAMS),
    st.builds(reset, STREAMS, st.integers(0, 20)),
    st.builds(window, STREAMS, st.sampled_from([0, 1, 100, 65_535, 2**31 - 1])),
    st.builds(
        lambda flags, stream, size: frame(Kind.HEADERS, flags, stream, ECHO[:size]),
        *(st.integers(0, 255), STREAMS, st.integers(0, 200)),
    ),
    st.builds(
        lambda flags, stream: frame(Kind.CONTINUATION, flags, stream, block([("a", "b")])),
        *(st.sampled_from([0, Flag.END_HEADERS]), STREAMS),
    ),
    st.builds(settings_frame, st.dictionaries(st.integers(0, 7), st.integers(0, 70_000))),
    st.builds(
        frame,
        *(st.integers(0, 12), st.integers(0, 255), STREAMS, st.binary(max_size=30)),
    ),
    st.just(ping()),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(FRAMES, min_size=1, max_size=12), st.booleans())
def test_random_frames_do_no_harm(frames: list[bytes], pauses: bool) -> None:
    run([PREFACE, settings_frame(), *frames], pauses=pauses, whole=True)
