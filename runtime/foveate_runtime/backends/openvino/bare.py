"""Runs any graph in OpenVINO, without a bundle around it."""

from collections.abc import Callable

import openvino

from foveate_runtime.backends.base import Array
from foveate_runtime.backends.openvino.core import CORE
from foveate_runtime.backends.openvino.properties import properties


def open_graph(model: bytes, *, threads: int) -> Callable[[Array], Array]:
    """Load a graph of one input and one output, and return what runs it on the processor.

    Halves are computed in whichever of the two types the processor is made for,
    where it is made for one: OpenVINO computes in single precision otherwise.
    """
    graph = CORE.read_model(model)
    types = set(CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    hint = "f32"
    if graph.output(0).get_element_type() == openvino.Type.f16:
        hint = "bf16" if "BF16" in types else "f16" if "FP16" in types else hint
    request = CORE.compile_model(
        graph, "CPU", properties(threads, precision=hint)
    ).create_infer_request()

    def run(values: Array) -> Array:
        result: Array = request.infer([values], share_inputs=True)[0]
        return result

    return run
