"""What is measured of what was asked for, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate_bench import plan
from foveate_bench.plan import Choice, ChoiceError, PlanError, make_plan, output_names
from foveate_runtime.backends import registry
from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import Backend
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import Golden
from foveate_runtime.cores import count_cores
from foveate_runtime.evaluation.labelled import LabelledError, NoPicturesError

from .conftest import CPU_ONLY


@pytest.fixture
def choice(golden_bundle: Path) -> Choice:
    return Choice(repository=golden_bundle.parents[1], models=("colours",), batches=(1, 3))


def test_what_is_not_chosen_is_everything_that_can_run_here(choice: Choice) -> None:
    found = make_plan(choice, CPU_ONLY)
    (model,) = found.models
    on_cpu = [name for name, backend in registry.BACKENDS.items() if "cpu" in backend.devices]
    assert [c.backend for c in model.configurations] == on_cpu
    assert {c.threads for c in model.configurations} == {count_cores()}
    assert model.outputs == ("logits", "cam", "features")
    assert {r.what for r in found.refusals} == registry.BACKENDS.keys() - set(on_cpu)


def test_threads_multiply_on_a_processor_and_not_on_a_gpu(choice: Choice) -> None:
    wanted = replace(choice, backends=("onnxruntime",), threads=(1, 2), devices=("cpu", "cuda:0"))
    (model,) = make_plan(wanted, CPU_ONLY).models
    assert [(c.device, c.threads) for c in model.configurations] == [
        ("cpu", 1),
        ("cpu", 2),
        ("cuda:0", count_cores()),
    ]


def test_a_gpu_is_measured_where_there_is_one(choice: Choice) -> None:
    machine = CPU_ONLY.model_copy(update={"gpus": ("a GPU, 1.0",)})
    (model,) = make_plan(replace(choice, backends=("torch",)), machine).models
    assert [c.device for c in model.configurations] == ["cpu", "cuda:0"]


def test_without_labelled_pictures_those_of_the_bundle_are_repeated(
    choice: Choice, colours_golden: Golden
) -> None:
    (model,) = make_plan(choice, CPU_ONLY).models
    assert model.labelled is None
    assert model.pictures == "2 colours"
    first, second = colours_golden.images
    np.testing.assert_array_equal(model.batch(3), [first, second, first])


def test_labelled_pictures_may_be_for_one_model(choice: Choice, labelled: Path) -> None:
    (model,) = make_plan(replace(choice, data={"colours": labelled}), CPU_ONLY).models
    assert model.labelled is not None
    assert len(model.labelled) == 4
    assert len(model.images) == 3
    (other,) = make_plan(replace(choice, data={"else": labelled}), CPU_ONLY).models
    assert other.labelled is None


def test_cases_rise_in_their_batch(choice: Choice) -> None:
    (model,) = make_plan(replace(choice, batches=(4, 1, 2)), CPU_ONLY).models
    assert [c.batch for c in model.cases(model.configurations[0], "cam")] == [1, 2, 4]


def test_outputs_that_a_graph_lacks_are_left_out(choice: Choice, colours: Bundle) -> None:
    plain = colours.manifest.model_copy(update={"cams": (), "features": ()})
    assert output_names("cam", colours.manifest) == ["logits", "cam.cam"]
    assert output_names("features", colours.manifest) == ["logits", "features.planes"]
    path = choice.repository / "colours" / "1" / "manifest.json"
    golden = Bundle.open(path.parent).manifest.golden
    path.write_text(
        plain.model_copy(
            update={"golden": golden, "files": Bundle.open(path.parent).manifest.files}
        ).model_dump_json(),
        encoding="utf-8",
    )
    found = make_plan(choice, CPU_ONLY)
    assert found.models[0].outputs == ("logits",)
    assert {r.what for r in found.refusals} >= {"colours, cam", "colours, features"}


def test_a_backend_chosen_that_is_not_installed_names_its_pip_line(
    choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Backend(runner="nowhere:Runner", packages=("no_such_engine",), extra="abacus")
    for module in (registry, plan):
        monkeypatch.setattr(module, "BACKENDS", {**registry.BACKENDS, "abacus": missing})
    with pytest.raises(BackendError, match=r'pip install "foveate-runtime\[abacus\]"'):
        make_plan(replace(choice, backends=("abacus",)), CPU_ONLY)
    refused = {r.what: r for r in make_plan(choice, CPU_ONLY).refusals}["abacus"]
    assert refused.reason == "the backend 'abacus' needs the package no_such_engine"
    assert refused.remedy == 'pip install "foveate-runtime[abacus]"'


def test_a_backend_that_none_of_the_devices_fits(choice: Choice) -> None:
    with pytest.raises(ChoiceError, match="'openvino': it runs on cpu, not on cuda:0"):
        make_plan(replace(choice, backends=("openvino",), devices=("cuda:0",)), CPU_ONLY)


def test_a_variant_that_is_missing_names_the_command_that_exports_it(choice: Choice) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(replace(choice, variants=("fp32", "int8")), CPU_ONLY)
    message = str(caught.value)
    assert "colours has no variant int8; it has fp32" in message
    assert f"--repository {choice.repository} --name colours" in message
    assert "--variants fp32,int8 --calibration DIR" in message


def test_an_unknown_model_names_those_that_there_are(choice: Choice) -> None:
    with pytest.raises(ChoiceError, match="holds no model 'colors'; there are colours"):
        make_plan(replace(choice, models=("colors",)), CPU_ONLY)
    with pytest.raises(ChoiceError, match="nowhere: no such folder"):
        make_plan(replace(choice, repository=choice.repository / "nowhere"), CPU_ONLY)


def test_labelled_folders_must_be_classes_of_the_model(choice: Choice, labelled: Path) -> None:
    (labelled / "blue").rename(labelled / "mauve")
    with pytest.raises(LabelledError, match=r"colours: .*mauve: neither a label, .* MODEL=DIR"):
        make_plan(replace(choice, data={"": labelled}), CPU_ONLY)
    with pytest.raises(NoPicturesError, match="nothing: no such folder"):
        make_plan(replace(choice, data={"": labelled / "nothing"}), CPU_ONLY)


def test_a_bundle_without_pictures_needs_some(write_bundle: Callable[[], Path]) -> None:
    repository = write_bundle().parents[1]
    with pytest.raises(PlanError, match=r"keeps no pictures to measure on.*--data"):
        make_plan(Choice(repository=repository, models=("colours",)), CPU_ONLY)
