"""What the sessions of ONNX Runtime raise, and an option of theirs."""

from typing import Any

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


def leave_to_floats(options: Any) -> None:
    """Have a session compute int8 in floating point, between the graph's QDQ pairs."""
    options.add_session_config_entry("session.disable_quant_qdq", "1")
