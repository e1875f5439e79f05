"""Counting a network as Keras does, and how deep it is."""

import pytest
import torch
from torch import nn

from foveate_train import registry
from foveate_train.counting import depth
from foveate_train.recording import recorded
from foveate_train.studies.classifiers import PUBLISHED, as_keras_counts, counted, mobilenet


@pytest.mark.parametrize(("title", "layers"), [("VGG16", 16), ("ResNet50", 50), ("MobileNet", 28)])
def test_networks_are_counted_as_keras_counts_them(title, layers):
    row = next(each for each in PUBLISHED if each.title == title)
    found = counted(row)
    assert as_keras_counts(found) == row.parameters
    assert found["depth"] == layers


def test_the_depth_is_that_of_the_longest_way():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.long = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1))
            self.short = nn.Conv2d(3, 3, 1)
            self.fc = nn.Linear(3, 2)

        def forward(self, images):
            maps = self.short(images)
            maps += self.long(images)
            return self.fc(maps.mean((2, 3)))

    with torch.device("meta"):
        assert depth(Fork(), (3, 4, 4)) == 3


def test_the_last_depthwise_convolution_of_mobilenet_has_stride_1():
    table = mobilenet()
    assert len(table) == 1 + 2 * 13 + 2
    assert table[0] == {
        "layer": "Conv",
        "input": [3, 224, 224],
        "stride": 2,
        "filter": [3, 3, 3, 32],
        "output": [32, 112, 112],
    }
    last = [row for row in table if row["layer"] == "Conv dw"][-1]
    assert (last["stride"], last["input"], last["output"]) == (1, [1024, 7, 7], [1024, 7, 7])


def test_vgg16_without_its_head_gives_7_by_7_by_512():
    with torch.device("meta"):
        module = registry.create("torchvision:vgg16", weights="random:0").module
        with recorded(module, ["features"]) as seen:
            module(torch.zeros(1, 3, 224, 224))
    assert seen["features"].shape == (1, 512, 7, 7)
