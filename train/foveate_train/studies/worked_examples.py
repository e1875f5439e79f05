"""Worked examples.

The arithmetic of the course, computed by the layers that the networks here are made of. Each part
is a piece of Python and what it prints.
"""

# %%
import torch
from torch import nn
from torch.nn import functional

from foveate_train.data.batches import steps
from foveate_train.drawing import grey, heat, new_figure, sheet
from foveate_train.networks.alexnet import response_normalisation
from foveate_train.networks.plain10 import ACTIVATIONS


def convolution(weights: object, bias: list[float], stride: int = 1) -> nn.Conv2d:
    """Return a layer with these weights [outputs, inputs, height, width] and biases."""
    values = torch.tensor(weights, dtype=torch.float32)
    outputs, inputs, height, width = values.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), stride)
    layer.load_state_dict({"weight": values, "bias": torch.tensor(bias, dtype=torch.float32)})
    return layer.requires_grad_(requires_grad=False)


def weights_of(layer: nn.Module) -> int:
    """Count the weights of a layer without its biases."""
    return sum(value.numel() for name, value in layer.named_parameters() if "weight" in name)


def whole(values: torch.Tensor) -> list[list[int]]:
    """Return the values as whole numbers."""
    return values.int().tolist()


# %% [markdown]
"""## A convolution, window by window

What is called a convolution is a cross-correlation: kernel and window are multiplied number by
number, the products are added, and the bias too. A picture of 3 x 3 has four windows of 2 x 2."""

# %%
picture = torch.tensor([[2.0, 4, 6], [8, 10, 12], [14, 16, 18]])
layer = convolution([[[[1, 3], [5, 7]]]], [5])
for row in range(2):
    for column in range(2):
        a, b, c, d = picture[row : row + 2, column : column + 2].flatten().int().tolist()
        print(f"1*{a} + 3*{b} + 5*{c} + 7*{d} + 5 = {a + 3 * b + 5 * c + 7 * d + 5}")
print("the layer:", whole(layer(picture[None, None])[0, 0]))

# %% [markdown]
"""## Two channels, two outputs

A filter has a kernel for each channel; their sums are added, and the bias once. A second output
has kernels and a bias of its own."""

# %%
channels = torch.stack([torch.ones(2, 2), torch.full((2, 2), 2.0)])[None]
first = [[[3, 3], [3, 3]], [[4, 4], [4, 4]]]
second = [[[1, 1], [1, 1]], [[2, 2], [2, 2]]]
print("4*1*3 + 4*2*4 + 10 =", 4 * 1 * 3 + 4 * 2 * 4 + 10)
print("4*1*1 + 4*2*2 + 5 =", 4 * 1 * 1 + 4 * 2 * 2 + 5)
print("the layer:", convolution([first, second], [10, 5])(channels).flatten().int().tolist())

# %% [markdown]
"""## A picture of 6 x 6 and two filters

The first filter answers to a diagonal, the second to a vertical line: 3 is the most that either
can give. With stride 2 every second answer is taken. Max-pooling keeps the strongest of every 2
x 2."""

# %%
binary = torch.tensor(
    [
        [1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1, 0],
    ],
    dtype=torch.float32,
)
diagonal = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
vertical = [[-1, 1, -1]] * 3
for stride in (1, 2):
    answers = convolution([[diagonal], [vertical]], [0, 0], stride)(binary[None, None])
    for name, answer in zip(("filter 1", "filter 2"), answers[0], strict=True):
        print(f"{name}, stride {stride}:")
        for line in whole(answer):
            print("   ", " ".join(f"{value:3}" for value in line))
dense = convolution([[diagonal], [vertical]], [0, 0])(binary[None, None])
for name, answer in zip(("filter 1", "filter 2"), functional.max_pool2d(dense, 2)[0], strict=True):
    print(f"{name}, stride 1, then max-pooling of 2 x 2: {whole(answer)}")
figure = sheet(
    [[grey(binary), *(heat(answer, -4, 3) for answer in dense[0])]],
    columns=["picture", "filter 1", "filter 2"],
    cell=1.6,
    scale=(-4, 3),
)

# %% [markdown]
"""## Parameters

Two filters of 3 x 3 over the three channels of a colour picture hold 27 weights each; counted
by channel it is 18 weights for each of three. The biases come on top, one a filter."""

# %%
colour = nn.Conv2d(3, 2, 3)
print("by filter: 27 + 27 =", 27 + 27, " by channel: 18 * 3 =", 18 * 3)
every = sum(value.numel() for value in colour.parameters())
print("the layer:", weights_of(colour), "weights and", every - weights_of(colour), "biases")

# %% [markdown]
"""Two stacked kernels of 3 x 3 see what one of 5 x 5 sees, with 3 x 3 x 2 weights against 5 x 5 x
1."""

