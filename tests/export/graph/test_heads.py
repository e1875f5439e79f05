"""Which head a network has, and its maps against PyTorch's automatic differentiation.

The graph's module runs in torch here, which takes a second a network where an
export takes ten; what ONNX makes of it is compared in test_graph.py.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.anatomy.recording import record
from foveate_export.anatomy.taps import Tap, tapped
from foveate_export.default_pictures import for_classifier
from foveate_export.errors import UnknownLayerError, UnsupportedHeadError
from foveate_export.exporter import examine
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.forward import HookedNetwork
from foveate_export.graph.heads import (
    ClassMap,
    Differentiated,
    Head,
    Joined,
    PooledLinear,
    Target,
    find_head,
)
from foveate_export.proof.comparison import relative_error
from foveate_export.proof.reference import answer
from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.classifier import Classifier
from foveate_train.networks import plain10

METHODS = ("gradcam", "hirescam", "layercam")
CLASSES = np.array([[0, 3, 9], [5, 5, 1]])


def find(module: nn.Module, size: int = 64, layer: str | None = None) -> Head:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, size, size, generator=generator)
    with torch.no_grad():
        return find_head(record(module, image), layer)


def described(head: Head) -> dict[str, tuple[str, int]]:
    return {method: (str(target.tap), target.height) for method, target in head.targets.items()}


def photographs(spec: InputSpec) -> np.ndarray:
    pictures = [Image.fromarray(picture()) for picture in (data.chelsea, data.astronaut)]
    return np.stack([np.asarray(each.resize((spec.width, spec.height))) for each in pictures])


def errors(classifier: Classifier, images: np.ndarray, head: Head) -> dict[str, float]:
    """Compare the maps that the graph's module computes with those of autograd, class by class."""
    graph = ExplainedClassifier(classifier.module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.from_numpy(CLASSES))
    got = dict(zip(graph.output_names, outputs, strict=True))
    expected = answer(classifier, images, head=head, classes=CLASSES)
    assert expected.cams.keys() == set(head.methods)
    for maps in expected.cams.values():
        assert np.abs(maps).max() > 0, "maps of nothing would be equal whatever the code does"
    return {
        method: relative_error(got[f"cam.{method}"].numpy(), maps, (2, 3))
        for method, maps in expected.cams.items()
    }


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision:resnet18", "layer4"),
        ("torchvision:mobilenet_v2", "features"),
        ("torchvision:densenet121", "features"),
        ("torchvision:shufflenet_v2_x0_5", "conv5"),
        ("torchvision:googlenet", "inception5b"),
        ("timm:resnet18", "layer4"),
        ("timm:tf_efficientnet_lite0", "bn2"),
        ("timm:mobilenetv1_100", "blocks"),
        ("timm:legacy_seresnet18", "layer4"),
    ],
)
def test_the_activations_before_the_pooling_are_found(name: str, layer: str) -> None:
    module = registry.create(name, weights="random:0").module
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 64, 64, generator=generator)

    head = find(module)
    with torch.no_grad():
        forward = head.network([])(image)
        classes = torch.tensor([[0, 7, 999], [5, 5, 1]])
        maps = head.maps(forward, classes)["cam"]

    assert isinstance(head, PooledLinear)
    assert head.methods == ("cam", *METHODS)
    assert {str(target.tap) for target in head.targets.values()} == {layer}
    bias = next(b for n, b in reversed(list(module.named_parameters())) if n.endswith("bias"))
    torch.testing.assert_close(
        maps.mean((2, 3)) + bias[classes], forward.logits.gather(1, classes), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "targets"),
    [
        (
            "torchvision:resnet18",
            {},
            PooledLinear,
            {"cam": ("layer4", 7), "gradcam": ("layer4", 7)},
        ),
        (
            "torchvision:squeezenet1_1",
            {},
            ClassMap,
            {"cam": ("classifier.2", 13), "gradcam": ("features", 13)},
        ),
        ("foveate:nin", {}, ClassMap, {"cam": ("mlp4", 6), "gradcam": ("mlp4.3", 6)}),
        ("torchvision:alexnet", {}, Differentiated, {"gradcam": ("features", 6)}),
        ("foveate:alexnet", {}, Differentiated, {"gradcam": ("pool5", 6)}),
    ],
)
def test_maps_of_photographs_equal_autograd(
    name: str, arguments: dict[str, int], kind: type[Head], targets: dict[str, tuple[str, int]]
) -> None:
    classifier = registry.create(name, weights="random:0", **arguments)
    head = examine(classifier).head
    assert isinstance(head, kind)
    assert targets.items() <= described(head).items()
    for method, error in errors(classifier, photographs(classifier.input), head).items():
        assert error < 1e-4, method


