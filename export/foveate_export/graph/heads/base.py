"""What every kind of head offers, and how the layer behind the logits is found."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.anatomy.calls import Call, is_pointwise
from foveate_export.anatomy.layout import Layout
from foveate_export.anatomy.recording import Map, Recording
from foveate_export.anatomy.taps import Tap, tapped
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward, HookedNetwork


@dataclass(frozen=True)
class Target:
    """What a map weighs: the activations at `tap`, and their size in cells."""

    tap: Tap
    height: int
    width: int


@dataclass(frozen=True)
class Held:
    """A module that divides a vector by its size, which depends on the picture.

    Attributes:
        path: of the module.
        kind: what the size is: of `layer_norm` the standard deviation, of
            `rms_norm` the root mean square, of `cosine` the length.
        eps: what is added to the square of the size.
    """

    path: str
    kind: Literal["layer_norm", "rms_norm", "cosine"]
    eps: float = 0.0


@dataclass(frozen=True)
class TokenAttention:
    """The attention that maps are made of, where a head reads some of the tokens.

    Attributes:
        methods: those of the head that are made of it.
        blocks: the paths of the modules that hold it, in their order; "" where none
            holds one attention alone.
        rows: the tokens that the logits depend on.
        layout: of the tokens.
    """

    methods: tuple[str, ...]
    blocks: tuple[str, ...]
    rows: tuple[int, ...]
    layout: Layout


class Head(ABC):
    """The way from the activations of one layer to the logits.

    Names the classifier's parameters and holds no copies of them, so that the
    exported graph holds each weight once.
    """

    module: nn.Module
    """The classifier's network."""

    description: str
    """What stands between the activations and the logits, in a few words."""

    targets: Mapping[str, Target]
    """What the map of each method weighs; the default method comes first."""

    held: Held | None = None
    """What `cam` takes for constant, so that the logits are linear in the cells, if anything."""

    attention: TokenAttention | None = None
    """What the methods that weigh no activations are made of, where there are any."""

    note: str | None = None
    """What people might expect and the head cannot give, with the reason."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that `maps` computes, the default first."""
        return tuple(self.targets)

    @property
    def without_attention(self) -> "Head":
        """The head with no methods but those that weigh activations."""
        return self

    @property
    def selects(self) -> bool:
        """Whether gradients pass through a maximum, which hands each to one cell of a window.

        Which one that is among cells equal to within rounding, engines decide
        differently.
        """
        return False

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The tensors of the forward pass that `maps` needs."""
        return tuple(dict.fromkeys(target.tap for target in self.targets.values()))

    def network(self, taps: Sequence[Tap]) -> nn.Module:
        """Return what runs the classifier and returns a `Forward` that `maps` can use.

        Args:
            taps: further tensors to read, outputs of the classifier's modules;
                those of the head are read as well.
        """
        return HookedNetwork(self.module, [*self.taps, *taps])

    @abstractmethod
    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Compute the maps, in a way that the exporter can trace.

        Args:
            forward: a pass of `network`.
            classes: class indices, int64 [N, K].

        Returns:
            By method, the raw map of every class asked for: float [N, K, h, w].
        """


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that returns the logits, or a 1x1 convolution in its place."""

    path: str
    module: nn.Linear | nn.Conv2d
    input: Tensor


def last_layer(recording: Recording) -> LastLayer:
    """Return the layer whose output is the logits, up to the shape.

    A layer counts by what it computes: a subclass of a linear layer may compute
    something else of its weight.

    Raises:
        UnsupportedHeadError: another kind of layer returns them.
    """
    for call in last_calls(recording):
        layer = call.module
        if call.input is None or not (isinstance(layer, nn.Linear) or is_pointwise(layer)):
            continue
        if same(_linear(layer, call.input).reshape(recording.logits.shape), recording.logits):
            return LastLayer(call.path, layer, call.input)
    raise UnsupportedHeadError("no linear layer returns the logits")


def last_calls(recording: Recording) -> Iterator[Call]:
    """Yield the calls whose output is the logits, up to the shape, from the last."""
    logits = recording.logits
    for call in reversed(recording.calls):
        if call.input is None or call.output is None or call.output.numel() != logits.numel():
            continue
        if torch.equal(call.output.reshape(logits.shape), logits):
            yield call


def _linear(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, layer.weight, layer.bias)
    return functional.conv2d(x, layer.weight, layer.bias)


_TOLERANCE = 1e-4
"""Of the largest value, between two ways to compute the same."""


def same(got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if got.shape != expected.shape:
        return False
    return bool((got - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def find_map(recording: Recording, fits: Callable[[Tensor], bool]) -> Map | None:
    """Find the map that fits, under the name that people know it by.

    The same tensor leaves a stage, its last block, that block's activation, and
    a convolution that the activation follows in place. The stage is the name
    that people use; among layers of no parts it is the last.

    Args:
        recording: the forward pass.
        fits: tells whether a map, [N, C, h, w], is the one.

    Returns:
        The map; None where none fits.
    """
    fitting = [found for found in recording.maps if fits(found.tensor)]
    return min(
        reversed(fitting),
        key=lambda found: (
            found.tap.side == "input",
            found.tap.path.count("."),
            not any(found.module.children()),
        ),
        default=None,
    )


def gradients(recording: Recording, taps: Sequence[Tap]) -> dict[Tap, Tensor | None]:
    """Return the gradient of the logits, in random shares, by the tensor at each of `taps`.

    Each has the layout of its tap. None where the logits do not depend on the tensor.
    """
    image = recording.image.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        with tapped(recording.module, taps) as tensors:
            logits = recording.module(image)
        # Of random shares: the sum of all of them is constant where a softmax ends the network.
        score = (logits * torch.randn(logits.shape, generator=generator)).sum()
    found: dict[Tap, Tensor | None] = dict.fromkeys(taps)
    asked = [tap for tap in taps if tensors[tap].requires_grad]
    if score.requires_grad and asked:
        values = torch.autograd.grad(score, [tensors[tap] for tap in asked], allow_unused=True)
        found |= dict(zip(asked, values, strict=True))
    return found


def target_of(found: Map) -> Target:
    """Return what a map of `found` weighs."""
    return Target(found.tap, *found.tensor.shape[2:])
