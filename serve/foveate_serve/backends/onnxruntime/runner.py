"""Runs graphs in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from foveate_serve.backends.base import Array, BackendError, Runner
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT

_PROVIDERS = {"cpu": "CPUExecutionProvider"}

# ONNX Runtime's exceptions share no base class of their own.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)


class OnnxRuntimeRunner(Runner):
    """An ONNX Runtime session. Only the nodes that lead to the outputs wanted are run."""

    backend: ClassVar[str] = "onnxruntime"

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        if device not in _PROVIDERS:
            raise BackendError(f"no device {device!r}; there are {', '.join(_PROVIDERS)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; warnings are about optimisations not made
        # A thread that spins between two runs takes its core from the decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                bundle.file(variant), options, providers=[_PROVIDERS[device]]
            )
        except _ERRORS as error:
            raise BackendError(f"ONNX Runtime cannot load the variant {variant!r}") from error
        self._require(self.inputs, [node.name for node in self._session.get_inputs()], "input")
        self._require(self.outputs, [node.name for node in self._session.get_outputs()], "output")
        self._options = onnxruntime.RunOptions()
        self._options.only_execute_path_to_fetches = True

    @staticmethod
    def _require(wanted: Mapping[str, object], present: Sequence[str], kind: str) -> None:
        for name in wanted:
            if name not in present:
                raise BackendError(f"the graph has no {kind} {name!r}, which the manifest names")

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        feed = dict(inputs)
        if CLASS_IDS_INPUT in self.inputs and CLASS_IDS_INPUT not in feed:
            # Every input must be fed, also one that leads to no output wanted.
            feed[CLASS_IDS_INPUT] = np.full((len(feed[IMAGE_INPUT]), 1), -1, dtype=np.int64)
        try:
            results = self._session.run(outputs, feed, self._options)
        except _ERRORS as error:
            raise BackendError("ONNX Runtime failed to run the graph") from error
        return dict(zip(outputs, results, strict=True))

    def close(self) -> None:
        """Release the session and its memory."""
        del self._session
