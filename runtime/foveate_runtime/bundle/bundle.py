"""A bundle on disk, opened and checked."""

import hashlib
import os
import stat
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

MAX_MANIFEST_BYTES = 4 << 20
"""A manifest above this size is refused unread."""


class BundleError(Exception):
    """A bundle that cannot be used.

    The message names the file at fault by its path inside the bundle and never
    where the bundle lies, so that it may be shown to a client.
    """


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files are all there and all have the digests of its manifest.

    `digest` is the SHA-256 of the manifest, in hexadecimal, and so stands for
    all of the bundle; it is empty where there is none yet.
    """

    path: Path
    manifest: Manifest
    labels: tuple[str, ...]
    digest: str = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the bundle in the folder `path`.

        Reads every file once to compute its digest. Raises BundleError where
        the manifest is missing, too large or invalid, where a file is missing,
        leaves the bundle through a link, or differs from its size or SHA-256,
        and where there is not one label a class.
        """
        root = path.resolve()
        try:
            text = read_manifest(root)
        except OSError as error:
            raise BundleError(f"{MANIFEST_FILE}: cannot be read ({error.strerror})") from error
        manifest = _parse_manifest(text)
        for name, entry in manifest.files.items():
            _check_file(root, name, entry)
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


def _parse_manifest(text: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST_FILE}: {first_fault(error)}") from error


def _check_file(root: Path, name: str, entry: FileEntry) -> None:
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise BundleError(f"{name}: a link that leaves the bundle")
    if not path.is_file():
        raise BundleError(f"{name}: no such file")
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(f"{name}: {size} bytes, and the manifest says {entry.size}")
        if digest(path) != entry.sha256:
            raise BundleError(f"{name}: its SHA-256 is not the manifest's")
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror})") from error


def _read_labels(root: Path, classes: int) -> tuple[str, ...]:
    try:
        text = (root / LABELS_FILE).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{LABELS_FILE}: not UTF-8") from error
    # Not splitlines(): a label may hold one of the separators that it knows.
    labels = tuple(text.removesuffix("\n").split("\n"))
    if len(labels) != classes:
        raise BundleError(f"{LABELS_FILE}: {len(labels)} labels for {classes} classes")
    return labels
