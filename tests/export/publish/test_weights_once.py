"""No weight stands twice in a file: not under two names, and not transposed."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foveate_export.exporter import Exported
from foveate_export.publish.variants.half import halve

SMALLEST = 2048
"""Bytes. Below are shapes, zero points, and the matrices that average pooling is
pulled back with, which are the same for rows and, transposed, for columns."""


def repeated(path: Path) -> list[list[str]]:
    """Return the names of the initializers that hold the same numbers, in either order of axes."""
    names = defaultdict(list)
    for tensor in onnx.load(path).graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.nbytes > SMALLEST:
            rows = values.reshape(len(values), -1)
            contents = min(rows.tobytes(), np.ascontiguousarray(rows.T).tobytes())
            names[values.dtype, contents].append(tensor.name)
    return [found for found in names.values() if len(found) > 1]


@pytest.mark.parametrize("bundle", ["convnet4_export", "lenet5_export", "lite0_export"])
def test_every_weight_stands_once(bundle: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(bundle)
    files = sorted(exported.path.glob("*.onnx"))
    assert len(files) == len(exported.manifest.variants)
    assert {file.name: repeated(file) for file in files} == {file.name: [] for file in files}


def test_copies_are_found(tmp_path: Path, lenet5_export: Exported) -> None:
    model = onnx.load(lenet5_export.path / "model.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] > 50)
    turned = numpy_helper.from_array(numpy_helper.to_array(weight).T, "turned")
    model.graph.initializer.append(turned)
    onnx.save(model, tmp_path / "twice.onnx")
    assert repeated(tmp_path / "twice.onnx") == [[weight.name, "turned"]]


def test_float16_rows_are_cast_and_not_the_weight(
    tmp_path: Path, convnet4_export: Exported
) -> None:
    halve(convnet4_export.path / "model.onnx", tmp_path / "half.onnx")
    graph = onnx.load(tmp_path / "half.onnx").graph
    weights = {t.name: t for t in graph.initializer if len(t.dims) == 2}
    gathered = [n.input[0] for n in graph.node if n.op_type == "GatherND"]
    assert [weights[name].data_type for name in gathered] == [onnx.TensorProto.FLOAT16]
    assert not [n for n in graph.node if n.op_type == "Cast" and n.input[0] in weights]
