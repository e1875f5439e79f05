"""Reads and writes inference requests and responses: JSON, with tensors in it or after it.

The binary tensor data extension: the header `Inference-Header-Content-Length` says where
the JSON ends, after which the tensors follow in their order, `binary_data_size` bytes each.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from foveate_serve.errors import InvalidRequestError, quote
from foveate_serve.rest.documents import (
    InferDocument,
    InferInput,
    Parameter,
    read_document,
)
from foveate_serve.rpc.oip.tensors import BYTES, DATATYPES, split_bytes, write_bytes

BINARY_SIZE = "binary_data_size"
_BINARY = "binary_data"
_BINARY_OUTPUT = "binary_data_output"

MAX_JSON_ELEMENTS = 1 << 18
"""The most elements of an output in JSON: they are written on the event loop."""

_TYPES = {name: dtype for dtype, name in DATATYPES.items()}
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Whether each output is sent as binary data: by name, and `rest` for the others."""

    binary: Mapping[str, bool]
    rest: bool

    def is_binary(self, name: str) -> bool:
        """Return whether an output is to follow the JSON."""
        return self.binary.get(name, self.rest)


def read_inference(
    body: bytes, header_length: str | None, *, model: str, version: str
) -> tuple[ModelInferRequest, Wanted]:
    """Read a request; raises InvalidRequestError."""
    end = _header_length(header_length, len(body))
    document = read_document(InferDocument, body[:end])
    parts = _Parts(body, end)
    message = ModelInferRequest(model_name=model, model_version=version, id=document.id)
    binary_output = _flag(document.parameters, _BINARY_OUTPUT, "parameters")
    _copy_parameters(message.parameters, document.parameters, "parameters", _BINARY_OUTPUT)
    for index, tensor in enumerate(document.inputs):
        field = f"inputs[{index}]"
        added = message.inputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=_shape(tensor, field)
        )
        _copy_parameters(added.parameters, tensor.parameters, f"{field}.parameters", BINARY_SIZE)
        message.raw_input_contents.append(_elements(tensor, parts, field))
    parts.require_end()
    binary = {}
    for index, output in enumerate(document.outputs):
        field = f"outputs[{index}].parameters"
        wanted = message.outputs.add(name=output.name)
        _copy_parameters(wanted.parameters, output.parameters, field, _BINARY)
        if _BINARY in output.parameters:
            binary[output.name] = _flag(output.parameters, _BINARY, field)
    return message, Wanted(binary=binary, rest=binary_output)


