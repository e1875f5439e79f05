"""The worked examples of convolution and activation, on the layers that the networks use."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from foveate_train.networks.layers import Maxout
from foveate_train.networks.plain10 import ACTIVATIONS

BINARY = torch.tensor(
    [
        [1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1, 0],
    ],
    dtype=torch.float32,
)[None, None]
DIAGONAL = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
VERTICAL = torch.tensor([[-1.0, 1, -1]] * 3)
FILTERS = torch.stack([DIAGONAL, VERTICAL])[:, None]


def _conv(weights, bias, stride=1):
    """A convolution with these weights, [outputs, inputs, height, width], and biases."""
    weights = torch.tensor(weights, dtype=torch.float32)
    layer = nn.Conv2d(weights.shape[1], len(weights), weights.shape[2:], stride)
    layer.load_state_dict({"weight": weights, "bias": torch.tensor(bias, dtype=torch.float32)})
    return layer


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([[2, 4], [8, 10]], 129),
        ([[4, 6], [10, 12]], 161),
        ([[8, 10], [14, 16]], 225),
        ([[10, 12], [16, 18]], 257),
    ],
)
def test_a_convolution_is_a_cross_correlation(window, expected):
    layer = _conv([[[[1, 3], [5, 7]]]], [5])
    assert layer(torch.tensor([[window]], dtype=torch.float32)).item() == expected


def test_the_four_windows_are_those_of_one_picture():
    picture = torch.tensor([[[[2.0, 4, 6], [8, 10, 12], [14, 16, 18]]]])
    output = _conv([[[[1, 3], [5, 7]]]], [5])(picture)
    assert output[0, 0].tolist() == [[129, 161], [225, 257]]


def test_channels_are_summed_and_each_output_has_its_bias():
    channels = torch.stack([torch.ones(2, 2), torch.full((2, 2), 2.0)])[None]
    # The first output: 4 * 1 * 3 + 4 * 2 * 4 + 10; the second, of ones twice: 4 + 8 + 5.
    assert _conv([[[[3, 3], [3, 3]], [[4, 4], [4, 4]]]], [10])(channels).item() == 12 + 32 + 10
    # With kernels of ones and twos the second output is 4 + 16 + 5.
    assert _conv([[[[1, 1], [1, 1]], [[2, 2], [2, 2]]]], [5])(channels).item() == 25
    both = _conv(
        [[[[3, 3], [3, 3]], [[4, 4], [4, 4]]], [[[1, 1], [1, 1]], [[2, 2], [2, 2]]]], [10, 5]
    )
    assert both(channels).flatten().tolist() == [54, 25]


def test_filters_answer_to_their_pattern():
    first, second = functional.conv2d(BINARY, FILTERS)[0]
    assert first.tolist() == [[3, -1, -3, -1], [-3, 1, 0, -3], [-3, -3, 0, 1], [3, -2, -2, -1]]
    assert second.tolist() == [[-1, -1, -1, -1], [-1, -1, -2, 1], [-1, -1, -2, 1], [-1, 0, -4, 3]]


def test_a_stride_takes_every_second_answer():
    dense, sparse = (functional.conv2d(BINARY, FILTERS, stride=stride) for stride in (1, 2))
    assert sparse[0, 0].tolist() == [[3, -3], [-3, 0]]
    assert torch.equal(sparse, dense[:, :, ::2, ::2])


def test_max_pooling_keeps_the_strongest_answer():
    first, second = functional.max_pool2d(functional.conv2d(BINARY, FILTERS), 2)[0]
    assert first.tolist() == [[3, 0], [3, 1]]
    assert second.tolist() == [[-1, 1], [0, 3]]


def test_two_small_kernels_see_what_a_large_one_sees():
    small = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    large = nn.Conv2d(8, 8, 5, bias=False)
    seen = []
    for network in (small, large):
        picture = torch.ones(1, 8, 9, 9, requires_grad=True)
        middle = network(picture)[0, :, 2, 2].sum()
        (gradient,) = torch.autograd.grad(middle, picture)
        seen.append(gradient.abs().sum((0, 1)) > 0)
    assert torch.equal(*seen)
    assert seen[0].sum() == 5 * 5
    counts = [sum(p.numel() for p in network.parameters()) for network in (small, large)]
    assert counts[0] / counts[1] == 18 / 25 == 0.72


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("tanh", math.tanh),
        ("relu", lambda x: max(x, 0)),
        ("leaky_relu", lambda x: x if x > 0 else 0.1 * x),
        ("relu6", lambda x: min(max(x, 0), 6)),
        ("elu", lambda x: x if x > 0 else math.exp(x) - 1),
        ("mish", lambda x: x * math.tanh(math.log(1 + math.exp(x)))),
    ],
)
def test_an_activation_is_its_formula(name, formula):
    values = [-4.0, -1, -0.25, 0, 0.5, 3, 7]
    output = ACTIVATIONS[name]()(torch.tensor(values, dtype=torch.float64)).tolist()
    assert output == pytest.approx([formula(value) for value in values])


def test_maxout_is_the_maximum_of_neighbouring_channels():
    maps = torch.arange(2 * 6 * 2 * 3, dtype=torch.float32).reshape(2, 6, 2, 3).sin()
    output = Maxout(3)(maps)
    assert output.shape == (2, 2, 2, 3)
    assert torch.equal(output[:, 0], maps[:, :3].max(1).values)
    assert torch.equal(output[:, 1], maps[:, 3:].max(1).values)
