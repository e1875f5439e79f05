"""Loads the transport of this process, which foveate-serve provides."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from foveate_client import _plugins
from foveate_client._transports.base import Transport

TRANSPORTS = "foveate.transports"
"""The entry point group of transports that other distributions provide."""


def local_transport(
    repository: str | os.PathLike[str], require_signature: Path | None = None
) -> Transport:
    """Return the transport that runs the models of `repository` in this process.

    It is a folder or a URL. `require_signature` is a file of public keys of which one must
    have signed each bundle. Raises MissingDistributionError where foveate-serve is not
    installed.
    """
    factory = cast(
        "Callable[..., Transport]",
        _plugins.load(
            TRANSPORTS,
            "local",
            purpose="running models in this process",
            requirement="foveate-serve[cpu]",
        ),
    )
    place = repository if isinstance(repository, str) and "://" in repository else Path(repository)
    # A transport of another distribution may not support signatures.
    return factory(place) if require_signature is None else factory(place, require_signature)
