"""Reads an ONNX file, or says in a line why it cannot become a bundle."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx_ir.passes import common

from foveate_export.errors import ExportError, UsageError
from foveate_export.existing.session import first_line
from foveate_export.publish.bundle import check_size

MIN_OPSET = 13
"""What the nodes that are added are written for; older files are converted to it."""

_FREE_INITIALIZERS = 4
"""The version of the format since which an initializer need not be an input of the graph."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)

_POINTER = b"version https://git-lfs"

_INVALID = (onnx.checker.ValidationError, onnx.onnx_cpp2py_export.checker.ValidationError)


@dataclass(frozen=True)
class Read:
    """What an ONNX file holds.

    Attributes:
        model: its graph, of `MIN_OPSET` or later, without functions of its own.
        runnable: what ONNX Runtime runs as the file: its path, or its bytes where its input
            or an output was changed.
        labels: those that the file names; empty where it names none.
        said: what was changed, for people; empty where nothing was.
    """

    model: ir.Model
    runnable: str | bytes
    labels: tuple[str, ...]
    said: str = ""


def read(path: Path) -> Read:
    """Read an ONNX file.

    Raises:
        UsageError: it does not exist.
        ExportError: it is no ONNX file, too old to convert, larger than a bundle
            holds, quantised by the pictures that it gets, or ends in a softmax that is
            quantised.
    """
    proto = _load(path)
    _refuse_dynamic(proto, path)
    _refuse_quantised_scores(proto, path)
    labels = _without_zipmap(proto)
    said = ", ".join(filter(None, (_with_float32_input(proto), _with_whole_scores(proto))))
    runnable = proto.SerializeToString() if labels or said else str(path)
    try:
        proto = _checked(proto)
    except (*_INVALID, ValueError) as error:
        # The last where the nodes go round in a circle.
        raise ExportError(f"{path}: {first_line(error)}") from error
    model = ir.from_proto(_recent(proto, path))
    for tidy in (
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveInitializersFromInputsPass(),
    ):
        tidy(model)
    model.ir_version = max(model.ir_version or 0, _FREE_INITIALIZERS)
    return Read(model, runnable, labels, said)


def _load(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except DecodeError as error:
        raise ExportError(f"{path} is no ONNX file{_advice(path)}") from error
    outside = {
        ExternalDataInfo(tensor).location
        for tensor in proto.graph.initializer
        if uses_external_data(tensor)
    }
    files = [path.parent / location for location in sorted(outside)]
    for file in files:
        if file.is_symlink():
            raise ExportError(
                f"{path}: its weights are in {file.name}, a symbolic link, which ONNX does not "
                f"follow; copy the files themselves into a folder (cp -L {path.parent}/* FOLDER)"
            )
        if not file.is_file():
            raise ExportError(f"{path}: its weights are in {file.name}, which is not beside it")
    check_size(path.stat().st_size + sum(file.stat().st_size for file in files), str(path))
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except (*_INVALID, ValueError, OSError) as error:
        raise ExportError(f"{path}: {first_line(error)}") from error
    _refuse_not_finite(proto, path)
    return proto


def _advice(path: Path) -> str:
    """Say what a file is that is none of ONNX, and what to do, where its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        return ", but a pointer of Git LFS to one: git lfs pull fetches it"
    if start.startswith(b"PK\x03\x04"):
        return (
            ", but an archive (zip): unpack it, or export the network to ONNX where it is torch's"
        )
    if start.lstrip().startswith((b"<", b"{")):
        return ", but text, such as the page of an address that was not the file's: fetch it again"
    return ": export the network to ONNX again"


def _refuse_not_finite(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in proto.graph.initializer:
        # Minus infinity is what masks of attention hold.
        if tensor.data_type in _FLOATS and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise ExportError(
                f"{path}: its weights {tensor.name} hold values that are no number (NaN)"
            )


def _checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(proto)
    except _INVALID as error:
        if "topologically sorted" not in str(error):
            raise
        # As ONNX Runtime does: some converters append their nodes at the end.
        model = ir.from_proto(proto)
        common.TopologicalSortPass()(model)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto)
    return proto


def _recent(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = next((each.version for each in proto.opset_import if not each.domain), 0)
    if opset >= MIN_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, MIN_OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ExportError(
            f"{path} is of opset {opset}, and cannot be converted to {MIN_OPSET}: "
            f"{first_line(error)}"
        ) from error


def _refuse_dynamic(proto: onnx.ModelProto, path: Path) -> None:
    if any(node.op_type == "DynamicQuantizeLinear" for node in proto.graph.node):
        raise ExportError(
            f"{path} is quantised by the values of each batch (DynamicQuantizeLinear), so that a "
            "picture's answer depends on those beside it: export the file from before that, or "
            "one with fixed ranges (static quantisation)"
        )


def _refuse_quantised_scores(proto: onnx.ModelProto, path: Path) -> None:
    for node in proto.graph.node:
        if node.op_type in ("QLinearSoftmax", "QLinearSigmoid"):
            raise ExportError(
                f"{path} has a quantised {node.op_type.removeprefix('QLinear').lower()} "
                f"({node.op_type}), whose scores are rounded to 256 levels: quantise the file "
                "again without its last operator (nodes_to_exclude) or with QuantFormat.QDQ"
            )


def _with_float32_input(proto: onnx.ModelProto) -> str:
    """Make an input of float16 or float64 one of float32, which is cast; say so.

    Converters to float16 change the input as well unless they are told not to.
    """
    kinds: dict[int, str] = {
        onnx.TensorProto.FLOAT16: "float16",
        onnx.TensorProto.DOUBLE: "float64",
    }
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name in weights or kind not in kinds:
            continue
        taken = f"{value.name}_float32"
        proto.graph.node.insert(0, onnx.helper.make_node("Cast", [taken], [value.name], to=kind))
        said = f"{value.name} is {kinds[kind]} in the file; float32 is taken and cast"
        value.name = taken
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        return said
    return ""


def _with_whole_scores(proto: onnx.ModelProto) -> str:
    """Take off what rounds the scores of a softmax or a sigmoid at the end; say so.

    Quantisers that write QuantizeLinear and DequantizeLinear put a pair of them behind it.
    """
    made = {name: node for node in proto.graph.node for name in node.output}
    outputs = {value.name for value in proto.graph.output}
    for name in outputs:
        last = made.get(name)
        rounds = made.get(last.input[0]) if last and last.op_type == "DequantizeLinear" else None
        if last is None or rounds is None or rounds.op_type != "QuantizeLinear":
            continue
        scores = made.get(rounds.input[0])
        if scores is not None and scores.op_type in ("Softmax", "Sigmoid"):
            last.op_type = "Identity"
            last.domain = ""
            del last.attribute[:]
            last.input[:] = [scores.output[0]]
            return f"the scores {scores.output[0]} as they are before they are rounded to 8 bits"
    return ""


def _without_zipmap(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Make the scores of a ZipMap an output in its place; return the labels that it names.

    Converters of classical classifiers, and services that export such files, write
    the scores as a sequence of maps from label to score.
    """
    outputs = {value.name: value for value in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type != "ZipMap" or node.output[0] not in outputs:
            continue
        values = next(iter(node.attribute))
        labels = [each.decode() for each in values.strings] or list(map(str, values.ints))
        output = outputs[node.output[0]]
        output.type.CopyFrom(
            onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None, len(labels)])
        )
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        return tuple(labels)
    return ()
