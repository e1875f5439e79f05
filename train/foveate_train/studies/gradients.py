"""How large the gradient of the loss is in each layer of a network that has not learnt yet."""

import torch
from torch import nn
from torch.nn import functional

from foveate_train.data.memory import InMemory

PICTURES = 128
"""How many training pictures the loss is the mean of."""


def sizes(module: nn.Module, data: InMemory) -> list[float]:
    """Return the root mean square of the gradient of each convolution's weights.

    The loss is the cross-entropy of the first training pictures; normalisations use
    the statistics of this batch, as in training. The module is left as it was, but in
    training mode.

    Args:
        module: on the processor.
        data: the training pictures.
    """
    state = {name: value.clone() for name, value in module.state_dict().items()}
    first = InMemory(data.images[:PICTURES], data.labels[:PICTURES], data.spec)
    images, labels, _ = next(first.all())
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    loss = functional.cross_entropy(module.train()(images), labels)
    gradients = torch.autograd.grad(loss, weights)
    module.load_state_dict(state)
    return [float(gradient.square().mean().sqrt()) for gradient in gradients]
