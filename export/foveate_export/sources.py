"""Finds the classifier to export: a folder, a name of the registry or the hub, or a function."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from torch import nn

from foveate_export.errors import UsageError
from foveate_export.input_files import read_input_spec, read_labels
from foveate_export.plain import as_plain
from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import checkpoint, huggingface, registry
from foveate_train.classifier import Classifier
from foveate_train.weights import SUFFIXES, class_names


@dataclass(frozen=True)
class Source:
    """A classifier, and what training noted about it."""

    classifier: Classifier
    metadata: dict[str, str] = field(default_factory=dict)


def load_source(
    source: str,
    weights: str | None = None,
    arguments: Sequence[str] = (),
    *,
    input_spec: Path | None = None,
    labels: Path | None = None,
) -> Source:
    """Return the classifier that `source` names.

    Args:
        source: a checkpoint folder, a folder or a name (`hf-hub:OWNER/NAME`) of
            Hugging Face, or a name of the registry.
        weights: for a name, what `foveate_train.registry.create` takes.
        arguments: for a name, the network's arguments as `name=value`.
        input_spec: for a name, a JSON file with the fields of
            `foveate_runtime.bundle.manifest.InputSpec`, in place of the library's.
        labels: for a name, a text file with one label a line, in place of the library's.

    Raises:
        UsageError: weights, arguments or files are given beside a checkpoint, or
            the source is a file.
        foveate_train.errors.TrainError: the classifier cannot be had.
    """
    folder = Path(source)
    if source.startswith(huggingface.PREFIXES) or huggingface.is_folder(folder):
        if weights is not None or arguments:
            raise UsageError(f"{source} brings its weights and arguments")
        return _from_hugging_face(source, input_spec, labels)
    if folder.is_dir():
        if weights is not None or arguments or input_spec is not None or labels is not None:
            raise UsageError(
                f"{source} is a checkpoint and brings its weights, arguments, input and labels"
            )
        if not (folder / checkpoint.RECORD_FILE).is_file():
            raise UsageError(
                f"{source} holds neither {checkpoint.RECORD_FILE} nor {huggingface.CONFIG}: "
                f"weights do not say their network: foveate export NAME --weights {source}"
            )
        return _load_checkpoint(folder)
    if folder.suffix.lower() in SUFFIXES or folder.is_file():
        raise UsageError(_no_source(folder))
    classifier = registry.create(source, weights=weights, **registry.parse_arguments(arguments))
    own_file = weights if weights is not None and Path(weights).exists() else None
    return Source(_described(classifier, input_spec, labels, own_file))


def _from_hugging_face(source: str, input_spec: Path | None, labels: Path | None) -> Source:
    """Return the classifier of a folder, or of a name of the hub."""
    named = source.startswith(huggingface.PREFIXES)
    folder = huggingface.fetch(source) if named else Path(source)
    name = source if named else f"folder:{folder.resolve().name}"
    spec = None if input_spec is None else read_input_spec(input_spec)
    classifier = as_plain(huggingface.load(folder, name, spec))
    return Source(_described(classifier, None, labels))


def _load_checkpoint(folder: Path) -> Source:
    loaded = checkpoint.load(folder)
    record = loaded.record
    metadata = {f"metrics.{name}": repr(value) for name, value in loaded.metrics.items()}
    metadata |= {"data_digest": record.data_digest, "seed": str(record.seed)}
    # It says its input, its labels and its weights, so that nothing was assumed.
    return Source(replace(loaded.classifier, assumptions={}), metadata)


def _no_source(file: Path) -> str:
    """Return what to do with a file that is given as the source."""
    if not file.is_file():
        return f"{file}: no such file"
    if file.suffix.lower() in SUFFIXES:
        return (
            f"{file} is a file of weights, which do not say their network: foveate export NAME "
            f"--weights {file}, where NAME is one of foveate models --available"
        )
    return (
        f"{file} is no ONNX file by its name; a source is a checkpoint folder, a name or an .onnx"
    )


def _described(
    classifier: Classifier, input_spec: Path | None, labels: Path | None, weights: str | None = None
) -> Classifier:
    """Give a classifier the input and the labels of the user's files.

    With `weights` of the user's own, say which ones it has where there is no file.
    """
    assumptions = dict(classifier.assumptions)
    if input_spec is not None:
        spec = read_input_spec(input_spec)
        classifier = replace(classifier, input=spec)
    elif weights is not None:
        assumptions["input"] = f"{_shown(classifier.input)}, that of {classifier.name}"
    if labels is not None:
        classifier = replace(classifier, labels=read_labels(labels))
    elif weights is not None:
        key, names = class_names(weights) or ("", ())
        said = _named(classifier.labels)
        if len(names) == len(classifier.labels):
            classifier = replace(classifier, labels=names)
            said = f"those under {key} in {Path(weights).name}"
        assumptions["labels"] = f"{said}; --labels gives others"
    return replace(classifier, assumptions=assumptions)


def _shown(spec: InputSpec) -> str:
    return (
        f"{spec.height} x {spec.width} x {spec.channels}, fit {spec.fit}, resize {spec.resize}, "
        f"{spec.interpolation}, mean {list(spec.mean)}, std {list(spec.std)}"
    )


def _named(labels: Sequence[str]) -> str:
    last = len(labels) - 1
    if tuple(labels) == tuple(map(str, range(len(labels)))):
        return f"the numbers 0 to {last}, as the weights name no classes"
    return f"{labels[0]!r} to {labels[last]!r}, those of the library for {len(labels)} classes"


def load_function(
    reference: str, *, input_spec: Path | None = None, labels: Path | None = None
) -> Source:
    """Return the classifier that a function of the user's own makes.

    Args:
        reference: `package.module:function`, found as `python -m` finds
            modules: the current folder counts. The function takes no arguments
            and returns a Classifier, or an nn.Module that holds its weights.
        input_spec: for an nn.Module, a JSON file with the fields of
            `foveate_runtime.bundle.manifest.InputSpec`.
        labels: for an nn.Module, a text file with one label a line.

    Raises:
        UsageError: there is no such function, it returns something else, or
            the files do not fit what it returns.
        ExportError: the network has no values.
    """
    function = _function(reference)
    try:
        made = function()
    except Exception as error:
        # The user's own code may raise anything.
        raise UsageError(f"{reference} {_raised(error)}") from error
    if isinstance(made, Classifier):
        if input_spec is not None or labels is not None:
            raise UsageError(
                f"{reference} returns a classifier, which brings its input and labels; "
                "--input-spec and --labels are for an nn.Module"
            )
        return Source(as_plain(made))
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise UsageError(f"{reference} returns {kind}, not an nn.Module or a Classifier")
    if input_spec is None or labels is None:
        raise UsageError(
            f"{reference} returns an nn.Module, so --input-spec and --labels say how to use it"
        )
    return Source(
        as_plain(
            Classifier(
                name=reference,
                arguments={},
                module=made,
                input=read_input_spec(input_spec),
                labels=read_labels(labels),
            )
        )
    )


def _raised(error: Exception) -> str:
    """Return in one line what code of the user's raised, and where."""
    said = str(error).strip().partition("\n")[0]
    last = traceback.extract_tb(error.__traceback__)[-1]
    # The text of a SyntaxError names its own place.
    known = isinstance(error, SyntaxError) or last.filename == __file__
    where = "" if known else f" ({Path(last.filename).name}:{last.lineno})"
    return f"raised {type(error).__name__}: {said}{where}"


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
    except Exception as error:
        raise UsageError(f"{module_name} {_raised(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{module_name} has no function {name!r}")
    return cast("Callable[[], object]", function)
