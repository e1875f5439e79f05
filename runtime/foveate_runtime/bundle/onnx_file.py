"""What an ONNX file may hold: all of it is in the file, and the file can be read in bounds.

An ONNX file is one message of Protocol Buffers. Engines follow what it says about
other files: a tensor may be "external", anywhere on the disk, and a node of the type
EPContext may name an engine to load. A bundle has no use for either.
"""

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from foveate_runtime.bundle.protobuf import fields, read_varint

MAX_FIELDS = 1_000_000
"""The most fields of a file, all of which are checked."""

MAX_DEPTH = 32
"""The most graphs within each other."""

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""The messages within each message, by the number of the field (onnx.proto)."""

_OP_TYPE = 4
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_ATTRIBUTE = 5
_SUBGRAPHS = (6, 11)


def check_graph(path: Path) -> None:
    """Check the ONNX file `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ONNX file, refers to another file, or is beyond the bounds.
    """
    # The map closes with the last view of it.
    with path.open("rb") as file:
        _check(memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)))


def _check(model: memoryview) -> None:
    found = 0
    waiting = [("model", model, 0)]
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} graphs are within each other")
        parts = _PARTS[kind]
        for field in fields(message):
            found += 1
            if found > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            inner = parts.get(field.number)
            if inner is not None:
                waiting.append((inner, field.value, depth + (inner == "graph")))
            elif kind == "tensor" and _is_external(field.number, field.value):
                raise ValueError("a tensor lies outside the file (external data)")
            elif kind == "node" and field.number == _OP_TYPE and bytes(field.value) == b"EPContext":
                raise ValueError("a node names an engine of its own (EPContext)")


def _is_external(number: int, value: memoryview) -> bool:
    located = number == _DATA_LOCATION and read_varint(value, 0)[0] != 0
    return located or number == _EXTERNAL_DATA


def subgraphs(node: memoryview) -> Iterator[memoryview]:
    """Yield the graphs that a node holds."""
    for field in fields(node):
        if field.number == _ATTRIBUTE:
            for part in fields(field.value):
                if part.number in _SUBGRAPHS:
                    yield part.value
