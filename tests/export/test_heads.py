import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.errors import UnsupportedHeadError
from foveate_export.heads import find_head
from foveate_export.taps import Tap, record, tapped
from foveate_train import registry


def find(module: nn.Module, size: int = 64, channels: int = 3):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return find_head(*record(module, torch.randn(2, channels, size, size, generator=generator)))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision:resnet18", "layer4"),
        ("torchvision:mobilenet_v2", "features"),
        ("torchvision:densenet121", "features"),
        ("torchvision:shufflenet_v2_x0_5", "conv5"),
        ("timm:resnet18", "layer4"),
        ("timm:tf_efficientnet_lite0", "bn2"),
        ("timm:mobilenetv1_100", "blocks"),
    ],
)
def test_the_activations_before_the_pooling_are_found(name: str, layer: str) -> None:
    module = registry.create(name, weights="random:0").module
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 64, 64, generator=generator)

    head = find(module)
    with torch.no_grad(), tapped(module, head.taps) as tensors:
        logits = module(image)
        classes = torch.tensor([[0, 7, 999], [5, 5, 1]])
        maps = head.maps(tensors, classes)["cam"]

    assert str(head.activations) == layer
    assert maps.shape == (2, 3, *head.size)
    bias = next(b for n, b in reversed(list(module.named_parameters())) if n.endswith("bias"))
    torch.testing.assert_close(
        maps.mean((2, 3)) + bias[classes], logits.gather(1, classes), rtol=1e-4, atol=1e-5
    )


class ConvolutionalHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.relu(self.stem(x)).mean((2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1)


class PooledByModule(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.pool = pool
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(functional.relu(self.stem(x))).flatten(1))


class ScaledLogits(PooledByModule):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_functional_activation_is_found_as_the_input_of_the_pooling() -> None:
    head = find(PooledByModule(nn.AdaptiveAvgPool2d(1)))
    assert head.activations == Tap("pool", "input")
    assert str(head.activations) == "pool (input)"


def test_a_convolution_of_one_cell_counts_as_linear() -> None:
    module = ConvolutionalHead()
    module.stem = nn.Sequential(module.stem, nn.ReLU())
    assert find(module).activations == Tap("stem")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (PooledByModule(nn.AdaptiveMaxPool2d(1)), "'fc', is not the spatial mean"),
        (ConvolutionalHead(), "'classifier', is not the spatial mean"),
        (ScaledLogits(nn.AdaptiveAvgPool2d(1)), "no linear layer returns the logits"),
    ],
)
def test_another_head_is_refused_with_the_reason(module: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedHeadError, match="this head is not supported yet: .*" + reason):
        find(module)


def test_a_flattened_map_is_no_pooling() -> None:
    lenet5 = registry.create("foveate:lenet5", weights="random:0").module
    with pytest.raises(UnsupportedHeadError, match="'output', is not the spatial mean"):
        find(lenet5, size=28, channels=1)


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
