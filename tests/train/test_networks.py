from typing import get_args

import pytest
import skimage
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import models

from foveate_train import registry
from foveate_train.data.preprocess import preprocess
from foveate_train.errors import ArgumentsError
from foveate_train.networks import plain10


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


def _shapes(module, images):
    """The shapes that the modules return, without the batch, by their paths, and the logits."""
    shapes = {}
    for path, layer in module.named_modules():
        layer.register_forward_hook(
            lambda _m, _i, output, path=path: shapes.__setitem__(path, tuple(output.shape[1:]))
        )
    logits = module(images)
    return shapes, logits


def _on_photograph(name, **arguments):
    """The shapes within a network for ImageNet that sees a real photograph, and its logits."""
    classifier = registry.create(name, weights="random:0", **arguments)
    picture = preprocess(Image.fromarray(skimage.data.coffee()), classifier.input)
    with torch.inference_mode():
        return _shapes(classifier.module, picture[None])


@pytest.mark.parametrize("activation", get_args(plain10.Activation))
@pytest.mark.parametrize("normalisation", get_args(plain10.Normalisation))
def test_plain10_is_ten_layers_of_32_channels(activation, normalisation, digits):
    classifier = registry.create(
        "foveate:plain10", activation=activation, normalisation=normalisation
    )
    assert classifier.arguments == {"activation": activation, "normalisation": normalisation}
    # Maxout takes the larger of two maps for each channel that comes out.
    filters = 64 if activation == "maxout" else 32
    # A bias for each filter, or scale and shift.
    extra = filters * (1 if normalisation == "none" else 2)
    expected = filters * 9 + extra + 9 * (32 * filters * 9 + extra) + 32 * 10 + 10
    assert _parameters(classifier.module) == expected
    shapes, logits = _shapes(classifier.module, digits[0][:2].float() / 255)
    assert {shapes[f"layers.{layer}"] for layer in range(10)} == {(32, 28, 28)}
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "swish"}, "activation=swish: .*'sigmoid', 'tanh'"),
        ({"normalisation": "layer"}, "normalisation=layer: .*'none' or 'batch'"),
    ],
)
def test_plain10_names_its_choices(arguments, message):
    with pytest.raises(ArgumentsError, match=message):
        registry.create("foveate:plain10", **arguments)


def test_none_can_be_chosen_on_a_command_line():
    arguments = registry.parse_arguments(["normalisation=none"])
    classifier = registry.create("foveate:plain10", **arguments)
    assert classifier.arguments == {"activation": "relu", "normalisation": "none"}


