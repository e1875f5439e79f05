"""The models on disk and those that serve."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.folder import ModelSighting, look, look_at
from foveate_runtime.bundle.manifest import MANIFEST_FILE
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import (
    InvalidRequestError,
    LoadingError,
    NotFoundError,
    NotReadyError,
    clip,
    quote,
)
from foveate_serve.niceness import ENGINE, step_back
from foveate_serve.observer import Observer
from foveate_serve.repository.instances import make_instances
from foveate_serve.repository.labels import LATEST, check_labels
from foveate_serve.repository.loaded import LoadedModel, close_all
from foveate_serve.repository.loading import LoadEndedError, Loads, LoadTimeoutError
from foveate_serve.repository.versions import Model, ModelStatus, State, Version
from foveate_serve.repository.warmup import batch_sizes, warm_up

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ROOT = "the repository's folder"


class Repository:
    """The bundles under `root/<model>/<version>/`.

    `make_runner` loads a checked bundle on a backend; it is called on a thread.
    Whatever a load raises makes its version fail. `policies` are those of the models named there,
    `policy` that of the others. `labels` stand for versions, by model. An
    engine hangs where a run takes more than `run_limit` seconds, and a load is
    given up after `load_limit` seconds, 0 for never. `observer` is told of
    loads, of every change of a state and of every batch. Used from one event
    loop.
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
    ) -> None:
        self._root = root
        self._make_runner = make_runner
        self._policy = policy
        self._policies = policies or {}
        self._observer = observer or Observer()
        self._labels = labels or {}
        self._run_limit = run_limit
        self._loads = Loads(load_limit)
        self._models: dict[str, Model] = {}
        self._changes: set[asyncio.Task[object]] = set()
        self._problems: dict[str, list[str]] = {}
        self._looked = False

    async def open(self, *, load: bool = True) -> None:
        """Learn of every model, and `load` the newest version of each and those with a label.

        A model that cannot be loaded is logged and stands as failed. Raises
        OSError where the repository cannot be read.
        """
        for seen in (await self._look()).values():
            self._learn(seen)
        self._looked = True
        for name in self._labels.keys() - self._models.keys():
            logger.warning("there are labels for the model %s, which is not there", name)
        if not load:
            return
        waiting = [
            (model, version) for model in self._models.values() for version in model.wanted()
        ]
        for _, version in waiting:
            self._move(version, State.LOADING)
        for model, version in waiting:
            await self._try_load(model, version)

    async def close(self) -> None:
        """Finish what runs and release every model."""
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
        """What of the folder cannot be read, and why, such as "Permission denied: NAME"."""
        return [problem for _, found in sorted(self._problems.items()) for problem in found]

    @property
    def hung(self) -> bool:
        """Whether an engine does not come back from a run: only a restart frees what it holds."""
        return any(v.hung for model in self._models.values() for v in model.versions.values())

    @property
    def stuck(self) -> bool:
        """Whether the thread of an engine or of a load does not end."""
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
        if not self._looked:
            raise LoadingError("MODELS_UNKNOWN", "the models are not known yet")
        model = self._find(name) if name else self._only(field)
        wanted = model.asked(version)
        if wanted.loaded is not None and wanted.state is State.READY:
            return wanted.loaded
        metadata = {"model": model.name, "version": wanted.number, "state": wanted.state.value}
        message = f"version {wanted.number} of the model {model.name!r} is {wanted.state.value}"
        if wanted.state is State.LOADING:
            raise LoadingError("MODEL_LOADING", message, metadata=metadata)
        raise NotReadyError("MODEL_NOT_READY", message, metadata=metadata)

    async def load(self, name: str, version: str) -> ModelStatus:
        """Load a version that does not serve yet; an empty `version` means the newest on disk.

        So does `latest`. Raises NotFoundError, and NotReadyError where the load fails.
        """

        async def change(model: Model) -> None:
            wanted = model.on_disk(version)
            if wanted.loaded is None:
                await self._load(model, wanted)

        return await self._change(name, change)

    async def reload(self, name: str, version: str) -> ModelStatus:
        """Read a version anew and put it in the place of the one that serves.

        An empty `version`, or `latest`, means the newest on disk; it takes the
        place of the newest that serves, which goes unless it has a label. The
        old one serves until the new one is ready, and goes on where the load
        fails. Raises NotFoundError, and NotReadyError where the load fails.
        """

        async def change(model: Model) -> None:
            previous, wanted = model.latest(), model.on_disk(version)
            await self._load(model, wanted)
            if version in {"", LATEST} and previous not in model.wanted():
                await self._unload(previous)

        return await self._change(name, change)

    async def unload(self, name: str, version: str) -> ModelStatus:
        """Stop serving a version, or every one where `version` is empty, after what it has taken.

        Raises NotFoundError.
        """

        async def change(model: Model) -> None:
            wanted = [model.on_disk(version)] if version else list(model.versions.values())
            await asyncio.gather(*(self._unload(v) for v in wanted))

        return await self._change(name, change)

    async def set_labels(self, name: str, labels: Mapping[str, str]) -> ModelStatus:
        """Put `labels`, which stand for versions by number, in the place of a model's own.

        Versions that do not serve yet are loaded first; where one cannot be,
        the labels stay as they are. Raises InvalidRequestError, NotFoundError,
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
        """Take over the labels of a model from a server that has checked them."""
        if name in self._models:
            self._models[name].labels = check_labels(labels)

    async def poll(self) -> None:
        """Serve what lies in the folder now: of each model the newest version and the labelled.

        A version that came is loaded, and one whose manifest is another now is
        put in the place of the old one. Those that went, or are no longer the
        newest, are unloaded as soon as the newest is ready. What fails to load
        is tried again when its files change.

        What cannot be read, or holds no manifest, was not removed: what serves of
        it goes on, `problems` and the log say why. So does everything where the
        folder itself cannot be read, or is empty.
        """
        try:
            found = await self._look()
            problem = "" if found or not self._models else f"it is empty: {_ROOT}"
        except OSError as error:
            found, problem = {}, f"{error.strerror}: {_ROOT}"
        self._note(_ROOT, [problem] if problem else [])
        if problem:
            for model in self._models.values():
                model.note_problems(ModelSighting(name=model.name, error=problem))
            return
        for name in sorted(found.keys() | self._models.keys()):
            seen = found.get(name)
            try:
                await self._catch_up(name, seen)
            except Exception:
                logger.exception("the model %s is not as its folder is", name)

    async def _catch_up(self, name: str, seen: ModelSighting | None) -> None:
        """Serve what was seen of a model; None tells that it was removed."""
        if seen is not None:
            self._learn(seen)
        if name in self._models:
            await self._run(self._models[name], partial(self._follow, seen=seen))
            self._forget(name, seen)

    async def _follow(self, model: Model, seen: ModelSighting | None) -> None:
        keep: list[Version] = []
        if seen is not None:
            there = {n: v for n, v in model.versions.items() if not seen.removed(n)}
            newest = there[max(there)]
            keep = [newest, *(v for v in model.wanted() if v.number in there)]
            for version in keep:
                sighting = seen.versions.get(version.number)
                if sighting is not None and version.differs(sighting):
                    version.tried = sighting
                    await self._try_load(model, version)
            if newest.state is not State.READY:
                keep.append(model.latest())
        await asyncio.gather(
            *(self._unload(version) for version in model.versions.values() if version not in keep)
        )

    async def _change(
        self, name: str, change: Callable[[Model], Coroutine[None, None, None]]
    ) -> ModelStatus:
        with suppress(OSError):
            seen = await self._looking(partial(look_at, self._root, name))
            if seen is not None:
                self._learn(seen)
        return await self._run(self._find(name), change)

    async def _run(
        self, model: Model, change: Callable[[Model], Coroutine[None, None, None]]
    ) -> ModelStatus:
        async def run() -> ModelStatus:
            async with model.lock:
                await change(model)
                return model.status()

        # A caller who goes away must not leave a model half loaded.
        task = asyncio.create_task(run())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _try_load(self, model: Model, version: Version) -> None:
        try:
            await self._load(model, version)
        except NotReadyError as error:
            logger.error("%s", error)  # noqa: TRY400 - the cause is logged where it was found

    async def _load(self, model: Model, version: Version) -> None:
        previous = version.loaded
        if previous is None:
            self._move(version, State.LOADING)
        started = time.monotonic()
        try:
            bundle, runners = await self._loads.run(
                partial(self._open, model.name, version), _close_opened
            )
            loaded = version.loaded = self._start(version, bundle, runners)
        except Exception as error:
            version.reason = reason = _reason(error)
            if previous is None:
                self._move(version, State.FAILED)
            logger.exception("the model %s, version %d, failed to load", model.name, version.number)
            raise NotReadyError(
                "MODEL_LOAD_FAILED",
                f"version {version.number} of the model {model.name!r} failed to load: {reason}",
                metadata={"model": model.name, "version": version.number},
            ) from error
        version.reason, version.hung = "", False
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

    def _start(self, version: Version, bundle: Bundle, runners: Sequence[Runner]) -> LoadedModel:
        name = bundle.manifest.name
        try:
            loaded = LoadedModel(
                bundle,
                runners,
                self._policy_of(name),
                ran=partial(self._observer.ran, name, str(version.number)),
                alive=lambda alive: self._engine_is(version, loaded, alive=alive),
                run_limit=self._run_limit,
                hangs=lambda hung: self._engine_hangs(version, loaded, hung=hung),
            )
        except Exception:
            close_all(runners)
            raise
        return loaded

    def _engine_hangs(self, version: Version, loaded: LoadedModel, *, hung: bool) -> None:
        """Take a version out of service while its engine does not come back from a run."""
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
            self._move(version, State.FAILED if hung else State.READY)

    def _engine_is(self, version: Version, loaded: LoadedModel, *, alive: bool) -> None:
        """Take a version out of service while its engine's thread does not run."""
        if version.loaded is loaded and version.state in {State.READY, State.LOADING}:
            version.reason = "" if alive else "the engine's thread ended, and starts again"
            self._move(version, State.READY if alive else State.LOADING)

    def _move(self, version: Version, state: State) -> None:
        version.state = state
        self._observer.changed()

    def _policy_of(self, name: str) -> BatchPolicy:
        return self._policies.get(name, self._policy)

    def _open(self, name: str, version: Version) -> tuple[Bundle, list[Runner]]:
        # On a thread of its own, from which the threads that the engine starts inherit it.
        step_back(ENGINE)
        bundle = Bundle.open(version.path)
        if (bundle.manifest.name, bundle.manifest.version) != (name, version.number):
            raise BundleError(
                f"{MANIFEST_FILE}: it is {bundle.manifest.name}/{bundle.manifest.version}, "
                f"and its folder {name}/{version.number}"
            )
        policy = self._policy_of(name)
        runners = make_instances(self._make_runner, bundle, policy.cores)
        try:
            for runner in runners:
                lanes = policy.lanes_of(runner)
                sizes = batch_sizes(policy, lanes)
                warm_up(runner, sizes, lanes, watched=bool(self._run_limit))
        except BaseException:
            close_all(runners)
            raise
        return bundle, runners

    async def _unload(self, version: Version) -> None:
        if version.loaded is None:
            return
        self._move(version, State.UNLOADING)
        await version.loaded.close()
        version.loaded, version.hung = None, False
        self._move(version, State.UNLOADED)

    async def _look(self) -> dict[str, ModelSighting]:
        return await self._looking(partial(look, self._root))

    async def _looking(self, look: Callable[[], T]) -> T:
        """Look at the folder, as a load is made: the file system may not answer.

        Raises OSError.
        """
        try:
            return await self._loads.run(look, _drop)
        except LoadTimeoutError as error:
            raise OSError(errno.ETIMEDOUT, "The file system does not answer") from error

    def _learn(self, seen: ModelSighting) -> None:
        """Learn of versions that came, and forget those that went and do not serve."""
        name = seen.name
        if seen.versions and name not in self._models:
            self._models[name] = Model(name=name, labels=self._labels.get(name, {}))
        known = self._models.get(name)
        problems = set(seen.errors)
        if known is not None:
            for number, sighting in seen.versions.items():
                known.versions.setdefault(number, Version(path=sighting.path, number=number))
            problems |= known.note_problems(seen)
        self._note(name, sorted(problems))
        self._forget(name, seen)

    def _note(self, name: str, problems: list[str]) -> None:
        """Log what cannot be read below a name, once for each time that it is so."""
        before = self._problems.pop(name, [])
        if problems:
            self._problems[name] = problems
        for problem in problems:
            if problem not in before:
                logger.error("%s (what serves goes on serving)", problem)
        if before and not problems:
            logger.info("it can be read again: %s", name)

    def _forget(self, name: str, seen: ModelSighting | None) -> None:
        """Forget versions that went and do not serve, and the model with the last of them."""
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
            self._observer.changed()

    def _find(self, name: str) -> Model:
        if name not in self._models:
            raise NotFoundError(
                "MODEL_NOT_FOUND", f"no model {quote(name)}", metadata={"model": clip(name)}
            )
        return self._models[name]

    def _only(self, field: str) -> Model:
        if len(self._models) != 1:
            raise InvalidRequestError(
                "MODEL_REQUIRED",
                f"the model must be named: there are {len(self._models)}",
                field=field,
            )
        return next(iter(self._models.values()))


def _close_opened(opened: tuple[Bundle, list[Runner]]) -> None:
    _, runners = opened
    close_all(runners)


def _drop(_: object) -> None:
    """Do nothing with what a look finds that nobody waits for any more."""


def _reason(error: Exception) -> str:
    """Return why a load failed, as clients may read it: no text of an error that is not ours."""
    if isinstance(error, BundleError | BackendError | LoadTimeoutError | LoadEndedError):
        return str(error)
    return f"an error that was not foreseen ({type(error).__name__}); the server's log says more"