# %%
small = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 3, bias=False))
large = nn.Conv2d(1, 1, 5, bias=False)
print("3*3*2 =", weights_of(small), " 5*5*1 =", weights_of(large))
print(f"{weights_of(small)} / {weights_of(large)} = {weights_of(small) / weights_of(large)}")

# %% [markdown]
"""A convolution shares its weights: the 16 outputs of a 3 x 3 filter on a 6 x 6 picture use the
same nine. Without sharing each output has nine of its own, and a fully connected layer has 36
for each."""

# %%
print("shared:", weights_of(nn.Conv2d(1, 1, 3)))
print("each output its own nine: 16 * 9 =", 16 * 9)
print("fully connected: 36 * 16 =", weights_of(nn.Linear(36, 16)))

# %% [markdown]
"""## Pooling

Of every window of 2 x 2 max-pooling keeps the largest value and average pooling the mean.
Global average pooling makes one number of a whole map, whatever its size."""

# %%
maps = torch.tensor([[1.0, 3, 2, 4], [5, 7, 6, 8], [9, 2, 1, 0], [4, 1, 3, 8]])[None, None]
print("max:", nn.MaxPool2d(2)(maps)[0, 0].tolist())
print("average:", nn.AvgPool2d(2)(maps)[0, 0].tolist())
print("global average:", nn.AdaptiveAvgPool2d(1)(maps).item())

# %% [markdown]
"""## Activation functions

The functions (solid) and their derivatives (dashed), by automatic differentiation. Through ten
sigmoids a gradient is multiplied by at most 0.25 to the power of ten. Maxout is left out: it is
the largest of several channels, so no function of one number."""

# %%
names = [name for name in ACTIVATIONS if name != "maxout"]
figure = new_figure(10, 5)
for number, name in enumerate(names):
    x = torch.linspace(-5, 8, 1301, requires_grad=True)
    y = ACTIVATIONS[name]()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    axes = figure.add_subplot(2, 4, number + 1)
    axes.plot(x.detach(), y.detach(), color="C0")
    axes.plot(x.detach(), slope, "--", color="C1")
    axes.set_title(name, fontsize=9)
    axes.grid(alpha=0.3)
    print(f"{name:11} derivative from {slope.min():.3f} to {slope.max():.3f}")
print(f"0.25 ** 10 = {0.25**10:.1e}")

# %% [markdown]
"""## Local response normalisation by hand

AlexNet divides each value by (k + alpha * the sum of the squares of five neighbouring channels)
to the power of beta, with k = 2, alpha = 0.0001 and beta = 0.75. Channel 0 has no neighbours
below it, so three channels count for it. torch divides alpha by the number of channels, so its
layer is given five times as much."""

# %%
values = torch.tensor([10.0, 20, 30, 40, 50, 60])
lrn = response_normalisation()
print(f"size {lrn.size}, k {lrn.k:g}, alpha {lrn.alpha:g}, beta {lrn.beta:g}")
for channel in range(6):
    around = values[max(0, channel - 2) : channel + 3]
    by_hand = values[channel] / (2 + 1e-4 * around.square().sum()) ** 0.75
    print(f"channel {channel}: {values[channel]:g} becomes {by_hand:.4f}")
print("the layer:", [round(v, 4) for v in lrn(values.view(1, 6, 1, 1)).flatten().tolist()])

# %% [markdown]
"""## Receptive fields

What of the picture a value depends on is where its gradient is not zero. One layer of 3 x 3
sees 3 x 3 pixels, two see 5 x 5, three 7 x 7."""

# %%
fields = []
for depth in (1, 2, 3):
    stack = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(depth)))
    for weight in stack.parameters():
        nn.init.ones_(weight)
    pixels = torch.zeros(1, 1, 7, 7, requires_grad=True)
    (slope,) = torch.autograd.grad(stack(pixels)[0, 0, 3, 3], pixels)
    rows, columns = (slope[0, 0] != 0).nonzero().amax(0) - (slope[0, 0] != 0).nonzero().amin(0) + 1
    print(f"{depth} layers of 3 x 3: {rows} x {columns} pixels")
    fields.append(slope[0, 0] / slope.max())
figure = sheet([list(map(grey, fields))], columns=["1 layer", "2 layers", "3 layers"], cell=1.6)

# %% [markdown]
"""## Iteration and epoch

An iteration is one step of the optimiser, on one batch; an epoch is every picture once."""

# %%
for batch in (1, 128, 60_000):
    print(f"60,000 pictures in batches of {batch:,}: {steps(60_000, batch):,} iterations an epoch")
print(f"15 epochs in batches of 128: {15 * steps(60_000, 128):,} iterations")
