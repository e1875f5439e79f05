# %% [markdown]
# # Serve it
#
# A server answers many callers at once, and puts their pictures into common batches. This chapter
# serves the bundle that [the chapter on export](export.py) left in `models`, and asks it over
# gRPC.

# %%
import subprocess

server = subprocess.Popen(
    ["foveate", "serve", "--repository", "models", "--address", "127.0.0.1:0"],
    stdout=subprocess.PIPE,
    text=True,
)
line = server.stdout.readline()
line

# %%
from foveate_client import Cam, Client
from foveate_train.data import mnist

client = Client(line.split()[-1])
client.model("digits")

# %% [markdown]
# A result shows itself: the classes with their scores, and the maps that were asked for.

# %%
images, labels = mnist.load("test")
result = client.classify(images[0], model="digits", cam=Cam(top=2))
result

# %%
result.cams[0].array.shape

# %% [markdown]
# Many pictures go over one stream, and their answers come in order.

# %%
answers = list(client.classify_many(images[:200], model="digits"))
right = sum(
    answer.predictions[0].class_id == label
    for answer, label in zip(answers, labels[:200], strict=True)
)
print(f"{right} of 200 are right")
assert right > 180

# %%
client.close()
server.terminate()
server.wait()
