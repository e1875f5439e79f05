"""Header blocks are read as hpack reads them, however often they repeat, and written for it."""

import base64
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate_serve.transports.http2 import headers
from foveate_serve.transports.http2.frames import ErrorCode, ProtocolError, StreamError
from foveate_serve.transports.http2.headers import (
    MAX_FIELDS,
    MAX_LIST_BYTES,
    Head,
    HeadReader,
    _to_head,
)

from .conftest import block, request

Field: TypeAlias = tuple[str, str, bool]

# Few, so that they repeat: it is then that tables and caches matter.
METADATA = st.tuples(
    st.sampled_from(["user-agent", "x", "longer-than-others", "raw-bin", "grpc-encoding"]),
    st.sampled_from(["", "a", "AAAA,AAA", "gzip", "x" * 200, "\u00e9", "%!"]),
    st.booleans(),
)
TIMEOUT = st.sampled_from(["1S", "20m", "never"]).map(lambda value: ("grpc-timeout", value, False))
CALLS = st.tuples(
    st.sampled_from(["Echo", "Wait"]),
    st.booleans(),
    st.lists(st.one_of(METADATA, TIMEOUT), max_size=4),
).map(
    lambda parts: [*((name, value, parts[1]) for name, value in request(parts[0])), *parts[2]],
)
STEPS = st.tuples(
    CALLS,
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 4096)),
    st.sampled_from(["call", "call", "call", "twice", "trailers"]),
)


def decoded(decoder: Decoder, written: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(written, True)]


def outcome(read: Callable[[bytes], object], written: bytes) -> object:
    """Return what comes of a block, an error included."""
    try:
        return read(written)
    except (ProtocolError, StreamError) as error:
        return type(error), error.code, str(error)


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, min_size=1, max_size=12))
def test_heads_are_those_of_a_decoder_that_remembers_no_block(
    steps: list[tuple[list[Field], bool, int | None, str]],
) -> None:
    encoder, decoder, reader = Encoder(), Decoder(), HeadReader()

    def fresh(written: bytes) -> Head:
        return _to_head(decoded(decoder, written))

    for fields, huffman, size, kind in steps:
        if size is not None:
            encoder.header_table_size = size
        for _ in range(2 if kind == "twice" else 1):
            written = encoder.encode([(n.encode(), v.encode(), s) for n, v, s in fields], huffman)
            if kind == "trailers":
                assert reader.skip(written) == decoded(decoder, written)
            else:
                assert outcome(reader.read, written) == outcome(fresh, written)


def test_a_block_that_repeats_is_read_once() -> None:
    reader, written = HeadReader(), block(request("Echo", ("a", "b")))
    assert reader.read(written) is reader.read(written)


def test_the_same_bytes_mean_something_else_once_the_table_has_changed() -> None:
    reader, encoder = HeadReader(), Encoder()
    # The latest entry of the table, whatever it is.
    latest = block(request("Echo")) + b"\xbe"
    for value in ("one", "two"):
        reader.read(encoder.encode([*request("Echo"), ("key", value)]))
        assert reader.read(latest).metadata[-1] == ("key", value)
        assert reader.read(latest).metadata[-1] == ("key", value)
    reader.skip(encoder.encode([("key", "three")]))
    assert reader.read(latest).metadata[-1] == ("key", "three")
    with pytest.raises(ProtocolError):
        reader.read(b"\x20" + latest)


def test_an_integer_of_more_bytes_than_it_needs_hides_no_change() -> None:
    reader, start = HeadReader(), block(request("Echo"))
    latest = start + b"\xbe"
    reader.read(start + b"\x40\x01k\x03old")
    assert reader.read(latest).metadata == (("k", "old"),)
    change = b"\x40\x01k\x03new"
    # A length of 127 in six bytes, and a name whose last byte passes for another length.
    padded = b"\x00\x7f\x80\x80\x80\x80\x00" + b"n" * 126 + b"x" + b"\x03abc" + change
    filler = ord("x") - 4 - len(change)
    hidden = start + padded + b"\x00\x01f" + bytes([filler - 4]) + b"f" * (filler - 4)
    assert ("k", "new") in reader.read(hidden).metadata
    assert reader.read(latest).metadata == (("k", "new"),)


def test_only_so_many_blocks_are_kept() -> None:
    reader = HeadReader()
    for number in range(1000):
        reader.read(block(request("Echo", ("number", str(number)))))
    assert len(reader._known) <= 64


def test_blocks_that_mean_much_are_not_all_kept() -> None:
    reader = HeadReader()
    reader.read(Encoder().encode([*request("Echo"), ("large", "x" * 3000)]))
    # Seven times the latest entry of the table, in seven bytes.
    for number in range(50):
        head = reader.read(block(request("Echo", ("number", str(number)))) + 7 * b"\xbe")
        assert len(head.metadata) == 8
    kept = reader._known.values()
    assert sum(len(value) for head in kept for _, value in head.metadata) < 1 << 16
    assert reader.read(block(request("Echo"))) is reader.read(block(request("Echo")))


