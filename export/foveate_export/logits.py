"""Makes a classifier in torch return logits, whatever stands at its end.

The last call of a softmax or a sigmoid is left out of the forward pass, be it a
module, a function or a method, and what remains must give the network's own
outputs again; see `foveate_export.ending`. The network is copied for that, its
layers and weights are not.
"""

import copy
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foveate_export.ending import (
    NORMALISERS,
    SIDES,
    TINY,
    End,
    Ending,
    Form,
    find_ending,
    for_labels,
)
from foveate_export.errors import ExportError, UnsupportedHeadError
from foveate_export.heads.base import last_layer
from foveate_export.reference import normalise
from foveate_export.taps import record
from foveate_serve.bundle.manifest import Scores
from foveate_train.classifier import Classifier

Array = NDArray[np.float32]

_BATCH = 4
_LAST_CALLS = 64
"""Enough for what follows the last layer; each holds what it returned."""

_SAME = 1e-4
"""Of the largest logit, between the one output and the two made of its layer."""

_NAMES = {"expit": "sigmoid", "logsigmoid": "log_sigmoid"}
_SHAPES = frozenset(
    {"view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach"}
    | {"getitem", "select", "permute", "transpose", "t"}
)
_TYPES = frozenset({"to", "float", "double", "half", "type", "dropout"})
_EXTREMES = frozenset({"clamp", "clip", "hardtanh"})
_POOLING = frozenset(
    {"mean", "avg_pool2d", "adaptive_avg_pool2d", "amax", "max_pool2d", "adaptive_max_pool2d"}
)
_LINEAR = frozenset(
    {"linear", "addmm", "mm", "bmm", "matmul", "rmatmul", "einsum", "baddbmm", "bilinear"}
    | {"conv1d", "conv2d", "conv3d", "batch_norm", "layer_norm", "group_norm"}
)
_KEEPING_SIZE = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
    | {"hardswish", "neg", "add", "radd", "sub", "rsub", "mul", "rmul", "div", "rdiv"}
    | {"truediv", "rtruediv", "cat", "stack", "sum"}
)
"""Functions whose values may have any size where all that they take may."""


def as_logits(
    classifier: Classifier, images: NDArray[np.uint8], wanted: Scores | None = None
) -> tuple[Classifier, Ending]:
    """Return a classifier that returns logits, a label each, and what makes scores of them.

    Args:
        classifier: returns logits or scores, [N, classes], or one output a
            picture; left as it is.
        images: what its end is found on, uint8 [N, H, W, C], more than two.
        wanted: the scores that the user says; None to find them.

    Raises:
        UsageError: its outputs are not those scores, or not as many as its labels.
        ExportError: it returns no such tensor, or its scores cannot be told.
    """
    module = classifier.module
    batches = _pixels(classifier, images)
    calls = _Calls()
    with torch.no_grad(), calls:
        first = module(batches[0])
    _check_shape(classifier, first, len(batches[0]))
    operator = calls.operator(first)
    outputs = _outputs(module, batches)
    end = End(operator or "an unknown function", calls.is_plain(first))
    taken_off = _without(module, operator, calls.counts[operator])
    if taken_off is not None:
        before = _outputs(taken_off, batches)
        if before.shape == outputs.shape:
            end = replace(end, normaliser=NORMALISERS[_plainly(operator)], before=before)
    ending = find_ending(outputs, end, wanted)
    ending, labels = for_labels(ending, outputs.shape[1], classifier.labels, classifier.name)
    if ending.normaliser is not None and taken_off is not None:
        module = taken_off
    module = _finished(module, ending, first.shape, batches)
    return replace(classifier, module=module, labels=labels), ending


def _check_shape(classifier: Classifier, outputs: object, pictures: int) -> None:
    shape = list(outputs.shape) if isinstance(outputs, Tensor) else None
    if shape and shape[0] == pictures and sum(size > 1 for size in shape[1:]) <= 1:
        return
    raise ExportError(
        f"{classifier.name} returns {shape or type(outputs).__name__} for {pictures} pictures "
        f"and {len(classifier.labels)} labels"
    )


def _pixels(classifier: Classifier, images: NDArray[np.uint8]) -> list[Tensor]:
    dtype = next((p.dtype for p in classifier.module.parameters()), torch.float32)
    return list(torch.split(normalise(images, classifier.input, dtype), _BATCH))


def _outputs(module: nn.Module, batches: Sequence[Tensor]) -> Array:
    with torch.no_grad():
        outputs = [module(pixels).reshape(len(pixels), -1).float() for pixels in batches]
    found: Array = torch.cat(outputs).numpy()
    return found


def _name(function: Callable[..., Any]) -> str:
    """Return the name of a function or a method, that of an operator such as `+` included."""
    return getattr(function, "__name__", "").strip("_")


def _plainly(name: str) -> str:
    name = name.removeprefix("special_")
    return _NAMES.get(name, name)


@dataclass(frozen=True)
class _Call:
    name: str
    inputs: tuple[Tensor, ...]
    output: object


