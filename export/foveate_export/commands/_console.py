"""How the subcommands of this distribution end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from foveate_export.errors import ExportError, UsageError
from foveate_export.publish.bundle import check_name
from foveate_runtime import console
from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.options import option

TRAINING = ("foveate_train", "torch", "torchvision", "timm")
"""What the extra `torch` brings."""

answer = partial(console.answer, usage=(UsageError,), failures=(ExportError,))


def run_with_torch(module: str, arguments: Sequence[str], prog: str) -> int:
    """Run the `main` of a module that the extra `torch` is for, or print its pip line."""
    try:
        main: Callable[[Sequence[str]], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING:
            raise
        needs = 'this needs PyTorch: pip install "foveate-export[torch]"'
        return console.say(prog, needs, console.FAILED)
    return main(arguments)


def place_of(repository: Path | None, name: str | None) -> tuple[Path, str]:
    """Return where the bundle goes. Raises UsageError where that is not said, or cannot be."""
    if repository is None or name is None:
        raise UsageError("--repository and --name say where the bundle goes")
    check_name(name)
    return repository, name


@dataclass(frozen=True, kw_only=True)
class ScoresOptions:
    """What makes scores of a network's logits."""

    scores: Scores | None = option(
        "what makes scores of the logits: softmax, for classes that exclude each other; "
        "sigmoid, for labels of which a picture may have several; none, to serve the outputs as "
        "they are; default: what the network's end and its outputs say"
    )
