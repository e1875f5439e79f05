"""A network is cut behind its first stages, and what follows them gives the same logits."""

import pytest
import torch
from torch import nn

from foveate_train import registry
from foveate_train.stages import Rest, first, stages


class Skipping(nn.Module):
    """Three layers, the last of which also takes what the first made."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, images):
        one = self.one(images)
        return self.three(self.two(one) + one)


class Repeating(nn.Module):
    """Two layers, of which the second is called twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(3, 3, 1) for _ in range(2))

    def forward(self, images):
        return self.two(self.two(self.one(images)))


@pytest.mark.parametrize(
    ("name", "begins", "includes"),
    [
        ("timm:mobilenetv3_small_050", ["conv_stem", "bn1"], "blocks.5.0"),
        ("torchvision:resnet18", ["conv1", "bn1", "relu", "maxpool"], "layer4.1"),
        ("timm:vit_tiny_patch16_224", ["patch_embed"], "patch_embed"),
    ],
)
def test_what_follows_any_stage_gives_the_networks_logits(name, begins, includes):
    classifier = registry.create(name, weights="random:0")
    module = classifier.module.eval()
    shape = (2, classifier.input.channels, classifier.input.height, classifier.input.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    names = stages(module, images)
    assert names[: len(begins)] == begins
    assert includes in names
    with torch.inference_mode():
        logits = module(images)
        for count in (1, len(names) // 2, len(names)):
            made = first(module, names[:count], images)
            assert torch.allclose(Rest(module, names[:count])(made), logits, atol=1e-5)
        # The network itself is as it was.
        assert torch.equal(module(images), logits)


@pytest.mark.parametrize(
    ("module", "expected"), [(Skipping(), ["one", "two"]), (Repeating(), ["one"])]
)
def test_the_chain_ends_where_a_module_takes_something_else(module, expected):
    assert stages(module.eval(), torch.randn(1, 3, 4, 4)) == expected


def test_a_failure_leaves_the_network_whole():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    images = torch.randn(1, 3, 4, 4)
    expected = module(images)
    with pytest.raises(RuntimeError):
        Rest(module, ["0"])(images)
    assert torch.equal(module(images), expected)
