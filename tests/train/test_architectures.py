"""Every architecture of the course and of the field: built, counted, run, trained a step, kept."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image
from torch.nn import functional

from foveate_train import checkpoint, registry
from foveate_train.catalogue import available
from foveate_train.data.preprocess import preprocess

# The least side that keeps the last maps larger than a kernel; a network that
# is not listed takes 64 pixels, or its own input where that is smaller.
SIDES = {
    "foveate:alexnet": 227,
    "foveate:zfnet": 224,
    "foveate:spectrogram_cnn": 128,
    "torchvision:inception_v3": 299,
    "timm:inception_resnet_v2.tf_in1k": 75,
}
ARCHITECTURES = [
    *("foveate:lenet5", "foveate:plain10", "foveate:residual42", "foveate:convnet4"),
    *("foveate:keras_cnn", "foveate:go_policy", "foveate:spectrogram_cnn"),
    *("foveate:alexnet", "foveate:zfnet", "foveate:nin", "foveate:inception_v2"),
    *("foveate:resnet18", "foveate:mobilenet"),
    *("torchvision:alexnet", "torchvision:vgg11", "torchvision:vgg13", "torchvision:vgg16"),
    *("torchvision:vgg19", "torchvision:googlenet", "torchvision:inception_v3"),
    *("torchvision:resnet18", "torchvision:resnet50", "torchvision:resnet152"),
    *("torchvision:densenet121", "torchvision:squeezenet1_0", "torchvision:squeezenet1_1"),
    *("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0"),
    *("timm:mobilenetv1_100.ra4_e3600_r224_in1k", "timm:resnetv2_50.a1h_in1k"),
    *("timm:legacy_senet154.in1k", "timm:legacy_seresnet50.in1k"),
    *("timm:legacy_xception.tf_in1k", "timm:inception_resnet_v2.tf_in1k"),
    *("timm:nasnetalarge.tf_in1k", "timm:tf_efficientnet_lite0.in1k"),
    *("package:efficientnet_lite0", "package:efficientnet_lite1", "package:efficientnet_lite2"),
]
COUNTED = {row["name"]: row["parameters"] for row in available()}


def _photographs(spec, side):
    """Two photographs as a batch for a network, or their pixels as its feature planes."""
    small = replace(spec, height=side, width=side, resize=side)
    pictures = [Image.fromarray(picture) for picture in (skimage.data.coffee(), skimage.data.cat())]
    if spec.channels in {1, 3}:
        return torch.stack([preprocess(picture, small) for picture in pictures])
    grey = replace(small, channels=1, mean=(0.5,), std=(0.5,))
    planes = torch.stack([preprocess(picture, grey) > 0 for picture in pictures])
    return planes.float().expand(-1, spec.channels, -1, -1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_built_counted_trained_and_kept(name):
    classifier = registry.create(name, weights="random:0")
    module, spec = classifier.module, classifier.input
    assert sum(parameter.numel() for parameter in module.parameters()) == COUNTED[name]

    images = _photographs(spec, SIDES.get(name, min(64, spec.height)))
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    logits = module(images)
    assert logits.shape == (2, len(classifier.labels))
    functional.cross_entropy(logits, torch.tensor([1, 7])).backward()
    # The auxiliary head of Inception V3 is no part of the answer.
    learning = [p for key, p in module.named_parameters() if not key.startswith("AuxLogits.")]
    assert all(parameter.grad.isfinite().all() for parameter in learning)
    before = [parameter.detach().clone() for parameter in learning[-2:]]
    optimizer.step()
    assert not any(map(torch.equal, before, learning[-2:]))

    module.eval()
    # Not tmp_path, which keeps the folders of the last runs: these are large.
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "trained"
        checkpoint.save(target, classifier, metrics={}, data_digest="none", seed=0)
        read = checkpoint.load(target).classifier
    assert (read.name, read.input, read.labels) == (name, spec, classifier.labels)
    with torch.inference_mode():
        assert torch.equal(read.module(images), module(images))
