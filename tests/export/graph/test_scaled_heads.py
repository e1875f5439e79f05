"""Heads that divide by a size of this pass, and weights that are computed of others."""

import pytest
import torch
from timm.layers import NormMlpClassifierHead, RmsNorm
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from foveate_export.anatomy.logits import as_logits
from foveate_export.anatomy.parametrised import with_plain_weights
from foveate_export.anatomy.taps import Tap
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import examine
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.heads import Differentiated, Joined, PooledLinear, PooledScaled
from foveate_export.proof.comparison import relative_error
from foveate_export.proof.reference import answer

CLASSES = torch.tensor([[0, 3, 9], [5, 5, 1]])


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 16 * functional.linear(functional.normalize(x), functional.normalize(self.weight))


class Doubled(nn.Linear):
    """A linear layer by name, and by what it computes, but for a factor."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, 2 * self.weight)


class Net(nn.Module):
    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 5, stride=3), nn.ReLU())
        self.head = nn.Sequential(*head)
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


class OnMaps(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def checked(classifier, kind: type, cam_layer: str | None = None) -> dict[str, Tensor]:
    """Compare the maps with autograd's, and return the graph's outputs."""
    head = examine(classifier, cam_layer).head
    assert isinstance(head, kind), head
    images = for_classifier(classifier).images[:2]
    graph = ExplainedClassifier(classifier.module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = dict(
            zip(graph.output_names, graph(torch.from_numpy(images), CLASSES), strict=True)
        )
    layers = [Tap("stem.0")]
    expected = answer(classifier, images, layers=layers, head=head, classes=CLASSES.numpy())
    assert expected.features.keys() == {"stem.0"}
    for method, maps in expected.cams.items():
        assert abs(maps).max() > 0
        assert relative_error(outputs[f"cam.{method}"].numpy(), maps, (2, 3)) < 1e-4, method
    return outputs


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        (Net(nn.LayerNorm(12, eps=1e-3), nn.Linear(12, 10)), lambda m: m.head[1](m.head[0].bias)),
        (Net(nn.LayerNorm(12, elementwise_affine=False), nn.Linear(12, 10)),
         lambda m: m.head[1].bias),
        (Net(nn.RMSNorm(12), nn.Linear(12, 10)), lambda m: m.head[1].bias),
        (Net(RmsNorm(12), nn.Linear(12, 10, bias=False)), lambda m: torch.zeros(10)),
        (OnMaps(NormMlpClassifierHead(12, 10)),
         lambda m: m.head[0].fc(m.head[0].norm.bias)),
        (Net(Cosine(12, 10, bias=False)), lambda m: torch.zeros(10)),
    ],
)  # fmt: skip
def test_the_map_sums_to_the_logit_with_the_size_held(module, constant, digit_classifier) -> None:
    outputs = checked(digit_classifier(module), PooledScaled)
    with torch.no_grad():
        sums = outputs["cam.cam"].mean((2, 3)) + constant(module)[CLASSES]
    torch.testing.assert_close(sums, outputs["logits"].gather(1, CLASSES), rtol=1e-4, atol=1e-4)
    # Of this one the gradient knows that the size follows the cells.
    cells = outputs["cam.cam"].shape[2] * outputs["cam.cam"].shape[3]
    assert not torch.allclose(outputs["cam.hirescam"] * cells, outputs["cam.cam"], rtol=1e-2)


@pytest.mark.parametrize(
    "module",
    [
        Net(Doubled(12, 10)),
        Net(nn.LayerNorm(12), nn.Linear(12, 6), nn.GELU(), nn.Linear(6, 10)),
        OnMaps(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    ],
)
def test_other_heads_are_differentiated(module, digit_classifier) -> None:
    assert "cam.cam" not in checked(digit_classifier(module), Differentiated)


@pytest.mark.parametrize(
    "module",
    [Net(nn.LayerNorm(12), nn.Linear(12, 10)), Net(Cosine(12, 10, bias=False))],
)
def test_an_earlier_layer_leaves_the_map_of_the_last_one(module, digit_classifier) -> None:
    classifier = digit_classifier(module)
    outputs = checked(classifier, Joined, "stem.0")
    same = checked(classifier, PooledScaled)
    torch.testing.assert_close(outputs["cam.cam"], same["cam.cam"])


class ConcatPool(Net):
    """fastai's head."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        pools = functional.adaptive_max_pool2d(maps, 1), functional.adaptive_avg_pool2d(maps, 1)
        return self.head(torch.cat(pools, 1).flatten(1))


def test_a_concat_pool_is_differentiated(digit_classifier) -> None:
    head = nn.BatchNorm1d(24), nn.Linear(24, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 10)
    checked(digit_classifier(ConcatPool(*head)), Differentiated)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    "normed",
    [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm],
)
def test_a_computed_weight_is_a_plain_one(normed, digit_classifier) -> None:
    module = Net(normed(nn.Linear(12, 10))).eval()
    module.stem[0] = normed(module.stem[0]).eval()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(x)
        plain = with_plain_weights(module)
        torch.testing.assert_close(plain(x), expected)
        torch.testing.assert_close(module(x), expected)
    assert set(plain.state_dict()) >= {"stem.0.weight", "head.0.weight", "head.0.bias"}
    classifier = digit_classifier(module)
    classifier, _ = as_logits(classifier, for_classifier(classifier).images[:8])
    checked(classifier, PooledLinear)


def test_a_network_of_plain_weights_stays_what_it_is() -> None:
    module = Net(nn.Linear(12, 10))
    assert with_plain_weights(module) is module


class NormalisedTwice(nn.Module):
    """As Swin V2 before it is trained: the last norm takes cells that are normalised already."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 5, stride=3), nn.ReLU())
        self.stages = nn.LayerNorm(12)
        self.last = nn.Sequential(nn.LayerNorm(12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.stages(self.stem(x).permute(0, 2, 3, 1))
        return self.head(self.last(cells).mean((1, 2)))


def test_a_map_that_has_the_mean_by_chance_is_not_taken(digit_classifier) -> None:
    classifier = digit_classifier(NormalisedTwice())
    checked(classifier, PooledLinear)
    head = examine(classifier).head
    assert head is not None
    assert {str(target.tap) for target in head.targets.values()} == {"last"}
