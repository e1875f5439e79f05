"""Reads tensors out of a forward pass by the name of the module they pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from foveate_export.anatomy.layout import NCHW, Layout


@dataclass(frozen=True)
class Tap:
    """A tensor of the forward pass: what the module at `path` takes or returns.

    Taps hold references, read after the pass is over. An operation that works
    in place on the tensor later (`nn.ReLU(inplace=True)` after a batch
    normalisation) is therefore included, which is what the following layers
    saw, and what torchvision's create_feature_extractor returns.

    `layout` says how the tensor is read as a map.
    """

    path: str
    side: Literal["input", "output"] = "output"
    layout: Layout = NCHW

    def __str__(self) -> str:
        """Return the path, marked where the tensor is the module's input."""
        return self.path if self.side == "output" else f"{self.path} (input)"


@contextmanager
def tapped(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Fill a dictionary with the tensors at `taps` while `module` runs.

    The tensors are as the network has them, each in the layout of its tap. Of a
    module that runs several times in a pass, the last call counts. No hook
    remains when the context ends, however it ends.

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


def as_maps(tensors: Mapping[Tap, Tensor]) -> dict[Tap, Tensor]:
    """Return what `tapped` found as maps, [N, C, h, w]."""
    return {tap: tap.layout.to_nchw(tensor) for tap, tensor in tensors.items()}
