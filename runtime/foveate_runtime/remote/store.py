"""What all places of bundles have in common: a listing of files, and their bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from foveate_runtime.remote.location import BUCKETS, HUB, Location, redacted

MAX_FILES = 200_000
"""A place that lists more files is refused."""
MAX_BYTES = 64 << 30
"""A bundle above this size is refused before anything of it is fetched."""

Progress = Callable[[str, int, int], None]
"""Called with what is copied, the bytes that are done, and the bytes in all."""

_LONGEST_REASON = 200


class RemoteError(Exception):
    """A place that cannot be read or written; the message names it and holds no credentials."""


class UnreachableError(RemoteError):
    """A place that does not answer."""


class MissingPackageError(RemoteError):
    """A package that a place needs is not installed; the message holds the pip line."""


@dataclass(frozen=True, order=True)
class Entry:
    """A file of a place: its path there, its bytes, and a tag that changes with its content."""

    path: str
    size: int
    tag: str


class Store(Protocol):
    """A place of bundles. Every method raises RemoteError."""

    def revision(self) -> str:
        """Return what changes with any change of the place; empty where nothing does."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Yield the files, in any order."""
        ...

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a file, in chunks."""
        ...

    def push(self, bundle: Bundle, card: str, progress: Progress) -> str:
        """Write a bundle, visible when it is whole; return the URL that it has then.

        `card` is its model card, in Markdown.
        """
        ...


def names_of(bundle: Bundle) -> list[str]:
    """Return the files of a bundle that a push copies, the manifest last, which makes a version."""
    signature = [SIGNATURE_FILE] if (bundle.path / SIGNATURE_FILE).is_file() else []
    return [*bundle.manifest.files, *signature, MANIFEST_FILE]


def open_store(location: Location, scratch: Path, *, base: str = "") -> Store:
    """Return the store of a location.

    Args:
        location: where it is.
        scratch: a folder for temporary files, which the caller removes.
        base: the image that a pushed image builds on; for a registry.

    Raises:
        MissingPackageError: the extra `remote` is not installed.
        RemoteError: it cannot be.
    """
    if location.scheme in BUCKETS:
        bucket: Store = _module("bucket").BucketStore(location)
        return bucket
    if location.scheme == HUB:
        hub: Store = _module("hub").HubStore(location, scratch)
        return hub
    registry: Store = _module("registry").RegistryStore(location, scratch, base)
    return registry


def reason(error: BaseException) -> str:
    """Return in a line why a library's call failed, without credentials."""
    text = redacted(str(error)).partition("\n")[0].strip() or type(error).__name__
    # What a place names is shown on terminals and in logs.
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def _module(name: str) -> Any:
    try:
        return import_module(f"foveate_runtime.remote.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("foveate_runtime"):
            raise
        raise MissingPackageError(
            f'repositories at URLs need {error.name}: pip install "foveate-runtime[remote]"'
        ) from error
