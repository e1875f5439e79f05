"""Every engine gives the same answers from the same bundle: those of torch, within tolerances."""

from pathlib import Path

import numpy as np
import pytest

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import open_golden

BACKENDS = ("onnxruntime", "openvino", "torch")

TOLERANCE = 1e-4
"""Of the largest value of an output. Measured: 2e-6 on EfficientNet-Lite0."""


@pytest.fixture(scope="module")
def lite0(imagenet_repository: Path) -> Bundle:
    return Bundle.open(imagenet_repository / "efficientnet_lite0" / "1")


@pytest.fixture(scope="module", params=BACKENDS)
def runner(request: pytest.FixtureRequest, lite0: Bundle) -> Runner:
    with create_runner(lite0, backend=request.param, threads=2) as runner:
        yield runner


def test_photographs_get_the_answers_of_torch(lite0: Bundle, runner: Runner) -> None:
    golden = open_golden(lite0)
    assert len(golden.images) >= 2
    assert set(golden.outputs) == set(runner.outputs)
    errors = golden.errors(runner.run, "largest")
    assert max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("outputs", [["logits"], ["cam.cam"], ["features.blocks.2", "logits"]])
def test_an_output_is_the_same_whatever_is_wanted_beside_it(
    lite0: Bundle, runner: Runner, outputs: list[str]
) -> None:
    golden = open_golden(lite0)
    together = runner.run(golden.inputs, list(runner.outputs))
    explained = any(name.startswith("cam.") for name in outputs)
    inputs = golden.inputs if explained else {"image": golden.images}
    alone = runner.run(inputs, outputs)
    assert list(alone) == outputs
    for name in outputs:
        scale = np.abs(together[name]).max()
        np.testing.assert_allclose(alone[name] / scale, together[name] / scale, atol=TOLERANCE)
