"""Reads and writes the protocol's tensors.

A tensor's elements are plain little-endian bytes in `raw_input_contents` or
`raw_output_contents`, or else numbers in the field of their type. An element of
BYTES has any length and follows that length, four bytes, little-endian.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.inference.open_inference_pb2 import ModelInferRequest
from foveate_serve.errors import InvalidRequestError, clip, listing, quote

BYTES = "BYTES"
DATATYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float32): "FP32",
}
"""The protocol's names of the types in the graph contract."""

MAX_DIMENSIONS = 8
MAX_CONTENTS = 1 << 20
"""The most elements in `contents`: each becomes a Python object."""

_CONTENTS = {"UINT8": "uint_contents", "INT64": "int64_contents", BYTES: "bytes_contents"}
_PREFIX_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class InputTensor:
    """One input of a request: `field` is its path in the message, `raw` its plain bytes, if any."""

    field: str
    message: ModelInferRequest.InferInputTensor
    raw: bytes | None

    @property
    def datatype(self) -> str:
        """The type of the elements."""
        return self.message.datatype

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, one more than the limit at most: a message can hold millions."""
        return tuple(self.message.shape[: MAX_DIMENSIONS + 1])


def inputs_by_name(request: ModelInferRequest) -> dict[str, InputTensor]:
    """Join the inputs of a request with their plain bytes; raises InvalidRequestError."""
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidRequestError(
            "RAW_CONTENTS_MISMATCH",
            f"raw_input_contents has {len(raws)} entries for {len(request.inputs)} inputs",
            field="raw_input_contents",
            metadata={"limit": len(request.inputs)},
        )
    found: dict[str, InputTensor] = {}
    for index, message in enumerate(request.inputs):
        field = f"inputs[{index}]"
        if message.name in found:
            raise InvalidRequestError(
                "INPUT_REPEATED",
                f"the input {quote(message.name)} is given twice",
                field=f"{field}.name",
                metadata={"input": clip(message.name)},
            )
        refuse_shared_memory(message.parameters, field)
        if raws and message.HasField("contents"):
            raise InvalidRequestError(
                "CONTENTS_REPEATED",
                f"the input {quote(message.name)} has both contents and raw_input_contents",
                field=f"{field}.contents",
                metadata={"input": clip(message.name)},
            )
        found[message.name] = InputTensor(
            field=field, message=message, raw=raws[index] if raws else None
        )
    return found


def refuse_shared_memory(parameters: Mapping[str, object], field: str) -> None:
    """Raise InvalidRequestError where a tensor is in shared memory, which is not supported."""
    if "shared_memory_region" in parameters:
        raise InvalidRequestError(
            "SHARED_MEMORY_UNSUPPORTED",
            "shared memory is not supported; send the elements in the request",
            field=f"{field}.parameters",
        )


def read_numbers(tensor: InputTensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the elements of a tensor in its shape, without a copy where they are plain bytes.

    Raises InvalidRequestError where the type is not `dtype` or the elements do
    not fill the shape.
    """
    require_datatype(tensor, DATATYPES[dtype])
    stored = dtype.newbyteorder("<")
    count = elements(tensor)
    if tensor.raw is not None:
        _require_size(tensor, "bytes", len(tensor.raw), count * dtype.itemsize)
        return np.frombuffer(tensor.raw, dtype=stored).reshape(tensor.shape)
    values = _contents(tensor)
    _require_size(tensor, "elements", len(values), count)
    if count > MAX_CONTENTS:
        raise InvalidRequestError(
            "CONTENTS_TOO_LARGE",
            f"{tensor.field} has {count} elements in contents; the limit is {MAX_CONTENTS}; "
            "raw_input_contents has no limit",
            field=f"{tensor.field}.contents",
            metadata={"limit": MAX_CONTENTS},
        )
    numbers = np.fromiter(values, dtype=np.int64, count=count)
    limits = np.iinfo(dtype)
    if numbers.min() < limits.min or numbers.max() > limits.max:
        raise InvalidRequestError(
            "VALUE_OUT_OF_RANGE",
            f"an element of {tensor.field} does not fit {tensor.datatype}; "
            f"the limit is {limits.min} to {limits.max}",
            field=f"{tensor.field}.contents",
            metadata={"minimum": limits.min, "limit": limits.max},
        )
    return numbers.astype(dtype).reshape(tensor.shape)


