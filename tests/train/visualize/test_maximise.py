"""`foveate visualize maximise`."""

import numpy as np
import pytest
import torch

from foveate_train import registry
from foveate_train.ascent import normalised
from foveate_train.commands.visualize import main


@pytest.fixture
def draw(tmp_path):
    def run(*arguments, model="foveate:convnet4"):
        words = ["maximise", model, *map(str, arguments), "--out", str(tmp_path / "out")]
        return main(words)

    return run


@pytest.mark.parametrize("of", ["filter", "neuron"])
def test_the_pictures_raise_their_own_channels(draw, tmp_path, of):
    assert draw("--of", of, "--layers", "layer2.1", "--units", 5, 9, "--steps", 20) == 0
    pictures = torch.from_numpy(np.load(tmp_path / "out" / "maximise-layer2.1.npy"))
    assert pictures.shape == (2, 1, 28, 28)
    classifier = registry.create("foveate:convnet4")
    module, spec = classifier.module, classifier.input
    grey = torch.full((1, 1, 28, 28), 0.5)
    with torch.no_grad():
        before = module.layer1(normalised(torch.cat([grey, pictures]), spec))
        maps = module.layer2[1](module.layer2[0](before))[:, [5, 9]]
    middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
    heights = maps.sum((2, 3)) if of == "filter" else middle
    assert (heights[1:].diagonal() > heights[0]).all()
    # Each picture favours its own channel.
    assert heights[1, 0] - heights[1, 1] > heights[2, 0] - heights[2, 1]


def test_each_means_has_a_row_and_its_effect(draw, tmp_path):
    means = ("--l1", 2, "--variation", 2, "--jitter", 1, "--compare")
    assert draw("--of", "class", "--units", 3, *means, "--steps", 40) == 0
    names = ("plain", "l1", "variation", "jitter", "all")
    found = {name: np.load(tmp_path / "out" / f"maximise-class-{name}.npy") for name in names}
    assert len(list((tmp_path / "out").glob("*.npy"))) == 5

    def rough(pictures):
        return np.abs(np.diff(pictures, axis=2)).sum() + np.abs(np.diff(pictures, axis=3)).sum()

    assert found["l1"].sum() < 0.5 * found["plain"].sum()
    assert rough(found["variation"]) < 0.5 * rough(found["plain"])
    assert not np.array_equal(found["jitter"], found["plain"])


def test_waves_give_pictures_whose_waves_are_longer(draw, tmp_path):
    words = ("--layers", "layer1.1", "--units", 3, 4, "--frequency", "--compare", "--steps", 30)
    assert draw(*words) == 0
    found = {
        name: torch.from_numpy(np.load(tmp_path / "out" / f"maximise-layer1.1-{name}.npy"))
        for name in ("plain", "frequency")
    }

    def shortest(pictures):
        power = torch.fft.rfft2(pictures - pictures.mean((2, 3), keepdim=True)).abs().square()
        lengths = torch.hypot(torch.fft.fftfreq(28)[:, None], torch.fft.rfftfreq(28))
        return (power[..., lengths > 0.25].sum() / power.sum()).item()

    assert shortest(found["frequency"]) < 0.8 * shortest(found["plain"])
    classifier = registry.create("foveate:convnet4")
    layer1 = classifier.module.layer1
    grey = torch.full((1, 1, 28, 28), 0.5)
    pictures = normalised(torch.cat([grey, found["frequency"]]), classifier.input)
    with torch.no_grad():
        sums = layer1[1](layer1[0](pictures))[:, [3, 4]].sum((2, 3))
    assert (sums[1:].diagonal() > sums[0]).all()


def test_the_seed_decides_the_jitter(draw, tmp_path):
    found = []
    for seed in (0, 0, 1):
        words = ("--of", "class", "--jitter", 3, "--steps", 5, "--seed", seed)
        assert draw(*words) == 0
        found.append(np.load(tmp_path / "out" / "maximise-class.npy"))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--of", "class", "--units", "10"), "--units 10: the classes are 0 to 9"),
        (("--layers", "layer1", "--units", "32"), "--units 32: layer1 has the channels 0 to 31"),
        (("--of", "class", "--layers", "layer1"), "--layers is for --of filter and --of neuron"),
        (("--compare",), "nothing without --l1, --variation, --jitter or --frequency"),
    ],
)
def test_wrong_usage_is_one_line(draw, capsys, arguments, said):
    assert draw(*arguments, "--steps", 1) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_side_that_a_network_does_not_take_is_refused(draw, capsys):
    assert draw("--side", 40, "--steps", 1, model="foveate:lenet5") == 2
    assert "--side 40: foveate:lenet5 takes no pictures of this side" in capsys.readouterr().err
