"""The versions of a model, and where each stands."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from foveate_runtime.bundle.folder import VERSION, ModelSighting, Sighting
from foveate_serve.errors import NotFoundError, clip, quote
from foveate_serve.repository.labels import LATEST, STABLE
from foveate_serve.repository.loaded import LoadedModel


class State(Enum):
    """Where a version of a model stands."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """One version: where it stands, and what is wrong with it.

    `reason` says why it cannot be seen on disk, or why its last load failed.
    """

    version: int
    state: State
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model: its versions, newest first, the one that answers by default, and its labels."""

    name: str
    versions: tuple[VersionStatus, ...]
    default_version: int | None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Version:
    """A version of a model, where it stands, and what serves of it.

    `reason` says why its last load failed, `problem` why it cannot be seen on disk.
    """

    path: Path
    number: int
    state: State = State.UNLOADED
    reason: str = ""
    problem: str = ""
    loaded: LoadedModel | None = None
    hung: bool = False
    # What the last load that a look at the folder caused was made of.
    tried: Sighting | None = None

    def differs(self, sighting: Sighting) -> bool:
        """Tell whether the folder holds something else than what serves, or failed to."""
        if self.loaded is not None and self.loaded.bundle.digest == sighting.digest:
            return False
        return self.tried != sighting


@dataclass(kw_only=True)
class Model:
    """A model: its versions by number, and the labels that stand for some of them."""

    name: str
    versions: dict[int, Version] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    # One change of a model at a time.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def note_problems(self, seen: ModelSighting) -> set[str]:
        """Note of every version why it cannot be seen, and return what was noted."""
        for number, version in self.versions.items():
            version.problem = seen.problem(number)
        return {v.problem for v in self.versions.values() if v.problem}

    def newest(self) -> Version:
        """Return the version of the largest number."""
        return self.versions[max(self.versions)]

    def latest(self) -> Version:
        """Return the newest version that is ready; where none is, the newest."""
        ready = [v for v in self.versions.values() if v.state is State.READY]
        return max(ready, key=lambda version: version.number, default=self.newest())

    def wanted(self) -> list[Version]:
        """Return the versions that serve unless told otherwise: the newest and the labelled."""
        labelled = self.versions.keys() & set(self.labels.values())
        return [self.versions[n] for n in sorted(labelled | {self.newest().number}, reverse=True)]

    def find(self, version: str) -> Version:
        """Return a version by its number or its label; raises NotFoundError."""
        number = int(version) if VERSION.fullmatch(version) else self.labels.get(version)
        if number is None or number not in self.versions:
            raise NotFoundError(
                "VERSION_NOT_FOUND",
                f"the model {self.name!r} has no version {quote(version)}",
                metadata={"model": self.name, "version": clip(version)},
            )
        return self.versions[number]

    def asked(self, version: str) -> Version:
        """Return the version that a request means; raises NotFoundError."""
        if not version:
            version = STABLE if STABLE in self.labels else LATEST
        return self.latest() if version == LATEST else self.find(version)

    def on_disk(self, version: str) -> Version:
        """Return the version that a change means; raises NotFoundError."""
        return self.newest() if version in {"", LATEST} else self.find(version)

    def default(self) -> Version | None:
        """Return the version that answers where a request names none, if it is ready."""
        try:
            default = self.asked("")
        except NotFoundError:
            return None
        return default if default.state is State.READY else None

    def status(self) -> ModelStatus:
        """Return what others may know of it."""
        default = self.default()
        return ModelStatus(
            name=self.name,
            versions=tuple(
                VersionStatus(version=number, state=v.state, reason=v.problem or v.reason)
                for number, v in sorted(self.versions.items(), reverse=True)
            ),
            default_version=None if default is None else default.number,
            labels=self.labels,
        )
