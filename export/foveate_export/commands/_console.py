"""How the subcommands of this distribution end."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from foveate_export.errors import ExportError, UsageError
from foveate_runtime import console

_TRAINING = ("foveate_train", "torch", "torchvision", "timm")
"""What the extra `torch` brings."""

answer = partial(console.answer, usage=(UsageError,), failures=(ExportError,))


def run_with_torch(module: str, arguments: Sequence[str], prog: str) -> int:
    """Run the `main` of a module that the extra `torch` is for, or print its pip line."""
    try:
        main: Callable[[Sequence[str]], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _TRAINING:
            raise
        needs = 'this needs PyTorch: pip install "foveate-export[torch]"'
        return console.say(prog, needs, console.FAILED)
    return main(arguments)
