"""Loads what other distributions provide as entry points."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from foveate_client._exceptions import MissingDistributionError


def find(group: str, name: str) -> EntryPoint | None:
    """Return the entry point `name` of `group`, or None where no distribution has it."""
    return next(iter(entry_points(group=group, name=name)), None)


def load(group: str, name: str, *, purpose: str, requirement: str) -> Any:
    """Import and return the object of the entry point `name` of `group`.

    Raises MissingDistributionError, with `purpose` and `requirement`, where it
    is not installed, wholly or in part.
    """
    point = find(group, name)
    if point is None:
        raise MissingDistributionError(purpose, requirement)
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise MissingDistributionError(purpose, requirement) from error
