"""Weights: read from files, checked against a network, or random by a seed."""

import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from foveate_train.errors import WeightsError

StateDict = dict[str, torch.Tensor]
Adapt = Callable[[StateDict, nn.Module], StateDict]
"""Turns a state dict as it was read into one with the module's keys."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_OF_HUBS = "model.safetensors"
DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's unpickler raises on bytes that are no torch file, or a damaged one."""
_LISTED = 8
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


def load(module: nn.Module, weights: str, adapt: Adapt = as_is) -> None:
    """Load a state dict from a file or folder into `module`, all keys or none.

    Raises:
        WeightsError: the file cannot be read, or its keys or shapes differ
            from the module's; the message lists what is missing, unexpected or
            mis-shaped.
    """
    path = _file(Path(weights))
    try:
        state = adapt(read_state_dict(path), module)
        check_fit(module, state)
    except WeightsError as error:
        raise WeightsError(f"weights {path}: {error}") from error
    module.load_state_dict(state)


def read_state_dict(path: Path) -> StateDict:
    """Read a .safetensors or a torch file without running anything in it.

    A torch file may hold the state dict itself or hold it under the key
    `state_dict`.

    Raises:
        WeightsError: the file is missing or damaged, or is no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError("there is no such file") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(f"not a whole safetensors file ({error})") from error
    except DAMAGED as error:
        raise WeightsError(
            "not a torch file of tensors alone (it is read with weights_only)"
        ) from error
    except OSError as error:
        raise WeightsError(error.strerror or str(error)) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError("holds no state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"holds no state dict ({key!r} is no tensor)")
    return dict(content)


def check_fit(module: nn.Module, state: StateDict) -> None:
    """Compare a state dict with a module's, keys and shapes.

    Raises:
        WeightsError: they differ; the message lists how.
    """
    wanted = module.state_dict()
    differences = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {list(state[key].shape)} for {list(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    found = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in differences.items() if keys]
    if found:
        raise WeightsError("does not fit the network; " + "; ".join(found))


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def _file(path: Path) -> Path:
    """Return `path`, or the one file of weights in it if it is a folder.

    The libraries' hubs keep the same weights in several forms, of which
    `model.safetensors` is taken.
    """
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if path / _OF_HUBS in found:
        return path / _OF_HUBS
    if len(found) != 1:
        held = ", ".join(file.name for file in found) or "none"
        raise WeightsError(
            f"weights {path}: holds {held}, where one of {', '.join(SUFFIXES)} is needed"
        )
    return found[0]
