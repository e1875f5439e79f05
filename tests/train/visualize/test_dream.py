"""`foveate visualize dream`."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate_train import registry
from foveate_train.ascent import normalised
from foveate_train.commands.visualize import main
from foveate_train.recording import recorded
from foveate_train.visualize import dream
from foveate_train.visualize.subject import Subject, photograph

CPU = torch.device("cpu")


def _level(subject, pixels, layer, channels=slice(None)):
    """The mean square of a layer's activations on a picture of the network's size."""
    with recorded(subject.module, [layer]) as seen, torch.no_grad():
        subject.module(normalised(pixels, subject.classifier.input))
    return float(seen[layer][:, channels].square().mean())


def test_a_dream_raises_its_channel_and_says_by_how_much(tmp_path, capsys, test_digits):
    digit = tmp_path / "digit.png"
    Image.fromarray(test_digits[0][0, 0].numpy()).save(digit)
    out = tmp_path / "out"
    words = ["dream", "foveate:convnet4", str(digit), "--layers", "layer2", "--channels", "5"]
    assert main([*words, "--octaves", "1", "--steps", "8", "--out", str(out)]) == 0
    after = torch.from_numpy(np.load(out / "dream-digit-after.npy"))[None]
    assert after.shape == (1, 1, 28, 28)
    assert 0 <= after.min() <= after.max() <= 1
    subject = Subject.of("foveate:convnet4", None, (), CPU)
    before = subject.pixels(photograph(digit, subject.classifier.input).image[None])
    was, now = (_level(subject, each, "layer2", [5]) for each in (before, after))
    assert now > 2 * was
    assert f"layer2 {was:.3g} before, {now:.3g} after" in capsys.readouterr().out


def test_a_photograph_dreams_at_every_size_by_the_seed(tmp_path):
    photo = tmp_path / "photo.png"
    rows = np.linspace(0, 255, 150)[:, None, None] * np.ones((1, 150, 3))
    Image.fromarray(rows.astype(np.uint8)).save(photo)
    found = []
    for seed in ("3", "3", "4"):
        words = ["dream", "package:efficientnet_lite0", str(photo), "--octaves", "2", "--steps"]
        more = ["1", "--ratio", "1.25", "--layers", "blocks.1", "--seed", seed]
        assert main([*words, *more, "--out", str(tmp_path / "out")]) == 0
        found.append(np.load(tmp_path / "out" / "dream-photo-after.npy"))
    assert found[0].shape == (3, 280, 280)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_tiles_cover_a_picture_and_lie_within_it():
    assert dream._starts(224, 224) == [0]
    for length in (225, 313, 439, 448):
        starts = dream._starts(length, 224)
        covered = {place for start in starts for place in range(start, start + 224)}
        assert covered == set(range(length))


def test_without_a_picture_a_network_of_photographs_dreams_of_noise(tmp_path):
    words = ["dream", "foveate:resnet18", "--weights", "random:0", "--octaves", "1"]
    assert main([*words, "--steps", "1", "--out", str(tmp_path)]) == 0
    assert np.load(tmp_path / "dream-noise-after.npy").shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--octaves", "8", "--ratio", "2"), "make pictures of 3584 pixels; the most is 2048"),
        (("--layers", "layr2"), "--layers layr2: foveate:convnet4 has no layer"),
        (("--layers", "layer1", "--channels", "32"), "layer1 has the channels 0 to 31"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, arguments, said):
    assert main(["dream", "foveate:convnet4", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_layer_that_is_silent_leaves_the_picture_as_it_is():
    classifier = registry.create("foveate:convnet4")
    subject = Subject(classifier, CPU)
    with torch.no_grad():
        # Whatever it sees, all that reaches its ReLU is the bias of its normalisation.
        classifier.module.layer1[1].weight.fill_(0.0)
        classifier.module.layer1[1].bias.fill_(-1.0)
    classifier.module.eval()
    pixels = torch.rand(1, 1, 28, 28)
    more = {"octaves": 1, "ratio": 1.4, "steps": 2, "rate": 0.1, "jitter": 0, "seed": 0}
    after = dream.dreamt(subject, pixels, ["layer1"], (), **more)
    assert torch.equal(after, pixels)
