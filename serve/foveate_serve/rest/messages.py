"""Writes messages of protobuf as the JSON of the Open Inference Protocol."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def as_json(message: Message) -> dict[str, Any]:
    """Return every field of a message by its name, enumerations by theirs.

    protobuf's own JSON writes 64-bit integers as texts, which the protocol does not.
    """
    return {field.name: _value(field, getattr(message, field.name)) for field in _fields(message)}


def _fields(message: Message) -> list[Any]:
    return [
        field
        for field in message.DESCRIPTOR.fields
        # A message that is not set has no value; of a choice only the one that is set has.
        if field.is_repeated or not field.has_presence or message.HasField(field.name)
    ]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.is_repeated:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            single = entry.fields_by_name["value"]
            return {str(key): _single(single, value[key]) for key in value}
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return as_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
