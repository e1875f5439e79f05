"""Networks written out to be read; importing this package registers them."""

from foveate_train.networks import (
    alexnet,
    convnet4,
    go_policy,
    inception_v2,
    keras_cnn,
    lenet5,
    mobilenet,
    nin,
    plain10,
    residual42,
    resnet18,
    spectrogram_cnn,
    zfnet,
)

__all__ = [
    "alexnet",
    "convnet4",
    "go_policy",
    "inception_v2",
    "keras_cnn",
    "lenet5",
    "mobilenet",
    "nin",
    "plain10",
    "residual42",
    "resnet18",
    "spectrogram_cnn",
    "zfnet",
]
