# %% [markdown]
# # How far to believe it
#
# A score of 0.9 need not mean that nine of ten such answers are right. This chapter calibrates
# the bundle that [the chapter on export](export.py) left in `models`, on pictures that the
# training has not seen, and asks it about a digit, and about what is none.

# %%
import subprocess

subprocess.run(
    ["foveate", "calibrate", "models/digits/1", "--data", "mnist", "--limit", "2000"], check=True
)

# %% [markdown]
# The result is a new version beside the old one. With `trust` it says how often an answer of that
# score is right, which classes cannot be ruled out, and how unusual the picture is.

# %%
from foveate_client import Client
from foveate_train.data import mnist

images, labels = mnist.load("test")
client = Client.local("models")
usual = client.classify(images[9000], model="digits", version="2", trust=True)
usual

# %% [markdown]
# Noise is no digit. The network must call it one, as it knows nothing else; how unusual it is
# tells.

# %%
import numpy as np

noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
unusual = client.classify(noise, model="digits", version="2", trust=True)
print(f"the digit: {usual.trust.ood_percentile:.0f}, the noise: {unusual.trust.ood_percentile:.0f}")
assert unusual.trust.ood_percentile > 90
unusual

# %% [markdown]
# The prediction sets hold the right class as often as they were calibrated to, on digits that the
# calibration has not seen.

# %%
answers = client.classify_many(images[3000:3500], model="digits", version="2", trust=True)
covered = [
    label in answer.trust.prediction_set
    for answer, label in zip(answers, labels[3000:3500], strict=True)
]
print(f"{np.mean(covered):.1%} of the sets hold the right class")
assert np.mean(covered) > 0.8

# %%
client.close()
