"""`foveate visualize style`."""

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from foveate_train.commands.visualize import main
from foveate_train.visualize.style import Target, gram
from foveate_train.visualize.subject import Subject

MODEL = "package:efficientnet_lite0"
FEW = (
    "--side",
    "64",
    "--steps",
    "12",
    "--content-layers",
    "blocks.1",
    "--style-layers",
    "conv_stem",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A photograph and a texture, as files."""
    folder = tmp_path_factory.mktemp("pair")
    pictures = {"cat": skimage.data.chelsea(), "tissue": skimage.data.immunohistochemistry()}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in pictures]


def _losses(tmp_path, pair, *arguments):
    words = ["style", MODEL, *pair, *FEW, *arguments, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    return np.load(tmp_path / "out" / "style-losses.npy")


def test_from_noise_both_losses_fall(tmp_path, pair, capsys):
    losses = _losses(tmp_path, pair, "--start", "noise")
    assert losses.shape == (13, 2)
    assert (losses[-1] < 0.8 * losses[0]).all()
    said = capsys.readouterr().out
    for name, (first, *_, last) in zip(("content", "style"), losses.T, strict=True):
        assert f"{name} loss: {first:.4f} at first, {last:.4f} at last" in said
    assert np.load(tmp_path / "out" / "style-picture.npy").shape == (3, 64, 64)


def test_the_weights_decide_what_is_kept(tmp_path, pair):
    textures = _losses(tmp_path, pair, "--style-weight", "100")[-1]
    objects = _losses(tmp_path, pair, "--style-weight", "0.1")[-1]
    assert textures[1] < objects[1]
    assert textures[0] > objects[0]


def test_the_losses_are_those_of_gatys_divided_by_their_targets():
    torch.manual_seed(0)
    subject = Subject.of("foveate:convnet4", "random:0", (), torch.device("cpu"))
    content, style, picture = torch.rand(3, 1, 1, 28, 28)
    found = Target(subject, content, style, ["layer2"], ["layer1", "layer2"]).losses(picture)
    spec, module = subject.classifier.input, subject.module
    maps = {}
    for name, pixels in (("content", content), ("style", style), ("picture", picture)):
        first = module.layer1((pixels - spec.mean[0]) / spec.std[0])
        maps[name] = [first, module.layer2(module.pool1(first))]
    wanted, seen = maps["content"][1], maps["picture"][1]
    assert found.content.item() == pytest.approx(
        ((seen - wanted) ** 2).sum().item() / (wanted**2).sum().item(), rel=1e-4
    )
    distances = []
    for a, b in zip(maps["picture"], maps["style"], strict=True):
        one, two = (torch.einsum("nihw,njhw->ij", each, each) for each in (a, b))
        distances.append(((one - two) ** 2).sum().item() / (two**2).sum().item())
    assert found.style.item() == pytest.approx(sum(distances) / 2, rel=1e-4)


def test_a_gram_matrix_forgets_where():
    maps = torch.rand(1, 3, 4, 5)
    shuffled = maps.flatten(2)[:, :, torch.randperm(20)].view_as(maps)
    assert torch.allclose(gram(maps), gram(shuffled), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--style-layers", "block.1"),
            "--style-layers block.1: package:efficientnet_lite0 has no",
        ),
        (("--content-layers", "x"), "--content-layers x: package:efficientnet_lite0 has no layer"),
        (("--side", "4000"), "--side 4000: Input should be less than or equal to 1024"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, pair, arguments, said):
    assert main(["style", MODEL, *pair, *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
