"""What lies in a repository's folder, seen without opening a bundle."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from foveate_runtime.bundle.manifest import MANIFEST_FILE, Name

VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""A version of a model, and the name of its folder."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)


class NoModelError(Exception):
    """A model or a version that the folder does not hold."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A version as it lay on disk.

    `digest` is the SHA-256 of its manifest, in hexadecimal, and empty where
    that cannot be read. `files` holds the path, the size and the time of change
    of every file: a copy that is still under way looks different every time.
    """

    path: Path
    digest: str
    files: frozenset[tuple[str, int, int]]


def model_names(root: Path) -> list[str]:
    """Return the names of the folders that may be models; raises OSError."""
    return sorted(entry.name for entry in root.iterdir() if _is_name(entry.name))


def version_paths(root: Path, name: str) -> dict[int, Path]:
    """Return the folders of a model's versions: those that hold a manifest."""
    return {
        int(manifest.parent.name): manifest.parent
        for manifest in (root / name).glob(f"*/{MANIFEST_FILE}")
        if VERSION.fullmatch(manifest.parent.name)
    }


def find_version(root: Path, name: str, number: int | None = None) -> Path:
    """Return the folder of a model's version, of the newest for None.

    Raises:
        NoModelError: there is no such model, or no such version of it.
    """
    paths = version_paths(root, name)
    if not paths:
        raise NoModelError(f"{root} holds no model {name!r}")
    if number is not None and number not in paths:
        has = ", ".join(map(str, sorted(paths)))
        raise NoModelError(f"{name} has the versions {has}, not {number}")
    return paths[max(paths) if number is None else number]


def look(root: Path) -> dict[str, dict[int, Sighting]]:
    """Return what lies there, by model and version; raises OSError where `root` cannot be read."""
    return {
        name: {number: _sight(path) for number, path in version_paths(root, name).items()}
        for name in model_names(root)
    }


def _sight(path: Path) -> Sighting:
    try:
        digest = hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
        files = []
        for file in path.rglob("*"):
            state = file.stat()
            files.append((str(file.relative_to(path)), state.st_size, state.st_mtime_ns))
    except OSError:
        # Whoever writes there is not done; the next look sees more.
        return Sighting(path=path, digest="", files=frozenset())
    return Sighting(path=path, digest=digest, files=frozenset(files))


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True
