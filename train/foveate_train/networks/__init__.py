"""Networks written out to be read; importing this package registers them."""

from foveate_train.networks import convnet4, lenet5

__all__ = ["convnet4", "lenet5"]
