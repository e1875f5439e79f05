"""Static int8: quantise-dequantise (QDQ) pairs around what engines compute in integers.

Weights are symmetric int8 with one scale an output channel, and for CPUs such that
every processor adds their products exactly (`pairs`). Activations have one range a
tensor, the smallest and the largest value seen on the calibration pictures. Quantised
is the trunk, from the first convolution to the logits. What explains reads its
activations and its weights, dequantised, and computes in float32, so that a map
explains the classifier that answers, and the file holds each weight once. A weight of
which maps read single rows is dequantised row by row (`rows`) for CPUs; TensorRT
dequantises whole weights only, and there it stays float.

Which layers int8 hurts is measured: one layer alone is quantised, and the error
of the logits taken. (With all the others quantised as well, their noise hides
what one layer adds.) Whoever judges the candidates decides how many of these
layers stay in float.

Ranges, scales and QDQ pairs are made by onnxruntime.quantization.
"""

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import DeduplicateInitializersPass
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from foveate_export.errors import ExportError
from foveate_export.progress import Stage
from foveate_export.publish.variants.pairs import fit_pairs
from foveate_export.publish.variants.rows import gather_first, gives_rows, read_by_rows
from foveate_runtime.backends.integers import adds_exactly
from foveate_runtime.backends.onnxruntime.session import leave_to_floats
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT, LOGITS_OUTPUT

Scheme = Literal["asymmetric", "symmetric"]
"""Asymmetric: unsigned activations with any zero point, which the fast integer
kernels of CPUs take. Symmetric: signed ones with zero point 0, and float
biases, which TensorRT takes."""

FLOAT_SHARES = (0, 0.05, 0.1, 0.15, 0.2)
"""The shares of the trunk's layers that candidates leave in float; with more int8 gains little."""

SEARCH_IMAGES = 16
"""The pictures that one layer is measured on."""

MOST_CHANNELS = 1 << 16
"""Zero points, one a channel, are alike in most layers and are held once."""

BATCH = 4
"""Few enough for the activations of VGG16, all of which calibration returns."""

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# A range cut off at zero needs no node of its own once the result is quantised.
_ACTIVATIONS = frozenset({"Clip", "Relu"})
# Each has an integer kernel.
_BETWEEN = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Mul"})

FITS: dict[Scheme, bool] = {"asymmetric": True, "symmetric": False}
"""Whether every processor adds the products of a scheme's weights exactly."""

