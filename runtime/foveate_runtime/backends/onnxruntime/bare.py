"""Runs any graph in ONNX Runtime, without a bundle around it."""

from collections.abc import Callable

import onnxruntime

from foveate_runtime.backends.base import Array


def open_graph(model: bytes, *, threads: int) -> Callable[[Array], Array]:
    """Load a graph of one input and one output, and return what runs it on the processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(values: Array) -> Array:
        result: Array = session.run(None, {name: values})[0]
        return result

    return run
