"""Encoded pictures to logits, as a careful user of another server would write it.

Needs Pillow, numpy and onnxruntime, and nothing of Foveate: a photograph is
decoded at a reduced scale where the file permits, only the part that the
classifier sees is resized, and one session of one thread serves each worker.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


class Classifier:
    """The graph of a bundle in ONNX Runtime, on one thread."""

    def __init__(self, bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        self._input: dict[str, Any] = manifest["input"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            bundle / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {tensor.name for tensor in self._session.get_inputs()}

    def logits(self, files: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return float32 [N, classes] of N encoded pictures."""
        feed = {"image": np.stack([self._pixels(file) for file in files])}
        if "class_ids" in self._inputs:
            feed["class_ids"] = np.full((len(files), 1), -1, dtype=np.int64)
        return self._session.run(["logits"], feed)[0]

    def _pixels(self, file: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        size, resize = self._input["height"], self._input["resize"]
        grey = self._input["channels"] == 1
        with Image.open(io.BytesIO(file)) as image:
            image.draft("RGB", (2 * resize, 2 * resize))
            picture = image.convert("L" if grey else "RGB")
        if grey and picture.size == (size, size):
            return np.asarray(picture)[..., None]
        # torchvision's Resize truncates the longer side, and its CenterCrop rounds the corner.
        resized = [side * resize // min(picture.size) for side in picture.size]
        corner = [round((side - size) / 2) for side in resized]
        across, down = (side / fitted for side, fitted in zip(picture.size, resized, strict=True))
        left, top = corner[0] * across, corner[1] * down
        box = (left, top, left + size * across, top + size * down)
        pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))
        return pixels[..., None] if grey else pixels