_OPTIONS: dict[Scheme, tuple[QuantType, dict[str, bool]]] = {
    "asymmetric": (QuantType.QUInt8, {"ActivationSymmetric": False}),
    "symmetric": (QuantType.QInt8, {"ActivationSymmetric": True, "QuantizeBias": False}),
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An int8 graph, and how close its logits are on the calibration pictures.

    Attributes:
        float_layers: the nodes of weighted layers left in float, the most sensitive first.
        sqnr: 10 log10 of the logits' mean square over that of their error, in decibels.
        agreement: the share of pictures whose best class is the float graph's.
    """

    float_layers: tuple[str, ...]
    sqnr: float
    agreement: float


@dataclass(frozen=True)
class Trunk:
    """The nodes on the way from the first weighted layer to the logits that int8 may hold.

    Attributes:
        layers: by weighted node, the nodes of one layer: itself and, where its
            result goes nowhere else, the Clip or Relu behind it. Between the two
            there must be no QDQ pair: the range there is far wider than needed.
        between: the nodes that join layers.
    """

    layers: dict[str, tuple[str, ...]]
    between: tuple[str, ...]


def candidates(
    source: Path, target: Path, images: NDArray[np.uint8], scheme: Scheme, *, stage: Stage
) -> Generator[Candidate]:
    """Write int8 variants of the float graph `source` to `target`, one after another.

    The first quantises every layer; each later one leaves more of them in
    float. The layers are measured before the second.

    Args:
        source: an ONNX graph with folded batch normalisation.
        target: where to write; the outputs keep their names and float32.
        images: the calibration pictures, uint8 [N, H, W, C].
        scheme: how activations are quantised.
        stage: called for each step.

    Raises:
        ExportError: the graph has no layer that can be quantised.
    """
    graph = onnx.load(source).graph
    trunk = find_trunk(graph, scheme)
    if not trunk.layers:
        raise ExportError("int8: the graph has no convolution or linear layer to quantise")
    data = batches(images, explained=any(i.name == CLASS_IDS_INPUT for i in graph.input))
    ranges = target.with_name(f".{target.name}.ranges")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    writer = _Writer(source, target, weights, scheme, ranges, data)
    try:
        ranked: list[str] = []
        counts = sorted({ceil(share * len(trunk.layers)) for share in FLOAT_SHARES})
        with stage(f"calibrating on {len(images)} pictures"):
            expected = _logits(source, data, scheme)
            writer.write([*trunk.layers], trunk)
        for count in counts:
            if count:
                if not ranked:
                    with stage(f"measuring what int8 does to each of {len(trunk.layers)} layers"):
                        ranked = _by_sensitivity(writer, trunk, expected)
                with stage(f"leaving {count} layers in float"):
                    writer.write([n for n in trunk.layers if n not in ranked[:count]], trunk)
            actual = _logits(target, data, scheme)
            yield Candidate(
                float_layers=tuple(ranked[:count]),
                sqnr=_sqnr(expected, actual),
                agreement=float((expected.argmax(1) == actual.argmax(1)).mean()),
            )
    finally:
        ranges.unlink(missing_ok=True)


def find_trunk(graph: onnx.GraphProto, scheme: Scheme) -> Trunk:
    """Return the nodes between the first weighted layer and the logits that int8 may hold.

    Args:
        graph: the float graph, with the shapes of its tensors.
        scheme: how activations are quantised, which says for which engines.
    """
    constants = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    to_logits = nodes_behind(makers, [LOGITS_OUTPUT])
    to_weighted = nodes_behind(
        makers,
        [n.input[0] for n in graph.node if n.op_type in _WEIGHTED and n.name in to_logits],
    )
    by_rows = read_by_rows(graph, makers)
    if scheme == "asymmetric":
        by_rows = {name for name in by_rows if not gives_rows(graph, name)}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)

    layers: dict[str, tuple[str, ...]] = {}
    between = []
    behind: set[str] = set()  # tensors that a weighted layer leads to
    for node in graph.node:
        if node.name not in to_logits:
            continue
        variable = [name for name in node.input if name and name not in constants]
        if node.op_type in _WEIGHTED and node.input[1] in constants:
            behind.update(node.output)
            if node.input[1] not in by_rows:
                layers[node.name] = (node.name,)
        elif behind.intersection(variable):
            behind.update(node.output)
            maker = makers[variable[0]].name
            if node.op_type in _ACTIVATIONS:
                if maker in layers and readers[variable[0]] == 1:
                    layers[maker] += (node.name,)
            elif (
                node.op_type in _BETWEEN
                and node.name in to_weighted
                and behind.issuperset(node.input if node.op_type in ("Add", "Mul") else variable)
            ):
                between.append(node.name)
    return Trunk(layers, tuple(between))


def nodes_behind(makers: Mapping[str, onnx.NodeProto], tensors: Iterable[str]) -> set[str]:
    """Return the names of the nodes that `tensors` are computed by.

    Args:
        makers: the graph's nodes by the tensors that they return.
        tensors: names of tensors.
    """
    found: set[str] = set()
    waiting = list(tensors)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found


def _by_sensitivity(writer: "_Writer", trunk: Trunk, expected: NDArray[np.float32]) -> list[str]:
    """Return the layers by the error of the logits when each alone is quantised, largest first."""
    few = writer.data[: -(-SEARCH_IMAGES // BATCH)]
    alone = {}
    for layer in trunk.layers:
        writer.write([layer], Trunk(trunk.layers, ()))
        answers = _logits(writer.target, few, writer.scheme)
        alone[layer] = _sqnr(expected[: len(answers)], answers)
    return sorted(alone, key=alone.__getitem__)


@dataclass(frozen=True)
class _Writer:
    source: Path
    target: Path
    weights: Mapping[str, onnx.TensorProto]
    scheme: Scheme
    ranges: Path
    data: Sequence[Mapping[str, NDArray[Any]]]

    def write(self, chosen: Iterable[str], trunk: Trunk) -> None:
        """Quantise the layers `chosen` of the trunk and the nodes between them."""
        activations, options = _OPTIONS[self.scheme]
        with _quiet():
            # The ranges are measured the first time, and read from the file later.
            quantize_static(
                self.source,
                self.target,
                Reader(self.data),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=activations,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self.ranges,
                nodes_to_quantize=[
                    *(node for layer in chosen for node in trunk.layers[layer]),
                    *trunk.between,
                ],
                extra_options={
                    "WeightSymmetric": True,
                    # People and comparisons read the logits.
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                    **options,
                },
            )
        model = onnx.load(self.target)
        if FITS[self.scheme]:
            fit_pairs(model.graph, self.weights)
        _share_weights(model.graph)
        gather_first(model.graph)
        shared = onnx_ir.from_proto(model)
        DeduplicateInitializersPass(size_limit=MOST_CHANNELS)(shared)
        onnx_ir.save(shared, self.target)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives onnxruntime's calibration the inputs of one batch after another."""

    def __init__(self, data: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        self._batches = iter(data)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the next batch's inputs, None behind the last."""
        return next(self._batches, None)


def _share_weights(graph: onnx.GraphProto) -> None:
    """Let every reader of a quantised weight read the dequantised one, and drop the float one."""
    floats = {tensor.name for tensor in graph.initializer}
    shared = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            name = node.input[0].removesuffix("_quantized")
            if name != node.input[0] and name in floats:
                shared[name] = node.output[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in shared:
                node.input[index] = shared[name]
    kept = [tensor for tensor in graph.initializer if tensor.name not in shared]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def batches(images: NDArray[np.uint8], *, explained: bool) -> list[dict[str, NDArray[Any]]]:
    """Return the graph's inputs for `images`, uint8 [N, H, W, C], `BATCH` at a time.

    With maps, where the graph makes them (`explained`), of each picture's best class.
    """
    found: list[dict[str, NDArray[Any]]] = []
    for start in range(0, len(images), BATCH):
        inputs: dict[str, NDArray[Any]] = {IMAGE_INPUT: images[start : start + BATCH]}
        if explained:
            inputs[CLASS_IDS_INPUT] = np.full((len(inputs[IMAGE_INPUT]), 1), -1, dtype=np.int64)
        found.append(inputs)
    return found


def _logits(
    path: Path, data: Sequence[Mapping[str, NDArray[Any]]], scheme: Scheme
) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not (FITS[scheme] or adds_exactly()):
        leave_to_floats(options)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = onnxruntime.RunOptions()
    run.only_execute_path_to_fetches = True
    return np.concatenate([session.run([LOGITS_OUTPUT], batch, run)[0] for batch in data])


def _sqnr(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    error = float(np.square(expected - actual, dtype=np.float64).mean())
    signal = float(np.square(expected, dtype=np.float64).mean())
    return float("inf") if error == 0 else float(10 * np.log10(signal / error))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the advice to fold batch normalisation, which the exporter did."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