def test_the_shortcut_adds_nothing_but_the_input(digits):
    residual, plain = (
        registry.create("foveate:residual42", shortcut=shortcut) for shortcut in (True, False)
    )
    convolutions = 32 * 9 + 80 * 32 * 32 * 9
    assert _parameters(residual.module) == convolutions + 81 * 64 + 32 * 10 + 10
    states = [classifier.module.state_dict() for classifier in (residual, plain)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    maps = residual.module.stem(digits[0][:2].float() / 255)
    with torch.inference_mode():
        block, twin = residual.module.blocks[0], plain.module.blocks[0]
        # Where the last normalisation's shift keeps both sums above 0 the ReLU changes nothing.
        block.bn2.bias.fill_(100)
        twin.bn2.bias.fill_(100)
        assert torch.allclose(block(maps) - twin(maps), maps, atol=1e-4)


def test_residual42_is_as_deep_as_asked():
    with torch.device("meta"):
        module = registry.create("foveate:residual42", blocks=3).module
    assert len(module.blocks) == 3
    with pytest.raises(ArgumentsError, match=r"blocks=0: .*greater than or equal to 1"):
        registry.create("foveate:residual42", blocks=0)


def test_keras_cnn_has_the_shapes_of_its_layers(digits):
    shapes, _ = _shapes(registry.create("foveate:keras_cnn").module, digits[0][:1].float() / 255)
    expected = {
        "conv1": (25, 26, 26),
        "pool1": (25, 13, 13),
        "conv2": (50, 11, 11),
        "pool2": (50, 5, 5),
        "fc1": (100,),
        "fc2": (10,),
    }
    assert {name: shapes[name] for name in expected} == expected


@pytest.mark.parametrize(("pool", "tokens", "count"), [(False, 50, 139_018), (True, 49, 138_890)])
def test_vit_mnist_has_a_token_for_every_patch_and_one_for_the_class(pool, tokens, count, digits):
    module = registry.create("foveate:vit_mnist", pool=pool).module
    assert _parameters(module) == count
    returned = []
    for block in module.blocks:
        block.register_forward_hook(lambda _m, _i, output: returned.append(tuple(output.shape)))
    assert module(digits[0][:2].float() / 255).shape == (2, 10)
    assert returned == [(2, tokens, 64)] * 4


def test_resnet18_is_that_of_torchvision(tmp_path):
    theirs = models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = registry.create("foveate:resnet18", weights=str(tmp_path / "resnet18.pth"))
    assert list(ours.module.state_dict()) == list(theirs.state_dict())
    picture = preprocess(Image.fromarray(skimage.data.coffee()), ours.input)[None]
    with torch.inference_mode():
        assert torch.equal(ours.module(picture), theirs(picture))


# Table 1 of Howard et al., 2017: kind, stride, channels in and out, side of the input; the
# stride of the last depthwise layer is 1, as the sizes of its maps say.
MOBILENET = [
    ("conv", 2, 3, 32, 224),
    *[("dw", 1, 32, 32, 112), ("1x1", 1, 32, 64, 112)],
    *[("dw", 2, 64, 64, 112), ("1x1", 1, 64, 128, 56)],
    *[("dw", 1, 128, 128, 56), ("1x1", 1, 128, 128, 56)],
    *[("dw", 2, 128, 128, 56), ("1x1", 1, 128, 256, 28)],
    *[("dw", 1, 256, 256, 28), ("1x1", 1, 256, 256, 28)],
    *[("dw", 2, 256, 256, 28), ("1x1", 1, 256, 512, 14)],
    *[("dw", 1, 512, 512, 14), ("1x1", 1, 512, 512, 14)] * 5,
    *[("dw", 2, 512, 512, 14), ("1x1", 1, 512, 1024, 7)],
    *[("dw", 1, 1024, 1024, 7), ("1x1", 1, 1024, 1024, 7)],
]


def test_mobilenet_has_the_layers_of_its_table():
    classifier = registry.create("foveate:mobilenet")
    layers = []

    def record(layer, inputs, output):
        kind = "dw" if layer.groups > 1 else "1x1" if layer.kernel_size == (1, 1) else "conv"
        assert layer.groups in {1, layer.in_channels}
        sizes = (layer.in_channels, layer.out_channels, inputs[0].shape[-1])
        layers.append((kind, layer.stride[0], *sizes))

    for layer in classifier.module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(record)
    picture = preprocess(Image.fromarray(skimage.data.coffee()), classifier.input)
    with torch.inference_mode():
        classifier.module(picture[None])
    assert layers == MOBILENET


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "foveate:alexnet",
            {
                "conv1": (96, 55, 55),
                "pool1": (96, 27, 27),
                "conv2": (256, 27, 27),
                "pool2": (256, 13, 13),
                "conv3": (384, 13, 13),
                "conv4": (384, 13, 13),
                "conv5": (256, 13, 13),
                "pool5": (256, 6, 6),
                "fc6": (4096,),
                "fc7": (4096,),
                "fc8": (1000,),
            },
        ),
        (
            "foveate:zfnet",
            {
                "conv1": (96, 110, 110),
                "norm1": (96, 55, 55),
                "conv2": (256, 26, 26),
                "norm2": (256, 13, 13),
                "conv3": (384, 13, 13),
                "conv4": (384, 13, 13),
                "conv5": (256, 13, 13),
                "pool5": (256, 6, 6),
            },
        ),
        (
            "foveate:nin",
            {
                "mlp1": (96, 54, 54),
                "pool1": (96, 27, 27),
                "mlp2": (256, 27, 27),
                "pool2": (256, 13, 13),
                "mlp3": (384, 13, 13),
                "pool3": (384, 6, 6),
                "mlp4": (1000, 6, 6),
                "avgpool": (1000, 1, 1),
            },
        ),
        (
            "foveate:inception_v2",
            {
                "conv1": (64, 112, 112),
                "pool1": (64, 56, 56),
                "conv2": (192, 56, 56),
                "pool2": (192, 28, 28),
                "inception.3a": (256, 28, 28),
                "inception.3b": (320, 28, 28),
                "inception.3c": (576, 14, 14),
                "inception.4a": (576, 14, 14),
                "inception.4b": (576, 14, 14),
                "inception.4c": (576, 14, 14),
                "inception.4d": (576, 14, 14),
                "inception.4e": (1024, 7, 7),
                "inception.5a": (1024, 7, 7),
                "inception.5b": (1024, 7, 7),
            },
        ),
    ],
)
def test_maps_have_the_sizes_of_the_paper(name, expected):
    shapes, _ = _on_photograph(name)
    assert {layer: shapes[layer] for layer in expected} == expected


