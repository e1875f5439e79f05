"""A bundle on disk, opened and checked."""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from foveate_runtime.bundle.manifest import (
    LABELS_FILE,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    first_fault,
)
from foveate_runtime.bundle.onnx_file import check_graph

MAX_MANIFEST_BYTES = 4 << 20
"""A manifest above this size is refused unread."""

MAX_LABELS_BYTES = 16 << 20
"""Labels above this size are refused unread."""

MAX_LABEL_CHARACTERS = 1024

_MESSAGE_CHARACTERS = 500
_MOST_FAULTS = 100

_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that have a terminal or a page show a text in another order than it has."""

CheckManifest = Callable[[Path, bytes], None]
"""Checks the manifest of the bundle in a folder by its bytes; raises BundleError."""


class BundleError(Exception):
    """A bundle that cannot be used.

    The message names the file at fault by its path inside the bundle and never
    where the bundle lies, so that it may be shown to a client.
    """


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files are all there and all have the digests of its manifest.

    `digest` is the SHA-256 of the manifest, in hexadecimal, and so identifies the
    whole bundle; it is empty where there is none yet.
    """

    path: Path
    manifest: Manifest
    labels: tuple[str, ...]
    digest: str = ""

    @classmethod
    def open(cls, path: Path, check_manifest: CheckManifest | None = None) -> Self:
        """Read and check the bundle in the folder `path`.

        Reads every file once to compute its digest. `check_manifest`, such as
        `foveate_runtime.bundle.signing.Keys.check`, is called before the manifest is
        parsed.

        Raises BundleError where the manifest is missing, too large or invalid, where a
        file is missing, leaves the bundle through a link, or differs from its size or
        SHA-256, where a graph refers to what is outside its file, where there is not one
        label a class, and where a text has control characters.
        """
        try:
            root = path.resolve()
            text = read_manifest(root)
        except OSError as error:
            raise BundleError(f"{MANIFEST_FILE}: cannot be read ({error.strerror})") from error
        except RuntimeError as error:
            raise BundleError(f"{MANIFEST_FILE}: its folder is a link to itself") from error
        if check_manifest is not None:
            check_manifest(root, text)
        manifest = parse_manifest(text)
        for name, entry in manifest.files.items():
            _check_file(root, name, entry)
        for variant in manifest.variants:
            _check_variant(root, variant.file)
        return cls(
            path=root,
            manifest=manifest,
            labels=_read_labels(root, manifest.classes),
            digest=hashlib.sha256(text).hexdigest(),
        )

    def file(self, variant: str) -> Path:
        """Return the graph of `variant`; raises KeyError where the bundle has no such variant."""
        return self.path / self.manifest.variant(variant).file


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(root: Path) -> bytes:
    """Return the bytes of the manifest in the folder `root`.

    Raises OSError where it cannot be read, and BundleError where it is no plain
    file, or too large: it is not waited for and not read then.
    """
    # Opening a pipe would otherwise wait for its writer.
    descriptor = os.open(root / MANIFEST_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"{MANIFEST_FILE}: not a plain file")
        text = file.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_FILE}: larger than the limit of {MAX_MANIFEST_BYTES} bytes")
    return text


def parse_manifest(text: bytes) -> Manifest:
    """Return a manifest from its text; raises BundleError where it is invalid."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        # To describe each of many takes seconds.
        many = error.error_count() > _MOST_FAULTS
        what = f"{error.error_count():,} faults" if many else _printable(first_fault(error))
        raise BundleError(f"{MANIFEST_FILE}: {what}") from error
    for value in _texts(manifest.model_dump(mode="json")):
        if unprintable(value, allowed="\n\t"):
            raise BundleError(f"{MANIFEST_FILE}: {value[:80]!r} has control characters")
    return manifest


def _printable(message: str) -> str:
    """Return a message, which may quote any text of a manifest, as one short line."""
    line = "".join(x if x.isprintable() else "?" for x in message[:_MESSAGE_CHARACTERS])
    return line + " ..." * (len(message) > _MESSAGE_CHARACTERS)


def _texts(value: object) -> Iterator[str]:
    """Yield every text in what JSON can hold, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def unprintable(text: str, allowed: str = "") -> bool:
    """Return whether a text has characters that control a terminal or a page, not in `allowed`."""
    return not text.isprintable() and any(
        character not in allowed
        and (unicodedata.category(character) == "Cc" or character in _BIDIRECTIONAL)
        for character in text
    )


def _check_file(root: Path, name: str, entry: FileEntry) -> None:
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise BundleError(f"{name}: a link that leaves the bundle")
        if not path.is_file():
            raise BundleError(f"{name}: no such file")
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(f"{name}: {size} bytes, and the manifest says {entry.size}")
        if digest(path) != entry.sha256:
            raise BundleError(f"{name}: its SHA-256 is not the manifest's")
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror})") from error
    except RuntimeError as error:
        raise BundleError(f"{name}: a link to itself") from error


def _check_variant(root: Path, name: str) -> None:
    try:
        check_graph(root / name)
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BundleError(f"{name}: not a graph that can be loaded: {error}") from error


def _read_labels(root: Path, classes: int) -> tuple[str, ...]:
    path = root / LABELS_FILE
    if path.stat().st_size > MAX_LABELS_BYTES:
        raise BundleError(f"{LABELS_FILE}: larger than the limit of {MAX_LABELS_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{LABELS_FILE}: not UTF-8") from error
    # Not splitlines(): a label may hold one of its other separators.
    labels = tuple(text.removesuffix("\n").split("\n"))
    if len(labels) != classes:
        raise BundleError(f"{LABELS_FILE}: {len(labels)} labels for {classes} classes")
    for number, label in enumerate(labels, 1):
        if unprintable(label):
            raise BundleError(f"{LABELS_FILE}: line {number} has control characters")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise BundleError(
                f"{LABELS_FILE}: line {number} is longer than {MAX_LABEL_CHARACTERS} characters"
            )
    return labels
