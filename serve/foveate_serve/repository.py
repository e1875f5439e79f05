"""The models on disk and those that serve."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from foveate_serve.backends.base import Array, BackendError, Runner
from foveate_serve.batcher import Batcher, BatchPolicy
from foveate_serve.bundle.bundle import Bundle, BundleError
from foveate_serve.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    MANIFEST_FILE,
    Name,
)
from foveate_serve.errors import (
    InvalidRequestError,
    LoadingError,
    NotFoundError,
    NotReadyError,
    clip,
    quote,
)
from foveate_serve.instances import make_instances
from foveate_serve.observer import BatchRun, Observer

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class State(Enum):
    """Where a version of a model stands."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """One version: where it stands, and why its last load failed, if it did."""

    version: int
    state: State
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model: its versions, newest first, and the one that answers by default."""

    name: str
    versions: tuple[VersionStatus, ...]
    default_version: int | None


class LoadedModel:
    """A bundle that serves: its runners, which are alike, and its batcher.

    `runner` is the first of them.
    """

    def __init__(
        self,
        bundle: Bundle,
        runners: Sequence[Runner],
        policy: BatchPolicy,
        *,
        ran: Callable[[BatchRun], None] | None = None,
        alive: Callable[[bool], None] | None = None,
    ) -> None:
        self.bundle = bundle
        self.runners = tuple(runners)
        self.runner = runners[0]
        self.batcher = Batcher(runners, policy, ran=ran, alive=alive)
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model open until the block ends."""
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def close(self) -> None:
        """Wait until nobody uses the model, then release its engine."""
        await self._idle.wait()
        await self.batcher.close()
        for runner in self.runners:
            runner.close()


@dataclass(kw_only=True)
class _Version:
    path: Path
    number: int
    state: State = State.UNLOADED
    reason: str = ""
    loaded: LoadedModel | None = None


@dataclass(kw_only=True)
class _Model:
    name: str
    versions: dict[int, _Version] = field(default_factory=dict)
    # One change of a model at a time.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def newest(self) -> _Version:
        return self.versions[max(self.versions)]

    def default(self) -> _Version | None:
        ready = [v for v in self.versions.values() if v.state is State.READY]
        return max(ready, key=lambda version: version.number, default=None)

    def status(self) -> ModelStatus:
        default = self.default()
        return ModelStatus(
            name=self.name,
            versions=tuple(
                VersionStatus(version=number, state=v.state, reason=v.reason)
                for number, v in sorted(self.versions.items(), reverse=True)
            ),
            default_version=None if default is None else default.number,
        )


class Repository:
    """The bundles under `root/<model>/<version>/`.

    `make_runner` loads a checked bundle on a backend; it is called on a thread
    and may raise BackendError. `policies` are those of the models named there,
    `policy` that of the others. `observer` is told of loads, of every change of
    a state and of every batch. Used from one event loop.
    """

    def __init__(
        self,
        root: Path,
        make_runner: Callable[[Bundle], Runner],
        policy: BatchPolicy,
        observer: Observer | None = None,
        *,
        policies: Mapping[str, BatchPolicy] | None = None,
    ) -> None:
        self._root = root
        self._make_runner = make_runner
        self._policy = policy
        self._policies = policies or {}
        self._observer = observer or Observer()
        self._models: dict[str, _Model] = {}
        self._changes: set[asyncio.Task[object]] = set()

    async def open(self) -> None:
        """Load the newest version of every model.

        A model that cannot be loaded is logged and stands as failed. Raises
        OSError where the repository cannot be read.
        """
        for name in self._names():
            self._scan(name)
        for model in self._models.values():
            self._move(model.newest(), State.LOADING)
        for model in self._models.values():
            try:
                await self._load(model, model.newest())
            except NotReadyError as error:
                logger.error("%s", error)  # noqa: TRY400 - the cause is logged where it was found

    async def close(self) -> None:
        """Finish what runs and release every model."""
        while self._changes:
            await asyncio.wait(self._changes)
        await asyncio.gather(
            *(
                self._unload(version)
                for model in self._models.values()
                for version in model.versions.values()
            )
        )

    def models(self) -> list[ModelStatus]:
        """Return every model known, by name."""
        return [model.status() for _, model in sorted(self._models.items())]

    def serving(self) -> list[LoadedModel]:
        """Return the versions that serve."""
        return [
            version.loaded
            for model in self._models.values()
            for version in model.versions.values()
            if version.loaded is not None and version.state is State.READY
        ]

    def get(self, name: str, version: str, *, field: str = "model") -> LoadedModel:
        """Return a version that serves.

        An empty `name` means the only model, an empty `version` the newest that
        is ready. Raises NotFoundError, NotReadyError, LoadingError, and
        InvalidRequestError on the field `field` where a name is needed.
        """
        model = self._find(name) if name else self._only(field)
        wanted = _find_version(model, version) if version else model.default() or model.newest()
        if wanted.loaded is not None and wanted.state is State.READY:
            return wanted.loaded
        metadata = {"model": model.name, "version": wanted.number, "state": wanted.state.value}
        message = f"version {wanted.number} of the model {model.name!r} is {wanted.state.value}"
        if wanted.state is State.LOADING:
            raise LoadingError("MODEL_LOADING", message, metadata=metadata)
        raise NotReadyError("MODEL_NOT_READY", message, metadata=metadata)

    async def load(self, name: str, version: str) -> ModelStatus:
        """Load a version that does not serve yet; an empty `version` means the newest on disk.

        Raises NotFoundError, and NotReadyError where the load fails.
        """

        async def change(model: _Model) -> None:
            wanted = _find_version(model, version) if version else model.newest()
            if wanted.loaded is None:
                await self._load(model, wanted)

        return await self._change(name, change)

    async def reload(self, name: str, version: str) -> ModelStatus:
        """Read a version anew and put it in the place of the one that serves.

        An empty `version` means the newest on disk; where that is another than
        the default version, it takes its place. The old one serves until the
        new one is ready, and goes on where the load fails. Raises
        NotFoundError, and NotReadyError where the load fails.
        """

        async def change(model: _Model) -> None:
            previous = model.default()
            wanted = _find_version(model, version) if version else model.newest()
            await self._load(model, wanted)
            if not version and previous is not None and previous is not wanted:
                await self._unload(previous)

        return await self._change(name, change)

    async def unload(self, name: str, version: str) -> ModelStatus:
        """Stop serving a version, or every one where `version` is empty, after what it has taken.

        Raises NotFoundError.
        """

        async def change(model: _Model) -> None:
            wanted = [_find_version(model, version)] if version else list(model.versions.values())
            await asyncio.gather(*(self._unload(v) for v in wanted))

        return await self._change(name, change)

    async def _change(
        self, name: str, change: Callable[[_Model], Coroutine[None, None, None]]
    ) -> ModelStatus:
        if name in self._names():
            self._scan(name)
        model = self._find(name)

        async def run() -> ModelStatus:
            async with model.lock:
                await change(model)
                return model.status()

        # A caller who goes away must not leave a model half loaded.
        task = asyncio.create_task(run())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, model: _Model, version: _Version) -> None:
        previous = version.loaded
        if previous is None:
            self._move(version, State.LOADING)
        started = time.monotonic()
        try:
            bundle, runners = await asyncio.to_thread(self._open, model.name, version)
        except (BundleError, BackendError) as error:
            version.reason = str(error)
            if previous is None:
                self._move(version, State.FAILED)
            logger.exception("the model %s, version %d, failed to load", model.name, version.number)
            raise NotReadyError(
                "MODEL_LOAD_FAILED",
                f"version {version.number} of the model {model.name!r} failed to load: {error}",
                metadata={"model": model.name, "version": version.number},
            ) from error
        ran = partial(self._observer.ran, model.name, str(version.number))
        loaded = version.loaded = LoadedModel(
            bundle,
            runners,
            self._policy_of(model.name),
            ran=ran,
            alive=lambda alive: self._engine_is(version, loaded, alive=alive),
        )
        version.reason = ""
        self._move(version, State.READY)
        seconds = time.monotonic() - started
        self._observer.loaded(model.name, str(version.number), seconds)
        logger.info(
            "loaded the model %s, version %d, on %s (%s) in %.2f s",
            model.name,
            version.number,
            loaded.runner.backend,
            loaded.runner.device,
            seconds,
        )
        if previous is not None:
            await previous.close()

    def _engine_is(self, version: _Version, loaded: LoadedModel, *, alive: bool) -> None:
        """Take a version out of service while its engine's thread does not run."""
        if version.loaded is loaded and version.state in {State.READY, State.LOADING}:
            version.reason = "" if alive else "the engine's thread ended, and starts again"
            self._move(version, State.READY if alive else State.LOADING)

    def _move(self, version: _Version, state: State) -> None:
        version.state = state
        self._observer.changed()

    def _policy_of(self, name: str) -> BatchPolicy:
        return self._policies.get(name, self._policy)

    def _open(self, name: str, version: _Version) -> tuple[Bundle, list[Runner]]:
        bundle = Bundle.open(version.path)
        if (bundle.manifest.name, bundle.manifest.version) != (name, version.number):
            raise BundleError(
                f"{MANIFEST_FILE}: it is {bundle.manifest.name}/{bundle.manifest.version}, "
                f"and its folder {name}/{version.number}"
            )
        runners = make_instances(self._make_runner, bundle, self._policy_of(name).cores)
        try:
            for runner in runners:
                warm_up(runner)
        except BackendError:
            for runner in runners:
                runner.close()
            raise
        return bundle, runners

    async def _unload(self, version: _Version) -> None:
        if version.loaded is None:
            return
        self._move(version, State.UNLOADING)
        await version.loaded.close()
        version.loaded = None
        self._move(version, State.UNLOADED)

    def _names(self) -> list[str]:
        return sorted(entry.name for entry in self._root.iterdir() if _is_name(entry.name))

    def _scan(self, name: str) -> None:
        """Learn of versions that came, and forget those that went and do not serve."""
        paths = {
            int(manifest.parent.name): manifest.parent
            for manifest in (self._root / name).glob(f"*/{MANIFEST_FILE}")
            if _VERSION.fullmatch(manifest.parent.name)
        }
        known = self._models.get(name)
        if known is None:
            if not paths:
                return
            known = self._models[name] = _Model(name=name)
        for number, path in paths.items():
            known.versions.setdefault(number, _Version(path=path, number=number))
        for number in known.versions.keys() - paths.keys():
            if known.versions[number].loaded is None:
                del known.versions[number]
        if not known.versions:
            del self._models[name]

    def _find(self, name: str) -> _Model:
        if name not in self._models:
            raise NotFoundError(
                "MODEL_NOT_FOUND", f"no model {quote(name)}", metadata={"model": clip(name)}
            )
        return self._models[name]

    def _only(self, field: str) -> _Model:
        if len(self._models) != 1:
            raise InvalidRequestError(
                "MODEL_REQUIRED",
                f"the model must be named: there are {len(self._models)}",
                field=field,
            )
        return next(iter(self._models.values()))


def warm_up(runner: Runner) -> None:
    """Run a black picture for the logits alone and with the default map, so that these are ready.

    An engine may make a program for each set of outputs, when it is first
    wanted. Also shows that the graph keeps its contract; raises BackendError.
    """
    inputs: dict[str, Array] = {IMAGE_INPUT: np.zeros((1, *runner.image_shape), dtype=np.uint8)}
    runner.run(inputs, [LOGITS_OUTPUT])
    cams = [name for name in runner.outputs if name.startswith(CAM_PREFIX)]
    if cams:
        inputs[CLASS_IDS_INPUT] = np.array([[-1]], dtype=np.int64)
        runner.run(inputs, [LOGITS_OUTPUT, cams[0]])


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _find_version(model: _Model, version: str) -> _Version:
    found = model.versions.get(int(version)) if _VERSION.fullmatch(version) else None
    if found is None:
        raise NotFoundError(
            "VERSION_NOT_FOUND",
            f"the model {model.name!r} has no version {quote(version)}",
            metadata={"model": model.name, "version": clip(version)},
        )
    return found