@pytest.mark.parametrize(
    "network", ["alexnet", "zfnet", "nin", "resnet18", "mobilenet", "inception_v2"]
)
def test_a_network_for_imagenet_takes_another_number_of_classes(network):
    name = f"foveate:{network}"
    _, logits = _on_photograph(name, num_classes=7)
    assert logits.shape == (1, 7)
    with torch.device("meta"):
        classifier = registry.create(name, num_classes=7)
    assert classifier.labels == tuple("0123456")
    assert registry.create("foveate:nin").labels[281] == "tabby"


def test_response_normalisation_is_the_formula_of_alexnet():
    module = registry.create("foveate:alexnet", num_classes=2).module
    picture = torch.from_numpy(skimage.data.coffee()[:227, :227]).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        maps = 100 * module.conv1(picture)
        normalised = module.norm1(maps)
    # Section 3.3 of the paper: n = 5, k = 2, alpha = 1e-4, beta = 0.75.
    squares = functional.pad(maps[0] ** 2, (0, 0, 0, 0, 2, 2))
    total = torch.stack([squares[channel : channel + 5].sum(0) for channel in range(96)])
    assert total.max() > 1000
    assert torch.allclose(normalised[0], maps[0] / (2 + 1e-4 * total) ** 0.75, rtol=1e-4)


@pytest.mark.parametrize("filters", [32, 128, 192, 256, 384])
def test_go_policy_has_a_logit_for_each_point(filters):
    classifier = registry.create("foveate:go_policy", filters=filters)
    expected = 48 * filters * 25 + filters + 11 * (filters * filters * 9 + filters) + filters + 361
    assert _parameters(classifier.module) == expected
    # The board of the network's first plane: one black stone, in the upper right corner.
    planes = torch.zeros(1, 48, 19, 19)
    planes[0, 0, 0, 18] = 1
    with torch.inference_mode():
        logits, empty = classifier.module(planes)[0], classifier.module(0 * planes)[0]
    # The stone is felt up to 2 + 11 points away, in rows from the top and columns from A.
    felt = {
        label
        for label, one, none in zip(classifier.labels, logits, empty, strict=True)
        if one != none
    }
    assert {label[0] for label in felt} == set("FGHJKLMNOPQRST")
    assert {int(label[1:]) for label in felt} == set(range(6, 20))


def test_go_policy_knows_its_numbers_of_filters():
    with pytest.raises(ArgumentsError, match=r"filters=100: .*128, 192, 256 or 384"):
        registry.create("foveate:go_policy", filters=100)


def test_go_policy_takes_planes_of_ones():
    spec = registry.create("foveate:go_policy").input
    # On the scale of InputSpec, a byte of 1 becomes the 1 of a feature plane.
    assert (1 / 255 - spec.mean[0]) / spec.std[0] == pytest.approx(1)


def test_spectrogram_cnn_has_the_shapes_of_its_layers(digits):
    classifier = registry.create("foveate:spectrogram_cnn")
    assert _parameters(classifier.module) == 241_434
    rows = torch.from_numpy(skimage.data.camera()[:128, :128])
    shapes, logits = _shapes(classifier.module, rows[None, None] / 127.5 - 1)
    assert (shapes["pool1"], shapes["pool2"]) == ((24, 31, 62), (48, 6, 29))
    assert shapes["conv3"] == (48, 2, 25)
    assert logits.shape == (1, len(classifier.labels))
