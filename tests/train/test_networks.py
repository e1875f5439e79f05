import pytest
import torch

from foveate_train import registry


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_lenet5_has_the_counts_of_its_layers():
    module = registry.create("foveate:lenet5").module
    counts = {name: _parameters(layer) for name, layer in module.named_children()}
    assert counts == {
        "c1": 6 * (25 + 1),
        "s2": 0,
        "c3": 16 * (6 * 25 + 1),
        "s4": 0,
        "c5": 120 * (400 + 1),
        "f6": 84 * (120 + 1),
        "output": 10 * (84 + 1),
    }
    assert _parameters(module) == 61_706


@pytest.mark.parametrize(("pool", "sides"), [(True, (28, 14, 7, 7)), (False, (28, 28, 28, 28))])
def test_convnet4_has_the_shapes_of_its_layers(pool, sides, digits):
    classifier = registry.create("foveate:convnet4", pool=pool)
    module = classifier.module
    assert _parameters(module) == 241_898
    shapes = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        module.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: shapes.__setitem__(name, tuple(output.shape))
        )
    logits = module(digits[0][:2].float() / 255)
    assert logits.shape == (2, 10)
    assert shapes == {
        f"layer{number}": (2, channels, side, side)
        for number, channels, side in zip((1, 2, 3, 4), (32, 64, 128, 128), sides, strict=True)
    }


def test_without_pooling_the_state_dict_is_the_same():
    states = [
        registry.create("foveate:convnet4", pool=pool).module.state_dict() for pool in (True, False)
    ]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
