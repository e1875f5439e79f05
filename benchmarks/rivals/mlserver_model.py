"""The classifier as MLServer runs it."""

from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.rivals.classifier import Classifier


class Pictures(MLModel):  # type: ignore[misc] # MLServer lives in an environment of its own
    """BYTES [N, 1] in, one encoded picture each; `logits` FP32 [N, classes] out."""

    async def load(self) -> bool:
        """Open the bundle named by the model's settings."""
        self._classifier = Classifier(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify the pictures of one request."""
        data = payload.inputs[0].data.root
        logits = self._classifier.logits([data] if isinstance(data, bytes) else data)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("logits", np.asarray(logits))],
        )
