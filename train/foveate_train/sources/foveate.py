"""The source `foveate`: networks registered with `registry.register`."""

import importlib
import inspect
from collections.abc import Sequence
from typing import get_args

from pydantic import ConfigDict, ValidationError, validate_call

from foveate_train.classifier import Argument, Classifier
from foveate_train.errors import ArgumentsError
from foveate_train.registry import BUILDERS, Blueprint, Builder
from foveate_train.weights import initialising, load, random_seed

# The networks register themselves when they are imported.
importlib.import_module("foveate_train.networks")


def names() -> Sequence[str]:
    """Return the registered networks."""
    return sorted(BUILDERS)


def create(network: str, weights: str | None, arguments: dict[str, Argument]) -> Classifier:
    """Build a registered network; without weights, from the seed 0."""
    name = f"foveate:{network}"
    builder = BUILDERS[network]
    arguments = _with_the_word_none(builder, arguments)
    seed = random_seed(weights or "random:0")
    with initialising(seed):
        blueprint = _build(name, builder, arguments)
    said = load(blueprint.module, weights) if weights is not None and seed is None else ""
    bound = inspect.signature(builder).bind(**arguments)
    # Defaults are recorded too, so that a checkpoint outlives a change of them.
    bound.apply_defaults()
    return Classifier(
        name=name,
        arguments=dict(bound.arguments),
        module=blueprint.module,
        input=blueprint.input,
        labels=blueprint.labels,
        assumptions={"weights": said} if said else {},
    )


def _with_the_word_none(builder: Builder, arguments: dict[str, Argument]) -> dict[str, Argument]:
    """Give `none` back to arguments that choose among words: command lines read it as None."""
    words = {
        name
        for name, parameter in inspect.signature(builder).parameters.items()
        if "none" in get_args(parameter.annotation)
    }
    return {
        name: "none" if value is None and name in words else value
        for name, value in arguments.items()
    }


def _build(name: str, builder: Builder, arguments: dict[str, Argument]) -> Blueprint:
    """Call a builder with its arguments checked against its annotations."""
    known = list(inspect.signature(builder).parameters)
    for argument in arguments:
        if argument not in known:
            takes = ", ".join(known) or "none"
            raise ArgumentsError(f"{name} has no argument {argument!r}; its arguments are {takes}")
    try:
        return validate_call(config=ConfigDict(strict=True))(builder)(**arguments)
    except ValidationError as error:
        refused = "; ".join(
            f"{'.'.join(map(str, e['loc']))}={e['input']}: {e['msg']}" for e in error.errors()
        )
        raise ArgumentsError(f"{name}: {refused}") from error
