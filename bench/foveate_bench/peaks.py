"""What the machine can do at best: products of matrices, and copies of memory, a second."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

from foveate_bench.counting import Precision
from foveate_bench.results import Amount, Record
from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import bare_engines
from foveate_runtime.bundle.manifest import Positive

SIZE = 1024
"""Rows and columns of the matrices: a run of milliseconds fits between two interruptions."""

PRODUCTS = 2
"""Products in a row, so that what goes before and comes after them counts less."""

COPY_BYTES = 256 << 20
"""Bytes of the copy: more than the caches of one processor hold."""

SECONDS = 1.0
"""The time that one peak is looked for; the best run counts."""

_TYPES: dict[Precision, type[np.generic]] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "int8": np.uint8,
}
_LARGEST = 127
_OPSET, _IR_VERSION = 20, 10


class ProductPeak(Record):
    """The fastest product of matrices in one type, and the backend that reached it.

    An operation is a multiplication or an addition, a multiply-add is two.
    """

    precision: Precision
    backend: str
    operations_per_second: Amount


class Peaks(Record):
    """The peaks of the processor with this many threads.

    `copy_bytes_per_second` counts the bytes read and the bytes written, as STREAM does.
    """

    threads: Positive
    products: tuple[ProductPeak, ...]
    copy_bytes_per_second: Amount

    def operations_per_second(self, precision: Precision) -> float:
        """Return the peak in one type; raises KeyError where there is none."""
        for peak in self.products:
            if peak.precision == precision:
                return peak.operations_per_second
        raise KeyError(precision)


def measure(threads: int, *, size: int = SIZE, copy_bytes: int = COPY_BYTES) -> Peaks:
    """Measure the peaks with `threads` threads, the products on every engine that has them.

    Raises BackendError where no such engine is installed.
    """
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((size, size))
    engines = list(bare_engines())
    if not engines:
        raise BackendError(
            "no engine is installed that the peaks can be measured with: "
            'pip install "foveate-runtime[cpu]"'
        )
    found = []
    for precision, dtype in _TYPES.items():
        graph = products(precision, weights)
        values = (_LARGEST * rng.random((size, size))).astype(dtype)
        seconds, backend = min(
            (_fastest(partial(open_graph(graph, threads=threads), values)), name)
            for name, open_graph in engines
        )
        operations = 2 * PRODUCTS * size**3
        found.append(
            ProductPeak(
                precision=precision, backend=backend, operations_per_second=operations / seconds
            )
        )
    return Peaks(
        threads=threads,
        products=tuple(found),
        copy_bytes_per_second=_copy(threads, copy_bytes),
    )


def _fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest run, of those that fit into `SECONDS` and at least two."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < SECONDS:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _copy(threads: int, size: int) -> float:
    source = np.ones((threads, size // threads), dtype=np.uint8)
    target = np.zeros_like(source)
    with ThreadPoolExecutor(threads) as pool:
        # numpy leaves the interpreter to the others while it copies.
        return 2 * source.nbytes / _fastest(lambda: list(pool.map(np.copyto, target, source)))


def products(precision: Precision, weights: NDArray[np.float64]) -> bytes:
    """Return the graph of `PRODUCTS` products with one matrix, as `precision` has them.

    The weights are scaled so that the results stay as large as the input.
    """
    size = len(weights)
    scaled = weights / np.sqrt(size)
    nodes, constants = [], []

    def constant(name: str, value: ArrayLike) -> None:
        constants.append(numpy_helper.from_array(np.asarray(value), name))

    if precision == "int8":
        scale = np.abs(scaled).max() / 127
        constant("weights", np.round(scaled / scale).astype(np.int8))
        constant("weights_scale", np.float32(scale))
        constant("scale", np.float32(1))
        constant("zero", np.uint8(128))
    else:
        constant("weights", scaled.astype(_TYPES[precision]))
    name = "input"
    for index in range(PRODUCTS):
        left, right, result = name, "weights", f"product{index}"
        if precision == "int8":
            left, right = f"left{index}", f"right{index}"
            nodes += [
                helper.make_node("DequantizeLinear", [name, "scale", "zero"], [left]),
                helper.make_node("DequantizeLinear", ["weights", "weights_scale"], [right]),
            ]
        nodes.append(helper.make_node("MatMul", [left, right], [result]))
        name = result
        if precision == "int8":
            name = f"quantised{index}"
            nodes.append(helper.make_node("QuantizeLinear", [result, "scale", "zero"], [name]))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(_TYPES[precision]))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("input", element, [size, size])],
        [helper.make_tensor_value_info(name, element, [size, size])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    data: bytes = model.SerializeToString()
    return data
