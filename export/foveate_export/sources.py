"""Finds the classifier to export: a checkpoint folder, a name of the registry, or a function."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import nn

from foveate_export.errors import UsageError
from foveate_export.input_files import read_input_spec, read_labels
from foveate_train import checkpoint, registry
from foveate_train.classifier import Classifier, InputSpec


@dataclass(frozen=True)
class Source:
    """A classifier, and what training noted about it."""

    classifier: Classifier
    metadata: dict[str, str] = field(default_factory=dict)


def load_source(source: str, weights: str | None = None, arguments: Sequence[str] = ()) -> Source:
    """Return the classifier that `source` names.

    Args:
        source: a checkpoint folder, or a name of the registry.
        weights: for a name, what `foveate_train.registry.create` takes.
        arguments: for a name, the network's arguments as `name=value`.

    Raises:
        UsageError: weights or arguments are given beside a checkpoint.
        foveate_train.errors.TrainError: the classifier cannot be had.
    """
    folder = Path(source)
    if not folder.is_dir():
        return Source(
            registry.create(source, weights=weights, **registry.parse_arguments(arguments))
        )
    if weights is not None or arguments:
        raise UsageError(f"{source} is a checkpoint and brings its weights and arguments")
    loaded = checkpoint.load(folder)
    record = loaded.record
    metadata = {f"metrics.{name}": repr(value) for name, value in loaded.metrics.items()}
    metadata |= {"data_digest": record.data_digest, "seed": str(record.seed)}
    return Source(loaded.classifier, metadata)


def load_function(
    reference: str, *, input_spec: Path | None = None, labels: Path | None = None
) -> Source:
    """Return the classifier that a function of the user's own makes.

    Args:
        reference: `package.module:function`, found as `python -m` finds
            modules: the current folder counts. The function takes no arguments
            and returns a Classifier, or an nn.Module that holds its weights.
        input_spec: for an nn.Module, a JSON file with the fields of
            `foveate_train.classifier.InputSpec`.
        labels: for an nn.Module, a text file with one label a line.

    Raises:
        UsageError: there is no such function, it returns something else, or
            the files do not fit what it returns.
    """
    made = _function(reference)()
    if isinstance(made, Classifier):
        if input_spec is not None or labels is not None:
            raise UsageError(
                f"{reference} returns a classifier, which brings its input and labels; "
                "--input-spec and --labels are for an nn.Module"
            )
        made.module.eval()
        return Source(made)
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise UsageError(f"{reference} returns {kind}, not an nn.Module or a Classifier")
    if input_spec is None or labels is None:
        raise UsageError(
            f"{reference} returns an nn.Module, so --input-spec and --labels say how to use it"
        )
    return Source(
        Classifier(
            name=reference,
            arguments={},
            module=made.eval(),
            input=read_input_spec(input_spec, InputSpec),
            labels=read_labels(labels),
        )
    )


def _function(reference: str) -> Callable[[], object]:
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise UsageError(f"--module {reference!r} is not of the form package.module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that lacks one of its own imports is the user's to see.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{module_name} needs {error.name}, which is not installed") from error
        raise UsageError(f"there is no module {error.name!r} here or installed") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{module_name} has no function {name!r}")
    return cast("Callable[[], object]", function)
