"""The maps against those of pytorch-grad-cam, TorchCAM and Captum, in their own environment."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from foveate_export.anatomy.pixels import normalise
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import examine
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.proof.comparison import relative_error
from foveate_train import registry
from foveate_train.classifier import Classifier

from ...environment import make_environment

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[3]
CLASSES = np.array([[0, 3, 9], [5, 5, 1]])

IMPORTS = """
import json, sys
import numpy as np, torch, torchvision
from captum.attr import LayerGradCam, LayerGradientXActivation
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import LeGrad
made, layer, folder, classes = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
model = eval("torchvision.models." + made)
model.load_state_dict(torch.load(f"{folder}/weights.pth"))
model.eval()
x = torch.from_numpy(np.load(f"{folder}/pixels.npy"))
target = model.get_submodule(layer)

def by_grad_cam(method, reshape=None):
    with method(model=model, target_layers=[target], reshape_transform=reshape) as cam:
        maps = []
        for column in zip(*classes):
            targets = [ClassifierOutputTarget(c) for c in column]
            cam(input_tensor=x, targets=targets)
            # The map before the library resizes and normalises it.
            activations = cam.activations_and_grads.activations[0].numpy()
            gradients = cam.activations_and_grads.gradients[0].numpy()
            maps.append(cam.get_cam_image(x, target, targets, activations, gradients, False))
    return np.stack(maps, 1)

def by_captum(method, **options):
    maps = [method(model, target).attribute(x, target=list(c), **options) for c in zip(*classes)]
    return [each.detach() for each in maps]

methods = (GradCAM, HiResCAM, LayerCAM)
"""

CONVOLUTIONS = (
    IMPORTS
    + """
found = {each.__name__.lower(): by_grad_cam(each) for each in methods}
found["captum gradcam"] = torch.cat(by_captum(LayerGradCam), 1).numpy()
products = by_captum(LayerGradientXActivation)
found["captum hirescam"] = torch.stack([each.sum(1) for each in products], 1).numpy()
np.savez(f"{folder}/maps.npz", **found)
"""
)

TOKENS = (
    IMPORTS
    + """
def fold(tokens):
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].unflatten(1, (side, side)).movedim(-1, 1)

found = {each.__name__.lower(): by_grad_cam(each, fold) for each in methods}
products = by_captum(LayerGradientXActivation)
found["captum hirescam"] = torch.stack([fold(each).sum(1) for each in products], 1).numpy()
blocks = list(model.encoder.layers)
# As this head reads a block's tokens; the library's own would average them.
score = lambda tokens: model.heads(model.encoder.ln(tokens)[:, 0])
with LeGrad(model, blocks, score_projection=score) as cam:
    maps = []
    for column in zip(*classes):
        layers = cam(list(column), model(x), normalized=False)
        # The mean over the blocks; the method is their sum.
        maps.append(len(blocks) * layers[0].detach())
found["legrad"] = torch.stack(maps, 1).numpy()
np.savez(f"{folder}/maps.npz", **found)
"""
)


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with torch as it is here and the other libraries."""
    packages = ("torch", "torchvision", "grad-cam", "torchcam>=0.5", "captum")
    constrained = ("--constraint", ROOT / "constraints.txt")
    folder = tmp_path_factory.mktemp("oracles") / "venv"
    return make_environment(folder, *constrained, *packages)


def theirs(
    python: Path,
    script: str,
    *,
    made: str,
    layer: str,
    module: nn.Module,
    pixels: Tensor,
    folder: Path,
) -> dict[str, NDArray[np.float32]]:
    """Return the maps of the other libraries, [N, K, h, w], by library and method."""
    torch.save(module.state_dict(), folder / "weights.pth")
    np.save(folder / "pixels.npy", pixels.numpy())
    subprocess.run(
        [python, "-c", script, made, layer, folder, json.dumps(CLASSES.tolist())],
        check=True,
        env={"PYTHONWARNINGS": "ignore", "MPLCONFIGDIR": str(folder)},
    )
    with np.load(folder / "maps.npz") as maps:
        return dict(maps)


def compare(classifier: Classifier, layer: str, expected: dict[str, NDArray[np.float32]]) -> None:
    """Compare the maps of this exporter's graph with those of other libraries."""
    images = for_classifier(classifier).images[:2]
    head = examine(classifier).head
    assert head is not None
    graph = ExplainedClassifier(classifier.module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.from_numpy(CLASSES))
    ours = {key: value.numpy() for key, value in zip(graph.output_names, outputs, strict=True)}
    for name, maps in expected.items():
        method = name.rpartition(" ")[2]
        assert method == "legrad" or str(head.targets[method].tap) == layer
        # The libraries clip Grad-CAM and LayerCAM later; HiResCAM has no ReLU here.
        wanted = maps if method == "hirescam" else np.maximum(maps, 0)
        assert np.abs(wanted).max() > 0, name
        assert relative_error(ours[f"cam.{method}"], wanted, (2, 3)) < 1e-4, name


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("squeezenet1_1", "features"), ("alexnet", "features")],
)
def test_maps_of_convolutions_equal_those_of_other_libraries(
    name: str, layer: str, tmp_path: Path, other_python: Path
) -> None:
    classifier = registry.create(f"torchvision:{name}", weights="random:0")
    pixels = normalise(for_classifier(classifier).images[:2], classifier.input)
    found = theirs(
        other_python, CONVOLUTIONS, made=f"{name}()", layer=layer,
        module=classifier.module, pixels=pixels, folder=tmp_path,
    )  # fmt: skip
    compare(classifier, layer, found)


class Grey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = VisionTransformer(28, 7, 3, 3, 24, 48, num_classes=10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.expand(-1, 3, -1, -1))
        return logits


def test_maps_of_tokens_equal_those_of_other_libraries(
    tmp_path: Path, other_python: Path, digit_classifier
) -> None:
    torch.manual_seed(0)
    module = Grey()
    # As initialised, many weights are so small that the classes hardly differ.
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, 0.3)
    classifier = digit_classifier(module)
    pixels = normalise(for_classifier(classifier).images[:2], classifier.input)
    layer = "encoder.layers.encoder_layer_2.ln_1"
    made = "VisionTransformer(28, 7, 3, 3, 24, 48, num_classes=10)"
    found = theirs(
        other_python, TOKENS, made=made, layer=layer, module=module.network,
        pixels=pixels.expand(-1, 3, -1, -1).contiguous(), folder=tmp_path,
    )  # fmt: skip
    assert "legrad" in found
    compare(classifier, f"network.{layer}", found)
