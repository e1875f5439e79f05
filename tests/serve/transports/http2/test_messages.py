"""Messages are put together wherever they are cut, and limits hold before and after inflating."""

import gzip
import zlib
from contextlib import suppress

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate_serve.transports.http2.messages import Assembler, Message, MessageError

from .conftest import message

LIMIT = 1000
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}


def fed(assembler: Assembler, *parts: bytes) -> list[Message]:
    """Feed parts through one buffer, which is overwritten each time."""
    buffer = bytearray(max(map(len, parts), default=0))
    found = []
    for part in parts:
        buffer[: len(part)] = part
        found += assembler.feed(memoryview(buffer)[: len(part)])
        buffer[:] = b"\xaa" * len(buffer)
    return found


BODIES = st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=6)


@settings(deadline=None, max_examples=200)
@given(BODIES, st.sampled_from(["gzip", "deflate"]), st.data())
def test_messages_are_put_together_wherever_they_are_cut(
    bodies: list[tuple[bytes, bool]], encoding: str, data: st.DataObject
) -> None:
    sent = b"".join(
        message(COMPRESS[encoding](body) if packed else body, flag=packed)
        for body, packed in bodies
    )
    cuts = data.draw(st.lists(st.integers(0, len(sent))).map(sorted))
    parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assembler = Assembler(LIMIT, encoding)
    found = fed(assembler, *parts)
    assert [bytes(each.inflated(LIMIT)) for each in found] == [body for body, _ in bodies]
    assert [each.encoding == encoding for each in found] == [packed for _, packed in bodies]
    assert not assembler.within


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=10), st.sampled_from(["identity", "gzip"]))
def test_no_bytes_are_more_than_an_error(parts: list[bytes], encoding: str) -> None:
    with suppress(MessageError):
        for found in fed(Assembler(30, encoding), *parts):
            assert len(found.body) <= 30
            assert len(found.inflated(30)) <= 30


def test_a_message_that_has_begun_is_not_over() -> None:
    assembler, sent = Assembler(LIMIT, "identity"), message(b"abc")
    assert not assembler.within
    for byte in sent[:-1]:
        assert not fed(assembler, bytes([byte]))
        assert assembler.within
    assert len(fed(assembler, sent[-1:])) == 1
    assert not assembler.within


def test_a_message_may_be_empty() -> None:
    assembler = Assembler(LIMIT, "identity")
    assert [each.body for each in fed(assembler, message(b"") * 3)] == [b""] * 3
    cut = [bytes([byte]) for byte in message(b"")]
    assert [each.body for each in fed(assembler, *cut)] == [b""]
    assert not assembler.within


def test_nothing_completes_nothing() -> None:
    assert fed(Assembler(LIMIT, "identity"), b"") == []


def test_a_message_may_be_as_large_as_the_limit_and_no_larger() -> None:
    (found,) = fed(Assembler(LIMIT, "identity"), message(bytes(LIMIT)))
    assert found.body == bytes(LIMIT)
    # It is refused before its bytes are there.
    with pytest.raises(MessageError, match=r"larger than max \(1001 vs\. 1000\)") as raised:
        fed(Assembler(LIMIT, "identity"), message(bytes(LIMIT + 1))[:5])
    assert raised.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_limit_holds_for_what_a_message_is_inflated_to(encoding: str) -> None:
    fits = Message(bytearray(COMPRESS[encoding](bytes(LIMIT))), encoding)
    assert fits.inflated(LIMIT) == bytes(LIMIT)
    bomb = Message(bytearray(COMPRESS[encoding](bytes(50 << 20))), encoding)
    for refused in (Message(bytearray(COMPRESS[encoding](bytes(LIMIT + 1))), encoding), bomb):
        with pytest.raises(MessageError, match=r"\(more than 1000 vs\. 1000\)") as raised:
            refused.inflated(LIMIT)
        assert raised.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_empty_message_may_be_compressed(encoding: str) -> None:
    assert Message(bytearray(COMPRESS[encoding](b"")), encoding).inflated(LIMIT) == b""


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_data_is_whole(encoding: str) -> None:
    packed = COMPRESS[encoding](b"some text that is compressed")
    for size in range(len(packed)):
        with pytest.raises(MessageError) as raised:
            Message(bytearray(packed[:size]), encoding).inflated(LIMIT)
        assert raised.value.code == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    "body", [b"text", gzip.compress(b"x")[:-4] + b"1234"], ids=["no gzip", "another checksum"]
)
def test_other_data_is_an_error(body: bytes) -> None:
    with pytest.raises(MessageError, match="gzip") as raised:
        Message(bytearray(body), "gzip").inflated(LIMIT)
    assert raised.value.code == grpc.StatusCode.INTERNAL


def test_only_what_inflates_to_little_is_inflated_at_once() -> None:
    few, many = gzip.compress(bytes(1000)), gzip.compress(bytes(10 << 20))
    assert len(many) < 20_000
    assert Message(bytearray(few), "gzip").inflated_at_once(1 << 20) == bytes(1000)
    assert Message(bytearray(few), "gzip").inflated_at_once(999) is None
    assert Message(bytearray(few[:-1]), "gzip").inflated_at_once(1 << 20) is None
    assert Message(bytearray(many), "gzip").inflated_at_once(20 << 20) is None


@pytest.mark.parametrize(
    ("sent", "encoding", "problem"),
    [
        (message(b"x", flag=2), "gzip", "neither 0 nor 1"),
        (message(b"x", flag=255), "identity", "neither 0 nor 1"),
        (message(b"x", flag=1), "identity", "grpc-encoding is missing"),
    ],
)
def test_a_flag_says_whether_a_message_is_compressed(
    sent: bytes, encoding: str, problem: str
) -> None:
    with pytest.raises(MessageError, match=problem) as raised:
        fed(Assembler(LIMIT, encoding), sent)
    assert raised.value.code == grpc.StatusCode.INTERNAL
