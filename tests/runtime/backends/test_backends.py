"""A backend runs what the graph contract says, and says clearly what it does not."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foveate_runtime.backends import registry
from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.backends.registry import Backend, create_runner
from foveate_runtime.bundle.bundle import Bundle

INSTALLED = ["onnxruntime", "openvino", "torch"]
every = pytest.mark.parametrize("backend", INSTALLED)


@pytest.fixture(params=INSTALLED)
def runner(request: pytest.FixtureRequest, colours: Bundle) -> Runner:
    return create_runner(colours, backend=request.param, threads=1)


def pictures(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array(colours, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)


def test_runs_the_outputs_wanted_and_no_others(runner: Runner) -> None:
    images = pictures((255, 0, 0), (0, 51, 102))
    outputs = runner.run({"image": images}, ["logits"])
    assert list(outputs) == ["logits"]
    expected = [[1.25, 0.0, -0.25], [0.25, 0.2, 0.15]]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)


def test_explains_classes_by_id_and_by_rank(runner: Runner) -> None:
    images = pictures((255, 0, 0), (0, 0, 255))
    class_ids = np.array([[-1, 2], [-1, -3]])
    cams = runner.run({"image": images, "class_ids": class_ids}, ["cam.cam"])["cam.cam"]
    np.testing.assert_allclose(cams.mean((2, 3)), [[1, 0], [1, 0]], atol=1e-6)


def test_tells_what_it_is(runner: Runner) -> None:
    assert runner.backend in INSTALLED
    assert (runner.device, runner.variant) == ("cpu", "fp32")
    assert str(runner.inputs["image"]) == "uint8[*, 8, 8, 3]"
    assert set(runner.outputs) == {"logits", "cam.cam", "features.planes"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"image": pictures((0, 0, 0)).astype(np.float32)}, ["logits"], r"image is float32"),
        ({"image": pictures((0, 0, 0))[:, :7]}, ["logits"], r"uint8\[1, 7, 8, 3\]"),
        ({"image": pictures((0, 0, 0))}, ["probabilities"], "no output 'probabilities'"),
        ({"image": pictures((0, 0, 0))}, [], "no output is wanted"),
        ({"image": pictures((0, 0, 0))}, ["cam.cam"], "these outputs need"),
        ({}, ["logits"], "these outputs need"),
        (
            {"image": pictures((0, 0, 0)), "class_ids": np.array([[0], [1]])},
            ["cam.cam"],
            "differ in their first dimension",
        ),
    ],
)
def test_refuses_what_the_contract_does_not_have(
    runner: Runner, inputs: dict[str, np.ndarray], outputs: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runner.run(inputs, outputs)


def test_a_failure_of_the_engine_is_a_backend_error(colours: Bundle) -> None:
    # OpenVINO takes an index out of range for another one.
    runner = create_runner(colours, backend="onnxruntime")
    with pytest.raises(BackendError, match="failed to run"):
        runner.run({"image": pictures((0, 0, 0)), "class_ids": np.array([[3]])}, ["cam.cam"])


@every
def test_a_graph_that_breaks_its_manifest_is_found(colours: Bundle, backend: str) -> None:
    cam = colours.manifest.cams[0]
    manifest = colours.manifest.model_copy(update={"cams": (cam.model_copy(update={"height": 4}),)})
    with create_runner(replace(colours, manifest=manifest), backend=backend) as runner:
        inputs = {"image": pictures((0, 0, 0)), "class_ids": np.array([[0]])}
        with pytest.raises(BackendError, match=r"gives cam\.cam as float32\[1, 1, 8, 8\]"):
            runner.run(inputs, ["cam.cam"])


def edited(bundle: Bundle, folder: Path, edit: Callable[[onnx.ModelProto], None]) -> Bundle:
    """Return the bundle with another graph, which is written into `folder`."""
    model = onnx.load(bundle.file("fp32"))
    edit(model)
    onnx.save(model, folder / "model.onnx")
    return replace(bundle, path=folder)


@every
def test_a_graph_that_makes_one_row_of_all_pictures_is_found(
    colours: Bundle, tmp_path: Path, backend: str
) -> None:
    def lose_rows(model: onnx.ModelProto) -> None:
        (mean,) = (node for node in model.graph.node if "means" in node.output)
        axes = next(weight for weight in model.graph.initializer if weight.name == mean.input[1])
        axes.CopyFrom(numpy_helper.from_array(np.array([0, 2, 3]), axes.name))
        (add,) = (node for node in model.graph.node if "logits" in node.output)
        one_row = numpy_helper.from_array(np.array([1, 3]), "one_row")
        model.graph.initializer.append(one_row)
        reshape = onnx.helper.make_node("Reshape", [add.input[0], "one_row"], ["row"])
        model.graph.node.insert(list(model.graph.node).index(add), reshape)
        add.input[0] = "row"

    with create_runner(edited(colours, tmp_path, lose_rows), backend=backend) as runner:
        assert runner.run({"image": pictures((255, 0, 0))}, ["logits"])["logits"].shape == (1, 3)
        with pytest.raises(BackendError, match=r"gives logits as float32\[1, 3\], for 4 pictures"):
            runner.run({"image": pictures(*[(255, 0, 0)] * 4)}, ["logits"])


@every
def test_a_map_of_other_classes_than_those_asked_for_is_found(
    colours: Bundle, tmp_path: Path, backend: str
) -> None:
    def explain_one(model: onnx.ModelProto) -> None:
        (unsqueeze,) = (node for node in model.graph.node if "indices" in node.output)
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
        gather = onnx.helper.make_node("Gather", ["chosen", "first"], ["chosen_first"], axis=1)
        model.graph.node.insert(list(model.graph.node).index(unsqueeze), gather)
        unsqueeze.input[0] = "chosen_first"

    with create_runner(edited(colours, tmp_path, explain_one), backend=backend) as runner:
        inputs = {"image": pictures((0, 0, 0)), "class_ids": np.array([[0, 1]])}
        with pytest.raises(BackendError, match="for 1 pictures of 2 classes"):
            runner.run(inputs, ["cam.cam"])


@every
def test_an_input_more_than_the_contract_has_is_found_at_load(
    colours: Bundle, tmp_path: Path, backend: str
) -> None:
    def add_input(model: onnx.ModelProto) -> None:
        (add,) = (node for node in model.graph.node if "logits" in node.output)
        add.input[1] = "gain"
        gain = onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, [3])
        model.graph.input.append(gain)

    with pytest.raises(BackendError, match="an input 'gain'; it may have 'image' and 'class_ids'"):
        create_runner(edited(colours, tmp_path, add_input), backend=backend)


@every
def test_weights_that_are_listed_as_inputs_are_none(
    colours: Bundle, tmp_path: Path, backend: str
) -> None:
    def list_weights(model: onnx.ModelProto) -> None:
        for weight in model.graph.initializer:
            value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            model.graph.input.append(value)

    with create_runner(edited(colours, tmp_path, list_weights), backend=backend) as runner:
        assert runner.run({"image": pictures((255, 0, 0))}, ["logits"])["logits"].argmax() == 0


@every
def test_an_output_that_the_graph_lacks_is_found_at_load(colours: Bundle, backend: str) -> None:
    layer = colours.manifest.features[0].model_copy(update={"layer": "edges"})
    manifest = colours.manifest.model_copy(update={"features": (layer,)})
    with pytest.raises(BackendError, match=r"no output 'features\.edges'"):
        create_runner(replace(colours, manifest=manifest), backend=backend)


@every
def test_a_file_that_is_no_graph_is_a_backend_error(
    write_bundle: Callable[[], Path], backend: str
) -> None:
    path = write_bundle()
    bundle = Bundle.open(path)
    (path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot load the variant 'fp32'"):
        create_runner(bundle, backend=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "int4"}, "no variant 'int4'; the bundle has fp32"),
        ({"backend": "abacus"}, "no backend 'abacus'"),
        ({"device": "toaster"}, "no device 'toaster'"),
        ({"device": "toaster", "backend": "openvino"}, "no device 'toaster'"),
        ({"device": "toaster", "backend": "torch"}, "no device 'toaster'"),
        ({"device": "cuda:999", "backend": "torch"}, "no device 'cuda:999'; the number of GPUs"),
        ({"device": "cpu", "backend": "onnxruntime_tensorrt"}, "must be cuda or cuda:INDEX"),
    ],
)
def test_unknown_names_are_refused(colours: Bundle, options: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        create_runner(colours, **options)


@pytest.mark.parametrize(
    ("variant", "missing", "backend"),
    [
        ("fp32", None, "onnxruntime"),
        ("int8", None, "openvino"),
        ("int8", "openvino", "onnxruntime"),
    ],
)
def test_a_variant_gets_the_engine_that_runs_it_quickest(
    colours: Bundle,
    variant: str,
    missing: str | None,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(package: str) -> ModuleSpec | None:
        return None if package == missing else find_spec(package)

    monkeypatch.setattr(registry, "find_spec", find)
    (entry,) = colours.manifest.variants
    variants = (entry.model_copy(update={"name": variant}),)
    manifest = colours.manifest.model_copy(update={"variants": variants})
    with create_runner(replace(colours, manifest=manifest)) as runner:
        assert (runner.backend, runner.variant) == (backend, variant)


def test_an_engine_is_not_preferred_on_a_device_that_it_lacks(colours: Bundle) -> None:
    (entry,) = colours.manifest.variants
    variants = (entry.model_copy(update={"name": "int8"}),)
    manifest = colours.manifest.model_copy(update={"variants": variants})
    with pytest.raises(BackendError, match="which this ONNX Runtime lacks"):
        create_runner(replace(colours, manifest=manifest), device="cuda")


def test_a_missing_engine_names_the_line_that_installs_it(
    colours: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Backend(runner="nowhere:Runner", packages=("no_such_engine",), extra="abacus")
    monkeypatch.setattr(registry, "BACKENDS", {"abacus": missing})
    with pytest.raises(BackendError, match=r'pip install "foveate-runtime\[abacus\]"'):
        create_runner(colours)


def test_importing_the_server_imports_no_engine_and_no_torch() -> None:
    code = (
        "import sys, foveate_serve.rpc.server, foveate_serve.local\n"
        "print([m for m in ('onnxruntime', 'openvino', 'torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
