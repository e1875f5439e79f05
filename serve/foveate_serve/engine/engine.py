"""The path of a request: admission, picture, batch, answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Generic, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.imaging.decode import ImageLimits
from foveate_serve.batching.batcher import Batched, Batcher, retry_delay
from foveate_serve.batching.queueing import Places
from foveate_serve.classification import (
    Answer,
    Cam,
    FeatureMap,
    Prediction,
    RawImage,
    Request,
    Result,
    Timing,
)
from foveate_serve.deadlines import Deadlines, Within
from foveate_serve.engine import explain, graph
from foveate_serve.engine.admission import Admission, Entry
from foveate_serve.engine.cache import Cache, Flights
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.engine.fair import FairThreads
from foveate_serve.engine.graph import GraphPlan, GraphRequest, GraphResult
from foveate_serve.engine.pictures import Pictures, require_size, size_of
from foveate_serve.engine.plan import Plan, make_plan
from foveate_serve.errors import DeadlineError, InvalidRequestError, OverloadedError
from foveate_serve.observer import Observer
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.repository import Repository

_Images: TypeAlias = Sequence[bytes | RawImage] | NDArray[np.uint8]

T = TypeVar("T")
A = TypeVar("A", bound=Answer)

_DIGEST_AT_ONCE = 256 << 10
"""The digest of fewer bytes takes less time than a change of thread."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine admits: per picture, per explanation, and at one time."""

    image: ImageLimits = field(default_factory=ImageLimits)
    explanation: ExplanationLimits = field(default_factory=ExplanationLimits)
    max_requests: int = 1024
    max_request_bytes: int = 256 << 20


