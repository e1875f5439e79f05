import pytest
import torch

from foveate_export.anatomy.layers import default_layers, feature_layers, select_layers
from foveate_export.anatomy.recording import record
from foveate_export.errors import UnknownLayerError
from foveate_train import registry


def examined(name: str):
    classifier = registry.create(name, weights="random:0")
    spec = classifier.input
    # A corner that is painted over changes a picture of noise less than one that is all zero.
    pictures = torch.randn(
        (2, spec.channels, spec.height, spec.width), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        recording = record(classifier.module, pictures)
    return classifier.module, feature_layers(recording)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "timm:tf_efficientnet_lite0",
            ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"],
        ),
        ("torchvision:resnet18", ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("torchvision:mobilenet_v2", [f"features.{n}" for n in (1, 3, 6, 13, 18)]),
        ("foveate:convnet4", ["layer1", "layer2", "layer4"]),
        ("foveate:lenet5", ["c1", "s2", "c3", "s4"]),
        # Its blocks return lists, one map of each branch.
        ("timm:crossvit_tiny_240", ["norm.0", "norm.1"]),
    ],
)
def test_the_default_layers_are_the_stage_ends(name: str, expected: list[str]) -> None:
    module, layers = examined(name)
    assert [layer.path for layer in default_layers(module, layers)] == expected


def test_layers_are_chosen_by_name_each_once() -> None:
    module, layers = examined("foveate:convnet4")
    chosen = select_layers(["layer3", "layer1.0", "layer3"], module, layers)
    assert [(layer.path, layer.channels, layer.height) for layer in chosen] == [
        ("layer3", 128, 7),
        ("layer1.0", 32, 28),
    ]


def test_an_unknown_layer_is_answered_with_the_nearest() -> None:
    module, layers = examined("torchvision:resnet18")
    with pytest.raises(UnknownLayerError) as caught:
        select_layers(["layer5"], module, layers)
    assert set(caught.value.near) <= {"layer1", "layer2", "layer3", "layer4"}
    assert "layer5" in str(caught.value)


def test_a_layer_is_no_vector_and_runs_once() -> None:
    _, layers = examined("torchvision:resnet18")
    paths = {layer.path for layer in layers}
    assert "layer1.0.bn1" in paths
    assert "layer1.0.relu" not in paths, "runs twice in a block"
    assert not {"avgpool", "fc"} & paths
