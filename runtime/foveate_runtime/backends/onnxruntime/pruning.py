"""Reads ONNX files: cuts out the graph that leads to some of the outputs, and finds the weights.

ONNX Runtime computes every node of a graph at every run, whichever outputs are
fetched: `only_execute_path_to_fetches` has an effect in its training builds
alone, and its optimisers keep nodes that lead nowhere. So the nodes of other
outputs are removed before a session is made.

An ONNX file is one message of Protocol Buffers. Its weights are passed over and
copied as they are, and of the schema (onnx.proto) only these fields matter:

    ModelProto      7 graph, 25 functions
    GraphProto      1 node, 5 initializer, 11 input, 12 output
    NodeProto       1 input, 2 output, 5 attribute
    AttributeProto  6 g, 11 graphs (the branches of If, the bodies of loops)
    ValueInfoProto  1 name
    TensorProto     1 dims, 2 data_type, 8 name, 9 raw_data
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import count
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.onnx_file import subgraphs
from foveate_runtime.bundle.protobuf import BYTES, Field, fields, read_varint, strings

_GRAPH, _FUNCTIONS = 7, 25
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_READS, _WRITES = 1, 2
_NAME = 1
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1


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
        self._model = list(fields(memoryview(self._map)))
        graphs = [field.value for field in self._model if field.number == _GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"{path.name}: it holds {len(graphs)} graphs")
        self._graph = list(fields(graphs[0]))
        weights = {"".join(strings(weight, _TENSOR_NAME)) for weight in self._parts(_INITIALIZER)}
        self.inputs = [name for name in map(_name, self._parts(_INPUT)) if name not in weights]
        self.outputs = list(map(_name, self._parts(_OUTPUT)))

    def prune(self, outputs: Collection[str]) -> bytes:
        """Return the file with the nodes and inputs alone that `outputs` are computed from."""
        needed, wanted = self._leading_to(outputs)
        numbers = count()
        graph = b"".join(
            field.whole
            for field in self._graph
            if (field.number != _NODE or next(numbers) in needed)
            and (field.number != _INPUT or _name(field.value) in wanted)
            and (field.number != _OUTPUT or _name(field.value) in outputs)
        )
        pruned = self._with_graph(graph)
        # What was read would stay resident, as large as the weights; it can be read again.
        self._map.madvise(MADV_DONTNEED)
        return pruned

    def reads(self, outputs: Collection[str]) -> list[list[str]]:
        """Return what each node reads that leads to `outputs`, in the order of the graph."""
        needed, _ = self._leading_to(outputs)
        return [list(_reads(node)) for at, node in enumerate(self._parts(_NODE)) if at in needed]

    def exchanged(self, values: Mapping[str, NDArray[np.float32]]) -> bytes:
        """Return the file with other numbers in some of what `arrays` yields, of the same shape."""
        graph = b"".join(
            _filled(field, values) if field.number == _INITIALIZER else field.whole
            for field in self._graph
        )
        return self._with_graph(graph)

    @property
    def straight(self) -> bool:
        """Whether each node runs once: nothing branches, loops or calls a function of the model."""
        if any(field.number == _FUNCTIONS for field in self._model):
            return False
        nodes = [field.value for field in self._graph if field.number == _NODE]
        return not any(any(subgraphs(node)) for node in nodes)

    def arrays(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the name and the numbers of each initializer in float32, read where they lie."""
        for field in self._graph:
            if field.number == _INITIALIZER:
                parts = {part.number: part.value for part in fields(field.value)}
                if read_varint(parts[_DATA_TYPE], 0)[0] == _FLOAT and _RAW_DATA in parts:
                    numbers = np.frombuffer(parts[_RAW_DATA], dtype="<f4")
                    yield str(parts[_TENSOR_NAME], "utf-8"), numbers.reshape(_dims(field.value))

    def _leading_to(self, outputs: Collection[str]) -> tuple[set[int], set[str]]:
        """Return the nodes that lead to `outputs`, by number, and all that they read and write."""
        wanted = set(outputs)
        nodes = list(self._parts(_NODE))
        needed = set()
        # A node comes after those that it reads.
        for index in range(len(nodes) - 1, -1, -1):
            if wanted.intersection(strings(nodes[index], _WRITES)):
                needed.add(index)
                wanted.update(_reads(nodes[index]))
        return needed, wanted

    def _with_graph(self, graph: bytes) -> bytes:
        """Return the file with another graph."""
        others = [field.whole for field in self._model if field.number != _GRAPH]
        return b"".join([*others, _delimited(_GRAPH, graph)])

    def _parts(self, number: int) -> Iterator[memoryview]:
        return (field.value for field in self._graph if field.number == number)


def _filled(field: Field, values: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return an initializer, with other numbers where there are some of its name."""
    name = "".join(strings(field.value, _TENSOR_NAME))
    if name not in values:
        return bytes(field.whole)
    numbers = values[name].astype("<f4").tobytes()
    parts = [
        _delimited(_RAW_DATA, numbers) if part.number == _RAW_DATA else part.whole
        for part in fields(field.value)
    ]
    return _delimited(_INITIALIZER, b"".join(parts))


def _delimited(number: int, content: bytes) -> bytes:
    """Return a field that holds bytes."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _name(value_info: memoryview) -> str:
    return "".join(strings(value_info, _NAME))


def _dims(tensor: memoryview) -> list[int]:
    """Return the lengths of a tensor: a field for each, or one for all of them."""
    lengths = []
    for field in fields(tensor):
        at = 0
        while field.number == _DIMS and at < len(field.value):
            length, at = read_varint(field.value, at)
            lengths.append(length)
    return lengths


def _reads(node: memoryview) -> Iterator[str]:
    """Yield what a node reads, also from within the graphs that it holds."""
    yield from strings(node, _READS)
    for graph in subgraphs(node):
        for inner in fields(graph):
            if inner.number == _NODE:
                yield from _reads(inner.value)