def test_few_values_of_binary_metadata_may_be_joined() -> None:
    assert len(read(("a-bin", ",".join(["eA"] * 65))).metadata) == 65
    for more in ([("a-bin", ",".join(["eA"] * 66))], [("a-bin", 40 * ","), ("b-bin", 40 * ",")]):
        with pytest.raises(StreamError, match="too many values"):
            read(*more)
    # Text is as it is.
    assert read(("a", 100 * ",")).metadata == (("a", 100 * ","),)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_no_bytes_are_more_than_an_error(blocks: list[bytes], begun: bool) -> None:
    reader = HeadReader()
    for written in blocks:
        found = outcome(reader.read, (block(request("Echo")) if begun else b"") + written)
        assert isinstance(found, Head | tuple)


def test_a_list_may_be_as_long_as_the_limit_and_no_longer() -> None:
    fields = request("Echo")
    left = MAX_LIST_BYTES - sum(len(name) + len(value) + 32 for name, value in fields)
    fits = "x" * (left - 32 - 1)
    assert HeadReader().read(block([*fields, ("a", fits)])).metadata == (("a", fits),)
    with pytest.raises(ProtocolError, match=f"limit is {MAX_LIST_BYTES} bytes") as raised:
        HeadReader().read(block([*fields, ("a", fits + "x")]))
    assert raised.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_call_has_no_more_headers_than_the_limit() -> None:
    fields = request("Echo")
    # Of the static table, a byte each.
    more = b"\x95" * (MAX_FIELDS - len(fields))
    assert HeadReader().read(block(fields) + more)
    for read_block in (HeadReader().read, HeadReader().skip):
        with pytest.raises(ProtocolError, match=f"the limit is {MAX_FIELDS}") as raised:
            read_block(block(fields) + more + b"\x95")
        assert raised.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_changes_the_size_of_the_table_twice_at_most() -> None:
    changes = b"\x20\x3f\xe1\x1f"
    assert HeadReader().read(changes + block(request("Echo")))
    with pytest.raises(ProtocolError, match="more than 2 times") as raised:
        HeadReader().read(changes + b"\x20" + block(request("Echo")))
    assert raised.value.code == ErrorCode.COMPRESSION_ERROR


def read(*more: tuple[str, str]) -> Head:
    return HeadReader().read(block(request("Echo", *more)))


def test_a_head_says_what_the_call_is() -> None:
    found = read(
        ("user-agent", "test/1"),
        ("grpc-accept-encoding", "gzip"),
        ("grpc-encoding", "gzip"),
        ("b", "2"),
        ("a", "1"),
        ("b", "\u00e9"),
    )
    assert found == Head(
        path="/transports.Test/Echo",
        # In UTF-8 it came, and bytes it stays.
        metadata=(("user-agent", "test/1"), ("b", "2"), ("a", "1"), ("b", "\u00c3\u00a9")),
        timeout=None,
        encoding="gzip",
        http_status=200,
    )
    assert read().encoding == "identity"
    assert read().metadata == ()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2H", 7200),
        ("2M", 120),
        ("2S", 2),
        ("2m", 0.002),
        ("2u", 2e-6),
        ("2n", 2e-9),
        ("0S", 0),
        ("00000100m", 0.1),
        ("99999999H", 99_999_999 * 3600),
    ],
)
def test_timeouts_have_units(text: str, seconds: float) -> None:
    assert read(("grpc-timeout", text)).timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("AAE=", [b"\x00\x01"]),
        ("AAE", [b"\x00\x01"]),
        ("", [b""]),
        ("/+8=", [b"\xff\xef"]),
        ("AA==,AQ, Ag==", [b"\x00", b"\x01", b"\x02"]),
        ("AA==,", [b"\x00", b""]),
    ],
)
def test_binary_metadata_is_base64_padded_or_not(text: str, values: list[bytes]) -> None:
    assert read(("a-bin", text)).metadata == tuple(("a-bin", value) for value in values)


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=40)
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300)
PAIRS = st.one_of(
    st.tuples(NAMES.filter(lambda name: not name.endswith("-bin")), TEXTS),
    st.tuples(NAMES.map(lambda name: f"{name}-bin"), st.binary(max_size=300)),
)


@settings(deadline=None)
@given(st.lists(PAIRS, max_size=8))
def test_what_is_written_is_read_back_and_leaves_the_table_alone(
    pairs: list[tuple[str, Any]],
) -> None:
    decoder = Decoder()
    found = decoder.decode(headers.write(pairs), True)
    assert [name.decode() for name, _ in found] == [name for name, _ in pairs]
    for (name, value), (_, expected) in zip(found, pairs, strict=True):
        if name.endswith(b"-bin"):
            assert base64.b64decode(value + b"==") == expected
            assert not value.endswith(b"=")
        else:
            assert value == expected.encode()
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize("size", [0, 126, 127, 128, 254, 255, 256, 16_510, 16_511, 65_000])
def test_long_values_are_written_as_well(size: int) -> None:
    decoder = Decoder(max_header_list_size=1 << 20)
    ((_, value),) = decoder.decode(headers.write([("a", "x" * size)]), True)
    assert len(value) == size


def test_text_in_binary_metadata_is_written_in_utf_8() -> None:
    written = headers.write_metadata([("a-bin", "\u00e9"), ("b", "e")])
    assert dict(Decoder().decode(written, True)) == {b"a-bin": b"w6k", b"b": b"e"}
