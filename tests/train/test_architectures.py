"""Every architecture of the course and of the field: built, counted, run, trained a step, kept."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from foveate_train import checkpoint, registry
from foveate_train.catalogue import available
from foveate_train.data.memory import InMemory
from foveate_train.loop import Training
from foveate_train.settings import Settings

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
    *("foveate:resnet18", "foveate:mobilenet", "foveate:vit_mnist"),
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


def _photographs(spec):
    """Two photographs as a batch for a network, or their pixels as its feature planes."""
    pictures = [Image.fromarray(picture) for picture in (skimage.data.coffee(), skimage.data.cat())]
    mode = "RGB" if spec.channels == 3 else "L"
    small = [picture.convert(mode).resize((spec.width, spec.height)) for picture in pictures]
    pixels = torch.stack([pil_to_tensor(picture) for picture in small])
    return pixels if spec.channels in {1, 3} else (pixels // 128).expand(-1, spec.channels, -1, -1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_built_counted_trained_and_kept(name):
    classifier = registry.create(name, weights="random:0")
    module, spec = classifier.module, classifier.input
    assert sum(parameter.numel() for parameter in module.parameters()) == COUNTED[name]

    side = SIDES.get(name, min(64, spec.height))
    small = replace(classifier, input=spec.changed(height=side, width=side, resize=side))
    data = InMemory(_photographs(small.input), torch.tensor([1, 7]), small.input)
    # The first and the last layer, and so the gradient has come all the way.
    ends = {key: value for key, value in module.named_parameters() if value.ndim > 1}
    ends = [list(ends.values())[index] for index in (0, -1)]
    before = [parameter.detach().clone() for parameter in ends]
    # The plainest step: with neither momentum nor decay to compute for 144 million parameters.
    plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "schedule": "constant"}
    settings = Settings(batch_size=2, shift=0, precision="float32", **plain)
    (step,) = Training(small, data, settings).steps()
    assert step.loss.isfinite()
    # Among them the auxiliary head of Inception V3, whose loss counts in training.
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    assert not any(map(torch.equal, before, ends))

    module.eval()
    # Not tmp_path, which keeps the folders of the last runs: these are large.
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "trained"
        checkpoint.save(target, classifier, metrics={}, data_digest="none", seed=0)
        read = checkpoint.load(target).classifier
    assert (read.name, read.input, read.labels) == (name, spec, classifier.labels)
    images = next(data.all()).images
    with torch.inference_mode():
        logits = module(images)
        assert logits.shape == (2, len(classifier.labels))
        # The layout that training chose decides which kernels add up in which order.
        again = read.module.to(memory_format=torch.channels_last)(images)
    assert torch.equal(again, logits)
