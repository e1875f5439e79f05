"""Makes a bundle a model of NVIDIA Triton: a configuration, and a graph that needs the image alone.

Triton's ONNX Runtime backend takes an input as optional where the graph has an
initializer of its name, and its configuration says so. The other engines take such an
input for a constant, so `model.onnx` stays as it is, and `triton.onnx` beside it has the
default. That file holds no weights: its tensors lie in `model.onnx`, as external data.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foveate_export.errors import ExportError
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LABELS_FILE,
    LOGITS_OUTPUT,
    MANIFEST_FILE,
    Manifest,
)
from foveate_runtime.bundle.publishing import require_place

GRAPH_FILE = "triton.onnx"
CONFIG_FILE = "config.pbtxt"

_SMALLEST_OUTSIDE = 1024
"""Bytes from which on a tensor is read out of the other file."""
_ROWS = "class_ids_of_every_row"


def add_triton(bundle: Bundle, variant: str, max_batch: int) -> list[Path]:
    """Add what Triton needs to a bundle in its repository; return the files.

    `max_batch` is the largest batch that Triton forms. The configuration and the labels
    lie in the model's folder and hold for all its versions, of which Triton serves the
    newest. Raises ExportError, PlaceError and OSError.
    """
    require_place(bundle)
    manifest = bundle.manifest
    file = _file(manifest, variant)
    source = bundle.path / file
    model = onnx.load(source, load_external_data=False)
    _give_default(model.graph)
    _take_weights_from(source, model.graph)
    helper.set_model_props(model, dict(_facts(bundle, variant)))
    model_folder = bundle.path.parent
    written = [
        (bundle.path / GRAPH_FILE, model.SerializeToString()),
        (model_folder / LABELS_FILE, (bundle.path / LABELS_FILE).read_bytes()),
        (model_folder / CONFIG_FILE, config(manifest, model.graph, max_batch).encode()),
    ]
    with TemporaryDirectory(dir=model_folder, prefix=".triton-") as folder:
        for path, content in written:
            new = Path(folder) / path.name
            new.write_bytes(content)
            new.replace(path)
    onnx.checker.check_model(bundle.path / GRAPH_FILE)
    return [path for path, _ in written]


def config(manifest: Manifest, graph: onnx.GraphProto, max_batch: int) -> str:
    """Return Triton's configuration of a graph, in the text format of Protocol Buffers."""
    spec = manifest.input
    inputs = [_tensor("input", IMAGE_INPUT, "TYPE_UINT8", (spec.height, spec.width, spec.channels))]
    if any(value.name == CLASS_IDS_INPUT for value in graph.input):
        inputs.append(_tensor("input", CLASS_IDS_INPUT, "TYPE_INT64", (-1,), "optional: true"))
    labels = f"label_filename: {json.dumps(LABELS_FILE)}"
    outputs = [_tensor("output", LOGITS_OUTPUT, "TYPE_FP32", (manifest.classes,), labels)]
    outputs += [
        _tensor("output", f"{CAM_PREFIX}{cam.method}", "TYPE_FP32", (-1, cam.height, cam.width))
        for cam in manifest.cams
    ]
    outputs += [
        _tensor(
            "output",
            f"{FEATURES_PREFIX}{layer.layer}",
            "TYPE_FP32",
            (layer.channels, layer.height, layer.width),
        )
        for layer in manifest.features
    ]
    return "\n".join(
        [
            'backend: "onnxruntime"',
            f"default_model_filename: {json.dumps(GRAPH_FILE)}",
            f"max_batch_size: {max_batch}",
            *inputs,
            *outputs,
            "dynamic_batching {}",
            "",
        ]
    )


def _tensor(kind: str, name: str, data_type: str, dims: tuple[int, ...], *more: str) -> str:
    fields = [f"name: {json.dumps(name)}", f"data_type: {data_type}", f"dims: {list(dims)}", *more]
    return f"{kind} {{ {' '.join(fields)} }}"


def _file(manifest: Manifest, variant: str) -> str:
    try:
        return manifest.variant(variant).file
    except KeyError:
        there = ", ".join(entry.name for entry in manifest.variants)
        raise ExportError(f"the bundle has no variant {variant!r}; there are {there}") from None


def _give_default(graph: onnx.GraphProto) -> None:
    """Have `class_ids` mean the best class of every picture where it is not given.

    An initializer cannot be as long as a batch that it does not know: it has one row, and
    a node repeats it for every picture.
    """
    if all(value.name != CLASS_IDS_INPUT for value in graph.input):
        return
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == CLASS_IDS_INPUT:
                node.input[index] = _ROWS
    nodes = [
        helper.make_node("Shape", [IMAGE_INPUT], [f"{_ROWS}.pictures"], start=0, end=1),
        helper.make_node(
            "Concat", [f"{_ROWS}.pictures", f"{_ROWS}.one"], [f"{_ROWS}.shape"], axis=0
        ),
        # Broadcasts both ways: rows that are there already stay as they are.
        helper.make_node("Expand", [CLASS_IDS_INPUT, f"{_ROWS}.shape"], [_ROWS]),
    ]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([[-1]], dtype=np.int64), CLASS_IDS_INPUT),
            numpy_helper.from_array(np.array([1], dtype=np.int64), f"{_ROWS}.one"),
        ]
    )


def _take_weights_from(source: Path, graph: onnx.GraphProto) -> None:
    """Have the large tensors be read where their bytes lie in `source`."""
    content = source.read_bytes()
    for tensor in graph.initializer:
        raw = tensor.raw_data
        # Wherever the same bytes lie, they are the same numbers.
        offset = content.find(raw) if len(raw) >= _SMALLEST_OUTSIDE else -1
        if offset < 0:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", source.name), ("offset", offset), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))


def _facts(bundle: Bundle, variant: str) -> Iterator[tuple[str, str]]:
    """Yield what the file says of itself to who has it alone."""
    manifest = bundle.manifest
    yield "foveate.model", manifest.name
    yield "foveate.version", str(manifest.version)
    yield "foveate.variant", variant
    yield "foveate.classifier", manifest.classifier
    yield "foveate.scores", manifest.scores
    yield "foveate.input", manifest.input.model_dump_json()
    yield "foveate.labels", json.dumps(bundle.labels, ensure_ascii=False)
    yield f"foveate.{MANIFEST_FILE}.sha256", bundle.digest
    # What training noted, a licence among it.
    for key, value in manifest.metadata.items():
        yield f"foveate.metadata.{key}", value
