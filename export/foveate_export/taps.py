"""Reads tensors out of a forward pass by the name of the module they pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """A tensor of the forward pass: what the module at `path` takes or returns.

    Taps hold references, read after the pass is over. An operation that works
    in place on the tensor later (`nn.ReLU(inplace=True)` after a batch
    normalisation) is therefore included, which is what the following layers
    saw, and what torchvision's create_feature_extractor returns.
    """

    path: str
    side: Literal["input", "output"] = "output"

    def __str__(self) -> str:
        """Return the path, marked where the tensor is the module's input."""
        return self.path if self.side == "output" else f"{self.path} (input)"


@dataclass(frozen=True)
class Call:
    """One call of one module within a forward pass, in the order of return."""

    path: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None


@contextmanager
def tapped(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Fill a dictionary with the tensors at `taps` while `module` runs.

    Of a module that runs several times in a pass, the last call counts. No
    hook remains when the context ends, however it ends.

    Raises:
        AttributeError: a path that the module has not.
    """
    found: dict[Tap, Tensor] = {}

    def keep(tap: Tap) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found[tap] = output if tap.side == "output" else inputs[0]

        return hook

    with ExitStack() as hooks:
        for tap in taps:
            handle = module.get_submodule(tap.path).register_forward_hook(keep(tap))
            hooks.callback(handle.remove)
        yield found


@dataclass(frozen=True)
class Recording:
    """A forward pass: the picture, what came out, and every call on the way."""

    module: nn.Module
    image: Tensor
    logits: Tensor
    calls: list[Call]


def record(module: nn.Module, image: Tensor) -> Recording:
    """Run `module` on `image`, float32 [N, C, H, W], and keep every call inside it.

    A call whose first argument or whose result is not one tensor has None in
    that place. The tensors are references, as with `Tap`.
    """
    calls: list[Call] = []

    def hook_for(path: str) -> Any:
        def hook(child: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls.append(Call(path, child, _tensor(inputs[0] if inputs else None), _tensor(output)))

        return hook

    with ExitStack() as hooks:
        for path, child in module.named_modules():
            if path:
                hooks.callback(child.register_forward_hook(hook_for(path)).remove)
        logits = module(image)
    return Recording(module, image, logits, calls)


def _tensor(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
