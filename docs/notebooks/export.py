# %% [markdown]
# # Export it
#
# A bundle is the network as one ONNX graph, with its maps and the activations of its layers as
# outputs, and a manifest that names them and says how far they lie from PyTorch. This chapter
# exports what [the chapter on training](train.py) left in `digits`, and runs the graph by ONNX
# Runtime alone.

# %%
import subprocess

subprocess.run(
    ["foveate", "export", "digits", "--repository", "models", "--name", "digits"], check=True
)

# %%
from pathlib import Path

from foveate_runtime.bundle.bundle import Bundle

bundle = Bundle.open(Path("models/digits/1"))
manifest = bundle.manifest
print("maps:", ", ".join(cam.method for cam in manifest.cams))
print("layers:", ", ".join(each.layer for each in manifest.features))
manifest.variants[0].parity

# %% [markdown]
# The picture goes in as bytes: cast, normalisation and layout are part of the graph. A class id
# of -1 means the best class. Logits and map come from one pass, without gradients.

# %%
import numpy as np
import onnxruntime

from foveate_train.data import mnist

images, labels = mnist.load("test")
session = onnxruntime.InferenceSession("models/digits/1/model.onnx")
method = manifest.cams[0].method
logits, maps = session.run(
    ["logits", f"cam.{method}"],
    {"image": images[:4, :, :, None], "class_ids": np.full((4, 1), -1, dtype=np.int64)},
)
print(logits.argmax(1), labels[:4], maps.shape)
assert (logits.argmax(1) == labels[:4]).mean() >= 0.5
