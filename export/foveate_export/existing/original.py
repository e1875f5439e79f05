"""The answers of an ONNX file that the edited graph is judged by.

The pixels are normalised by the definition, and the maps are computed in numpy
from the file's own activations and weights.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate_export.anatomy.layer import Layer
from foveate_export.existing.file import Array, OneByOne
from foveate_export.existing.head import PooledHead
from foveate_export.existing.source import Existing
from foveate_export.proof.comparison import Answers


class Original:
    """An ONNX file in ONNX Runtime, and once more with some of its inner values as outputs.

    Args:
        source: the file, not yet edited.
        layers: the layers whose maps to return.

    Raises:
        ExportError: ONNX Runtime does not take the file; says what it said.
    """

    def __init__(self, source: Existing, layers: Sequence[Layer]) -> None:
        self._source = source
        self._layers = {layer: source.values[layer.path] for layer in layers}
        activations = [source.head.activations] if source.head else []
        self._file = OneByOne(source)
        self._inner = OneByOne(source, [source.logits, *self._layers.values(), *activations])

    def outputs(self, images: NDArray[np.uint8]) -> Array:
        """Return the file's own output for `images`, uint8 [N, H, W, C]: [N, classes]."""
        (outputs,) = self._file.run(images)
        return outputs.reshape(len(images), -1)

    def answer(self, images: NDArray[np.uint8], classes: NDArray[np.int64]) -> Answers:
        """Classify `images`, uint8 [N, H, W, C], and explain `classes`, int64 [N, K].

        Raises:
            ExportError: ONNX Runtime cannot run the file.
        """
        inner, head = self._inner.values(images), self._source.head
        values = inner[self._source.logits].reshape(len(images), -1)
        return Answers(
            logits=self._source.ending.logits(values),
            cams=explain(head, inner[head.activations], classes) if head else {},
            features={
                layer.path: layer.layout.to_nchw(inner[value])
                for layer, value in self._layers.items()
            },
        )


def explain(head: PooledHead, activations: Array, classes: NDArray[np.int64]) -> dict[str, Array]:
    """Return the maps of `classes`, int64 [N, K], by method: float32 [N, K, h, w].

    They follow `foveate_export.anatomy.pooled`, with the gradient W[c] / (h w), and
    `foveate_export.graph.heads.class_map`, and call neither: the graph that was made by
    them is compared with these.
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
