"""The maps against those of pytorch-grad-cam, which runs in an environment of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate_export.anatomy.pixels import normalise
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import examine
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.proof.comparison import relative_error
from foveate_train import registry

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).with_name("uv")
CLASSES = np.array([[285, 3], [7, 285]])

SCRIPT = """
import json, sys
import numpy as np, torch, torchvision
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
name, layer, folder, classes = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
model = getattr(torchvision.models, name)()
model.load_state_dict(torch.load(f"{folder}/{name}.pth"))
model.eval()
x = torch.from_numpy(np.load(f"{folder}/pixels.npy"))
found = {}
for method in (GradCAM, HiResCAM, LayerCAM):
    target = model.get_submodule(layer)
    with method(model=model, target_layers=[target]) as cam:
        maps = []
        for column in zip(*classes):
            targets = [ClassifierOutputTarget(c) for c in column]
            cam(input_tensor=x, targets=targets)
            # The map before the library resizes and normalises it.
            activations = cam.activations_and_grads.activations[0].numpy()
            gradients = cam.activations_and_grads.gradients[0].numpy()
            maps.append(cam.get_cam_image(x, target, targets, activations, gradients, False))
    found[method.__name__.lower()] = np.stack(maps, 1)
np.savez(f"{folder}/maps.npz", **found)
"""


@pytest.fixture(scope="module")
def grad_cam_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with torch as it is here and grad-cam."""
    folder = tmp_path_factory.mktemp("grad-cam") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            *(UV, "pip", "install", "--quiet", "--python", python),
            *("--constraint", ROOT / "constraints.txt", "torch", "torchvision", "grad-cam"),
        ],
        check=True,
    )
    return python


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("squeezenet1_1", "features"), ("alexnet", "features")],
)
def test_maps_equal_those_of_pytorch_grad_cam(
    name: str, layer: str, tmp_path: Path, grad_cam_python: Path
) -> None:
    classifier = registry.create(f"torchvision:{name}", weights="random:0")
    images = for_classifier(classifier).images[:2]
    torch.save(classifier.module.state_dict(), tmp_path / f"{name}.pth")
    np.save(tmp_path / "pixels.npy", normalise(images, classifier.input).numpy())
    arguments = [name, layer, tmp_path, json.dumps(CLASSES.tolist())]
    subprocess.run(
        [grad_cam_python, "-c", SCRIPT, *arguments],
        check=True,
        env={"PYTHONWARNINGS": "ignore", "MPLCONFIGDIR": str(tmp_path)},
    )
    theirs = np.load(tmp_path / "maps.npz")

    head = examine(classifier).head
    graph = ExplainedClassifier(classifier.module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.from_numpy(CLASSES))
    ours = {key: value.numpy() for key, value in zip(graph.output_names, outputs, strict=True)}
    expected = {
        # The library clips Grad-CAM and LayerCAM later; HiResCAM has no ReLU here.
        "gradcam": np.maximum(theirs["gradcam"], 0),
        "hirescam": theirs["hirescam"],
        "layercam": np.maximum(theirs["layercam"], 0),
    }
    for method, maps in expected.items():
        assert str(head.targets[method].tap) == layer
        assert np.abs(maps).max() > 0
        assert relative_error(ours[f"cam.{method}"], maps, (2, 3)) < 1e-4, method
