"""The classifier as Triton's Python backend runs it."""

from __future__ import annotations  # Triton reads the class before its own types exist

import os
from pathlib import Path

import triton_python_backend_utils as triton
from benchmarks.rivals.classifier import Classifier


class TritonPythonModel:
    """BYTES [1] in, an encoded picture; `logits` FP32 [1, classes] out."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton passes it
        """Open the bundle that the environment names."""
        self._classifier = Classifier(Path(os.environ["FOVEATE_RIVAL_BUNDLE"]))

    def execute(self, requests: list[triton.InferenceRequest]) -> list[triton.InferenceResponse]:
        """Classify the picture of each request."""
        responses = []
        for request in requests:
            files = triton.get_input_tensor_by_name(request, "image").as_numpy()
            logits = self._classifier.logits(list(files))
            responses.append(triton.InferenceResponse([triton.Tensor("logits", logits)]))
        return responses
