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
# The network has seen no digit that lies on its side. It must call it one of ten, as it knows
# nothing else. How unusual its scores are tells more: here of a hundred digits, upright and turned.

# %%
import numpy as np


def unusual(pictures: np.ndarray) -> list[float]:
    answers = client.classify_many(pictures, model="digits", version="2", trust=True)
    return [answer.trust.ood_percentile for answer in answers]


upright = images[5000:5100]
turned = np.ascontiguousarray(np.rot90(upright, axes=(1, 2)))
usually, turned_usually = np.median([unusual(upright), unusual(turned)], axis=1)
print(f"the median percentile: upright {usually:.0f}, turned {turned_usually:.0f}")
assert usually < 60
assert turned_usually > 80
client.classify(turned[0], model="digits", version="2", trust=True)

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
