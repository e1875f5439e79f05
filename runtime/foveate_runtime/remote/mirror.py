"""A folder that mirrors bundles of another place: what serves looks at the folder alone.

Bundles lie in `.bundles/<SHA-256 of the manifest>/`, and `<model>/<version>` is a link
to one, so that a version appears, and is replaced, in one step. What was fetched stays
when the place does not answer.
"""

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from foveate_runtime.bundle import bundle as on_disk
from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.folder import VERSION, is_name
from foveate_runtime.bundle.publishing import locked
from foveate_runtime.remote.fetching import Remote, bounded, fetch, read_manifest, remotes
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.store import (
    Entry,
    MissingPackageError,
    Progress,
    RemoteError,
    Store,
    UnreachableError,
    open_store,
)

_BUNDLES = ".bundles"
_SCRATCH = ".scratch"
_STATE = ".state.json"
_JOIN_SECONDS = 1.0

Key = tuple[str, int]
Choose = Callable[[str, Sequence[int]], Iterable[int]]
"""Called with a model and the versions that the place has of it; returns those to fetch."""
Tell = Callable[[str], object]
"""Called with a line for people."""


class _State(BaseModel):
    """What is remembered of a place from one process to the next.

    `entries` are the files of `revision`, where the place has revisions; `digests` holds
    the SHA-256 of manifests by their path and tag there.
    """

    revision: str = ""
    entries: list[tuple[str, int, str]] = []
    digests: dict[str, str] = {}


def cache_folder(location: Location) -> Path:
    """Return the folder of a place's mirror: below FOVEATE_CACHE or the user's cache."""
    base = os.environ.get("FOVEATE_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "foveate"
    )
    name = hashlib.sha256(str(location).encode()).hexdigest()[:16]
    return Path(base, "repositories", name)


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


