"""The properties with which OpenVINO compiles every graph."""

from typing import Any

from foveate_runtime.backends.integers import adds_exactly


def properties(
    threads: int, *, precision: str = "f32", integers: bool | None = None
) -> dict[str, Any]:
    """Return the properties of one stream of so many threads, 0 for one a core.

    Without a precision, processors that have bfloat16 compute in it, whatever the
    types of the graph. `integers` is whether int8 may be computed in integers; None
    leaves that to the processor.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        # A thread that keeps to its core waits there for the decoder that has it.
        "ENABLE_CPU_PINNING": False,
        # Or int8 is left to floating point.
        "LP_TRANSFORMS_MODE": adds_exactly() if integers is None else integers,
    }
