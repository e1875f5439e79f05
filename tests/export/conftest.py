"""Bundles of real classifiers, exported once and compared by many tests."""

import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from numpy.typing import NDArray
from torch import nn

from foveate_export import exporter
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import export
from foveate_export.pictures import Pictures, from_folder
from foveate_export.publish.bundle import Exported
from foveate_export.publish.variants.calibration import Calibration, open_calibration
from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.evaluation.labelled import Labelled, open_labelled
from foveate_train import registry
from foveate_train.classifier import Classifier
from foveate_train.networks.digits import DIGITS, MNIST_INPUT

from ..once import made_once

IMAGENET_DIR = os.environ.get("FOVEATE_IMAGENET_DIR")
"""A folder of photographs, one folder a class; adds to those of scikit-image."""

CALIBRATION_DIR = os.environ.get("FOVEATE_CALIBRATION_DIR")
"""A folder of other photographs, to calibrate int8 on in place of those of scikit-image."""

COMPARED = 8
"""How many photographs the export itself compares; the tests compare the others."""

SHIPPED = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="session")
def lite0() -> Classifier:
    return registry.create("package:efficientnet_lite0")


@pytest.fixture(scope="session")
def photographs(lite0: Classifier) -> Pictures:
    shipped = for_classifier(lite0)
    if IMAGENET_DIR is None:
        return shipped
    more = from_folder(Path(IMAGENET_DIR), lite0.input)
    images = np.concatenate([shipped.images, more.images])
    return Pictures(images, f"{shipped.description}, {more.description}")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="session")
def labelled_photographs(lite0: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    if IMAGENET_DIR is not None:
        return open_labelled(IMAGENET_DIR, lite0.labels)
    folder = tmp_path_factory.mktemp("photographs")
    for label, file in (("espresso", "coffee.png"), ("missile", "rocket.jpg")):
        (folder / label).mkdir()
        shutil.copy(SHIPPED / file, folder / label)
    return open_labelled(str(folder), lite0.labels)


@pytest.fixture(scope="session")
def calibration(lite0: Classifier) -> Calibration:
    if CALIBRATION_DIR is not None:
        return open_calibration(CALIBRATION_DIR, lite0)
    shipped = for_classifier(lite0)
    return Calibration(shipped.images, shipped.description)


@pytest.fixture(scope="session")
def lite0_export(
    lite0: Classifier,
    photographs: Pictures,
    labelled_photographs: Labelled,
    calibration: Calibration,
    *,
    imagenet_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """EfficientNet-Lite0 in three precisions, which all processes of a run share.

    Its graph is the one that is in `imagenet_repository`, as writing one takes the longest.
    """
    written = imagenet_repository / "efficientnet_lite0" / "1" / "model.onnx"

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                exporter, "write_onnx", lambda graph, spec, path: shutil.copy(written, path)
            )
            exported = export(
                lite0,
                repository=folder / "models",
                name="lite0",
                pictures=Pictures(photographs.images[:COMPARED], photographs.description),
                variants=["fp32", "fp16", "int8"],
                labelled=labelled_photographs,
                calibration=calibration,
            )
        (folder / "note").write_bytes(pickle.dumps((exported.manifest, exported.note)))

    folder = made_once(tmp_path_factory, "lite0", make)
    manifest, note = pickle.loads((folder / "note").read_bytes())  # noqa: S301 - our own
    return Exported(folder / "models" / "lite0" / "1", manifest, note)


@pytest.fixture(scope="session")
def lite0_runner(lite0_export: Exported) -> Runner:
    return _open_runner(lite0_export)


@pytest.fixture(scope="session")
def convnet4() -> Classifier:
    return registry.create("foveate:convnet4", weights="random:3")


@pytest.fixture(scope="session")
def digits(convnet4: Classifier) -> Pictures:
    pictures = for_classifier(convnet4)
    assert pictures.description == "MNIST test digits"
    return pictures


@pytest.fixture(scope="session")
def convnet4_export(convnet4: Classifier, digits: Pictures, repository: Path) -> Exported:
    return export(
        convnet4,
        repository=repository,
        name="convnet4",
        pictures=digits,
        metadata={"metrics.test_accuracy": "0.1"},
    )


@pytest.fixture(scope="session")
def lenet5_export(digits: Pictures, repository: Path) -> Exported:
    lenet5 = registry.create("foveate:lenet5", weights="random:0")
    return export(lenet5, repository=repository, name="lenet5", pictures=digits)


@pytest.fixture(scope="session")
def open_runner() -> Callable[[Exported], Runner]:
    return _open_runner


def _open_runner(exported: Exported) -> Runner:
    return create_runner(Bundle.open(exported.path), threads=2, backend="onnxruntime")


@pytest.fixture(scope="session")
def digit_classifier() -> Callable[[nn.Module], Classifier]:
    """Make a classifier of MNIST's digits of any network."""

    def make(module: nn.Module) -> Classifier:
        return Classifier(
            name="test:network",
            arguments={},
            module=module.eval(),
            input=MNIST_INPUT,
            labels=DIGITS,
        )

    return make


@pytest.fixture(scope="session")
def autograd_cam() -> Callable[[nn.Module, str, torch.Tensor, Sequence[int]], NDArray[np.float32]]:
    """Compute the map of one class a picture by PyTorch's own hooks and backward pass.

    It is Grad-CAM before its ReLU, with the gradients summed over space and not
    averaged: float32 [N, h, w].
    """

    def compute(
        module: nn.Module, layer: str, pixels: torch.Tensor, classes: Sequence[int]
    ) -> NDArray[np.float32]:
        kept: list[torch.Tensor] = []

        def keep(_: nn.Module, inputs: object, output: torch.Tensor) -> None:
            kept.append(output)

        handle = module.get_submodule(layer).register_forward_hook(keep)
        try:
            logits = module(pixels.clone().requires_grad_())
        finally:
            handle.remove()
        scores = logits[torch.arange(len(pixels)), torch.as_tensor(classes)]
        (activations,) = kept
        (gradient,) = torch.autograd.grad(scores.sum(), activations)
        weights = gradient.sum((2, 3), keepdim=True)
        cam: NDArray[np.float32] = (weights * activations).sum(1).detach().numpy()
        return cam

    return compute