class Mirror:
    """Keeps a folder in line with a place.

    Args:
        location: the place.
        folder: the mirror, which other processes may keep in line as well.
        choose: the versions of each model to fetch; what is there already stays.
        progress: is called while files are copied.
    """

    def __init__(
        self, location: Location, folder: Path, choose: Choose, progress: Progress = silent
    ) -> None:
        self._location = location
        self._folder = folder
        self._choose = choose
        self._progress = progress
        self._failed: dict[Key | None, tuple[frozenset[Entry], str]] = {}
        self._verified: set[str] = set()

    def open(self, warn: Tell) -> Path:
        """Bring the folder in line, and return it.

        Where that fails and the folder holds versions, these are used, and `warn` is called
        with the reason in a line, as it is for each version that could not be fetched.
        Raises RemoteError where the folder holds none.
        """
        try:
            for problem in self.sync():
                warn(problem)
        except MissingPackageError:
            raise
        except RemoteError as error:
            if not any(self._links()):
                raise
            warn(f"{error}; what was fetched before is used")
        return self._folder

    @contextmanager
    def following(self, interval: float, warn: Tell) -> Iterator[None]:
        """Bring the folder in line every `interval` seconds, on a thread, until the block ends.

        `warn` is called with a line for each problem, once for as long as it lasts.
        """
        stop = threading.Event()
        thread = threading.Thread(
            target=self._follow, args=(stop, interval, warn), name="foveate-mirror", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_JOIN_SECONDS)

    def sync(self) -> list[str]:
        """Bring the folder in line once.

        A version is fetched beside what is there, checked, and then linked. A version that
        the place no longer lists is removed, unless it lists none at all. Returns a line
        for each version that could not be fetched: what was in its place stays. Such a
        version is tried again when one of its files changes.

        Raises:
            RemoteError: the place cannot be listed, or ceases to answer.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder):
                scratch = self._folder / _SCRATCH
                # What a process that was killed left; none has the lock but this one.
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                try:
                    return self._sync(open_store(self._location, scratch), scratch)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise RemoteError(f"{self._folder}: {error.strerror or error}") from error

    def _follow(self, stop: threading.Event, interval: float, warn: Tell) -> None:
        told: list[str] = []
        while not stop.wait(interval):
            try:
                problems = self.sync()
            except RemoteError as error:
                problems = [f"{error}; what was fetched before is used"]
            except Exception as error:  # noqa: BLE001 - the next try may succeed
                problems = [f"{self._location}: {type(error).__name__}: {error}"]
            for problem in problems:
                if problem not in told and not stop.is_set():
                    warn(problem)
            told = problems

    def _sync(self, store: Store, scratch: Path) -> list[str]:
        state = self._read_state()
        found = remotes(self._entries(store, state))
        there = {remote.key for remote in found if remote.key is not None}
        problems, digests = [], {}
        # The name and version of a bundle at the root are in its manifest.
        certain = True
        for remote in self._wanted(found):
            try:
                digest, key = self._bring(store, remote, state, scratch)
            except UnreachableError:
                raise
            except (BundleError, RemoteError) as error:
                problems.append(self._problem(remote, error))
                certain = certain and remote.key is not None
                continue
            digests[_tag(remote.manifest)] = digest
            there.add(key)
            self._link(key, digest, scratch)
        if found and certain:
            self._remove_others(there)
        state.digests = digests
        self._write_state(state, scratch)
        return problems

    def _entries(self, store: Store, state: _State) -> list[Entry]:
        """Return the files of the place; those remembered where it has not changed."""
        revision = store.revision()
        if not revision:
            state.revision, state.entries = "", []
            return bounded(store.entries(), str(self._location))
        if revision != state.revision:
            entries = bounded(store.entries(), str(self._location))
            state.revision = revision
            state.entries = [(entry.path, entry.size, entry.tag) for entry in entries]
        return [Entry(*entry) for entry in state.entries]

    def _wanted(self, found: Sequence[Remote]) -> Iterator[Remote]:
        models: dict[str, dict[int, Remote]] = {}
        for remote in found:
            if not remote.complete:
                continue
            if remote.key is None:
                yield remote
            else:
                model, version = remote.key
                models.setdefault(model, {})[version] = remote
        for model, versions in models.items():
            for version in sorted(set(self._choose(model, sorted(versions)))):
                if version in versions:
                    yield versions[version]

    def _bring(self, store: Store, remote: Remote, state: _State, scratch: Path) -> tuple[str, Key]:
        """Have a bundle among those fetched; return its manifest's digest, and what it is."""
        signature = frozenset(remote.files.values())
        before, told = self._failed.get(remote.key, (None, ""))
        if before == signature:
            raise BundleError(told)
        digest = state.digests.get(_tag(remote.manifest), "")
        try:
            if not self._is_whole(digest):
                fetched = read_manifest(store, remote)
                digest = fetched.digest
                if not self._is_whole(digest):
                    stage = scratch / secrets.token_hex(4)
                    stage.mkdir()
                    fetch(store, remote, fetched, stage, self._progress)
                    place = self._place(digest)
                    place.parent.mkdir(exist_ok=True)
                    stage.rename(place)
                    self._verified.add(digest)
        except BundleError as error:
            self._failed[remote.key] = (signature, str(error))
            raise
        except OSError as error:
            raise RemoteError(f"it cannot be written: {error.strerror or error}") from error
        self._failed.pop(remote.key, None)
        manifest = on_disk.parse_manifest(on_disk.read_manifest(self._place(digest)))
        return digest, (manifest.name, manifest.version)

    def _is_whole(self, digest: str) -> bool:
        """Return whether a bundle is among those fetched; what is damaged is removed."""
        place = self._place(digest)
        if not digest or not place.is_dir():
            return False
        if digest in self._verified:
            return True
        try:
            whole = Bundle.open(place).digest == digest
        except BundleError:
            whole = False
        if whole:
            self._verified.add(digest)
        else:
            shutil.rmtree(place)
        return whole

    def _place(self, digest: str) -> Path:
        return self._folder / _BUNDLES / digest

    def _link(self, key: Key, digest: str, scratch: Path) -> None:
        link = self._folder / key[0] / str(key[1])
        target = Path("..", _BUNDLES, digest)
        if link.is_symlink() and link.readlink() == target:
            return
        new = scratch / secrets.token_hex(4)
        new.symlink_to(target)
        link.parent.mkdir(exist_ok=True)
        new.replace(link)

    def _links(self) -> Iterator[tuple[Key, Path]]:
        """Yield the versions of the folder, and their links."""
        with suppress(FileNotFoundError):
            for model in self._folder.iterdir():
                if is_name(model.name) and model.is_dir():
                    for link in model.iterdir():
                        if VERSION.fullmatch(link.name):
                            yield (model.name, int(link.name)), link

    def _remove_others(self, there: set[Key]) -> None:
        """Remove the versions that the place has no more, and the bundles of no version."""
        linked = set()
        for key, link in list(self._links()):
            if key in there:
                linked.add(link.readlink().name)
                continue
            link.unlink()
            with suppress(OSError):
                link.parent.rmdir()
        for bundle in (self._folder / _BUNDLES).glob("*"):
            if bundle.name not in linked:
                shutil.rmtree(bundle, ignore_errors=True)

    def _problem(self, remote: Remote, error: Exception) -> str:
        named = "" if remote.key is None else f"/{remote.key[0]}/{remote.key[1]}"
        told = str(error)
        where = f"{self._location}{named}"
        return told if told.startswith(where) else f"{where}: {told}"

    def _read_state(self) -> _State:
        try:
            return _State.model_validate_json((self._folder / _STATE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return _State()

    def _write_state(self, state: _State, scratch: Path) -> None:
        new = scratch / _STATE
        new.write_text(state.model_dump_json(), encoding="utf-8")
        new.replace(self._folder / _STATE)


def _tag(manifest: Entry) -> str:
    return f"{manifest.path} {manifest.tag}"
