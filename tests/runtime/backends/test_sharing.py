"""Sessions of ONNX Runtime on a processor have one copy of the convolutions' weights."""

import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foveate_runtime.backends.onnxruntime.pruning import OnnxFile
from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.backends.onnxruntime.sharing import nameless_file
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import open_golden

TOLERANCE = 1e-4
"""Of the largest value of an output, as between engines."""


@pytest.fixture(scope="module")
def lite0(imagenet_repository: Path) -> Bundle:
    return Bundle.open(imagenet_repository / "efficientnet_lite0" / "1")


@pytest.fixture
def runner(lite0: Bundle) -> Iterator[OnnxRuntimeRunner]:
    with OnnxRuntimeRunner(lite0, variant="fp32", device="cpu", threads=2) as runner:
        yield runner


def test_beside_others_photographs_get_the_answers_of_torch(
    lite0: Bundle, runner: OnnxRuntimeRunner
) -> None:
    golden = open_golden(lite0)
    errors = golden.errors(partial(runner.run, share_cores=True), "largest")
    assert max(errors.values()) < TOLERANCE


def test_all_graphs_and_sessions_read_the_same_weights(
    lite0: Bundle, runner: OnnxRuntimeRunner
) -> None:
    golden = open_golden(lite0)
    plain = {"image": golden.images}

    def answers() -> list[np.ndarray]:
        return [
            runner.run(inputs, outputs, share_cores=share_cores)["logits"]
            for inputs, outputs in ((plain, ["logits"]), (golden.inputs, ["logits", "cam.cam"]))
            for share_cores in (False, True)
        ]

    before = answers()
    for value in runner._weights._values.values():
        ctypes.memset(value.data_ptr(), 0, value.numpy().nbytes)
    # What is left are the biases.
    for old, new in zip(before, answers(), strict=True):
        np.testing.assert_array_equal(new, np.broadcast_to(new[:1], new.shape))
        assert not np.allclose(old, new)


def test_weights_are_kept_once(lite0: Bundle, runner: OnnxRuntimeRunner) -> None:
    graph = onnx.load(lite0.file("fp32")).graph
    own = sum(numpy_helper.to_array(w).nbytes for w in graph.initializer if len(w.dims) == 4)
    for outputs in (["logits", "cam.cam"], ["logits", "features.blocks.2"]):
        runner._graphs.get(outputs)
    kept = sum(value.numpy().nbytes for value in runner._weights._values.values())
    # The order that kernels want may fill up channels.
    assert own <= kept < 1.2 * own


def test_initializers_are_read_as_onnx_reads_them(lite0: Bundle) -> None:
    path = lite0.file("fp32")
    arrays = dict(OnnxFile(path).arrays())
    expected = {
        weights.name: numpy_helper.to_array(weights)
        for weights in onnx.load(path).graph.initializer
        if weights.data_type == onnx.TensorProto.FLOAT
    }
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_file_in_no_folder_can_be_written_and_read_by_its_path() -> None:
    with nameless_file() as path:
        path.write_bytes(b"graph")
        assert path.read_bytes() == b"graph"
    assert not path.exists()
