"""Opens ONNX files as they are in ONNX Runtime."""

from pathlib import Path

import onnxruntime

from foveate_export.errors import ExportError
from foveate_runtime.backends.onnxruntime.session import ENGINE_ERRORS


def open_session(model: str | bytes, path: Path) -> onnxruntime.InferenceSession:
    """Open a model, given by its file or its bytes, that came from `path`.

    Raises:
        ExportError: ONNX Runtime does not take it; says what it said.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and not logged as well
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except ENGINE_ERRORS as error:
        raise ExportError(f"ONNX Runtime does not take {path}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().partition("\n")[0]
