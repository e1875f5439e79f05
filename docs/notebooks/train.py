# %% [markdown]
# # Train a classifier of digits
#
# A classifier is a network together with what it takes and what its classes are called. This
# chapter trains LeNet-5 on MNIST, first by the command, then step by step, and looks at what it
# gets wrong. It leaves the checkpoint `digits` for the chapters after it.

# %%
import subprocess

subprocess.run(
    ["foveate", "train", "mnist", "--model", "foveate:lenet5", "--epochs", "1", "--out", "digits"],
    check=True,
)

# %% [markdown]
# A checkpoint is a folder with the weights (`model.safetensors`) and all that is known of them
# (`checkpoint.json`). Nothing in it is executable.

# %%
from pathlib import Path

from foveate_train import checkpoint

trained = checkpoint.load(Path("digits"))
dict(trained.metrics)

# %% [markdown]
# The same network from Python. `Training.steps()` yields after each step of the optimiser, so
# that the loop is the reader's: here it stops after a few, as the loss falls.

# %%
import torch

from foveate_train import registry
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory, normalise
from foveate_train.loop import Training
from foveate_train.settings import Settings

classifier = registry.create("foveate:lenet5")
images, labels = mnist.load("train")
training_set = InMemory(
    torch.from_numpy(images)[:, None], torch.from_numpy(labels), classifier.input
)
training = Training(classifier, training_set, Settings(epochs=1))
losses = []
for step in training.steps():
    losses.append(float(step.loss))
    if len(losses) == 60:
        break
first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
print(f"the loss of ten steps: {first:.2f} at first, {last:.2f} after sixty")
assert last < first

# %% [markdown]
# Which digits does the trained network take for others?

# %%
test_images, test_labels = mnist.load("test")
pixels = torch.from_numpy(test_images[:1000])[:, None]
module = trained.classifier.module.eval()
with torch.no_grad():
    logits = module(normalise(pixels, trained.classifier.input))
wrong = (logits.argmax(1) != torch.from_numpy(test_labels[:1000])).nonzero().flatten()
print(f"{len(wrong)} of 1,000 are wrong, such as")
for place in wrong[:5].tolist():
    print(f"  digit {place}: a {test_labels[place]} taken for a {int(logits[place].argmax())}")
assert len(wrong) < 100
