"""Messages of protobuf made and changed by their descriptors, and bytes changed at random."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_DEPTH = 4
_INTEGERS = (0, 1, -1, 2, 3, 28, 224, 784, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan"))
_RANGES = MappingProxyType(
    {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }
)


class Mutator:
    """Fills messages with values of `words`, of `blobs`, and with those at the ends of ranges."""

    def __init__(self, random: Random, words: Sequence[str], blobs: Sequence[bytes]) -> None:
        self._random = random
        self._words = words
        self._blobs = blobs
        self._makers: Mapping[int, Callable[[FieldDescriptor], Any]] = {
            **dict.fromkeys(_RANGES, self._integer),
            FieldDescriptor.CPPTYPE_BOOL: lambda _: random.random() < 0.5,
            FieldDescriptor.CPPTYPE_ENUM: lambda _: random.choice((0, 1, 2, 3, 99, -1)),
            FieldDescriptor.CPPTYPE_STRING: self._text,
            FieldDescriptor.CPPTYPE_FLOAT: lambda _: random.choice(_FLOATS),
            FieldDescriptor.CPPTYPE_DOUBLE: lambda _: random.choice(_FLOATS),
        }

    def change(self, message: Message, depth: int = 0) -> None:
        """Set, clear or repeat some of a message's fields, and those of the messages in it."""
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.25:
                message.ClearField(field.name)
            if self._random.random() < 0.35:
                self._set(message, field, depth)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        count = self._random.choice((1, 1, 2, 3, 20)) if field.is_repeated else 1
        if field.message_type and field.message_type.GetOptions().map_entry:
            self._set_map(getattr(message, field.name), field, depth)
        elif field.message_type:
            if depth < _DEPTH:
                for _ in range(count):
                    value = getattr(message, field.name)
                    self.change(value.add() if field.is_repeated else value, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._value(field) for _ in range(count))
        else:
            setattr(message, field.name, self._value(field))

    def _set_map(self, values: Any, field: FieldDescriptor, depth: int) -> None:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        if value.message_type:
            self.change(values[self._value(key)], depth + 1)
        else:
            values[self._value(key)] = self._value(value)

    def _value(self, field: FieldDescriptor) -> Any:
        return self._makers[field.cpp_type](field)

    def _integer(self, field: FieldDescriptor) -> int:
        low, high = _RANGES[field.cpp_type]
        return min(max(self._random.choice(_INTEGERS), low), high)

    def _text(self, field: FieldDescriptor) -> str | bytes:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.bytes(self._random.choice(self._blobs))
        return self._random.choice(self._words)

    def bytes(self, content: bytes) -> bytes:
        """Return bytes with a few changed, taken out or doubled, or as they are."""
        changed = bytearray(content)
        for _ in range(self._random.choice((0, 0, 1, 2, 8))):
            if not changed:
                break
            place = self._random.randrange(len(changed))
            size = self._random.choice((1, 1, 2, 4, 64))
            match self._random.randrange(3):
                case 0:
                    changed[place : place + size] = self._random.randbytes(size)
                case 1:
                    del changed[place : place + size]
                case _:
                    changed[place:place] = changed[place : place + size]
        return bytes(changed)