def read_bytes(tensor: InputTensor) -> list[bytes]:
    """Return the elements of a tensor of BYTES, row by row; raises InvalidRequestError."""
    require_datatype(tensor, BYTES)
    count = elements(tensor)
    if tensor.raw is None:
        values = _contents(tensor)
        _require_size(tensor, "elements", len(values), count)
        return list(values)
    _require_size(
        tensor, "bytes", min(len(tensor.raw), count * _PREFIX_BYTES), count * _PREFIX_BYTES
    )
    try:
        return split_bytes(tensor.raw, count)
    except ValueError as error:
        raise _damaged(tensor) from error


def split_bytes(raw: bytes, count: int) -> list[bytes]:
    """Return the `count` elements of plain bytes of the type BYTES; raises ValueError."""
    found = []
    start = 0
    for _ in range(count):
        length = int.from_bytes(raw[start : start + _PREFIX_BYTES], "little")
        start += _PREFIX_BYTES
        if start + length > len(raw):
            raise ValueError("an element is longer than the bytes")
        found.append(raw[start : start + length])
        start += length
    if start != len(raw):
        raise ValueError("bytes follow the last element")
    return found


def write_numbers(array: NDArray[Any]) -> bytes:
    """Return the elements as plain bytes."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def write_bytes(values: Iterable[bytes]) -> bytes:
    """Return the elements of a tensor of BYTES as plain bytes."""
    return b"".join(len(value).to_bytes(_PREFIX_BYTES, "little") + value for value in values)


def elements(tensor: InputTensor) -> int:
    """Return the number of elements of the shape; raises InvalidRequestError."""
    shape = tensor.shape
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequestError(
            "SHAPE_INVALID",
            f"{tensor.field} has {len(tensor.message.shape)} dimensions; "
            f"the limit is {MAX_DIMENSIONS}",
            field=f"{tensor.field}.shape",
            metadata={"limit": MAX_DIMENSIONS},
        )
    if any(dimension < 1 for dimension in shape):
        raise InvalidRequestError(
            "SHAPE_INVALID",
            f"{tensor.field} has the shape {list(shape)}; the limit is 1 or more each",
            field=f"{tensor.field}.shape",
            metadata={"minimum": 1},
        )
    return math.prod(shape)


def require_datatype(tensor: InputTensor, *wanted: str) -> None:
    """Raise InvalidRequestError unless the type of a tensor is one of those wanted."""
    if tensor.datatype not in wanted:
        raise InvalidRequestError(
            "DATATYPE_MISMATCH",
            f"the input {quote(tensor.message.name)} is of the type {quote(tensor.datatype)}; "
            f"it must be {listing(wanted)}",
            field=f"{tensor.field}.datatype",
            metadata={"limit": listing(wanted)},
        )


def _contents(tensor: InputTensor) -> Any:
    # A repeated field, whose type depends on the tensor's.
    return getattr(tensor.message.contents, _CONTENTS[tensor.datatype])


def _require_size(tensor: InputTensor, unit: str, have: int, want: int) -> None:
    if have != want:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"the input {quote(tensor.message.name)} has {have} {unit}; its shape makes {want}",
            field=f"{tensor.field}.shape",
            metadata={"limit": want},
        )


def _damaged(tensor: InputTensor) -> InvalidRequestError:
    return InvalidRequestError(
        "BYTES_CORRUPT",
        f"the lengths of the elements of {quote(tensor.message.name)} do not add up to its "
        f"{len(tensor.raw or b'')} bytes",
        field="raw_input_contents",
        metadata={"input": clip(tensor.message.name)},
    )
