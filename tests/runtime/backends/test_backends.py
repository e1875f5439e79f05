"""A backend runs what the graph contract says, and says clearly what it does not."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

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