class Engine:
    """Answers requests with the models of a repository. Used from one event loop.

    Pictures are decoded and drawn on `image_threads` threads, of whose time each
    model gets its share; `observer` is told of every request. Answers of
    `cache_bytes` together are kept for identical requests, and with
    `deduplicate` those in flight at one time are answered by one run.
    """

    def __init__(
        self,
        repository: Repository,
        limits: Limits,
        *,
        image_threads: int,
        cache_bytes: int = 0,
        deduplicate: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.repository = repository
        self._limits = limits
        self._observer = observer or Observer()
        self._threads = FairThreads(image_threads, name="foveate-image")
        self._admission = Admission(
            max_pictures=limits.max_requests, max_bytes=limits.max_request_bytes
        )
        self._pictures = Pictures(self._threads, self._admission, limits.image)
        self._cache: Cache[Answer] | None = Cache(cache_bytes) if cache_bytes else None
        self._flights: Flights[Answer] | None = Flights() if deduplicate else None
        self._refusing = False
        self._deadlines = Deadlines()

    async def classify(self, request: Request, *, deadline: float | None = None) -> Result:
        """Classify one picture. `deadline` is a time of `time.monotonic`.

        Raises the errors of `foveate_serve.errors`.
        """
        self._refuse(request.model)
        return await self._answered(deadline, partial(self._classify, request, deadline))

    async def infer(self, request: GraphRequest, *, deadline: float | None = None) -> GraphResult:
        """Run the graph on one or more pictures, all by one version. `deadline` as in `classify`.

        Pixels run together, files join batches one by one; where one of
        them fails, the request fails and the others are dropped. Raises the
        errors of `foveate_serve.errors`.
        """
        self._refuse(request.model)
        return await self._answered(deadline, partial(self._infer, request, deadline))

    def refusal(self, model: str = "") -> OverloadedError | None:
        """Return the error of every request that would come now, None where some are let in.

        Of those for `model`, or of all where it is empty. For those who can
        refuse a request before they have read it. Every such refusal is
        counted. What may be answered without the engine must be read: nothing
        is refused here with a cache, or with `deduplicate`.
        """
        # A server that refuses nothing pays no more than this for it.
        if not self._refusing or self._cache is not None or self._flights is not None:
            return None
        serving = self.repository.serving()
        self._refusing = any(loaded.batcher.full for loaded in serving)
        asked = [x.batcher for x in serving if model in {"", x.bundle.manifest.name}]
        if not asked or not all(batcher.full for batcher in asked):
            return None
        limit = max(batcher.policy.max_queue for batcher in asked)
        error = OverloadedError(
            "QUEUE_FULL",
            f"as many pictures wait for {'this' if model else 'every'} model as may; "
            f"the limit is {limit}",
            retry_delay=retry_delay(min(batcher.backlog_seconds for batcher in asked)),
            metadata={"limit": limit},
        )
        self._observer.failed(model, "", error, 0.0)
        return error

    def _refuse(self, model: str) -> None:
        error = self.refusal(model)
        if error is not None:
            raise error

    async def close(self) -> None:
        """Finish what runs, then release the models and the threads."""
        await self.repository.close()
        # A picture that takes long to decode must not hold up the event loop.
        await asyncio.to_thread(self._threads.close)

    async def _answered(
        self, deadline: float | None, work: Callable[["_Asked"], Awaitable[A]]
    ) -> A:
        asked, started = _Asked(), time.perf_counter()
        try:
            try:
                with Within(self._deadlines, deadline):
                    answer = await work(asked)
            except TimeoutError as error:
                raise DeadlineError from error
        except BaseException as error:
            self._refusing = self._refusing or isinstance(error, OverloadedError)
            seconds = time.perf_counter() - started
            self._observer.failed(asked.model, asked.version, error, seconds)
            raise
        if asked.batcher is not None and not answer.timing.cached:
            asked.batcher.answered(answer.timing)
        self._observer.answered(answer)
        return answer

    def _find(self, request: Request | GraphRequest, asked: "_Asked") -> LoadedModel:
        model = self.repository.get(request.model, request.version)
        manifest = model.bundle.manifest
        asked.model, asked.version = manifest.name, str(manifest.version)
        asked.batcher = model.batcher
        self._observer.began(asked.model, asked.version)
        return model

    def _admitted(self, model: LoadedModel, images: _Images) -> Entry:
        size = images.nbytes if isinstance(images, np.ndarray) else sum(map(size_of, images))
        return self._admission.entered(
            model.bundle.manifest.name,
            pictures=len(images),
            size=size,
            retry_delay=lambda: retry_delay(model.batcher.backlog_seconds),
        )

    async def _reply(self, job: "_Job[A]", deadline: float | None) -> A:
        """Run a job, or spare it where the same was done before, or is being done."""
        model, batcher, images = job.model, job.model.batcher, job.images
        if self._cache is None and self._flights is None:
            # What the request will need is taken before anything is spent on it.
            with (
                batcher.places(len(images), job.priority, deadline) as places,
                self._admitted(model, images),
            ):
                return await job.run(places, deadline)
        name, version = model.bundle.manifest.name, str(model.bundle.manifest.version)
        with self._admitted(model, images):
            started = time.perf_counter()
            contents = await self._contents(name, images)
            key = (model.bundle.digest, model.runner.variant, job.plan, *contents)
            kept = None if self._cache is None else self._cache.get(key)
            if self._cache is not None:
                seconds = time.perf_counter() - started
                self._observer.looked_up(name, version, hit=kept is not None, seconds=seconds)
            if kept is not None:
                # What lies under the key of a plan is the answer to such a plan.
                return cast("A", kept.again(time.perf_counter() - started))
            if self._flights is None:
                return await self._run(job, key, deadline)
            if key in self._flights:
                self._observer.joined(name, version)
            # Each caller has a deadline of its own, and the run ends with the last of them.
            work = partial(self._run, job, key, None)
            return cast("A", await self._flights.join(key, work))

    async def _run(self, job: "_Job[A]", key: Hashable, deadline: float | None) -> A:
        """Run a job on behalf of whoever waits for it, and keep the answer where that is wanted."""
        with (
            job.model.in_use(),
            job.model.batcher.places(len(job.images), job.priority, deadline) as places,
        ):
            answer = await job.run(places, deadline)
        if self._cache is not None:
            self._cache.put(key, answer.kept(), answer.size)
        return answer

    async def _contents(self, model: str, images: _Images) -> list[Hashable]:
        """Return what stands for the pictures: others have another."""
        if isinstance(images, np.ndarray):
            return [await self._digest(model, images.tobytes()), images.shape]
        return [
            (await self._digest(model, image.data), image.height, image.width, image.channels)
            if isinstance(image, RawImage)
            else await self._digest(model, image)
            for image in images
        ]

    async def _digest(self, model: str, data: bytes | memoryview) -> bytes:
        if len(data) < _DIGEST_AT_ONCE:
            return sha256(data).digest()
        return await self._threads.run(model, lambda: sha256(data).digest())

    async def _classify(self, request: Request, deadline: float | None, asked: "_Asked") -> Result:
        model = self._find(request, asked)
        with model.in_use():
            plan = make_plan(request, model.bundle.manifest, self._limits.explanation)
            job = _Job(
                model=model,
                plan=plan,
                images=(request.image,),
                priority=request.priority,
                run=partial(self._run_classify, model, request.image, plan),
            )
            return await self._reply(job, deadline)

    async def _run_classify(
        self,
        model: LoadedModel,
        picture: bytes | RawImage,
        plan: Plan,
        places: Places,
        deadline: float | None,
    ) -> Result:
        started = time.perf_counter()
        manifest = model.bundle.manifest
        image, view = await self._pictures.prepared(picture, manifest)
        decoded = time.perf_counter()

        batched = await model.batcher.submit(
            places, image, outputs=plan.outputs, class_ids=plan.class_ids, deadline=deadline
        )
        inferred = time.perf_counter()

        answer = partial(_answer, plan, batched, model.bundle.labels, image)
        # Ranking takes microseconds and is not worth a change of thread.
        predictions, cams, feature_maps = (
            await self._threads.run(manifest.name, answer) if plan.draws else answer()
        )
        finished = time.perf_counter()

        return Result(
            model=manifest.name,
            version=str(manifest.version),
            scores=manifest.scores,
            predictions=predictions,
            cams=cams,
            feature_maps=feature_maps,
            view=view,
            timing=Timing(
                decode=decoded - started,
                queue=batched.queue_seconds,
                infer=batched.run_seconds,
                encode=finished - inferred,
                total=finished - started,
                batch=batched.batch,
                batch_size=batched.batch_size,
                backend=model.runner.backend,
                device=model.runner.device,
                variant=model.runner.variant,
            ),
        )

    async def _infer(
        self, request: GraphRequest, deadline: float | None, asked: "_Asked"
    ) -> GraphResult:
        model = self._find(request, asked)
        with model.in_use():
            plan = graph.plan(request, model.bundle.manifest, self._limits.explanation)
            if isinstance(request.images, np.ndarray):
                require_size(request.images.shape[1:], model.bundle.manifest.input, "images")
            job = _Job(
                model=model,
                plan=plan,
                images=request.images,
                priority=request.priority,
                run=partial(self._run_infer, model, request.images, plan),
            )
            return await self._reply(job, deadline)

    async def _run_infer(
        self,
        model: LoadedModel,
        pictures: Sequence[bytes] | NDArray[np.uint8],
        plan: GraphPlan,
        places: Places,
        deadline: float | None,
    ) -> GraphResult:
        started = time.perf_counter()
        manifest, batcher = model.bundle.manifest, model.batcher
        # Pixels are there at once, and run together; files as each is decoded.
        size = batcher.largest if isinstance(pictures, np.ndarray) else 1

        async def run(start: int) -> tuple[float, Batched]:
            part = slice(start, start + size)
            if isinstance(pictures, np.ndarray):
                images = pictures[part]
            else:
                with _naming_image(start, len(pictures)):
                    image, _ = await self._pictures.prepared(pictures[start], manifest)
                images = image[np.newaxis]
            decoded = time.perf_counter()
            batched = await batcher.submit_all(
                places,
                images,
                outputs=plan.outputs,
                class_ids=plan.class_ids[part],
                deadline=deadline,
            )
            return decoded - started, batched

        runs = await _all([run(start) for start in range(0, len(pictures), size)])
        inferred = time.perf_counter()
        outputs = {
            name: np.concatenate([batched.outputs[name] for _, batched in runs])
            for name in plan.outputs
        }
        finished = time.perf_counter()

        last = max((batched for _, batched in runs), key=lambda batched: batched.batch)
        return GraphResult(
            model=manifest.name,
            version=str(manifest.version),
            outputs=outputs,
            labels=model.bundle.labels,
            timing=Timing(
                decode=max(decode for decode, _ in runs),
                queue=max(batched.queue_seconds for _, batched in runs),
                infer=max(batched.run_seconds for _, batched in runs),
                encode=finished - inferred,
                total=finished - started,
                batch=last.batch,
                batch_size=last.batch_size,
                backend=model.runner.backend,
                device=model.runner.device,
                variant=model.runner.variant,
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Job(Generic[A]):
    """What a request makes the engine do: `plan` for each of `images`, by `run`."""

    model: LoadedModel
    plan: Hashable
    images: _Images
    priority: int
    run: Callable[[Places, float | None], Awaitable[A]]


@dataclass(slots=True)
class _Asked:
    """The version that a request is for, once it is found."""

    model: str = ""
    version: str = ""
    batcher: Batcher | None = None


async def _all(calls: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Await all calls; where one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@contextmanager
def _naming_image(index: int, count: int) -> Iterator[None]:
    """Say in an error which of `count` pictures is at fault."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(
            error.reason,
            error.message if count == 1 else f"picture {index}: {error.message}",
            field=f"images[{index}]",
            metadata=error.metadata,
        ) from error


def _answer(
    plan: Plan,
    batched: Batched,
    labels: tuple[str, ...],
    image: NDArray[np.uint8],
) -> tuple[tuple[Prediction, ...], tuple[Cam, ...], tuple[FeatureMap, ...]]:
    outputs = batched.outputs
    best = batched.ranking.best(batched.row, plan.ranks)
    return (
        _predictions(plan, batched, best[: plan.top_k], labels),
        () if plan.cam is None else explain.draw(plan.cam, outputs, best, labels, image),
        tuple(explain.select(features, outputs) for features in plan.features),
    )


def _predictions(
    plan: Plan, batched: Batched, best: NDArray[np.int64], labels: tuple[str, ...]
) -> tuple[Prediction, ...]:
    ranking, row = batched.ranking, batched.row
    scores = ranking.scores(plan.scores)[row]
    if plan.threshold is not None:
        best = best[scores[best] >= plan.threshold]
    ids = best.tolist()
    return tuple(
        map(
            Prediction,
            ids,
            [labels[class_id] for class_id in ids],
            scores[best].tolist(),
            ranking.logits[row, best].tolist(),
        )
    )
