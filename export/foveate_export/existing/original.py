"""Runs an ONNX file as it is: the answers that the edited graph is judged by.

The pixels are normalised by the definition, and the maps are computed in numpy
from the file's own activations and weights.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from foveate_export.comparison import Answers
from foveate_export.errors import ExportError
from foveate_export.existing.head import PooledHead
from foveate_export.existing.session import ENGINE_ERRORS, first_line, open_session
from foveate_export.existing.source import Existing, read_model
from foveate_export.layer import Layer

Array = NDArray[np.float32]


class Original:
    """An ONNX file in ONNX Runtime, and once more with some of its inner values as outputs.

    Args:
        source: the file, not yet edited.
        layers: the layers whose maps to return.

    Raises:
        ExportError: ONNX Runtime does not take the file; says what it said.
    """

    def __init__(self, source: Existing, layers: Sequence[Layer]) -> None:
        # The graph is edited later, and its values get other names.
        self._source = source
        self._head = source.head
        self._activations = str(source.head.activations.name) if source.head else ""
        self._logits = str(source.logits.name)
        self._layers = {layer: str(source.values[layer.path].name) for layer in layers}
        inner = [self._logits, *self._layers.values(), *filter(None, [self._activations])]
        self._inner = list(dict.fromkeys(inner))
        self._file = open_session(str(source.path), source.path)
        self._model = open_session(with_outputs(source, self._inner), source.path)

    def outputs(self, images: NDArray[np.uint8]) -> Array:
        """Return the file's own output for `images`, uint8 [N, H, W, C]: [N, classes]."""
        found = [self._run(self._file, [self._source.output], image)[0] for image in images]
        return np.stack(found).reshape(len(images), -1)

    def answer(self, images: NDArray[np.uint8], classes: NDArray[np.int64]) -> Answers:
        """Classify `images`, uint8 [N, H, W, C], and explain `classes`, int64 [N, K].

        Raises:
            ExportError: ONNX Runtime cannot run the file.
        """
        columns = zip(*(self._run(self._model, self._inner, each) for each in images), strict=True)
        inner = dict(zip(self._inner, map(np.stack, columns), strict=True))
        return Answers(
            logits=inner[self._logits].reshape(len(images), -1),
            cams=explain(self._head, inner[self._activations], classes) if self._head else {},
            features={
                layer.path: layer.layout.to_nchw(inner[name])
                for layer, name in self._layers.items()
            },
        )

    def _run(
        self, session: onnxruntime.InferenceSession, names: list[str], image: NDArray[np.uint8]
    ) -> list[Array]:
        return run_picture(self._source, session, names, self._pixels(image))

    def _pixels(self, image: NDArray[np.uint8]) -> Array:
        spec = self._source.spec
        scaled = (image.astype(np.float64) / 255 - np.asarray(spec.mean)) / np.asarray(spec.std)
        colours = scaled[:, :, ::-1] if self._source.bgr else scaled
        ordered = colours if self._source.layout == "nhwc" else colours.transpose(2, 0, 1)
        pixels: Array = ordered.astype(np.float32)
        return pixels


def run_picture(
    source: Existing, session: onnxruntime.InferenceSession, names: list[str], pixels: Array
) -> list[Array]:
    """Run one picture, as the file takes it, and return the outputs without the axis N.

    Raises:
        ExportError: ONNX Runtime cannot run the file.
    """
    batch = np.repeat(pixels[None], source.batch or 1, axis=0)
    try:
        results = session.run(names, {source.input: batch})
    except ENGINE_ERRORS as error:
        raise ExportError(f"ONNX Runtime cannot run {source.path}: {first_line(error)}") from error
    return [result[0] for result in results]


def explain(head: PooledHead, activations: Array, classes: NDArray[np.int64]) -> dict[str, Array]:
    """Return the maps of `classes`, int64 [N, K], by method: float32 [N, K, h, w].

    They follow `foveate_export.heads.pooled_linear`, with the gradient W[c] / (h w),
    and `foveate_export.heads.class_map`.
    """
    maps = activations.transpose(0, 3, 1, 2) if head.channels_last else activations
    if head.linear is None:
        return {"cam": np.take_along_axis(maps, classes[:, :, None, None], axis=1)}
    rows = head.linear.weight[classes]
    cam = np.einsum("nkc,nchw->nkhw", rows, maps)
    positive = np.einsum("nkc,nchw->nkhw", np.maximum(rows, 0), maps)
    cells = head.height * head.width
    return {
        "cam": cam,
        "gradcam": np.maximum(cam, 0) / cells,
        "hirescam": cam / cells,
        "layercam": np.maximum(positive, 0) / cells,
    }


def with_outputs(source: Existing, names: Sequence[str]) -> bytes:
    """Return the file with these values as its only outputs."""
    model = read_model(source.path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        values[name].dtype = values[name].dtype or ir.DataType.FLOAT
    model.graph.outputs[:] = [values[name] for name in names]
    serialised: bytes = ir.to_proto(model).SerializeToString()
    return serialised
