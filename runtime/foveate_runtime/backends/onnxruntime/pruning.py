"""Reads ONNX files: cuts out the graph that leads to some of the outputs, and finds the weights.

ONNX Runtime computes every node of a graph at every run, whichever outputs are
fetched: `only_execute_path_to_fetches` has an effect in its training builds
alone, and its optimisers keep nodes that lead nowhere. So what nobody asked for
has to go before a session is made.

An ONNX file is one message of Protocol Buffers. Its weights are passed over and
copied as they are, and of the schema (onnx.proto) only these fields matter:

    ModelProto      7 graph, 25 functions
    GraphProto      1 node, 5 initializer, 11 input, 12 output
    NodeProto       1 input, 2 output, 5 attribute
    AttributeProto  6 g, 11 graphs (the branches of If, the bodies of loops)
    ValueInfoProto  1 name
    TensorProto     1 dims, 2 data_type, 8 name, 9 raw_data
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_GRAPH, _FUNCTIONS = 7, 25
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_READS, _WRITES, _ATTRIBUTE = 1, 2, 5
_SUBGRAPHS = (6, 11)
_NAME = 1
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class OnnxFile:
    """An ONNX file, mapped into memory.

    Attributes:
        inputs: the names of the graph's inputs, without the weights that old files list there.
        outputs: the names of its outputs.
    """

    def __init__(self, path: Path) -> None:
        """Read the names.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no ONNX file.
        """
        with path.open("rb") as file:
            self._map = mmap(file.fileno(), 0, access=ACCESS_READ)
        self._model = list(_fields(memoryview(self._map)))
        graphs = [field.value for field in self._model if field.number == _GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"{path.name}: it holds {len(graphs)} graphs")
        self._graph = list(_fields(graphs[0]))
        weights = {"".join(_strings(weight, _TENSOR_NAME)) for weight in self._parts(_INITIALIZER)}
        self.inputs = [name for name in map(_name, self._parts(_INPUT)) if name not in weights]
        self.outputs = list(map(_name, self._parts(_OUTPUT)))

    def prune(self, outputs: Collection[str]) -> bytes:
        """Return the file with the nodes and inputs alone that `outputs` are computed from."""
        wanted = set(outputs)
        nodes = [field for field in self._graph if field.number == _NODE]
        needed = set()
        # A node comes after those that it reads.
        for index in range(len(nodes) - 1, -1, -1):
            if wanted.intersection(_strings(nodes[index].value, _WRITES)):
                needed.add(index)
                wanted.update(_reads(nodes[index].value))
        numbers = iter(range(len(nodes)))
        graph = b"".join(
            field.whole
            for field in self._graph
            if (field.number != _NODE or next(numbers) in needed)
            and (field.number != _INPUT or _name(field.value) in wanted)
            and (field.number != _OUTPUT or _name(field.value) in outputs)
        )
        head = _varint(_GRAPH << 3 | _BYTES) + _varint(len(graph))
        others = [field.whole for field in self._model if field.number != _GRAPH]
        pruned = b"".join([*others, head, graph])
        # What was read would stay resident, as large as the weights; it can be read again.
        self._map.madvise(MADV_DONTNEED)
        return pruned

    @property
    def straight(self) -> bool:
        """Whether each node runs once: nothing branches, loops or calls a function of the model."""
        if any(field.number == _FUNCTIONS for field in self._model):
            return False
        nodes = [field.value for field in self._graph if field.number == _NODE]
        return not any(any(_subgraphs(node)) for node in nodes)

    def arrays(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the name and the numbers of each initializer in float32, read where they lie."""
        for field in self._graph:
            if field.number == _INITIALIZER:
                parts = {part.number: part.value for part in _fields(field.value)}
                if _read_varint(parts[_DATA_TYPE], 0)[0] == _FLOAT and _RAW_DATA in parts:
                    numbers = np.frombuffer(parts[_RAW_DATA], dtype="<f4")
                    yield str(parts[_TENSOR_NAME], "utf-8"), numbers.reshape(_dims(field.value))

    def _parts(self, number: int) -> Iterator[memoryview]:
        return (field.value for field in self._graph if field.number == number)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message: its number, its value, and its bytes with those of the number."""

    number: int
    value: memoryview
    whole: memoryview


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            begin = at
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            size, begin = _read_varint(message, at)
            at = begin + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            begin = at
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if at > len(message):
            raise ValueError("a field ends behind its message")
        yield _Field(key >> 3, message[begin:at], message[start:at])


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number ends behind its message")


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _strings(message: memoryview, number: int) -> list[str]:
    return [str(f.value, "utf-8") for f in _fields(message) if f.number == number]


def _name(value_info: memoryview) -> str:
    return "".join(_strings(value_info, _NAME))


def _dims(tensor: memoryview) -> list[int]:
    """Return the lengths of a tensor: a field for each, or one for all of them."""
    lengths = []
    for field in _fields(tensor):
        at = 0
        while field.number == _DIMS and at < len(field.value):
            length, at = _read_varint(field.value, at)
            lengths.append(length)
    return lengths


def _reads(node: memoryview) -> Iterator[str]:
    """Yield what a node reads, also from within the graphs that it holds."""
    yield from _strings(node, _READS)
    for graph in _subgraphs(node):
        for inner in _fields(graph):
            if inner.number == _NODE:
                yield from _reads(inner.value)


def _subgraphs(node: memoryview) -> Iterator[memoryview]:
    """Yield the graphs that a node holds."""
    for field in _fields(node):
        if field.number == _ATTRIBUTE:
            for part in _fields(field.value):
                if part.number in _SUBGRAPHS:
                    yield part.value
