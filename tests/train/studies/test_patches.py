"""The study of the strongest patches."""

import json

import torch
from PIL import Image
from torch import nn

from foveate_train.commands.train import main
from foveate_train.studies import patches
from foveate_train.studies.patches import Patch, guided, square, strongest


def test_the_strongest_places_are_found_once_in_a_picture():
    maps = torch.zeros(4, 2, 3)
    maps[0, 1, 2], maps[0, 0, 0] = 5, 4
    maps[2, 0, 1] = 7
    maps[3, 1, 0] = 1
    found = strongest([maps[:3], maps[3:]], 3)
    assert found == [Patch(2, 0, 1, 7.0), Patch(0, 1, 2, 5.0), Patch(3, 1, 0, 1.0)]


def test_a_guided_gradient_stops_where_a_relu_would_hand_back_less_than_nothing():
    # The value is relu(first) - relu(second): the gradient of the second is below 0.
    module = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(inplace=True))
    module.add_module("sum", nn.Conv2d(2, 1, 1, bias=False))
    module[0].weight.data[:] = torch.eye(2)[:, :, None, None]
    module.get_submodule("sum").weight.data[:] = torch.tensor([1.0, -1.0])[None, :, None, None]
    image = torch.ones(2, 3, 3)
    gradient = guided(module, "sum", 0, Patch(0, 1, 1, 0.0), image)
    assert gradient[:, 1, 1].tolist() == [1, 0]
    assert gradient.abs().sum() == 1
    # Afterwards the network is as it was.
    pixels = image[None].requires_grad_()
    (plain,) = torch.autograd.grad(module(pixels)[0, 0, 1, 1], pixels)
    assert plain[0, :, 1, 1].tolist() == [1, -1]


def test_a_square_holds_what_counts_and_stays_inside():
    gradient = torch.zeros(1, 8, 10)
    gradient[0, 0, 6:9] = torch.tensor([1.0, -2, 1])
    gradient[0, 7, 0] = 0.01
    assert square(gradient) == (slice(0, 3), slice(6, 9))
    assert square(torch.zeros(1, 8, 10)) == (slice(0, 8), slice(0, 10))


def test_the_page_tells_the_digits_of_each_channel(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patches, "PHOTOGRAPH_LAYERS", ("conv_stem",))
    arguments = ["study", "patches", "--subset", "1500", "--batch-size", "32", "--threads", "1"]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    out = tmp_path / "out"
    arguments += ["--out", str(out), "--photographs", str(photographs)]
    assert main(arguments) == 1
    assert "holds no picture" in capsys.readouterr().err
    for number in range(6):
        Image.linear_gradient("L").rotate(60 * number).save(photographs / f"{number}.png")
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["photographs"] == 6
    first = results["patches"]["layer4"]["0"]
    assert [each["value"] for each in first] == sorted((e["value"] for e in first), reverse=True)
    page = (out / "README.md").read_text()
    assert ", ".join(str(each["label"]) for each in first) in page
    for layer in ("layer2", "layer4", "conv_stem"):
        assert f"({layer}.png)" in page
        assert (out / f"{layer}.png").is_file()
