"""The models and versions in a repository's folder, found without opening a bundle.

A folder that cannot be read is distinguished from one that does not exist: a mount that
drops, or a permission that changes, must not look like the removal of a model.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from foveate_runtime.bundle.bundle import BundleError, read_manifest
from foveate_runtime.bundle.manifest import Name

VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""A version of a model, and the name of its folder."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)


class NoModelError(Exception):
    """A model or a version that the folder does not hold."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A version as it lay on disk.

    `digest` is the SHA-256 of its manifest, in hexadecimal, and empty where that
    is no plain file or too large. `files` holds the path, the size and the time
    of change of every file: a copy that is still under way looks different every
    time.
    """

    path: Path
    digest: str
    files: frozenset[tuple[str, int, int]]


@dataclass(frozen=True, kw_only=True)
class ModelSighting:
    """A model's folder as it lay on disk.

    `versions` are those that can be read, by number. `unreadable` are the reasons why
    others cannot be, such as "Permission denied: NAME/1". `unfinished` are those
    without a manifest. `error` is the reason why the folder itself cannot be read.
    """

    name: str
    versions: dict[int, Sighting] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    unfinished: frozenset[int] = frozenset()
    error: str = ""

    @property
    def errors(self) -> list[str]:
        """Everything that cannot be read, and why."""
        return [self.error] if self.error else list(self.unreadable.values())

    def removed(self, number: int) -> bool:
        """Return whether a version was taken away, and another one can be read."""
        there = self.versions.keys() | self.unreadable.keys() | self.unfinished
        return bool(self.versions) and number not in there

    def problem(self, number: int) -> str:
        """Return why a version that was not removed cannot be seen, empty where it can."""
        if number in self.versions or self.removed(number):
            return ""
        return self.error or self.unreadable.get(number) or f"no manifest: {self.name}/{number}"


def look(root: Path) -> dict[str, ModelSighting]:
    """Return what lies there, by model; raises OSError where `root` cannot be read."""
    found = (look_at(root, name) for name in sorted(entry.name for entry in root.iterdir()))
    return {seen.name: seen for seen in found if seen is not None}


def look_at(root: Path, name: str) -> ModelSighting | None:
    """Return what lies in a model's folder, None where there is no such folder."""
    if not is_name(name):
        return None
    folder = root / name
    try:
        names = [entry.name for entry in folder.iterdir()]
    except NotADirectoryError:
        return None
    except OSError as error:
        # A link that leads nowhere is there, and may be that of a mount that dropped.
        gone = isinstance(error, FileNotFoundError) and not folder.is_symlink()
        return None if gone else ModelSighting(name=name, error=f"{error.strerror}: {name}")
    versions, unreadable, unfinished = {}, {}, set()
    for number in sorted(int(entry) for entry in names if VERSION.fullmatch(entry)):
        try:
            versions[number] = _sight(folder / str(number))
        except NotADirectoryError:
            continue
        except FileNotFoundError:
            unfinished.add(number)
        except OSError as error:
            unreadable[number] = f"{error.strerror}: {name}/{number}"
        except RecursionError:
            unreadable[number] = f"Too many folders within each other: {name}/{number}"
    return ModelSighting(
        name=name, versions=versions, unreadable=unreadable, unfinished=frozenset(unfinished)
    )


def version_paths(root: Path, name: str) -> dict[int, Path]:
    """Return the folders of a model's versions: those that hold a manifest."""
    seen = look_at(root, name)
    return {} if seen is None else {number: x.path for number, x in seen.versions.items()}


def find_version(root: Path, name: str, number: int | None = None) -> Path:
    """Return the folder of a model's version, of the newest for None.

    Raises:
        NoModelError: there is no such model, or no such version of it.
    """
    paths = version_paths(root, name)
    if not paths:
        there = ", ".join(sorted(look(root))) if root.is_dir() else ""
        raise NoModelError(f"{root} holds no model {name!r}; there are {there or 'none'}")
    if number is not None and number not in paths:
        has = ", ".join(map(str, sorted(paths)))
        raise NoModelError(f"{name} has the versions {has}, not {number}")
    return paths[max(paths) if number is None else number]


def model_names(root: Path) -> list[str]:
    """Return the names of the folders that may be models; raises OSError."""
    return list(look(root))


def _sight(path: Path) -> Sighting:
    """Look at a version; raises FileNotFoundError where it is not written in full."""
    try:
        digest = hashlib.sha256(read_manifest(path)).hexdigest()
    except BundleError:
        digest = ""  # a load reports the error
    files = []
    for folder, _, names in os.walk(path):
        for name in names:
            place = Path(folder, name)
            try:
                state = place.stat()
            except FileNotFoundError:
                continue  # it has just gone, or is a link to what is not there yet
            files.append((str(place.relative_to(path)), state.st_size, state.st_mtime_ns))
    return Sighting(path=path, digest=digest, files=frozenset(files))


def is_name(text: str) -> bool:
    """Return whether a model may have this name."""
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True
