"""Fetches a bundle of a store into a folder, and checks every byte of it."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from foveate_runtime.bundle.bundle import MAX_MANIFEST_BYTES, BundleError, parse_manifest
from foveate_runtime.bundle.folder import VERSION, is_name
from foveate_runtime.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_BYTES,
    SIGNATURE_FILE,
    FileEntry,
    Manifest,
)
from foveate_runtime.remote.store import MAX_BYTES, MAX_FILES, Entry, Progress, RemoteError, Store


@dataclass(frozen=True)
class Remote:
    """A bundle as its place lists it: its files by their path in the bundle.

    `key` is the model and the version of its folder, None where it is at the root of its
    place: they are then in its manifest.
    """

    key: tuple[str, int] | None
    files: Mapping[str, Entry]

    @property
    def complete(self) -> bool:
        """Whether the manifest is there, which is written last."""
        return MANIFEST_FILE in self.files

    @property
    def manifest(self) -> Entry:
        """The file that makes it a bundle."""
        return self.files[MANIFEST_FILE]


@dataclass(frozen=True)
class Fetched:
    """A manifest that was read: its bytes, its contents, and its SHA-256 in hexadecimal."""

    text: bytes
    manifest: Manifest
    digest: str

    @property
    def key(self) -> tuple[str, int]:
        """Its model and version."""
        return self.manifest.name, self.manifest.version


def bounded(entries: Iterable[Entry], place: str) -> list[Entry]:
    """Return a listing; raises RemoteError where it is longer than MAX_FILES."""
    found = list(islice(entries, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise RemoteError(f"{place}: it lists more than {MAX_FILES} files")
    return found


def remotes(entries: Iterable[Entry]) -> list[Remote]:
    """Return the bundles of a listing: one at its root, or those in `<model>/<version>/`.

    What is no such folder is passed over.
    """
    root: dict[str, Entry] = {}
    folders: dict[tuple[str, int], dict[str, Entry]] = {}
    for entry in entries:
        root[entry.path] = entry
        model, _, below = entry.path.partition("/")
        version, _, name = below.partition("/")
        if name and is_name(model) and VERSION.fullmatch(version):
            folders.setdefault((model, int(version)), {})[name] = entry
    if MANIFEST_FILE in root:
        return [Remote(None, root)]
    return [Remote(key, files) for key, files in sorted(folders.items())]


def read_manifest(store: Store, remote: Remote) -> Fetched:
    """Read the manifest of a bundle; raises BundleError where it is not what it should be."""
    if remote.manifest.size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_FILE}: larger than the limit of {MAX_MANIFEST_BYTES} bytes")
    text = b"".join(store.read(remote.manifest))
    manifest = parse_manifest(text)
    fetched = Fetched(text, manifest, hashlib.sha256(text).hexdigest())
    if remote.key is not None and remote.key != fetched.key:
        model, version = remote.key
        raise BundleError(
            f"{MANIFEST_FILE}: it is {manifest.name}/{manifest.version}, "
            f"and its folder {model}/{version}"
        )
    return fetched


def fetch(store: Store, remote: Remote, fetched: Fetched, folder: Path, progress: Progress) -> None:
    """Bring every file that the manifest names into the empty `folder`.

    Raises:
        BundleError: a file is missing, or its size or SHA-256 is not the manifest's.
        RemoteError: the place cannot be read, or the disk has not enough room.
    """
    manifest = fetched.manifest
    named = f"{manifest.name}/{manifest.version}"
    total = sum(entry.size for entry in manifest.files.values())
    if total > MAX_BYTES:
        raise BundleError(f"{total} bytes, and the limit is {MAX_BYTES}")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise RemoteError(f"{named} has {total} bytes, and the disk {free} bytes left")
    for name, entry in manifest.files.items():
        _check_listed(remote, name, entry)
    done = 0
    progress(named, done, total)
    for name, entry in manifest.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found, size = hashlib.sha256(), 0
        with path.open("xb") as file:
            for chunk in store.read(remote.files[name]):
                size += len(chunk)
                if size > entry.size:
                    break
                found.update(chunk)
                file.write(chunk)
                progress(named, done + size, total)
        if size != entry.size or found.hexdigest() != entry.sha256:
            raise BundleError(f"{name}: its SHA-256 is not the manifest's")
        done += size
    signature = remote.files.get(SIGNATURE_FILE)
    if signature is not None and signature.size == SIGNATURE_BYTES:
        (folder / SIGNATURE_FILE).write_bytes(b"".join(store.read(signature))[:SIGNATURE_BYTES])
    (folder / MANIFEST_FILE).write_bytes(fetched.text)


def _check_listed(remote: Remote, name: str, entry: FileEntry) -> None:
    listed = remote.files.get(name)
    if listed is None or name == MANIFEST_FILE:
        raise BundleError(f"{name}: no such file")
    if listed.size != entry.size:
        raise BundleError(f"{name}: {listed.size} bytes, and the manifest says {entry.size}")
