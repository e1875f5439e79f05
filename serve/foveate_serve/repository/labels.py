"""Labels of versions of a model: `stable`, `canary`, or any other name.

A label begins with a letter and a version is a number, so a request can name
either in the same field.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from foveate_runtime.bundle.folder import VERSION
from foveate_runtime.bundle.manifest import Name, Positive
from foveate_serve.errors import InvalidRequestError, clip, quote

LATEST = "latest"
"""Means the newest version, and cannot be a label."""

STABLE = "stable"
"""The label whose version serves requests that name no version."""

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_ASSIGNMENT = re.compile(r"(?P<model>[^:=]+):(?P<label>[^:=]+)=(?P<version>[^:=]+)")


def check_label(text: str) -> str:
    """Return `text` if it is a valid label; raises ValueError."""
    if text == LATEST:
        raise ValueError(f"{LATEST!r} means the newest version and cannot be a label")
    if not _LABEL.fullmatch(text):
        raise ValueError(
            "a label is of at most 63 lower-case letters, digits, '-' and '_', "
            "and begins with a letter"
        )
    return text


def _read(value: object) -> object:
    """Turn `MODEL:LABEL=VERSION,...`, the form of flags and the environment, into a mapping."""
    if not isinstance(value, str):
        return value
    labels: dict[str, dict[str, str]] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        match = _ASSIGNMENT.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not MODEL:LABEL=VERSION")
        labels.setdefault(match["model"], {})[match["label"]] = match["version"]
    return labels


Label = Annotated[str, AfterValidator(check_label)]

VersionLabels = Annotated[Mapping[Name, Mapping[Label, Positive]], BeforeValidator(_read)]
"""The labels of each model, and the version of each label."""


def check_labels(labels: Mapping[str, str]) -> dict[str, int]:
    """Return the version numbers of a model's labels; raises InvalidRequestError."""
    numbers = {}
    for label, version in labels.items():
        field, metadata = "version_labels", {"label": clip(label)}
        try:
            check_label(label)
        except ValueError as error:
            raise InvalidRequestError(
                "LABEL_INVALID", f"{quote(label)}: {error}", field=field, metadata=metadata
            ) from error
        if not VERSION.fullmatch(version):
            raise InvalidRequestError(
                "VERSION_INVALID",
                f"the label {label!r} has the version {quote(version)}, which is not a number",
                field=field,
                metadata=metadata,
            )
        numbers[label] = int(version)
    return numbers
