"""Reads messages of Protocol Buffers without their schema, and without copying them."""

from collections.abc import Iterator
from dataclasses import dataclass

BYTES = 2
"""The kind of a field that holds bytes, a text or a message."""

_VARINT, _EIGHT_BYTES, _FOUR_BYTES = 0, 1, 5
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its number, its value, and its bytes with those of the number."""

    number: int
    value: memoryview
    whole: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message, as they lie there; raises ValueError where it is none."""
    at = 0
    while at < len(message):
        start = at
        key, at = read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            begin = at
            _, at = read_varint(message, at)
        elif kind == BYTES:
            size, begin = read_varint(message, at)
            at = begin + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            begin = at
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if at > len(message):
            raise ValueError("a field ends behind its message")
        yield Field(key >> 3, message[begin:at], message[start:at])


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends; raises ValueError."""
    value = shift = 0
    # Without a limit a long run of bytes would make a number that takes minutes to shift.
    number = message[at : at + _LONGEST_VARINT]
    for byte in number:
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    if len(number) < _LONGEST_VARINT:
        raise ValueError("a field ends behind its message")
    raise ValueError("a number has no end")


def strings(message: memoryview, number: int) -> list[str]:
    """Return the texts of the fields `number`; raises ValueError where one is not UTF-8."""
    return [str(field.value, "utf-8") for field in fields(message) if field.number == number]
