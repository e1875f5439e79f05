"""Bounds what a request holds beside its pictures, before it is parsed.

A few kilobytes, compressed, can become millions of class ids, names or empty messages, each of
which takes memory when the message is parsed and time when it is read. The bytes of a message
are walked here field by field (protobuf's encoding guide, "Message Structure"), and no further
than the limit.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import Message

from foveate_serve.errors import InvalidRequestError

M = TypeVar("M", bound=Message)

MAX_FIELD_BYTES = 64 << 10
"""The most bytes of a request that are not those of its pictures."""

MAX_ID_CHARACTERS = 1024
"""The longest id of a request that its response repeats."""

_PICTURE = 1 << 31
_NUMBERS = 5 << 20
"""The bytes of a million unsigned numbers, each up to five: see `tensors.MAX_CONTENTS`.

They count together where they come in parts, as each byte may be a number of four."""

_CLASSIFY: Mapping[str, int] = {"encoded": _PICTURE, "raw.data": _PICTURE}
_BULK: Mapping[str, Mapping[str, int]] = {
    "foveate.v1.ClassifyRequest": _CLASSIFY,
    "foveate.v1.ClassifyStreamRequest": {f"request.{path}": n for path, n in _CLASSIFY.items()},
    "inference.ModelInferRequest": {
        "raw_input_contents": _PICTURE,
        "inputs.contents.bytes_contents": _PICTURE,
        "inputs.contents.uint_contents": _NUMBERS,
    },
}
"""Where pictures are, by message and path, with the most bytes there."""

_Tree: TypeAlias = "dict[int, int | _Tree]"


def bounded(kind: type[M]) -> Callable[[bytes], M]:
    """Return a function that parses a message of this kind within the bounds.

    It raises InvalidRequestError, and DecodeError for bytes that are no such message.
    """
    descriptor: Any = kind.DESCRIPTOR
    bulk: _Tree = {}
    for path, limit in _BULK.get(descriptor.full_name, {}).items():
        _insert(bulk, descriptor, path.split("."), limit)

    def read(message: bytes) -> M:
        # Nearly every request but a photograph's ends here.
        if len(message) > MAX_FIELD_BYTES:
            _Walk(message, descriptor.name).through(0, len(message), bulk)
        return kind.FromString(message)

    return read


def require_short(identifier: str, field: str) -> None:
    """Check the length of an id that a response repeats; raises InvalidRequestError."""
    if len(identifier) > MAX_ID_CHARACTERS:
        raise InvalidRequestError(
            "ID_TOO_LONG",
            f"{field} has {len(identifier)} characters; the limit is {MAX_ID_CHARACTERS}",
            field=field,
            metadata={"limit": MAX_ID_CHARACTERS},
        )


def _insert(tree: _Tree, descriptor: Any, path: list[str], limit: int) -> None:
    field = descriptor.fields_by_name[path[0]]
    if len(path) == 1:
        tree[field.number] = limit
        return
    below = tree.setdefault(field.number, {})
    if isinstance(below, dict):
        _insert(below, field.message_type, path[1:], limit)


class _Walk:
    """Walks the fields of a message, and counts the bytes that are no picture's.

    Raises InvalidRequestError where they are too many. Stops where the bytes are no
    message: to parse them raises the error.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._left = MAX_FIELD_BYTES
        self._bulk: defaultdict[int, int] = defaultdict(int)

    def through(self, position: int, end: int, bulk: _Tree) -> None:
        """Walk the fields from one position to another; `bulk` are those with pictures in them."""
        while position < end:
            begun = position
            tag, position = self._varint(position)
            wire = tag & 7
            if wire == 0:
                _, position = self._varint(position)
            elif wire == 1:
                position += 8
            elif wire == 5:
                position += 4
            elif wire == 2:  # a string, bytes, a message, or packed numbers
                size, position = self._varint(position)
                if position + size > end:
                    return
                inside = bulk.get(tag >> 3)
                if isinstance(inside, dict):
                    self.through(position, position + size, inside)
                    begun += size
                elif inside is not None:
                    self._bulk[inside] += size
                    if self._bulk[inside] > inside:
                        raise self._too_large(inside)
                    begun += size
                position += size
            else:
                return
            self._left -= position - begun
            if self._left < 0:
                raise self._too_large(MAX_FIELD_BYTES)

    def _varint(self, position: int) -> tuple[int, int]:
        """Return the number that begins at a position, and where it ends."""
        value = shift = 0
        for byte in self._data[position : position + 10]:
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        # No number ends there, and no message.
        return 0, len(self._data)

    def _too_large(self, limit: int) -> InvalidRequestError:
        return InvalidRequestError(
            "FIELDS_TOO_LARGE",
            f"the fields of a {self._name} beside its pictures take more than {limit} bytes, "
            "which is the limit",
            field="",
            metadata={"limit": limit},
        )
