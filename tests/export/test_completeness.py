"""What the export finds of the maps that add up to the logit, and what the certificate says."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.exporter import export
from foveate_export.pictures import Pictures
from foveate_export.publish.bundle import Exported
from foveate_runtime.bundle.manifest import Completeness
from foveate_serve.classification import CamRequest
from foveate_serve.engine import explain
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.errors import InvalidRequestError
from foveate_train.classifier import Classifier

CLASSES = 10


class Net(nn.Module):
    """Convolutions, and an end that is given."""

    def __init__(self, end: nn.Module, channels: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU())
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


class Pooled(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mean((2, 3)))


def linear() -> nn.Linear:
    layer = nn.Linear(12, CLASSES)
    nn.init.normal_(layer.bias, std=0.5)
    return layer


def norm() -> nn.LayerNorm:
    layer = nn.LayerNorm(12)
    nn.init.normal_(layer.bias, std=0.5)
    nn.init.uniform_(layer.weight, 0.5, 2)
    return layer


def score_map() -> nn.Module:
    convolution = nn.Conv2d(12, CLASSES, 1)
    nn.init.normal_(convolution.bias, std=0.5)
    return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12 * 14 * 14, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.first(x.flatten(1))))


Exports = Callable[[nn.Module, str], Exported]


@pytest.fixture
def exported(
    digit_classifier: Callable[[nn.Module], Classifier], digits: Pictures, tmp_path_factory
) -> Exports:
    def make(end: nn.Module, name: str) -> Exported:
        return export(
            digit_classifier(end if isinstance(end, Net) else Net(end)),
            repository=tmp_path_factory.mktemp("complete"),
            name=name,
            pictures=digits,
        )

    return make


def found(exported: Exported) -> dict[str, Completeness | None]:
    return {cam.method: cam.completeness for cam in exported.manifest.cams}


def close(completeness: Completeness | None, by: str, constants: NDArray[np.float32]) -> bool:
    assert completeness is not None
    return completeness.by == by and np.allclose(completeness.constants, constants, atol=1e-4)


def test_the_constant_of_pooling_and_a_linear_layer_is_the_bias(exported: Exports) -> None:
    torch.manual_seed(0)
    last = linear()
    cams = found(exported(Pooled(last), "pooled"))
    bias = last.bias.detach().numpy()
    assert close(cams["cam"], "mean", bias)
    assert close(cams["hirescam"], "sum", bias)
    assert cams["gradcam"] is None
    assert cams["layercam"] is None


def test_the_constant_behind_a_layer_norm_has_the_norms_bias_in_it(exported: Exports) -> None:
    torch.manual_seed(0)
    before, last = norm(), linear()
    cams = found(exported(Pooled(before, last), "scaled"))
    constants = (last.weight @ before.bias + last.bias).detach().numpy()
    assert close(cams["cam"], "mean", constants)
    assert cams["hirescam"] is None, "its gradient takes the change of the norm into account"


def test_a_class_map_is_the_logit_itself(exported: Exports) -> None:
    torch.manual_seed(0)
    end = score_map()
    cams = found(exported(end, "map"))
    assert close(cams["cam"], "mean", np.zeros(CLASSES, np.float32))
    assert close(cams["hirescam"], "sum", end[0].bias.detach().numpy())


def test_grad_cam_of_a_difference_is_the_positive_part_of_hirescams(
    exported: Exports, open_runner: Callable[[Exported], object], digits: Pictures
) -> None:
    torch.manual_seed(0)
    network = Net(Pooled(norm(), linear()))
    bundle = exported(network, "scaled")
    cams = {cam.method: cam for cam in bundle.manifest.cams}
    assert cams["gradcam"].positive_of == "hirescam"
    assert cams["layercam"].positive_of is None
    request = CamRequest(method="gradcam", class_ids=(3,), against=5)
    plan = explain.plan_cam(request, bundle.manifest, ExplanationLimits())
    assert plan.output == "cam.hirescam"
    with open_runner(bundle) as runner:
        outputs = runner.run(
            {"image": digits.images[:1], "class_ids": np.array([[3, 5]])}, ["logits", plan.output]
        )
    (cam,) = explain.draw(
        plan,
        outputs[plan.output][0],
        np.arange(10),
        tuple("0123456789"),
        digits.images[0],
        logits=outputs["logits"][0],
    )
    assert cam.method == "gradcam"
    assert cam.values is not None
    spec = bundle.manifest.input
    pixels = torch.tensor(digits.images[:1]).float().permute(0, 3, 1, 2) / 255
    activations = network.body((pixels - spec.mean[0]) / spec.std[0]).detach().requires_grad_()
    scores = network.end(activations)[0]
    (gradient,) = torch.autograd.grad(scores[3] - scores[5], activations)
    weights = gradient.mean((2, 3), keepdim=True)
    expected = (weights * activations).sum(1).relu()[0].detach().numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(cam.values, expected, atol=1e-4 * expected.max())
    assert cam.explained is None
    dense = exported(Dense(), "dense")
    assert {each.positive_of for each in dense.manifest.cams} == {None}
    with pytest.raises(InvalidRequestError, match="gradcam is not linear in the logit"):
        explain.plan_cam(request, dense.manifest, ExplanationLimits())
    assert (
        explain.plan_cam(
            CamRequest(class_ids=(3,), against=5), dense.manifest, ExplanationLimits()
        ).method
        == "hirescam"
    )


def test_the_share_of_a_map_that_is_not_complete_is_its_part_of_the_logit(
    exported: Exports, open_runner: Callable[[Exported], object], digits: Pictures
) -> None:
    torch.manual_seed(0)
    bundle = exported(Dense(), "dense")
    assert set(found(bundle).values()) == {None}
    with open_runner(bundle) as runner:
        outputs = runner.run(
            {"image": digits.images[:1], "class_ids": np.array([[3, 5]])},
            ["logits", "cam.hirescam"],
        )
    logits, maps = outputs["logits"][0], outputs["cam.hirescam"][0]
    for against in (None, 5):
        request = CamRequest(method="hirescam", class_ids=(3,), against=against)
        plan = explain.plan_cam(request, bundle.manifest, ExplanationLimits())
        rows = maps if against else maps[:1]
        (cam,) = explain.draw(
            plan, rows, np.arange(10), tuple("0123456789"), digits.images[0], logits=logits
        )
        logit = logits[3] - (logits[5] if against else 0)
        part = maps[0].sum() - (maps[1].sum() if against else 0)
        share = abs(part) / (abs(part) + abs(logit - part))
        assert 0 < share < 1
        assert cam.explained == pytest.approx(share, abs=1e-4)
