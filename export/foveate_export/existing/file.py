"""An ONNX file that was read: what it holds, and how pictures go through it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from foveate_export.errors import ExportError
from foveate_export.existing.session import first_line, open_session
from foveate_runtime.backends.onnxruntime.session import ENGINE_ERRORS
from foveate_runtime.bundle.manifest import InputSpec

Layout = Literal["nchw", "nhwc"]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class File:
    """A classifier in an ONNX file, ready to be edited: its batch is dynamic already.

    Attributes:
        path: the file.
        runnable: what ONNX Runtime runs as the file: its path, or its bytes.
        model: what it holds, with the shapes that follow from the input's.
        spec: how a picture becomes the input.
        layout: the axes of the input.
        bgr: whether its colours stand in this order.
        batch: how many pictures the file itself takes at once; None for any number.
        input: the name of its input.
        output: the name of its output that classifies.
    """

    path: Path
    runnable: str | bytes
    model: ir.Model
    spec: InputSpec
    layout: Layout
    bgr: bool
    batch: int | None
    input: str
    output: str


class OneByOne:
    """Runs pictures through a file, one at a time; with `values`, through what was read of it.

    Args:
        file: the file, not yet edited.
        values: the values of its model to return in place of the file's output.

    Raises:
        ExportError: ONNX Runtime does not take the file; says what it said.
    """

    def __init__(self, file: File, values: Sequence[ir.Value] | None = None) -> None:
        self._file = file
        # By identity: the graph is edited later, and its values get other names.
        self._values = list(dict.fromkeys(values or ()))
        self._names = [str(value.name) for value in self._values] or [file.output]
        model = file.runnable if values is None else serialised(file.model, self._values)
        self._session = open_session(model, file.path)

    def run(self, images: NDArray[np.uint8]) -> list[Array]:
        """Return every output for `images`, uint8 [N, H, W, C]: each float32 [N, ...].

        Raises:
            ExportError: ONNX Runtime cannot run the file.
        """
        return self.run_pixels(self._pixels(image) for image in images)

    def run_pixels(self, pictures: Iterable[Array]) -> list[Array]:
        """Return the same for pictures as the file takes them, each without an axis N."""
        columns = zip(*(self._run(picture) for picture in pictures), strict=True)
        return [np.stack(column).astype(np.float32, copy=False) for column in columns]

    def values(self, images: NDArray[np.uint8]) -> dict[ir.Value, Array]:
        """Return the same by value."""
        return dict(zip(self._values, self.run(images), strict=True))

    def _run(self, picture: Array) -> list[Array]:
        """Run one picture, and return the outputs without the axis of the pictures."""
        batch = np.repeat(picture[None], self._file.batch or 1, axis=0)
        try:
            results = self._session.run(self._names, {self._file.input: batch})
        except ENGINE_ERRORS as error:
            raise ExportError(
                f"ONNX Runtime cannot run {self._file.path}: {first_line(error)}"
            ) from error
        return [result[0] for result in results]

    def _pixels(self, image: NDArray[np.uint8]) -> Array:
        spec = self._file.spec
        scaled = (image.astype(np.float64) / 255 - np.asarray(spec.mean)) / np.asarray(spec.std)
        colours = scaled[:, :, ::-1] if self._file.bgr else scaled
        ordered = colours if self._file.layout == "nhwc" else colours.transpose(2, 0, 1)
        pixels: Array = ordered.astype(np.float32)
        return pixels


def serialised(model: ir.Model, values: Sequence[ir.Value]) -> bytes:
    """Return a model with these values as its only outputs."""
    outputs = model.graph.outputs
    kept = list(outputs)
    outputs[:] = values
    try:
        serialised: bytes = ir.to_proto(model).SerializeToString()
    finally:
        outputs[:] = kept
    return serialised
