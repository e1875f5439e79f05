"""Makes a classifier in torch return logits, whatever stands at its end.

A softmax or a sigmoid at the end is left out of the forward pass, be it a module,
a function or a method, and what remains must give the network's own outputs
again; see `foveate_export.anatomy.ending`. The network is copied for that; its layers and
weights are not.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate_export.anatomy.calls import is_pointwise
from foveate_export.anatomy.ending import SIDES, TINY, End, Ending, Form, find_ending, for_labels
from foveate_export.anatomy.function_calls import Calls, Maker, Without
from foveate_export.anatomy.outputs import with_logits
from foveate_export.anatomy.parametrised import with_plain_weights
from foveate_export.anatomy.pixels import normalise
from foveate_export.errors import ExportError, UsageError
from foveate_runtime.bundle.manifest import Scores
from foveate_train.classifier import Classifier

Array = NDArray[np.float32]

_BATCH = 4
_LAST_LAYERS = 3
"""How many layers with one output are tried, from the last, for the one that returns z."""

_SAME = 1e-4
"""Of the largest logit, between the one output and the two made of its layer."""


def as_logits(
    classifier: Classifier,
    images: NDArray[np.uint8],
    wanted: Scores | None = None,
    *,
    output: str | None = None,
) -> tuple[Classifier, Ending]:
    """Return a classifier that returns logits, a label each, and what makes scores of them.

    Args:
        classifier: returns logits or scores, [N, classes], or one output a
            picture; left as it is.
        images: what its end is found on, uint8 [N, H, W, C], more than two.
        wanted: the scores that the user says; None to find them.
        output: the name of the logits, where it returns several tensors.

    Raises:
        UsageError: its outputs are not those scores, or not as many as its labels; it
            does not take pictures of its input's size.
        ExportError: it returns no such tensor, or its scores cannot be determined.
    """
    classifier = replace(classifier, module=with_plain_weights(classifier.module))
    batches = _pixels(classifier, images)
    first, calls = _first_output(classifier, batches[0])
    if not isinstance(first, Tensor) or output is not None:
        module, pictures = _copied(classifier.module), len(batches[0])
        classifier = with_logits(classifier, module, first, pictures, output)
        first, calls = _first_output(classifier, batches[0])
    module = classifier.module
    _check_shape(classifier, first, len(batches[0]))
    maker = calls.maker(first)
    outputs = _outputs(module, batches)
    taken_off = _without(module, maker)
    before = _outputs(taken_off, batches) if taken_off else None
    end = End(
        maker.function or "an unknown function",
        maker.plain,
        maker.normaliser,
        before if before is not None and before.shape == outputs.shape else None,
    )
    ending = find_ending(outputs, end, wanted)
    ending, labels = for_labels(ending, outputs.shape[1], classifier.labels, classifier.name)
    if ending.normaliser is not None and taken_off is not None:
        module = taken_off
    module = _finished(module, ending, first.ndim, batches)
    return replace(classifier, module=module, labels=labels), ending


def _first_output(classifier: Classifier, pixels: Tensor) -> tuple[Any, Calls]:
    """Run the network on pictures, and return what it returns and its calls.

    Raises:
        UsageError: it does not take them; says what it said.
    """
    try:
        with torch.no_grad(), Calls() as calls:
            return classifier.module(pixels), calls
    except Exception as error:
        # What a network raises where it gets another size than its own is its own choice.
        said = (str(error).strip() or type(error).__name__).partition("\n")[0]
        _, channels, height, width = pixels.shape
        raise UsageError(
            f"{classifier.name} does not take {height} x {width} pictures of {channels} channels, "
            f"as its input specification says: {said}"
        ) from error


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


@dataclass(frozen=True, eq=False)
class _Forward:
    """The forward pass of `module` without some calls; an object, to be copied with the module."""

    module: nn.Module
    left_out: frozenset[tuple[str, int]]

    def __call__(self, pixels: Tensor) -> Any:
        with Without(self.left_out):
            return type(self.module).forward(self.module, pixels)


def _without(module: nn.Module, maker: Maker) -> nn.Module | None:
    """Return the network without what makes scores of its logits, if there is such a thing."""
    patched = "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule)
    if maker.normaliser is None or patched:
        return None
    copied = _copied(module)
    copied.forward = _Forward(copied, maker.left_out)
    return copied


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy that shares the layers and weights, and has hooks and children of its own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)  # noqa: SLF001 - the copy would share it
    copied._forward_hooks = OrderedDict(module._forward_hooks)  # noqa: SLF001 - likewise
    if isinstance(copied.forward, _Forward):
        copied.forward = replace(copied.forward, module=copied)
    return copied


def _finished(module: nn.Module, ending: Ending, axes: int, batches: Sequence[Tensor]) -> nn.Module:
    """Return the network with logits of two axes, made as `ending` says."""
    if ending.form == "as is" and not ending.sides and axes == 2:
        return module
    if ending.form == "as is" and ending.sides:
        both = _with_two_outputs(module, batches)
        if both is not None:
            return both
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
    """Return the network with the outputs -z/2 and z/2, where a linear layer of it returns z.

    Its head then is one of two classes, with maps of either. None where no layer does.
    """
    expected = _outputs(module, batches) * np.array(SIDES, np.float32)
    layers = reversed(list(module.named_modules()))
    single = ((path, both) for path, layer in layers if path and (both := _doubled(layer)))
    for path, layer in islice(single, _LAST_LAYERS):
        made = _replaced(module, path, layer)
        try:
            with torch.no_grad():
                shape = made(batches[0]).shape
            got = _outputs(made, batches)
        except RuntimeError:
            # The network counts on one output of this layer.
            continue
        if shape != (len(batches[0]), 2) or got.shape != expected.shape:
            continue
        if np.abs(got - expected).max() <= _SAME * np.abs(expected).max():
            return made
    return None


def _doubled(layer: nn.Module) -> nn.Module | None:
    """Return a layer with the outputs -z/2 and z/2 in place of its one, z; None for others."""
    both: nn.Module
    if isinstance(layer, nn.Linear) and layer.out_features == 1:
        both = nn.Linear(layer.in_features, 2, layer.bias is not None)
    elif is_pointwise(layer) and layer.out_channels == 1:
        both = nn.Conv2d(layer.in_channels, 2, 1, bias=layer.bias is not None)
    else:
        return None
    for name, parameter in both.named_parameters():
        own = getattr(layer, name).detach()
        parameter.data = torch.cat([own * factor for factor in SIDES])
    return both.eval()


def _replaced(module: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Return a copy that shares all but the layer at `path`."""
    name, _, rest = path.partition(".")
    copied = _copied(module)
    child = module.get_submodule(name)
    copied._modules[name] = _replaced(child, rest, layer) if rest else layer  # noqa: SLF001
    return copied
