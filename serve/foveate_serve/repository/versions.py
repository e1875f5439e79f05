"""The versions of a model, and the state of each."""

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
    """The state of a version."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"
    ON_DEMAND = "on_demand"

    @property
    def answers(self) -> bool:
        """Whether a request for such a version is answered, if need be after a load."""
        return self in {State.READY, State.ON_DEMAND}


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """One version, its state, and its problem, if any.

    `reason` says why it cannot be seen on disk, or why its last load failed.
    """

    version: int
    state: State
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model: its versions, newest first, the default version, and its labels."""

    name: str
    versions: tuple[VersionStatus, ...]
    default_version: int | None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Version:
    """A version of a model, its state, and the loaded model, if any.

    `reason` says why its last load failed, `problem` why it cannot be seen on disk.
    """

    path: Path
    number: int
    state: State = State.UNLOADED
    reason: str = ""
    problem: str = ""
    loaded: LoadedModel | None = None
    hung: bool = False
    # Whether a request loads it.
    on_demand: bool = False
    # What it counts towards the limit of all models, once a load has begun.
    size: int = 0
    # The time of `time.monotonic` when a request last asked for it.
    last_used: float = 0.0
    # The files that the last load by `poll` was made from.
    last_tried: Sighting | None = None

    @property
    def status(self) -> State:
        """The state for clients, in which loads and unloads by requests do not show."""
        if self.on_demand and self.state in {State.UNLOADED, State.LOADING, State.UNLOADING}:
            return State.ON_DEMAND
        return self.state

    def differs(self, sighting: Sighting) -> bool:
        """Return whether the files differ from those that serve, or that last failed to load."""
        if self.loaded is not None and self.loaded.bundle.digest == sighting.digest:
            return False
        return self.last_tried != sighting


@dataclass(kw_only=True)
class Model:
    """A model: its versions by number, and its labels."""

    name: str
    versions: dict[int, Version] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    # Held by a change of the model: one at a time.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def note_problems(self, seen: ModelSighting) -> set[str]:
        """Set the problem of every version from a scan, and return all of them."""
        for number, version in self.versions.items():
            version.problem = seen.problem(number)
        return {v.problem for v in self.versions.values() if v.problem}

    @property
    def loaded(self) -> bool:
        """Whether a version of it is in memory."""
        return any(version.loaded is not None for version in self.versions.values())

    def newest(self) -> Version:
        """Return the version with the largest number."""
        return self.versions[max(self.versions)]

    def latest(self) -> Version:
        """Return the newest version that answers requests; where none does, the newest."""
        # A loop, because every request that names no version comes here.
        latest: Version | None = None
        for version in self.versions.values():
            if version.status.answers and (latest is None or version.number > latest.number):
                latest = version
        return latest or self.newest()

    def wanted(self) -> list[Version]:
        """Return the versions that serve by default: the newest and those with a label."""
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

    def resolve(self, version: str) -> Version:
        """Return the version that a request's `version` means; raises NotFoundError."""
        if not version:
            version = STABLE if STABLE in self.labels else LATEST
        return self.latest() if version == LATEST else self.find(version)

    def to_change(self, version: str) -> Version:
        """Return the version that a load or unload means; raises NotFoundError."""
        return self.newest() if version in {"", LATEST} else self.find(version)

    def default(self) -> Version | None:
        """Return the version for requests that name none, if it answers them."""
        try:
            default = self.resolve("")
        except NotFoundError:
            return None
        return default if default.status.answers else None

    def status(self) -> ModelStatus:
        """Return the model's public state."""
        default = self.default()
        return ModelStatus(
            name=self.name,
            versions=tuple(
                VersionStatus(version=number, state=v.status, reason=v.problem or v.reason)
                for number, v in sorted(self.versions.items(), reverse=True)
            ),
            default_version=None if default is None else default.number,
            labels=self.labels,
        )