def write_inference(message: ModelInferResponse, wanted: Wanted) -> tuple[list[bytes], int | None]:
    """Return the parts of a response's body, and the length of its JSON where more follows."""
    outputs, binary = [], []
    for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        written: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if wanted.is_binary(output.name):
            written["parameters"] = {BINARY_SIZE: len(raw)}
            binary.append(raw)
        else:
            written["data"] = _as_list(output, raw)
        outputs.append(written)
    document = {
        "model_name": message.model_name,
        "model_version": message.model_version,
        **({"id": message.id} if message.id else {}),
        "outputs": outputs,
    }
    header = json.dumps(
        document, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
    return [header, *binary], len(header) if binary else None


class _Parts:
    """The binary data of a request, which `take` reads in order."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self._start = start

    def take(self, size: int, field: str) -> bytes:
        left = len(self._body) - self._start
        if not 0 <= size <= left:
            raise InvalidRequestError(
                "BINARY_DATA_MISMATCH",
                f"{field} is {size}; {left} bytes of binary data are left",
                field=field,
                metadata={"limit": left},
            )
        part = self._body[self._start : self._start + size]
        self._start += size
        return part

    def require_end(self) -> None:
        left = len(self._body) - self._start
        if left:
            raise InvalidRequestError(
                "BINARY_DATA_MISMATCH",
                f"{left} bytes follow the JSON that belong to no input",
                field="inputs",
                metadata={"limit": 0},
            )


def _header_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and len(header) < 16 and int(header) <= size):
        raise InvalidRequestError(
            "HEADER_LENGTH_INVALID",
            f"Inference-Header-Content-Length is {quote(header)}; the limit is 0 to {size}",
            field="headers[Inference-Header-Content-Length]",
            metadata={"minimum": 0, "limit": size},
        )
    return int(header)


def _shape(tensor: InferInput, field: str) -> list[int]:
    for dimension in tensor.shape:
        _require_int64(dimension, f"{field}.shape")
    return tensor.shape


def _elements(tensor: InferInput, parts: _Parts, field: str) -> bytes:
    """Return the elements of an input as plain bytes."""
    size = tensor.parameters.get(BINARY_SIZE)
    if (size is None) == (tensor.data is None):
        if size is None and "shared_memory_region" in tensor.parameters:
            return b""  # it is refused with the other parameters of the tensor
        problem = "neither data nor" if size is None else "both data and"
        raise InvalidRequestError(
            "CONTENTS_MISSING" if size is None else "CONTENTS_REPEATED",
            f"{field} has {problem} {BINARY_SIZE}; it must have one of them",
            field=f"{field}.data",
        )
    if tensor.data is None:
        if isinstance(size, bool) or not isinstance(size, int):
            raise _bad_parameter(BINARY_SIZE, f"{field}.parameters", "a whole number")
        return parts.take(size, f"{field}.parameters[{BINARY_SIZE}]")
    if tensor.datatype == BYTES:
        return write_bytes(_decoded(tensor.data, f"{field}.data"))
    return _numbers(tensor, field)


def _decoded(data: Any, field: str) -> Iterator[bytes]:
    """Yield the elements of BYTES: no picture is text, so that they are in base64."""
    for item in data:
        if isinstance(item, list):
            yield from _decoded(item, field)
            continue
        try:
            yield base64.b64decode(item, validate=True)
        except (TypeError, ValueError):
            raise InvalidRequestError(
                "BASE64_INVALID",
                f"{field}: an element is not base64, which elements of BYTES are in JSON",
                field=field,
            ) from None


def _numbers(tensor: InferInput, field: str) -> bytes:
    dtype = _TYPES.get(tensor.datatype)
    if dtype is None or dtype.kind not in "iu":
        return b""  # a type that no input has: it is refused with the name of those that do
    try:
        array = np.array(tensor.data, dtype=np.int64)
    except OverflowError:
        raise _out_of_range(field, tensor.datatype, _INT64) from None
    except ValueError:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"{field}.data: its rows differ in length, or are not numbers",
            field=f"{field}.data",
        ) from None
    if array.ndim > 1 and list(array.shape) != tensor.shape:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"{field}.data is nested as {list(array.shape)}; its shape is {tensor.shape}",
            field=f"{field}.shape",
        )
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise _out_of_range(field, tensor.datatype, limits)
    return array.astype(dtype.newbyteorder("<")).tobytes()


def _out_of_range(field: str, datatype: str, limits: "np.iinfo[Any]") -> InvalidRequestError:
    return InvalidRequestError(
        "VALUE_OUT_OF_RANGE",
        f"an element of {field} does not fit {datatype}; the limit is {limits.min} to {limits.max}",
        field=f"{field}.data",
        metadata={"minimum": limits.min, "limit": limits.max},
    )


def _as_list(output: ModelInferResponse.InferOutputTensor, raw: bytes) -> list[Any]:
    """Return the elements of an output, row by row; raises InvalidRequestError."""
    if output.datatype == BYTES:
        return [text.decode() for text in split_bytes(raw, math.prod(output.shape))]
    values = np.frombuffer(raw, _TYPES[output.datatype].newbyteorder("<"))
    if values.size > MAX_JSON_ELEMENTS:
        raise InvalidRequestError(
            "OUTPUT_TOO_LARGE",
            f"the output {quote(output.name)} has {values.size} elements; the limit in JSON is "
            f"{MAX_JSON_ELEMENTS}; ask for it with the parameter {_BINARY}",
            field="outputs",
            metadata={"limit": MAX_JSON_ELEMENTS},
        )
    found: list[Any] = values.tolist()
    return found


def _copy_parameters(into: Any, parameters: Mapping[str, Parameter], field: str, but: str) -> None:
    """Copy the parameters to a message's, save the one that only HTTP has."""
    for name, value in parameters.items():
        if name == but:
            continue
        if isinstance(value, bool):
            into[name].bool_param = value
        elif isinstance(value, int):
            into[name].int64_param = _require_int64(value, f"{field}[{quote(name)}]")
        elif isinstance(value, float):
            into[name].double_param = value
        else:
            into[name].string_param = value


def _flag(parameters: Mapping[str, Parameter], name: str, field: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise _bad_parameter(name, field, "true or false")
    return value


def _bad_parameter(name: str, field: str, kind: str) -> InvalidRequestError:
    return InvalidRequestError(
        "PARAMETER_INVALID",
        f"the parameter {name} must be {kind}",
        field=f"{field}[{name}]",
        metadata={"parameter": name},
    )


def _require_int64(value: int, field: str) -> int:
    if not _INT64.min <= value <= _INT64.max:
        raise InvalidRequestError(
            "VALUE_OUT_OF_RANGE",
            f"{field} does not fit 64 bits",
            field=field,
            metadata={"minimum": _INT64.min, "limit": _INT64.max},
        )
    return value
