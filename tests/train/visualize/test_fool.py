"""`foveate visualize fool`."""

import numpy as np
import pytest
import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import checkpoint
from foveate_train.ascent import normalised
from foveate_train.classifier import Classifier
from foveate_train.commands.visualize import main
from foveate_train.visualize.fool import called, stepped
from foveate_train.visualize.subject import Subject


def _linear():
    """A network of two pixels, whose first class likes the first and whose second the second."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    module[1].weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    spec = InputSpec(
        height=1, width=2, channels=1, resize=2, interpolation="bilinear", mean=(0.5,), std=(0.05,)
    )
    named = Classifier(name="own", arguments={}, module=module, input=spec, labels=("a", "b"))
    return Subject(named, torch.device("cpu"))


def test_a_step_goes_along_the_sign_of_the_gradient():
    pixels = torch.tensor([[[[0.6, 0.2]]]])
    away = stepped(_linear(), pixels, 0.1, None)
    assert torch.allclose(away, torch.tensor([[[[0.5, 0.3]]]]), atol=1 / 510)
    assert torch.equal(stepped(_linear(), pixels, 0.1, 1), away)
    towards = stepped(_linear(), pixels, 0.1, 0)
    assert torch.allclose(towards, torch.tensor([[[[0.7, 0.1]]]]), atol=1 / 510)
    assert torch.equal((away * 255).round(), away * 255)


def test_noise_is_moved_until_it_is_called_the_class():
    subject = _linear()
    noise = torch.tensor([[[[0.6, 0.2]]]])
    after = called(subject, noise, 1)
    logits = subject.module(normalised(after, subject.classifier.input))
    assert logits.softmax(1)[0, 1] >= 0.99
    # It ends with the first step that is enough.
    assert (after - noise).abs().max() < 0.35


def test_digits_and_noise_are_taken_for_others(trained, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--class", "8", "--noise", "3", "--step", "0.3", "--out", str(out)]
    assert main(["fool", str(trained), *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum(" before, 8 " in line for line in said) > 5
    (noise,) = [line for line in said if line.startswith("noise: ")]
    loaded = checkpoint.load(trained).classifier
    after = torch.from_numpy(np.load(out / "fool-noise-after.npy"))[None]
    with torch.no_grad():
        probability = loaded.module(normalised(after, loaded.input)).softmax(1)[0, 3]
    assert probability >= 0.99
    assert noise.endswith(f", 3 {probability:.2%} after")
    assert str(out / "fool.png") in said


@pytest.mark.parametrize("option", ["--class", "--noise"])
def test_a_class_out_of_range_is_one_line(tmp_path, capsys, option):
    assert main(["fool", "foveate:lenet5", option, "10", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{option} 10: the classes are 0 to 9" in error
    assert error.count("\n") == 1
