"""`foveate visualize features`, and what every kind asks of its model, layers and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate_train import registry
from foveate_train.commands.visualize import main
from foveate_train.drawing import sheet
from foveate_train.recording import recorded
from foveate_train.visualize import features
from foveate_train.visualize.subject import Subject


@pytest.fixture
def draw(tmp_path):
    def run(*arguments, model="foveate:convnet4"):
        return main(["features", model, *map(str, arguments), "--out", str(tmp_path / "out")])

    return run


def test_maps_are_those_of_the_network(draw, tmp_path, test_digits, capsys):
    assert draw("--layers", "layer1.1", "layer4", "--channels", 3, 0) == 0
    out = tmp_path / "out"
    written = capsys.readouterr().out.splitlines()
    assert written == [
        str(out / name) for name in ("features.png", "features-layer1.1.npy", "features-layer4.npy")
    ]
    images, labels = test_digits
    first = images[int((labels == 7).nonzero()[0, 0])][None] / 255
    classifier = registry.create("foveate:convnet4")
    module = classifier.module
    mean, std = classifier.input.mean[0], classifier.input.std[0]
    with torch.no_grad():
        # layer1.1 is followed by a ReLU, which may write over it.
        expected = module.layer1[1](module.layer1[0]((first - mean) / std))
    found = np.load(out / "features-layer1.1.npy")
    assert found.shape == (10, 2, 28, 28)
    assert np.allclose(found[7], expected[0, [3, 0]], atol=1e-5)
    assert found.min() < 0
    with Image.open(out / "features.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("scale", ["own", "shared"])
def test_scales_are_of_a_channel_or_of_all(draw, monkeypatch, scale):
    drawn = []

    def record(pictures, **more):
        drawn.append((pictures, more))
        return sheet(pictures, **more)

    monkeypatch.setattr(features, "sheet", record)
    assert draw("--scale", scale) == 0
    ((rows, more),) = drawn
    brightest = [max(float(cell.sum(2).max()) for cell in row) for row in rows[1:]]
    assert len(rows) == len(more["rows"]) == 1 + 3 * 3
    if scale == "own":
        assert len(set(brightest)) == 1
        assert more["scale"] is None
    else:
        assert len(set(brightest)) > 1
        assert more["scale"][0] < more["scale"][1]


def test_the_same_command_gives_the_same_files(draw, tmp_path):
    kept = []
    for _ in range(2):
        assert draw() == 0
        kept.append({file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()})
    assert kept[0] == kept[1]


def test_wrong_usage_is_one_line(draw, tmp_path, capsys):
    small = tmp_path / "small.png"
    Image.new("L", (13, 40)).save(small)
    for arguments, said in (
        (("--layers", "layr4"), "--layers layr4: foveate:convnet4 has no layer of this name that"),
        (("--layers", "layr4"), "near are layer4"),
        (("--channels", 32), "--channels 32: layer1 has the channels 0 to 31"),
        (("--channels", -1), "--channels -1: layer1"),
        ((small,), "small.png: its 13 x 40 pixels are too few for a network that takes 28 x 28"),
    ):
        assert draw(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_channels_of_upright_strokes_are_found(draw, tmp_path, capsys, monkeypatch):
    module = registry.create("foveate:convnet4", weights="random:0").module
    with torch.no_grad():
        # Of all channels of the first layer, 5 alone answers to what stands, and 7 to what lies.
        kernels = module.layer1[0].weight
        kernels.zero_()
        upright = torch.tensor([[-1.0, 2, -1]] * 3)
        kernels[5, 0], kernels[7, 0] = upright, upright.T
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    words = ("--layers", "layer1", "--weights", tmp_path / "weights.pt", "--strokes")
    shown = []
    monkeypatch.setattr(
        features, "sheet", lambda cells, **more: shown.append(more["rows"]) or sheet(cells, **more)
    )
    for angle, channel in ((90, 5), (0, 7)):
        assert draw(*words, angle) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"layer1, channel {channel}: mean rise ")
        assert f"for a stroke of {angle} degrees" in said
        assert shown[-1][1] == f"layer1: {channel}"
    assert draw(*words, 90, "--channels", 1) == 2
    assert "--strokes finds channels, and --channels names them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("block1_conv1", "features.1"),
        ("block2_conv1", "features.6"),
        ("block5_conv3", "features.29"),
        ("block5_conv4", "block5_conv4"),
        ("features.1", "features.1"),
    ],
)
def test_layers_of_vgg_have_the_names_of_keras(name, path):
    with torch.device("meta"):
        classifier = registry.create("torchvision:vgg16", weights="random:0")
    assert Subject(classifier, torch.device("cpu")).path(name) == path


def test_a_network_of_photographs_asks_for_one(draw, capsys):
    assert draw(model="foveate:resnet18") == 2
    assert "IMAGE is missing: foveate:resnet18 takes 224 x 224" in capsys.readouterr().err


def test_an_unreadable_picture_is_named(draw, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    assert draw(tmp_path / "text.png") == 1
    assert "text.png: cannot be read" in capsys.readouterr().err


def test_a_record_outlives_what_writes_over_it():
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU(inplace=True))
    values = torch.tensor([-1.0, 2.0], requires_grad=True)
    with recorded(module, ["0"]) as seen:
        (gradient,) = torch.autograd.grad(module(values).sum(), seen["0"])
    assert seen["0"].tolist() == [-1, 2]
    assert gradient.tolist() == [0, 1]