class _Calls(TorchFunctionMode):
    """Counts the calls of every function in a pass, and keeps the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._last: deque[_Call] = deque(maxlen=_LAST_CALLS)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function and note it."""
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        self.counts[_name(function)] += 1
        given = tuple(_tensors([*args, *kwargs.values()]))
        self._last.append(_Call(_name(function), given, output))
        return output

    def operator(self, output: Tensor) -> str:
        """Return the function that computed the numbers of an output, "" where it is not known."""
        for call in reversed(self._last):
            if call.output is output:
                if not call.inputs or call.name not in _SHAPES | _TYPES | _EXTREMES:
                    return call.name
                output = call.inputs[0]
        return ""

    def is_plain(self, output: Tensor) -> bool:
        """Whether what computes an output leaves it any size, as a linear layer does."""
        calls = list(self._last)
        return any(call.output is output for call in calls) and _is_plain(output, calls)


def _is_plain(output: Tensor, calls: Sequence[_Call]) -> bool:
    # From the last: a function that works in place returns what it was given.
    for position in reversed(range(len(calls))):
        call = calls[position]
        if call.output is not output:
            continue
        if call.name in _LINEAR:
            return True
        if call.name in _SHAPES | _TYPES | _POOLING:
            return _is_plain(call.inputs[0], calls[:position])
        return call.name in _KEEPING_SIZE and all(
            _is_plain(given, calls[:position]) for given in call.inputs
        )
    # A weight, the picture, or what lies far before the end.
    return True


def _tensors(values: Sequence[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class _Without(TorchFunctionMode):
    """Leaves out one call of a function, counted from 1: it returns what it was given."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__()
        self._name = name
        self._left = number

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function, unless it is the one to leave out."""
        kwargs = kwargs or {}
        if _name(function) == self._name:
            self._left -= 1
            if self._left == 0:
                return args[0] if args else kwargs["input"]
        return function(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class _Forward:
    """The forward pass of `module` without one call; an object, to be copied with the module."""

    module: nn.Module
    name: str
    number: int

    def __call__(self, pixels: Tensor) -> Any:
        with _Without(self.name, self.number):
            return type(self.module).forward(self.module, pixels)


def _without(module: nn.Module, name: str, number: int) -> nn.Module | None:
    """Return the network without its last call of `name`, where that makes scores of logits."""
    patched = "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule)
    if _plainly(name) not in NORMALISERS or patched:
        return None
    copied = _copied(module)
    copied.forward = _Forward(copied, name, number)
    return copied


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy that shares the layers and weights, and has hooks and children of its own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)  # noqa: SLF001 - the copy would share it
    copied._forward_hooks = OrderedDict(module._forward_hooks)  # noqa: SLF001 - likewise
    if isinstance(copied.forward, _Forward):
        copied.forward = replace(copied.forward, module=copied)
    return copied


def _finished(
    module: nn.Module, ending: Ending, shape: torch.Size, batches: Sequence[Tensor]
) -> nn.Module:
    """Return the network with two-dimensional logits, made as `ending` says."""
    if ending.sides and ending.form == "as is":
        both = _with_two_outputs(module, batches)
        if both is not None:
            return both
    if ending.form == "as is" and not ending.sides and len(shape) == 2:
        return module
    finished = _copied(module)
    finished.register_forward_hook(_Finish(ending.form, ending.sides))
    return finished


@dataclass(frozen=True)
class _Finish:
    """A hook that makes logits of what a network returns."""

    form: Form
    sides: bool

    def __call__(self, _: nn.Module, __: object, output: Tensor) -> Tensor:
        values = output.flatten(1) if output.ndim > 1 else output.unsqueeze(1)
        logits = values if self.form == "as is" else values.clamp(min=TINY).log()
        if self.form == "log-odds":
            logits = logits - (1 - values).clamp(min=TINY).log()
        return torch.cat([logits * factor for factor in SIDES], 1) if self.sides else logits


def _with_two_outputs(module: nn.Module, batches: Sequence[Tensor]) -> nn.Module | None:
    """Return the network with the outputs -z/2 and z/2, where a linear layer of it returns z."""
    try:
        with torch.no_grad():
            last = last_layer(record(module, batches[0]))
    except UnsupportedHeadError:
        return None
    both = _replaced(module, last.path, _doubled(last.module))
    outputs = _outputs(module, batches)
    try:
        with torch.no_grad():
            shape = both(batches[0]).shape
        got = _outputs(both, batches)
    except RuntimeError:
        # The network counts on one output.
        return None
    expected = outputs * np.array(SIDES, np.float32)
    if shape != (len(batches[0]), 2) or got.shape != expected.shape:
        return None
    return both if np.abs(got - expected).max() <= _SAME * np.abs(expected).max() else None


def _doubled(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Return a layer with the outputs -z/2 and z/2 in place of its one, z."""
    bias = layer.bias is not None
    both: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        both = nn.Linear(layer.in_features, 2, bias)
    else:
        both = nn.Conv2d(layer.in_channels, 2, 1, bias=bias)
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            own = getattr(layer, name)
            parameter.data = torch.cat([own * factor for factor in SIDES])
    return both.eval()


def _replaced(module: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Return a copy that shares all but the layer at `path`."""
    name, _, rest = path.partition(".")
    copied = _copied(module)
    child = module.get_submodule(name)
    copied._modules[name] = _replaced(child, rest, layer) if rest else layer  # noqa: SLF001
    return copied