@pytest.mark.parametrize(
    ("name", "layer", "kind", "size"),
    [
        ("foveate:lenet5", None, Differentiated, 10),
        ("foveate:lenet5", "c1", Differentiated, 28),
        ("foveate:keras_cnn", None, Differentiated, 5),
        ("foveate:keras_cnn", "conv2", Differentiated, 11),
        ("foveate:keras_cnn", "pool1", Differentiated, 13),
        ("foveate:convnet4", "layer4", PooledLinear, 7),
        ("foveate:convnet4", "layer2", Joined, 14),
    ],
)
def test_maps_of_digits_equal_autograd(
    name: str, layer: str | None, kind: type[Head], size: int
) -> None:
    classifier = registry.create(name, weights="random:0")
    head = examine(classifier, layer).head
    assert isinstance(head, kind)
    assert head.targets["gradcam"].height == size
    assert ("cam" in head.methods) == (name == "foveate:convnet4")
    assert head.selects == (layer in {"conv2", "pool1", "layer2"}), "a max-pooling follows"
    images = for_classifier(classifier).images[:2]
    for method, error in errors(classifier, images, head).items():
        assert error < 1e-4, method


@pytest.mark.parametrize("activation", get_args(plain10.Activation))
def test_every_activation_of_the_study_is_differentiated(activation: str) -> None:
    classifier = registry.create("foveate:plain10", weights="random:0", activation=activation)
    head = examine(classifier, "layers.7").head
    assert isinstance(head, Joined)
    assert head.selects == (activation == "maxout")
    images = for_classifier(classifier).images[:2]
    for method, error in errors(classifier, images, head).items():
        assert error < 1e-4, method


