# %% [markdown]
# # Where the network looked
#
# A class activation map says which places spoke for a class. This chapter computes Grad-CAM from
# its definition, for the network that [the chapter on training](train.py) left in `digits`, and
# looks at what two classes see in one digit.

# %%
from pathlib import Path

import torch

from foveate_train import checkpoint
from foveate_train.activation_maps import METHODS
from foveate_train.data import mnist
from foveate_train.data.memory import normalise
from foveate_train.drawing import grey, overlay, sheet
from foveate_train.recording import recorded

classifier = checkpoint.load(Path("digits")).classifier
module = classifier.module.eval()
layer = [n for n, each in module.named_modules() if isinstance(each, torch.nn.Conv2d)][-1]
images, labels = mnist.load("test")
place = int((labels == 9).argmax())
digit = torch.from_numpy(images[place : place + 1])[:, None]

# %% [markdown]
# The gradient of a logit with respect to the layer's activations says how much each of them
# counts. Grad-CAM takes its mean over the places as the weight of a channel, adds the channels
# up, and keeps what is above zero.

# %%
with recorded(module, [layer]) as seen:
    logits = module(normalise(digit, classifier.input))
activations = seen[layer]
(gradient,) = torch.autograd.grad(logits[0, 9], activations, retain_graph=True)
weights = gradient.mean((2, 3), keepdim=True)
by_hand = (weights * activations).sum(1).relu().detach()
assert torch.equal(by_hand, METHODS["gradcam"](activations, gradient).detach())
by_hand.shape

# %% [markdown]
# The map is small, as the layer is. It is enlarged and laid over the digit: here for the digit's
# own class, and for the class 4, by each method.


# %%
def map_of(method, class_id):
    (found,) = torch.autograd.grad(logits[0, class_id], activations, retain_graph=True)
    small = METHODS[method](activations, found).detach().clamp(min=0)[:, None]
    return torch.nn.functional.interpolate(small, digit.shape[2:], mode="bilinear")[0, 0]


picture = grey(digit[0, 0] / 255)
sheet(
    [[picture, *(overlay(picture, map_of(name, each)) for name in METHODS)] for each in (9, 4)],
    rows=["for 9", "for 4"],
    columns=["digit", *METHODS],
    cell=1.2,
)
