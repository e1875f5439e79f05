"""What ONNX Runtime raises."""

from onnxruntime.capi import onnxruntime_pybind11_state

# Its exceptions share no base class of their own.
ENGINE_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
"""The exceptions of loading and running a graph."""
