"""Finds and builds classifiers by name.

A name is `source:network`. The sources are `foveate` (networks written here
and registered with `register`), `torchvision`, `timm`, and `package` (networks
whose trained weights install as a Python package). A source is imported when
one of its names is first asked for, so a run pays only for what it uses.
"""

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar, cast

from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.classifier import Argument, Classifier
from foveate_train.errors import (
    ArgumentsError,
    OtherClassesError,
    UnknownClassifierError,
    WeightsError,
)

SOURCES = ("foveate", "torchvision", "timm", "package")


class Blueprint(NamedTuple):
    """What a registered builder returns: a network and how to use it."""

    module: nn.Module
    input: InputSpec
    labels: tuple[str, ...]


Builder = Callable[..., Blueprint]
BuilderT = TypeVar("BuilderT", bound=Builder)

BUILDERS: dict[str, Builder] = {}
"""The builders of the source `foveate`, by network."""


class Source(Protocol):
    """What a module of `foveate_train.sources` offers."""

    def names(self) -> Sequence[str]:
        """Return the networks of this source, without its prefix, sorted."""

    def create(
        self, network: str, weights: str | None, arguments: dict[str, Argument]
    ) -> Classifier:
        """Build `network`, which is one of `names()`."""


def register(network: str) -> Callable[[BuilderT], BuilderT]:
    """Make a builder known as `foveate:<network>`.

    The builder takes keyword arguments with annotations, which are checked
    when a classifier is created, and returns a Blueprint.

    Raises:
        ValueError: if the name is taken.
    """

    def add(builder: BuilderT) -> BuilderT:
        if network in BUILDERS:
            taken = BUILDERS[network]
            raise ValueError(f"foveate:{network} is already {taken.__module__}.{taken.__name__}")
        BUILDERS[network] = builder
        return builder

    return add


def names(source: str | None = None) -> list[str]:
    """Return the full names of one source, or of all, sorted within a source."""
    return [
        f"{known}:{network}"
        for known in SOURCES
        if source in (None, known)
        for network in _source(known).names()
    ]


def create(name: str, *, weights: str | None = None, **arguments: Argument) -> Classifier:
    """Build a classifier, in evaluation mode, on the CPU.

    Args:
        name: `source:network`, for example `foveate:convnet4`.
        weights: a .pth, .pt, .ckpt or .safetensors file that holds a state dict, as
            training scripts leave it, or a folder that holds one; `random:SEED`; for
            torchvision, one of the names of the network's weights, such as
            `IMAGENET1K_V1`. None means the weights of the package for `package:`,
            the library's default ones, downloaded, for `torchvision:` and `timm:`,
            and `random:0` for `foveate:`.
        arguments: passed to the network's builder. Without `num_classes`, a file
            whose head has another number of classes decides it.

    Raises:
        UnknownClassifierError: with the nearest right names.
        ArgumentsError: the network refuses an argument.
        MissingPackageError: the package of a `package:` name is not installed.
        WeightsError: the weights cannot be had or do not fit.
    """
    source, _, network = name.partition(":")
    if source not in SOURCES or network not in _source(source).names():
        raise UnknownClassifierError(_unknown(name))
    try:
        classifier = _source(source).create(network, weights, arguments)
    except OtherClassesError as error:
        if "num_classes" in arguments:
            raise
        classifier = _with_classes(_source(source), network, weights, arguments, error)
    classifier.module.eval()
    return classifier


def _with_classes(
    source: Source,
    network: str,
    weights: str | None,
    arguments: dict[str, Argument],
    error: OtherClassesError,
) -> Classifier:
    """Build a network with as many classes as the head of its weights has."""
    try:
        classifier = source.create(network, weights, {**arguments, "num_classes": error.classes})
    except (ArgumentsError, WeightsError):
        # The network has no such argument, or it was no head that differed.
        raise error from None
    said = f"{error.classes}, as {error.key} has in the file"
    return replace(classifier, assumptions={**classifier.assumptions, "classes": said})


def parse_arguments(pairs: Sequence[str]) -> dict[str, Argument]:
    """Read `name=value` pairs as they are typed on a command line.

    A value is read as none, true or false, an integer, a number, or else as
    text: `["pool=false", "filters=192"]` gives `{"pool": False, "filters": 192}`.

    Raises:
        ArgumentsError: a pair has no name or no `=`, or a name stands twice.
    """
    arguments: dict[str, Argument] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name.isidentifier() or not equals:
            raise ArgumentsError(f"argument {pair!r} is not of the form name=value")
        if name in arguments:
            raise ArgumentsError(f"argument {name!r} stands twice")
        arguments[name] = _parse_value(value)
    return arguments


def _parse_value(text: str) -> Argument:
    words: dict[str, Argument] = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _source(source: str) -> Source:
    return cast("Source", importlib.import_module(f"foveate_train.sources.{source}"))


def _unknown(name: str) -> str:
    """Return the error of an unknown name, with the names nearest to it.

    The same network in another source or spelling comes first; then those whose
    names begin with it or resemble it, in the source that was named or else in all.
    """
    source, colon, network = name.rpartition(":")
    known: dict[str, list[str]] = {}
    for full in names():
        known.setdefault(_folded(full.partition(":")[2]), []).append(full)
    same = known.get(_folded(network), [])
    if same and not colon:
        *first, last = same
        choice = f"{', '.join(first)} or {last}" if first else last
        return f"classifier {name!r} lacks its source; write {choice}"
    prefix = f"{source}:" if source in SOURCES else ""
    inside = {
        folded: chosen
        for folded, full in known.items()
        if (chosen := [one for one in full if one.startswith(prefix)])
    }
    longer = sorted((folded for folded in inside if folded.startswith(_folded(network))), key=len)
    close = difflib.get_close_matches(_folded(network), inside, n=3)
    alike = dict.fromkeys([*longer[:2], *close])
    near = list(dict.fromkeys([*same, *(full for folded in alike for full in inside[folded])]))
    hint = f"the nearest are {', '.join(near)}" if near else f"the sources are {', '.join(SOURCES)}"
    return f"no classifier is called {name!r}; {hint}"


def _folded(network: str) -> str:
    """Return a name as it is compared: without case and punctuation."""
    return "".join(character for character in network.lower() if character.isalnum())
