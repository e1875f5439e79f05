"""Weights: read from files, checked against a network, or random by a seed."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from foveate_train import state_dicts
from foveate_train.errors import HeadlessError, OtherClassesError, WeightsError
from foveate_train.state_dicts import COUNTS, INDICES, StateDict, fit_names, read

Adapt = Callable[[StateDict, nn.Module], StateDict]
"""Turns a state dict as it was read into one with the module's keys."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
_OF_HUBS = "model.safetensors"
_LISTED = 3
"""How many differing keys an error spells out before it counts the rest."""


def random_seed(weights: str) -> int | None:
    """Return the seed of `random:SEED`, or None for every other text.

    Raises:
        WeightsError: the text begins with `random:` and no seed follows.
    """
    if not weights.startswith("random:"):
        return None
    if not re.fullmatch(r"random:\d{1,18}", weights):
        raise WeightsError(f"weights {weights!r}: random: is followed by a seed, as in random:0")
    return int(weights.removeprefix("random:"))


@contextmanager
def initialising(seed: int | None) -> Iterator[None]:
    """Draw a network's first values from `seed`, leaving torch's global state alone.

    None says that weights will be loaded over all of them: they are not drawn
    at all, which is most of the time that building a large network takes.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            with _UndrawnParameters():
                yield
        else:
            torch.manual_seed(seed)
            yield


class _UndrawnParameters(TorchFunctionMode):
    """Leaves parameters as they are in memory where they would be filled at random."""

    _DRAWS = (
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
    )

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        if func in self._DRAWS:
            # The functions of nn.init hand their arguments over by name.
            target = named["tensor"] if "tensor" in named else args[0]
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **named)


def as_is(state: StateDict, module: nn.Module) -> StateDict:  # noqa: ARG001  one shape for all
    """Leave a state dict alone: the Adapt of files that have the module's keys."""
    return state


def load(module: nn.Module, weights: str, adapt: Adapt = as_is) -> str:
    """Load a state dict from a file or folder into `module`, all keys or none.

    Returns:
        what is to be said of the file: where in it the weights were, and in which precision.

    Raises:
        OtherClassesError: its head alone differs, by the number of its classes.
        HeadlessError: it lacks one layer alone, such as the head.
        WeightsError: the file cannot be read, its keys or shapes differ from the
            module's, or it holds values that are not finite; the message lists which.
    """
    path = _file(Path(weights))
    try:
        found = fit_names(read(path), module.state_dict())
        state = adapt(found.state, module)
        # Another number of classes is tried next, which would hide what is not finite.
        check_finite(state)
        check_fit(module, state)
    except HeadlessError as error:
        error.said = _said(path, found, state)
        error.args = (f"weights {path}: {error}",)
        raise
    except WeightsError as error:
        error.args = (f"weights {path}: {error}",)
        raise
    module.load_state_dict(state, strict=False)
    return _said(path, found, state)


def _said(path: Path, found: state_dicts.Found, state: StateDict) -> str:
    return ", ".join(filter(None, [path.name, found.said, _precision(state)]))


def class_names(weights: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the names of the classes in a file or folder of weights, with their key, if any."""
    path = _file(Path(weights))
    return state_dicts.class_names(path) if path.is_file() else None


def _precision(state: StateDict) -> str:
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    halves = sorted(kinds & {"float16", "bfloat16", "float64"})
    return f"{' and '.join(halves)} taken as float32" if halves else ""


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raise WeightsError where a tensor holds values that are not finite; says which."""
    names = [
        key
        for key, tensor in state.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if names:
        raise WeightsError(f"holds values that are not finite (NaN or infinity): {_some(names)}")


def check_fit(module: nn.Module, state: StateDict) -> None:
    """Compare a state dict with a module's, keys and shapes.

    The counters of batch normalisations, which no answer depends on, may be missing.

    Raises:
        OtherClassesError: the head alone differs, by the number of its classes.
        HeadlessError: one layer alone is missing, such as the head.
        WeightsError: they differ; the message lists how.
    """
    wanted = module.state_dict()
    differences = {
        "missing": [key for key in wanted if key not in state and not key.endswith(COUNTS)],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {list(state[key].shape)} for {list(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    found = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in differences.items() if keys]
    if not found:
        return
    message = "does not fit the network; " + "; ".join(found)
    layers = {key.rpartition(".")[0] for key in differences["missing"]}
    if len(layers) == 1 and not differences["of another shape"]:
        if not differences["unexpected"]:
            raise HeadlessError(message, layers.pop(), state)
        message += (
            ": the training script changed that layer; --module takes the network that it built"
        )
    classes = None if len(found) > 1 else _other_classes(state, wanted)
    raise WeightsError(message) if classes is None else OtherClassesError(message, *classes)


def _other_classes(state: StateDict, wanted: Mapping[str, torch.Tensor]) -> tuple[int, str] | None:
    """Return how many classes a state dict's head has, and a tensor that tells it.

    A head has one number of rows in all its tensors, and nothing else differs.
    """
    differing = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    rows = {(state[key].shape[:1], wanted[key].shape[:1]) for key in differing}
    same = all(state[key].shape[1:] == wanted[key].shape[1:] for key in differing)
    if not differing or not same or len(rows) != 1 or not state[differing[0]].ndim:
        return None
    return state[differing[0]].shape[0], differing[0]


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def _file(path: Path) -> Path:
    """Return `path`, or the one file of weights in it if it is a folder.

    The libraries' hubs keep the same weights in several forms, of which
    `model.safetensors` is taken, or the index of the files that it was divided into.
    """
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if path / _OF_HUBS in found:
        return path / _OF_HUBS
    indices = sorted(file for file in path.iterdir() if file.name.endswith(INDICES))
    if len(indices) == 1:
        return indices[0]
    if len(found) != 1:
        held = ", ".join(file.name for file in found) or "none"
        raise WeightsError(
            f"weights {path}: holds {held}, where one of {', '.join(SUFFIXES)} is needed"
        )
    return found[0]
