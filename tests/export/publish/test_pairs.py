"""int8 weights whose products processors without VNNI add exactly."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foveate_export.publish.bundle import Exported
from foveate_export.publish.variants.calibration import Calibration
from foveate_export.publish.variants.pairs import largest_sums
from foveate_runtime.backends import integers
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle

MOST = 2**15 - 1
"""What sums of two products may be at most; one more is cut off."""


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([[100, 50, -20]], 150),
        ([[100, -50, 60]], 100),
        ([[-100, -50, 60]], 150),
        ([[7]], 7),
        ([[3, 0, 90, 0, 80]], 90),
    ],
    ids=["neighbours", "other-sign", "negative", "alone", "apart"],
)
def test_only_neighbours_of_one_sign_add_up(weights: list[list[int]], expected: int) -> None:
    assert largest_sums(np.array(weights, dtype=np.float64)) == [expected]


def test_neighbours_are_those_in_the_kernel_and_those_in_the_channels() -> None:
    weights = np.zeros((2, 3, 2, 2))
    weights[0, 0, 1, 0] = weights[0, 0, 1, 1] = 70  # in the row of a kernel
    weights[1, 1, 0, 1] = weights[1, 2, 0, 1] = 80  # in two channels
    assert [*largest_sums(weights)] == [140, 160]


def test_no_pair_of_products_leaves_16_bits(lite0_export: Exported) -> None:
    entry = lite0_export.manifest.variant("int8")
    graph = onnx.load(lite0_export.path / entry.file).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dequantised = {n.output[0]: n.input for n in graph.node if n.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    seen = 0
    for node in layers:
        weights = constants[dequantised[node.input[1]][0]].astype(np.int64)
        if weights.shape[1] > 1:
            assert 255 * largest_sums(weights).max() <= MOST
            # A coarser scale than needed would cost accuracy; a few channels are all but dead.
            assert (largest_sums(weights) >= 126).mean() > 0.8
            seen += 1
    assert (len(layers), seen) == (50, 34)
    assert entry.quantisation.pairs_fit


def with_int8_first(folder: Path, *, pairs_fit: bool) -> Bundle:
    """Have the manifest of a bundle name int8 first, and say whether its pairs fit."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["variants"].sort(key=lambda variant: variant["name"] != "int8")
    manifest["variants"][0]["quantisation"]["pairs_fit"] = pairs_fit
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Bundle.open(folder)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_integers_are_as_exact_as_floats(
    lite0_export: Exported,
    calibration: Calibration,
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(lite0_export.path, tmp_path / "1")
    monkeypatch.setattr(integers, "adds_exactly", lambda: False)
    logits = {}
    for pairs_fit in (True, False):
        bundle = with_int8_first(folder, pairs_fit=pairs_fit)
        with create_runner(bundle, variant="int8", backend=backend) as runner:
            found = [runner.run({"image": part}, ["logits"])["logits"]
                     for part in np.array_split(calibration.images[:16], 4)]  # fmt: skip
        logits[pairs_fit] = np.concatenate(found)
    error = np.square(logits[True] - logits[False]).mean()
    # Halves are rounded to the one side or the other; pairs cut off gave 8 dB.
    assert 10 * np.log10(np.square(logits[False]).mean() / error) > 20


def test_a_server_takes_no_int8_that_it_must_leave_to_floats(
    lite0_export: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(lite0_export.path, tmp_path / "1")
    monkeypatch.setattr(integers, "adds_exactly", lambda: False)
    for pairs_fit, expected in ((True, "int8"), (False, "fp32")):
        with create_runner(with_int8_first(folder, pairs_fit=pairs_fit)) as runner:
            assert runner.variant == expected
