"""`foveate visualize receptive`."""

import numpy as np
import pytest
import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.classifier import Classifier
from foveate_train.commands.visualize import main
from foveate_train.visualize.receptive import Field, computed, extent, measured
from foveate_train.visualize.subject import Subject

CPU = torch.device("cpu")


def _subject(module, side=40):
    spec = InputSpec(
        height=side, width=side, channels=1, resize=side, interpolation="bilinear",
        mean=(0.5,), std=(0.5,),
    )  # fmt: skip
    named = Classifier(name="own", arguments={}, module=module, input=spec, labels=("a",))
    return Subject(named, CPU)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "4", "5", "6"])
def test_the_field_follows_the_kernels_and_strides(layer):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 3, padding=2, dilation=2),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 2, (3, 1), stride=2, padding=(1, 0)),
        nn.AvgPool2d(2),
    ]
    # The growth by each layer is (kernel - 1) * dilation * the product of the strides before.
    sizes = [(3, 3), (3, 3), (4, 4), (12, 12), (12, 12), (16, 12), (20, 16)]
    field = computed(_subject(nn.Sequential(*layers).eval()), layer)
    height, width = sizes[int(layer)]
    assert field.size == f"{height} x {width}"


def test_what_only_some_pixels_decide_is_measured_inside_the_field():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 5, padding=2))
    subject = _subject(module.eval())
    field = computed(subject, "2")
    sizes = measured(subject, "2", torch.rand(3, 1, 40, 40))
    rows, columns = sizes.nonzero().T
    assert field == (rows.min(), rows.max(), columns.min(), columns.max())


def test_the_extent_leaves_a_little_out_at_each_side():
    sizes = torch.zeros(10, 20)
    sizes[2:5, 7:9] = 100
    sizes[0, 0] = sizes[9, 19] = 1
    assert extent(sizes) == Field(2, 4, 7, 8)
    assert extent(torch.ones(4, 4)) == Field(0, 3, 0, 3)


def test_digits_are_measured_and_said(tmp_path, capsys):
    model = registry.create("foveate:lenet5").module
    layer = next(name for name, each in model.named_modules() if isinstance(each, nn.Conv2d))
    assert main(["receptive", "foveate:lenet5", "--layers", layer, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{layer}: computed 5 x 5 pixels; measured, 95% of the gradient are within" in said
    sizes = np.load(tmp_path / f"receptive-{layer}.npy")
    assert sizes.shape == (28, 28)
    assert np.count_nonzero(sizes) == 25


def test_an_unknown_layer_is_one_line(tmp_path, capsys):
    assert main(["receptive", "foveate:lenet5", "--layers", "x", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--layers x: foveate:lenet5 has no layer" in error
    assert error.count("\n") == 1
