"""The models on disk, and the loading and unloading of their versions."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.bundle.bundle import Bundle, BundleError, CheckManifest
from foveate_runtime.bundle.folder import ModelSighting, look, look_at
from foveate_runtime.bundle.manifest import MANIFEST_FILE
from foveate_serve.batching.pacing import Pace, slowest
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import (
    InvalidRequestError,
    LoadingError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    clip,
    listing,
    quote,
)
from foveate_serve.niceness import ENGINE, raise_niceness
from foveate_serve.observer import Observer
from foveate_serve.repository.instances import make_instances
from foveate_serve.repository.labels import LATEST, check_labels
from foveate_serve.repository.loaded import LoadedModel, close_all
from foveate_serve.repository.loading import LoadEndedError, Loads, LoadTimeoutError
from foveate_serve.repository.room import bytes_held, least_recently_used, size_of
from foveate_serve.repository.versions import Model, ModelStatus, State, Version
from foveate_serve.repository.warmup import batch_sizes, warm_up

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ROOT = "the repository's folder"

_ROOM_SECONDS = 10.0
"""How long a load waits until requests free the models that must be unloaded for it."""
_ROOM_POLL_SECONDS = 0.02

_Opened: TypeAlias = tuple[Bundle, list[Runner], Pace]


class Repository:
    """The bundles under `root/<model>/<version>/`.

    Used from one event loop.

    Args:
        root: the repository's folder.
        make_runner: loads a checked bundle on a backend; called on a thread. A version
            whose load raises an error is in the state failed.
        policy: the batch policy of the models that `policies` does not name.
        observer: is notified of loads, of every change of a state, and of every batch.
        policies: the batch policies of single models, by name.
        labels: the labels of versions, by model.
        run_limit: seconds after which a run of an engine counts as hung; 0 is never.
        load_limit: seconds after which a load has failed; 0 is never.
        check_manifest: checks a bundle before it is loaded, such as its signature.
        max_bytes: of the graphs that are loaded at one time: requests load models, and
            those used longest ago are unloaded for them. 0 loads the models of `open`
            and keeps them.
    """

    def __init__(
        self,
        root: Path,
        make_runner: Callable[[Bundle], Runner],
        policy: BatchPolicy,
        observer: Observer | None = None,
        *,
        policies: Mapping[str, BatchPolicy] | None = None,
        labels: Mapping[str, Mapping[str, int]] | None = None,
        run_limit: float = 0.0,
        load_limit: float = 0.0,
        check_manifest: CheckManifest | None = None,
        max_bytes: int = 0,
    ) -> None:
        self._root = root
        self._make_runner = make_runner
        self._policy = policy
        self._policies = policies or {}
        self._observer = observer or Observer()
        self._labels = labels or {}
        self._run_limit = run_limit
        self._loads = Loads(load_limit)
        self._check_manifest = check_manifest
        self._max_bytes = max_bytes
        # Whether requests load models; no property, because every request reads it.
        self.loads_on_demand = max_bytes > 0
        self._models: dict[str, Model] = {}
        self._changes: set[asyncio.Task[object]] = set()
        self._problems: dict[str, list[str]] = {}
        self._scanned = False
        self.has_served = False
        """Whether a version has served, or could be loaded for a request."""

    async def open(self, *, load: bool = True) -> None:
        """Scan the folder, and `load` the newest version of each model and those with a label.

        With a limit of bytes they are loaded when they are first asked for. A version
        that cannot be loaded is logged, and its state is failed. Raises OSError where
        the repository cannot be read.
        """
        for seen in (await self._scan()).values():
            self._add_versions(seen)
        self._scanned = True
        for name in self._labels.keys() - self._models.keys():
            logger.warning(
                "there are labels for the model %s, which is not in the repository", name
            )
        if not load:
            return
        waiting = [
            (model, version) for model in self._models.values() for version in model.wanted()
        ]
        for _, version in waiting:
            version.on_demand = self.loads_on_demand
            self._set_state(version, State.UNLOADED if version.on_demand else State.LOADING)
        if self.loads_on_demand:
            return
        for model, version in waiting:
            await self._try_load(model, version)

    async def close(self) -> None:
        """Finish the changes and requests in flight, and release every model."""
        while self._changes:
            await asyncio.wait(self._changes)
        await self._loads.finish()
        await asyncio.gather(
            *(
                self._unload(version)
                for model in self._models.values()
                for version in model.versions.values()
            )
        )

    @property
    def problems(self) -> list[str]:
        """The parts of the folder that cannot be read, and why: "Permission denied: NAME"."""
        return [problem for _, found in sorted(self._problems.items()) for problem in found]

    @property
    def hung(self) -> bool:
        """Whether a run of an engine hangs: only a restart of the process frees its thread."""
        return any(v.hung for model in self._models.values() for v in model.versions.values())

    @property
    def stuck(self) -> bool:
        """Whether the thread of an engine or of a load hangs."""
        return self.hung or self._loads.stuck

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

        An empty `name` means the only model. `version` is a number, a label, or
        `latest`, the newest that is ready; empty it means the label `stable`
        where the model has it, else `latest`. Raises NotFoundError,
        NotReadyError, LoadingError, and InvalidRequestError on the field
        `field` where a name is needed.
        """
        return self._serving(*self._resolve(name, version, field))

    def _serving(self, model: Model, wanted: Version) -> LoadedModel:
        """Return a version where it serves; raises as `get`."""
        if wanted.loaded is not None and wanted.state is State.READY:
            if self.loads_on_demand:
                wanted.last_used = time.monotonic()
            return wanted.loaded
        metadata = {"model": model.name, "version": wanted.number, "state": wanted.state.value}
        message = f"version {wanted.number} of the model {model.name!r} is {wanted.state.value}"
        if wanted.state is State.LOADING:
            raise LoadingError("MODEL_LOADING", message, metadata=metadata)
        raise NotReadyError("MODEL_NOT_READY", message, metadata=metadata)

    def needs_load(self, name: str, version: str, *, field: str = "model") -> bool:
        """Return whether `obtain` would load what `name` and `version` mean; raises as `get`."""
        return self._resolve(name, version, field)[1].status is State.ON_DEMAND

    async def obtain(
        self,
        name: str,
        version: str,
        *,
        field: str = "model",
        deadline: float | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> LoadedModel:
        """Return a version that serves; one that is on demand is loaded first.

        Arguments and errors are those of `get`. The wait for a load is within `waiting()`.
        Raises TimeoutError at `deadline`, a time of `time.monotonic`; the load continues.
        Raises OverloadedError where requests keep every model that would have to be
        unloaded.
        """
        model, wanted = self._resolve(name, version, field)
        if wanted.status is State.ON_DEMAND:

            async def change(model: Model) -> None:
                # Requests that came meanwhile wait for the same load.
                if wanted.status is State.ON_DEMAND:
                    wanted.last_used = time.monotonic()
                    await self._load(model, wanted)

            seconds = None if deadline is None else deadline - time.monotonic()
            with waiting():
                async with asyncio.timeout(seconds):
                    await self._run_change(model, change)
        return self._serving(model, wanted)

    async def load(self, name: str, version: str) -> ModelStatus:
        """Load a version that does not serve yet.

        An empty `version`, or `latest`, means the newest on disk. Raises NotFoundError,
        and NotReadyError where the load fails.
        """

        async def change(model: Model) -> None:
            wanted = model.to_change(version)
            if wanted.loaded is None:
                await self._load(model, wanted)

        return await self._change(name, change)

    async def reload(self, name: str, version: str) -> ModelStatus:
        """Load a version again and replace the one that serves.

        An empty `version` means the one that serves by default. `latest` means the
        newest on disk; it replaces the newest that serves, which is unloaded unless it
        has a label. The old one serves until the new one is ready, and stays where the
        load fails. Raises NotFoundError, and NotReadyError where the load fails.
        """

        async def change(model: Model) -> None:
            previous = model.latest()
            wanted = model.to_change(version) if version else model.resolve("")
            await self._load(model, wanted)
            if version == LATEST and previous not in model.wanted():
                await self._unload(previous)

        return await self._change(name, change)

    async def unload(self, name: str, version: str) -> ModelStatus:
        """Unload a version, or all where `version` is empty, once its requests are finished.

        Raises NotFoundError, and NotReadyError where the version has a label.
        """

        async def change(model: Model) -> None:
            if version:
                _require_no_label(model, model.to_change(version).number)
            wanted = [model.to_change(version)] if version else list(model.versions.values())
            await asyncio.gather(*(self._unload(v) for v in wanted))

        return await self._change(name, change)

    async def set_labels(self, name: str, labels: Mapping[str, str]) -> ModelStatus:
        """Replace the labels of a model; `labels` maps each to the number of a version.

        Versions that do not serve yet are loaded first. Where one cannot be loaded,
        the labels do not change. Raises InvalidRequestError, NotFoundError,
        and NotReadyError where a load fails.
        """
        numbers = check_labels(labels)

        async def change(model: Model) -> None:
            for number in sorted(set(numbers.values())):
                wanted = model.find(str(number))
                if wanted.loaded is None:
                    await self._load(model, wanted)
            model.labels = numbers

        return await self._change(name, change)

    def take_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Adopt the labels of a model from another worker, which has checked them."""
        if name in self._models:
            self._models[name].labels = check_labels(labels)

    async def poll(self) -> None:
        """Scan the folder, and serve the newest version of each model and those with a label.

        A new version is loaded. A version whose manifest has changed is loaded again
        and replaced. A version that was removed, or is no longer wanted, is unloaded
        once the newest is ready. A version that fails to load is tried again when its
        files change.

        A version that cannot be read, or has no manifest, does not count as removed:
        it keeps serving, and the reason is in `problems` and the log. So does everything where
        the folder itself cannot be read, or is empty.
        """
        try:
            found = await self._scan()
            problem = "" if found or not self._models else f"it is empty: {_ROOT}"
        except OSError as error:
            found, problem = {}, f"{error.strerror}: {_ROOT}"
        self._log_problems(_ROOT, [problem] if problem else [])
        if problem:
            for model in self._models.values():
                model.note_problems(ModelSighting(name=model.name, error=problem))
            return
        for name in sorted(found.keys() | self._models.keys()):
            seen = found.get(name)
            try:
                await self._sync_model(name, seen)
            except Exception:
                logger.exception("the model %s could not be brought in line with its folder", name)

    async def _sync_model(self, name: str, seen: ModelSighting | None) -> None:
        """Serve what the scan saw of a model; None means that the model was removed."""
        if seen is not None:
            self._add_versions(seen)
        if name in self._models:
            await self._run_change(self._models[name], partial(self._sync, seen=seen))
            self._remove_gone(name, seen)

    async def _sync(self, model: Model, seen: ModelSighting | None) -> None:
        keep: list[Version] = []
        if seen is not None:
            there = {n: v for n, v in model.versions.items() if not seen.removed(n)}
            newest = there[max(there)]
            keep = [newest, *(v for v in model.wanted() if v.number in there)]
            for version in keep:
                sighting = seen.versions.get(version.number)
                if sighting is not None and version.differs(sighting):
                    version.last_tried = sighting
                    if self.loads_on_demand and not model.loaded:
                        version.on_demand = True
                        self._set_state(version, State.UNLOADED)
                    else:
                        await self._try_load(model, version)
            if newest.state is not State.READY:
                # The version before it answers until the newest has proved that it loads.
                older = [v for v in there.values() if v.status.answers and v is not newest]
                keep += sorted(older, key=lambda v: v.number)[-1:]
        await asyncio.gather(
            *(self._unload(version) for version in model.versions.values() if version not in keep)
        )

    async def _change(
        self, name: str, change: Callable[[Model], Coroutine[None, None, None]]
    ) -> ModelStatus:
        with suppress(OSError):
            seen = await self._scan_on_thread(partial(look_at, self._root, name))
            if seen is not None:
                self._add_versions(seen)
        return await self._run_change(self._find(name), change)

    async def _run_change(
        self, model: Model, change: Callable[[Model], Coroutine[None, None, None]]
    ) -> ModelStatus:
        async def change_locked() -> ModelStatus:
            async with model.lock:
                await change(model)
                return model.status()

        # A caller that is cancelled must not leave a model half loaded.
        task = asyncio.create_task(change_locked())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _try_load(self, model: Model, version: Version) -> None:
        try:
            await self._load(model, version)
        except OverloadedError as error:
            # The next poll tries again.
            version.last_tried = None
            logger.warning("the model %s, version %d: %s", model.name, version.number, error)
        except NotReadyError as error:
            logger.error("%s", error)  # noqa: TRY400 - the cause is logged where it was found

    async def _load(self, model: Model, version: Version) -> None:
        previous = version.loaded
        if previous is None:
            self._set_state(version, State.LOADING)
        started = time.monotonic()
        try:
            bundle = await self._loads.load(
                partial(_read, model.name, version, self._check_manifest), _drop
            )
            if self.loads_on_demand:
                version.size = size_of(bundle.manifest)
                await self._make_room(model, version)
            opened = await self._loads.load(partial(self._open, bundle), _close_opened)
            loaded = version.loaded = self._start(version, *opened)
        except OverloadedError:
            # Nothing is wrong with the version: a later request may find room for it.
            if previous is None:
                self._set_state(version, State.UNLOADED)
            raise
        except Exception as error:
            version.reason = reason = _reason(error)
            if previous is None:
                self._set_state(version, State.FAILED)
            logger.error(  # noqa: TRY400 - the same, but for bundles
                "the model %s, version %d, failed to load: %s",
                model.name,
                version.number,
                reason,
                # What is wrong with a bundle is in its line.
                exc_info=not isinstance(error, BundleError),
            )
            raise NotReadyError(
                "MODEL_LOAD_FAILED",
                f"version {version.number} of the model {model.name!r} failed to load: {reason}",
                metadata={"model": model.name, "version": version.number},
            ) from error
        version.reason, version.hung = "", False
        self._set_state(version, State.READY)
        seconds = time.monotonic() - started
        self._observer.on_load(model.name, str(version.number), seconds)
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

    def _start(
        self, version: Version, bundle: Bundle, runners: Sequence[Runner], pace: Pace
    ) -> LoadedModel:
        name = bundle.manifest.name
        try:
            loaded = LoadedModel(
                bundle,
                runners,
                self._policy_of(name),
                pace,
                on_batch=partial(self._observer.on_batch, name, str(version.number)),
                on_alive=lambda alive: self._on_engine_alive(version, loaded, alive=alive),
                run_limit=self._run_limit,
                on_hang=lambda hung: self._on_engine_hang(version, loaded, hung=hung),
            )
        except Exception:
            close_all(runners)
            raise
        return loaded

    def _on_engine_hang(self, version: Version, loaded: LoadedModel, *, hung: bool) -> None:
        """Take a version out of service while a run of its engine hangs."""
        name = f"{loaded.bundle.manifest.name}, version {version.number}"
        if hung:
            logger.critical("an engine of %s has not finished in %g s", name, self._run_limit)
        else:
            logger.warning("the engine of %s that hung has finished", name)
        if version.loaded is loaded and version.state in {State.READY, State.FAILED}:
            version.reason = (
                f"the engine has not finished a run within {self._run_limit:g} s" if hung else ""
            )
            version.hung = hung
            self._set_state(version, State.FAILED if hung else State.READY)

    def _on_engine_alive(self, version: Version, loaded: LoadedModel, *, alive: bool) -> None:
        """Take a version out of service while its engine's threads do not run."""
        if version.loaded is loaded and version.state in {State.READY, State.LOADING}:
            version.reason = "" if alive else "the engine's thread ended and is being restarted"
            self._set_state(version, State.READY if alive else State.LOADING)

    def _set_state(self, version: Version, state: State) -> None:
        version.state = state
        self.has_served = self.has_served or version.status.answers
        self._observer.on_change()

    def _policy_of(self, name: str) -> BatchPolicy:
        return self._policies.get(name, self._policy)

    async def _make_room(self, model: Model, version: Version) -> None:
        """Unload models, those used longest ago first, until `version` fits within the limit.

        Raises BundleError where it is larger than the limit, and OverloadedError where
        requests keep the other models for `_ROOM_SECONDS`.
        """
        if version.size > self._max_bytes:
            raise BundleError(
                f"its graph has {version.size} bytes; the limit of all that are loaded at one "
                f"time is {self._max_bytes} (max_model_bytes)"
            )
        # A version that is replaced counts once more: both are in memory for a while.
        new = version.size if version.loaded is not None else 0
        late = time.monotonic() + _ROOM_SECONDS
        while bytes_held(self._models.values()) + new > self._max_bytes:
            found = least_recently_used(self._models.values(), model, version)
            if found is not None:
                await self._evict(*found, locked=found[0] is model)
            elif time.monotonic() < late:
                await asyncio.sleep(_ROOM_POLL_SECONDS)
            else:
                raise OverloadedError(
                    "MODELS_IN_USE",
                    "requests use the models that would have to be unloaded for this one; the "
                    f"limit is {self._max_bytes} bytes",
                    retry_delay=timedelta(seconds=1),
                    metadata={"limit": self._max_bytes},
                )

    async def _evict(self, model: Model, version: Version, *, locked: bool) -> None:
        """Unload a version, whose lock is held where `locked`; the next request loads it again."""
        async with nullcontext() if locked else model.lock:
            await self._close_version(version)
            version.on_demand = True
        logger.info(
            "unloaded the model %s, version %d, to make room for another one",
            model.name,
            version.number,
        )

    def _open(self, bundle: Bundle) -> _Opened:
        # The threads that the engine starts inherit the nice level of this one.
        raise_niceness(ENGINE)
        policy = self._policy_of(bundle.manifest.name)
        runners = make_instances(self._make_runner, bundle, policy.cores)
        paces = []
        try:
            for runner in runners:
                lanes = policy.lanes_of(runner)
                sizes = batch_sizes(policy, lanes)
                paces.append(warm_up(runner, sizes, lanes, watched=bool(self._run_limit)))
        except BaseException:
            close_all(runners)
            raise
        return bundle, runners, slowest(paces)

    async def _unload(self, version: Version) -> None:
        on_demand, version.on_demand = version.on_demand, False
        if version.loaded is not None:
            await self._close_version(version)
        elif on_demand:
            self._observer.on_change()

    async def _close_version(self, version: Version) -> None:
        self._set_state(version, State.UNLOADING)
        if version.loaded is not None:
            await version.loaded.close()
        version.loaded, version.hung = None, False
        self._set_state(version, State.UNLOADED)

    async def _scan(self) -> dict[str, ModelSighting]:
        return await self._scan_on_thread(partial(look, self._root))

    async def _scan_on_thread(self, look: Callable[[], T]) -> T:
        """Scan the folder on a thread with the timeout of a load: a file system may hang.

        Raises OSError.
        """
        try:
            return await self._loads.load(look, _drop)
        except LoadTimeoutError as error:
            raise OSError(errno.ETIMEDOUT, "The file system does not answer") from error

    def _add_versions(self, seen: ModelSighting) -> None:
        """Add the versions that are new, and remove those that are gone and do not serve."""
        name = seen.name
        if seen.versions and name not in self._models:
            self._models[name] = Model(name=name, labels=self._labels.get(name, {}))
        known = self._models.get(name)
        problems = set(seen.errors)
        if known is not None:
            for number, sighting in seen.versions.items():
                known.versions.setdefault(number, Version(path=sighting.path, number=number))
            problems |= known.note_problems(seen)
        self._log_problems(name, sorted(problems))
        self._remove_gone(name, seen)

    def _log_problems(self, name: str, problems: list[str]) -> None:
        """Log each problem of `name` once, when it appears, and the end of the last one."""
        before = self._problems.pop(name, [])
        if problems:
            self._problems[name] = problems
        for problem in problems:
            if problem not in before:
                logger.error("%s (the loaded versions keep serving)", problem)
        if before and not problems:
            logger.info("readable again: %s", name)

    def _remove_gone(self, name: str, seen: ModelSighting | None) -> None:
        """Remove versions that are gone and do not serve, and the model with its last version."""
        known = self._models.get(name)
        if known is None:
            return
        for number, version in list(known.versions.items()):
            gone = seen is None or seen.removed(number)
            if gone and version.loaded is None and version.state is not State.LOADING:
                del known.versions[number]
        if not known.versions:
            del self._models[name]
            self._problems.pop(name, None)
            self._observer.on_change()

    def _resolve(self, name: str, version: str, field: str) -> tuple[Model, Version]:
        if not self._scanned:
            raise LoadingError("MODELS_UNKNOWN", "the repository has not been read yet")
        model = (self._models.get(name) or self._find(name)) if name else self._only(field)
        return model, model.resolve(version)

    def _find(self, name: str) -> Model:
        if name not in self._models:
            raise NotFoundError(
                "MODEL_NOT_FOUND",
                f"no model {quote(name)}; there are {listing(sorted(self._models))}",
                metadata={"model": clip(name)},
            )
        return self._models[name]

    def _only(self, field: str) -> Model:
        if len(self._models) != 1:
            raise InvalidRequestError(
                "MODEL_REQUIRED",
                f"the model must be named: there are {listing(sorted(self._models))}",
                field=field,
            )
        return next(iter(self._models.values()))


def _require_no_label(model: Model, number: int) -> None:
    labels = sorted(label for label, version in model.labels.items() if version == number)
    if labels:
        raise NotReadyError(
            "VERSION_LABELLED",
            f"version {number} of the model {model.name!r} has the label {', '.join(labels)}, by "
            "which requests ask for it; move the label first",
            metadata={"model": model.name, "version": number},
        )


def _read(name: str, version: Version, check_manifest: CheckManifest | None) -> Bundle:
    """Open and check the bundle of a version; raises BundleError."""
    bundle = Bundle.open(version.path, check_manifest)
    if (bundle.manifest.name, bundle.manifest.version) != (name, version.number):
        raise BundleError(
            f"{MANIFEST_FILE}: it is {bundle.manifest.name}/{bundle.manifest.version}, "
            f"and its folder {name}/{version.number}"
        )
    return bundle


def _close_opened(opened: _Opened) -> None:
    _, runners, _ = opened
    close_all(runners)


def _drop(_: object) -> None:
    """Discard the result of a scan after its timeout."""


def _reason(error: Exception) -> str:
    """Return why a load failed, for clients: never the text of another library's error."""
    if isinstance(error, BundleError | BackendError | LoadTimeoutError | LoadEndedError):
        return str(error)
    return f"an unexpected error ({type(error).__name__}); the server's log says more"
