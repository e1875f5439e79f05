"""The path of a request: admission, decoding, batch, post-processing, answer."""

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
from foveate_serve.batching.queueing import Reservation
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
from foveate_serve.engine.admission import Admission, Admitted
from foveate_serve.engine.cache import Cache, SingleFlight
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

_DIGEST_INLINE = 256 << 10
"""Hashing fewer bytes takes less time than handing them to a thread."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one picture, of its explanations, and of the requests in flight."""

    image: ImageLimits = field(default_factory=ImageLimits)
    explanation: ExplanationLimits = field(default_factory=ExplanationLimits)
    max_requests: int = 1024
    max_request_bytes: int = 256 << 20


class Engine:
    """Answers requests with the models of a repository. Used from one event loop.

    Pictures are decoded and drawn on `image_threads` threads, which the models share
    fairly. `observer` is notified of every request. Up to `cache_bytes` of answers
    are cached for identical requests. With `deduplicate`, identical requests in
    flight share one run.
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
        self._single_flight: SingleFlight[Answer] | None = SingleFlight() if deduplicate else None
        self._overloaded = False
        self._deadlines = Deadlines()

    async def classify(self, request: Request, *, deadline: float | None = None) -> Result:
        """Classify one picture. `deadline` is a time of `time.monotonic`.

        Raises the errors of `foveate_serve.errors`.
        """
        self._raise_if_full(request.model)
        return await self._execute(deadline, partial(self._classify, request, deadline))

    async def infer(self, request: GraphRequest, *, deadline: float | None = None) -> GraphResult:
        """Run the graph on one or more pictures, all by one version. `deadline` as in `classify`.

        Pixels are submitted together, files one by one as each is decoded. Where
        one fails, the request fails and the others are cancelled. Raises the errors
        of `foveate_serve.errors`.
        """
        self._raise_if_full(request.model)
        return await self._execute(deadline, partial(self._infer, request, deadline))

    def check_load(self, model: str = "") -> OverloadedError | None:
        """Return the error with which to shed a request now; None where it may proceed.

        It lets a transport refuse a request before its message is read. `model` is
        the request's model; empty, the queues of all models must be full. Every
        error returned counts as a failed request. With a cache or `deduplicate`
        nothing is refused here, as such a request may need no engine.
        """
        # The only cost for a server that is not overloaded.
        if not self._overloaded or self._cache is not None or self._single_flight is not None:
            return None
        serving = self.repository.serving()
        self._overloaded = any(loaded.batcher.full for loaded in serving)
        batchers = [x.batcher for x in serving if model in {"", x.bundle.manifest.name}]
        if not batchers or not all(batcher.full for batcher in batchers):
            return None
        limit = max(batcher.policy.max_queue for batcher in batchers)
        error = OverloadedError(
            "QUEUE_FULL",
            f"the queue of {'this' if model else 'every'} model is full; the limit is {limit}",
            retry_delay=retry_delay(min(batcher.backlog_seconds for batcher in batchers)),
            metadata={"limit": limit},
        )
        self._observer.on_failure(model, "", error, 0.0)
        return error

    def _raise_if_full(self, model: str) -> None:
        error = self.check_load(model)
        if error is not None:
            raise error

    async def close(self) -> None:
        """Finish the requests in flight, then release the models and the threads."""
        await self.repository.close()
        # A picture that takes long to decode must not block the event loop.
        await asyncio.to_thread(self._threads.close)

    async def _execute(
        self, deadline: float | None, work: Callable[["_Target"], Awaitable[A]]
    ) -> A:
        """Await `work` within the deadline, and notify the observer of its outcome."""
        target, started = _Target(), time.perf_counter()
        try:
            try:
                with Within(self._deadlines, deadline):
                    answer = await work(target)
            except TimeoutError as error:
                raise DeadlineError from error
        except BaseException as error:
            self._overloaded = self._overloaded or isinstance(error, OverloadedError)
            seconds = time.perf_counter() - started
            self._observer.on_failure(target.model, target.version, error, seconds)
            raise
        if target.batcher is not None and not answer.timing.cached:
            target.batcher.record_timing(answer.timing)
        self._observer.on_answer(answer)
        return answer

    def _find(self, request: Request | GraphRequest, target: "_Target") -> LoadedModel:
        model = self.repository.get(request.model, request.version)
        manifest = model.bundle.manifest
        target.model, target.version = manifest.name, str(manifest.version)
        target.batcher = model.batcher
        self._observer.on_start(target.model, target.version)
        return model

    def _admit(self, model: LoadedModel, images: _Images) -> Admitted:
        size = images.nbytes if isinstance(images, np.ndarray) else sum(map(size_of, images))
        return self._admission.admit(
            model.bundle.manifest.name,
            pictures=len(images),
            size=size,
            retry_delay=lambda: retry_delay(model.batcher.backlog_seconds),
        )

    async def _run_or_reuse(self, job: "_Job[A]", deadline: float | None) -> A:
        """Answer a job from the cache or from an identical job in flight, or else run it."""
        model, batcher, images = job.model, job.model.batcher, job.images
        if self._cache is None and self._single_flight is None:
            # The request takes its places before anything is spent on it.
            with (
                batcher.reserve(len(images), job.priority, deadline) as reservation,
                self._admit(model, images),
            ):
                return await job.compute(reservation, deadline)
        name, version = model.bundle.manifest.name, str(model.bundle.manifest.version)
        with self._admit(model, images):
            started = time.perf_counter()
            contents = await self._picture_key(name, images)
            key = (model.bundle.digest, model.runner.variant, job.plan, *contents)
            cached = None if self._cache is None else self._cache.get(key)
            if self._cache is not None:
                seconds = time.perf_counter() - started
                self._observer.on_cache_lookup(
                    name, version, hit=cached is not None, seconds=seconds
                )
            if cached is not None:
                # The key contains the plan, so the value is the answer to such a plan.
                return cast("A", cached.from_cache(time.perf_counter() - started))
            if self._single_flight is None:
                return await self._run_and_cache(job, key, deadline)
            if key in self._single_flight:
                self._observer.on_join(name, version)
            # Without a deadline: each caller waits until its own, and the last to leave cancels.
            work = partial(self._run_and_cache, job, key, None)
            return cast("A", await self._single_flight.join(key, work))

    async def _run_and_cache(self, job: "_Job[A]", key: Hashable, deadline: float | None) -> A:
        """Run a job, and put its answer into the cache where there is one."""
        with (
            job.model.in_use(),
            job.model.batcher.reserve(len(job.images), job.priority, deadline) as reservation,
        ):
            answer = await job.compute(reservation, deadline)
        if self._cache is not None:
            self._cache.put(key, answer.for_cache(), answer.size)
        return answer

    async def _picture_key(self, model: str, images: _Images) -> list[Hashable]:
        """Return the part of a cache key that identifies the pictures."""
        if isinstance(images, np.ndarray):
            return [await self._digest(model, images.tobytes()), images.shape]
        return [
            (await self._digest(model, image.data), image.height, image.width, image.channels)
            if isinstance(image, RawImage)
            else await self._digest(model, image)
            for image in images
        ]

    async def _digest(self, model: str, data: bytes | memoryview) -> bytes:
        if len(data) < _DIGEST_INLINE:
            return sha256(data).digest()
        return await self._threads.run(model, lambda: sha256(data).digest())

    async def _classify(
        self, request: Request, deadline: float | None, target: "_Target"
    ) -> Result:
        model = self._find(request, target)
        with model.in_use():
            plan = make_plan(request, model.bundle.manifest, self._limits.explanation)
            job = _Job(
                model=model,
                plan=plan,
                images=(request.image,),
                priority=request.priority,
                compute=partial(self._classify_picture, model, request.image, plan),
            )
            return await self._run_or_reuse(job, deadline)

    async def _classify_picture(
        self,
        model: LoadedModel,
        picture: bytes | RawImage,
        plan: Plan,
        reservation: Reservation,
        deadline: float | None,
    ) -> Result:
        started = time.perf_counter()
        manifest = model.bundle.manifest
        image, view = await self._pictures.prepare(picture, manifest)
        decoded = time.perf_counter()

        batched = await model.batcher.submit(
            reservation, image, outputs=plan.outputs, class_ids=plan.class_ids, deadline=deadline
        )
        inferred = time.perf_counter()

        post_process = partial(_post_process, plan, batched, model.bundle.labels, image)
        # Ranking takes microseconds: less than handing it to a thread.
        predictions, cams, feature_maps = (
            await self._threads.run(manifest.name, post_process) if plan.draws else post_process()
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
        self, request: GraphRequest, deadline: float | None, target: "_Target"
    ) -> GraphResult:
        model = self._find(request, target)
        with model.in_use():
            plan = graph.plan(request, model.bundle.manifest, self._limits.explanation)
            if isinstance(request.images, np.ndarray):
                require_size(request.images.shape[1:], model.bundle.manifest.input, "images")
            job = _Job(
                model=model,
                plan=plan,
                images=request.images,
                priority=request.priority,
                compute=partial(self._infer_pictures, model, request.images, plan),
            )
            return await self._run_or_reuse(job, deadline)

    async def _infer_pictures(
        self,
        model: LoadedModel,
        pictures: Sequence[bytes] | NDArray[np.uint8],
        plan: GraphPlan,
        reservation: Reservation,
        deadline: float | None,
    ) -> GraphResult:
        started = time.perf_counter()
        manifest, batcher = model.bundle.manifest, model.batcher
        # Pixels are submitted together, files one by one as each is decoded.
        size = batcher.chunk_size if isinstance(pictures, np.ndarray) else 1

        async def run_chunk(start: int) -> tuple[float, Batched]:
            part = slice(start, start + size)
            if isinstance(pictures, np.ndarray):
                images = pictures[part]
            else:
                with _naming_image(start, len(pictures)):
                    image, _ = await self._pictures.prepare(pictures[start], manifest)
                images = image[np.newaxis]
            decoded = time.perf_counter()
            batched = await batcher.submit_all(
                reservation,
                images,
                outputs=plan.outputs,
                class_ids=plan.class_ids[part],
                deadline=deadline,
            )
            return decoded - started, batched

        runs = await _gather_or_cancel(
            [run_chunk(start) for start in range(0, len(pictures), size)]
        )
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
    """The work of one request: `compute` carries out `plan` for each of `images`."""

    model: LoadedModel
    plan: Hashable
    images: _Images
    priority: int
    compute: Callable[[Reservation, float | None], Awaitable[A]]


@dataclass(slots=True)
class _Target:
    """The model and version of a request, set once they are found."""

    model: str = ""
    version: str = ""
    batcher: Batcher | None = None


async def _gather_or_cancel(calls: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Await all calls; where one fails, cancel the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@contextmanager
def _naming_image(index: int, count: int) -> Iterator[None]:
    """Add to an error which of `count` pictures caused it."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(
            error.reason,
            error.message if count == 1 else f"picture {index}: {error.message}",
            field=f"images[{index}]",
            metadata=error.metadata,
        ) from error


def _post_process(
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
