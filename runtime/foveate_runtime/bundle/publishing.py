"""Publishes bundles into a repository, whole or not at all.

A bundle is built in a folder whose name begins with a dot, inside the model's
folder, and renamed to its version when it is complete. What reads the
repository passes over such folders.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from foveate_runtime.bundle.bundle import Bundle, digest
from foveate_runtime.bundle.folder import VERSION
from foveate_runtime.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest

_STAGE = ".export-"


class RepositoryError(Exception):
    """A repository that cannot take a bundle."""


class PlaceError(RepositoryError):
    """A bundle that lies in no repository."""


@contextmanager
def staging(repository: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder on the repository's file system, gone afterwards.

    What killed exports of this model left goes as well. Folders that had to be made
    for it, the model's and the repository's, go where nothing was published into them.

    Raises:
        RepositoryError: the folder cannot be made.
    """
    model = repository / name
    made = [folder for folder in (model, *model.parents) if not folder.exists()]
    stage = model / f"{_STAGE}{secrets.token_hex(4)}"
    try:
        with ExitStack() as held:
            try:
                model.mkdir(parents=True, exist_ok=True)
                with locked(model):
                    _remove_abandoned(model)
                    stage.mkdir()
                    # The folder is open, and locked, as long as this process runs.
                    held.enter_context(locked(stage))
            except OSError as error:
                raise RepositoryError(
                    f"cannot write to {repository}: {error.strerror or error}"
                ) from error
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in made:
            # One that could not be made is no reason to keep those above it.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and this one does not `wait`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(model: Path) -> None:
    """Remove the folders of exports that were killed: those that no process holds."""
    for stage in model.glob(f"{_STAGE}*"):
        with contextlib.suppress(OSError), locked(stage, wait=False):
            shutil.rmtree(stage)


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions that the model has, the newest last; none where there is no model."""
    try:
        found = [entry.name for entry in (repository / name).iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(version) for version in found if VERSION.fullmatch(version))


def next_version(repository: Path, name: str) -> int:
    """Return one above the newest version of the model, 1 where there is none."""
    return max(versions(repository, name), default=0) + 1


def check_free(repository: Path, name: str, version: int) -> None:
    """Raise RepositoryError if the model has this version."""
    if (repository / name / str(version)).exists():
        raise RepositoryError(taken(repository, name, version))


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
        if put_in_place(stage, target):
            return target, manifest
        # Another export took the version in the meantime.
        check_free(repository, manifest.name, version or 0)


def put_in_place(stage: Path, target: Path) -> bool:
    """Make the whole bundle in `stage` visible as `target`, unless there is a version already."""
    try:
        stage.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def require_place(bundle: Bundle) -> None:
    """Raise PlaceError unless a bundle lies in a repository, where a new version can go."""
    path, name = bundle.path, bundle.manifest.name
    if path.parent.name != name or not VERSION.fullmatch(path.name):
        raise PlaceError(
            f"{path}: a bundle lies in <repository>/{name}/<version>, beside which the new "
            "version goes"
        )


def publish_beside(bundle: Bundle, manifest: Manifest) -> Path:
    """Publish a bundle with another manifest, as a new version beside it; return its folder.

    The files of the two versions are the same ones on disk where the file system can.

    Raises:
        PlaceError: the bundle lies in no repository.
        RepositoryError: the repository cannot be written.
    """
    require_place(bundle)
    repository = bundle.path.parent.parent
    with staging(repository, manifest.name) as folder:
        for name in manifest.files:
            _share(bundle.path / name, folder / name)
        path, _ = publish(folder, manifest, repository, None)
    return path


def _share(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(source, target)


def taken(repository: Path, name: str, version: int) -> str:
    """Return the message that a version is there already."""
    return (
        f"{name} has a version {version} in {repository}; versions are never overwritten "
        f"(the next free one is {next_version(repository, name)})"
    )
