# %% [markdown]
# # What the layers see
#
# Each channel of a layer is a picture of its own: where it is large, the channel has found what
# it answers to. This chapter records the layers of the network that [the chapter on
# training](train.py) left in `digits`, and compares a 4 with a 9.

# %%
from pathlib import Path

import torch

from foveate_train import checkpoint
from foveate_train.data import mnist
from foveate_train.data.memory import normalise
from foveate_train.drawing import grey, heat, sheet
from foveate_train.recording import recorded

classifier = checkpoint.load(Path("digits")).classifier
module = classifier.module.eval()
convolutions = [name for name, each in module.named_modules() if isinstance(each, torch.nn.Conv2d)]
convolutions

# %% [markdown]
# One digit of each class goes through the network, and what its convolutions give is kept.

# %%
images, labels = mnist.load("test")
places = [int((labels == digit).argmax()) for digit in range(10)]
digits = torch.from_numpy(images[places])
with torch.no_grad(), recorded(module, convolutions) as seen:
    module(normalise(digits[:, None], classifier.input))
{name: tuple(maps.shape) for name, maps in seen.items()}

# %% [markdown]
# The first layer: a row a channel, a column a digit. Its channels answer to edges of one
# direction.

# %%
first = seen[convolutions[0]]
low, high = float(first.min()), float(first.max())
sheet(
    [
        [grey(digit / 255) for digit in digits],
        *([heat(plane, low, high) for plane in channel] for channel in first.transpose(0, 1)),
    ],
    rows=["digit", *(f"channel {number}" for number in range(first.shape[1]))],
    columns=[str(digit) for digit in range(10)],
)

# %% [markdown]
# Which channel tells a 4 from a 9? The one whose mean over the picture differs most, in units of
# its spread, between all the fours and all the nines of a thousand digits.

# %%
chosen = torch.from_numpy(images[:1000])[:, None]
with torch.no_grad(), recorded(module, convolutions) as seen:
    module(normalise(chosen, classifier.input))
means = seen[convolutions[-1]].mean((2, 3))
kinds = torch.from_numpy(labels[:1000])
fours, nines = means[kinds == 4], means[kinds == 9]
apart = (fours.mean(0) - nines.mean(0)).abs() / means.std(0)
best = int(apart.argmax())
print(f"channel {best} of {convolutions[-1]}: {float(apart[best]):.1f} spreads apart")
assert float(apart[best]) > 0.5
