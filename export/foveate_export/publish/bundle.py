"""Writes bundles into a repository, whole or not at all.

A bundle is built in a folder whose name begins with a dot, inside the model's
folder, and renamed to its version when it is complete. What reads the
repository passes over such folders.
"""

import contextlib
import errno
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from foveate_export.errors import ExportError, RepositoryError, UsageError
from foveate_runtime.bundle.bundle import Bundle, digest
from foveate_runtime.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, Name

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Exported:
    """A published bundle: its folder, its manifest, and what is to be said about it."""

    path: Path
    manifest: Manifest
    note: str | None

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be a model's name and a folder's."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise UsageError(
            f"name {name!r}: letters, digits, '.', '_' and '-', at most 128, "
            "beginning with a letter or a digit"
        ) from error


@contextmanager
def staging(repository: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder on the repository's file system, gone afterwards.

    Folders that had to be made for it, the model's and the repository's, go as
    well where nothing was published into them.

    Raises:
        RepositoryError: the folder cannot be made.
    """
    model = repository / name
    made = [folder for folder in (model, *model.parents) if not folder.exists()]
    stage = model / f".export-{secrets.token_hex(4)}"
    try:
        try:
            stage.mkdir(parents=True)
        except OSError as error:
            raise RepositoryError(
                f"cannot write to {repository}: {error.strerror or error}"
            ) from error
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions that the model has, the newest last; none where there is no model."""
    try:
        found = [entry.name for entry in (repository / name).iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(version) for version in found if _VERSION.fullmatch(version))


def next_version(repository: Path, name: str) -> int:
    """Return one above the newest version of the model, 1 where there is none."""
    return max(versions(repository, name), default=0) + 1


def check_free(repository: Path, name: str, version: int) -> None:
    """Raise RepositoryError if the model has this version."""
    if (repository / name / str(version)).exists():
        raise RepositoryError(_taken(repository, name, version))


def publish(
    stage: Path, manifest: Manifest, repository: Path, version: int | None
) -> tuple[Path, Manifest]:
    """Complete the bundle in `stage` with its manifest and make it visible.

    Args:
        stage: holds every file of the bundle but the manifest.
        manifest: what to write; its version and its files are filled in here.
        repository: where to publish.
        version: the version to publish as; None for the next free one.

    Returns:
        The bundle's folder and the manifest as it was written.

    Raises:
        RepositoryError: the version exists already.
        foveate_runtime.bundle.bundle.BundleError: the server would not load it.
    """
    files = {
        path.relative_to(stage).as_posix(): FileEntry(sha256=digest(path), size=path.stat().st_size)
        for path in sorted(stage.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    while True:
        chosen = version or next_version(repository, manifest.name)
        manifest = manifest.model_copy(update={"version": chosen, "files": files})
        text = manifest.model_dump_json(indent=2) + "\n"
        (stage / MANIFEST_FILE).write_text(text, encoding="utf-8")
        Bundle.open(stage)
        target = repository / manifest.name / str(chosen)
        try:
            stage.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            # Another export took the version in the meantime.
            if version is not None:
                raise RepositoryError(_taken(repository, manifest.name, chosen)) from error
        else:
            return target, manifest


def write_labels(labels: Sequence[str], path: Path) -> None:
    """Write one label a line.

    Raises:
        ExportError: a label holds a line break.
    """
    for label in labels:
        if "\n" in label:
            raise ExportError(f"label {label!r} holds a line break")
    path.write_text("\n".join(labels) + "\n", encoding="utf-8", newline="\n")


def _taken(repository: Path, name: str, version: int) -> str:
    return (
        f"{name} has a version {version} in {repository}; versions are never overwritten "
        f"(the next free one is {next_version(repository, name)})"
    )
