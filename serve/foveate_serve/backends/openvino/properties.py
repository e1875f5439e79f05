"""What OpenVINO is told about every graph that it compiles here."""

from typing import Any


def properties(threads: int, precision: str = "f32", *, streams: int = 1) -> dict[str, Any]:
    """Return the properties of so many streams, which share out the threads, 0 for one a core.

    Without a precision processors that have bfloat16 compute in it, whatever
    the graph says.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