class TwoLayers(nn.Module):
    """Ends as MobileNetV3 does, whose tracing takes ten times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.SiLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(16, 20), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(20, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        maps = maps * self.gate(maps)
        sums = self.block(maps)
        sums += maps
        maps = torch.cat([functional.leaky_relu(sums), -sums], 1)
        return self.classifier(self.avgpool(maps).flatten(1))


@pytest.mark.parametrize("layer", [None, "features", "block"])
def test_what_stands_between_is_differentiated(layer: str | None, digit_classifier) -> None:
    torch.manual_seed(0)
    classifier = digit_classifier(TwoLayers())
    head = examine(classifier, layer).head
    assert described(head)["gradcam"] == (layer or "avgpool (input)", 12)
    images = for_classifier(classifier).images[:2]
    for method, error in errors(classifier, images, head).items():
        assert error < 1e-4, method


@pytest.mark.parametrize("layer", [None, "layers.21"])
def test_a_board_is_its_own_class_map(layer: str | None) -> None:
    classifier = registry.create("foveate:go_policy", weights="random:0", filters=128)
    with torch.no_grad():
        classifier.module.bias.normal_(generator=torch.Generator().manual_seed(0))
    boards = (np.random.default_rng(0).random((2, 19, 19, 48)) < 0.2).astype(np.uint8)
    head = examine(classifier, layer).head
    assert isinstance(head, ClassMap if layer is None else Joined)
    for method, error in errors(classifier, boards, head).items():
        assert error < 1e-4, method

    graph = ExplainedClassifier(classifier.module, classifier.input, head, []).eval()
    with torch.no_grad():
        logits, cam, *_ = graph(torch.from_numpy(boards), torch.from_numpy(CLASSES))
        bias = classifier.module.bias
    board = (logits - bias).reshape(2, 1, 19, 19).expand(2, 3, 19, 19)
    torch.testing.assert_close(cam, board, rtol=1e-4, atol=1e-6)


class ConvolutionalHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.stem(x).mean((2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1)


class PooledByModule(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.pool = pool
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(functional.relu(self.stem(x))).flatten(1))


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(2).values


class ScaledLogits(PooledByModule):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_functional_activation_is_found_as_the_input_of_the_pooling() -> None:
    head = find(PooledByModule(nn.AdaptiveAvgPool2d(1)))
    assert head.targets["cam"] == Target(Tap("pool", "input"), 62, 62)
    assert str(head.targets["cam"].tap) == "pool (input)"


def test_a_convolution_of_one_cell_counts_as_linear() -> None:
    module = ConvolutionalHead()
    module.stem = nn.Sequential(module.stem, nn.ReLU())
    head = find(module)
    assert isinstance(head, PooledLinear)
    assert head.targets["cam"].tap == Tap("stem")


def test_a_head_that_is_no_pooling_is_differentiated() -> None:
    head = find(ScaledLogits(nn.AdaptiveAvgPool2d(1)))
    assert isinstance(head, Differentiated)
    assert described(head) == dict.fromkeys(METHODS, ("pool (input)", 62))


@pytest.mark.parametrize(
    ("module", "reasons"),
    [
        (
            PooledByModule(nn.Sequential(nn.AdaptiveMaxPool2d((5, 1)), nn.AvgPool2d((5, 1)))),
            ["'fc', is not the spatial mean", "adaptive_max_pool2d in pool.0 cannot be"],
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(2), Sorted(), nn.Flatten(),
                          nn.Linear(256, 4)),
            ["'4', is not the spatial mean", "sort in 2 cannot be differentiated: there is no"],
        ),
    ],
)  # fmt: skip
def test_another_head_is_refused_with_the_reasons(module: nn.Module, reasons: list[str]) -> None:
    with pytest.raises(UnsupportedHeadError, match="this head is not supported: ") as caught:
        find(module)
    for reason in reasons:
        assert reason in str(caught.value)


def test_a_layer_must_lead_to_the_logits_and_be_a_map() -> None:
    class SideBranch(PooledByModule):
        def __init__(self) -> None:
            super().__init__(nn.AdaptiveAvgPool2d(1))
            self.side = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.side(x)
            return super().forward(x)

    with pytest.raises(UnsupportedHeadError, match="the logits do not depend on side"):
        find(SideBranch(), layer="side")
    with pytest.raises(UnknownLayerError, match="'fc' gives no feature map"):
        find(SideBranch(), layer="fc")


def test_a_gradient_needs_a_traced_pass() -> None:
    module = ScaledLogits(nn.AdaptiveAvgPool2d(1))
    head = find(module)
    forward = HookedNetwork(module, head.taps)(torch.zeros(1, 3, 64, 64))
    with pytest.raises(TypeError, match="the head's own network"):
        head.maps(forward, torch.zeros(1, 1, dtype=torch.int64))


def hooks(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) for child in module.modules())


def test_no_hook_remains_even_after_an_exception() -> None:
    module = PooledByModule(nn.AdaptiveAvgPool2d(1))
    with pytest.raises(RuntimeError), tapped(module, [Tap("stem")]):
        module(torch.zeros(1, 5, 8, 8))
    with pytest.raises(RuntimeError):
        record(module, torch.zeros(1, 5, 8, 8))
    with pytest.raises(AttributeError), tapped(module, [Tap("stem"), Tap("nowhere")]):
        pass
    assert hooks(module) == 0
