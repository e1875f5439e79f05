"""What runs the nodes of a graph in ONNX Runtime: its execution providers."""

from typing import Any

import onnxruntime

from foveate_runtime.backends.base import BackendError, gpu_index

Provider = tuple[str, dict[str, Any]]

CPU, CUDA, TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)


def choose(device: str, *, tensorrt: bool = False) -> list[Provider]:
    """Return the providers for `cpu`, `cuda` or `cuda:INDEX`, the preferred one first.

    Nodes that one of them cannot run are left to the next; with `tensorrt`,
    TensorRT comes before CUDA. Raises BackendError where there is no such
    device, or ONNX Runtime was built without the first provider.
    """
    if device == "cpu" and not tensorrt:
        return [(CPU, {})]
    index = gpu_index(device)
    if index is None:
        devices = "cuda or cuda:INDEX" if tensorrt else "cpu, cuda or cuda:INDEX"
        raise BackendError(f"no device {device!r}; it must be {devices}")
    options = {"device_id": index}
    wanted = [(TENSORRT, options)] if tensorrt else []
    wanted += [(CUDA, options), (CPU, {})]
    first = wanted[0][0]
    if first not in onnxruntime.get_available_providers():
        raise BackendError(
            f"the device {device!r} needs {first}, which this ONNX Runtime lacks: "
            'pip uninstall onnxruntime, then pip install "foveate-runtime[gpu]"'
        )
    return wanted


def require(session: onnxruntime.InferenceSession, wanted: list[Provider]) -> None:
    """Raise BackendError where a session has quietly gone on without its first provider."""
    first = wanted[0][0]
    if first not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime cannot start {first}: is there a GPU, its driver, and CUDA's libraries?"
        )
