"""The way of a request: find, plan, admit, decode, submit, draw, answer."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT, Manifest
from foveate_runtime.imaging.decode import ImageLimits
from foveate_serve.batching.batcher import retry_delay
from foveate_serve.batching.queueing import Reservation
from foveate_serve.classification import Answer, Request, Result, Timing
from foveate_serve.deadlines import Deadlines, Within
from foveate_serve.engine.admission import Admission, Admitted
from foveate_serve.engine.cache import Cache
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.engine.fair import FairThreads
from foveate_serve.engine.graph import GraphRequest, GraphResult, make_graph_plan
from foveate_serve.engine.job import A, Answering, Chunk, Images, Job, JobPlan
from foveate_serve.engine.pictures import Pictures, size_of
from foveate_serve.engine.plan import make_plan
from foveate_serve.engine.reuse import Cached, Deduplicated
from foveate_serve.errors import (
    DeadlineError,
    InvalidRequestError,
    LoadingError,
    NotReadyError,
    OverloadedError,
)
from foveate_serve.observer import Observer
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.repository import Repository

T = TypeVar("T")
R = TypeVar("R", Request, GraphRequest)

_NO_PLACES = nullcontext()
"""The places of a request without masked copies."""


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

    `overloaded` is set while a queue is full: only then can `shed_load` refuse anything.
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
        self._answer: Answering = self._compute
        if deduplicate:
            self._answer = Deduplicated(self._answer, self._threads, self._observer)
        if cache_bytes:
            cache: Cache[Answer] = Cache(cache_bytes)
            self._answer = Cached(self._answer, cache, self._threads, self._observer)
        # An answer that is reused needs no engine, so that a full queue refuses nothing.
        self._reuses = bool(cache_bytes) or deduplicate
        self.overloaded = False
        self._deadlines = Deadlines()

    def classify(
        self, request: Request, *, deadline: float | None = None
    ) -> Coroutine[Any, Any, Result]:
        """Classify one picture. `deadline` is a time of `time.monotonic`.

        Raises the errors of `foveate_serve.errors`.
        """
        return self._respond(request, make_plan, deadline)

    def infer(
        self, request: GraphRequest, *, deadline: float | None = None
    ) -> Coroutine[Any, Any, GraphResult]:
        """Run the graph on one or more pictures, all by one version. `deadline` as in `classify`.

        Pixels are submitted together, files one by one as each is decoded. Where
        one fails, the request fails and the others are cancelled. Raises the errors
        of `foveate_serve.errors`.
        """
        return self._respond(request, make_graph_plan, deadline)

    async def _respond(
        self,
        request: R,
        make_plan: Callable[[R, Manifest, ExplanationLimits], JobPlan[A]],
        deadline: float | None,
    ) -> A:
        """Find the model, plan, admit, answer; and notify the observer of the outcome."""
        if self.overloaded:
            self.shed_load(request.model)
        started, model = time.perf_counter(), None
        try:
            model = (
                await self._obtain(request, deadline)
                if self.repository.loads_on_demand
                else self.repository.get(request.model, request.version)
            )
            self._observer.on_start(model.name, model.version)
            with Within(self._deadlines, deadline), model.in_use():
                job = Job(
                    model=model,
                    plan=make_plan(request, model.bundle.manifest, self._limits.explanation),
                    images=request.images,
                    priority=request.priority,
                    deadline=deadline,
                )
                with self._admit(job):
                    answer = await self._answer(job)
        except TimeoutError as error:
            late = DeadlineError()
            self._note_failure(model, late, started)
            raise late from error
        except BaseException as error:
            self._note_failure(model, error, started)
            raise
        if not answer.timing.cached:
            model.batcher.record_timing(answer.timing)
        self._observer.on_answer(answer)
        return answer

    async def _compute(self, job: Job[A]) -> A:
        """Decode the pictures, submit them to the batcher, draw, and make the answer."""
        started = time.perf_counter()
        model, plan, images = job.model, job.plan, job.images
        batcher = model.batcher

        async def run_chunk(first: int) -> Chunk:
            part = slice(first, first + size)
            try:
                pixels, view = await self._pictures.prepare(images[part], model.bundle.manifest)
            except InvalidRequestError as error:
                raise plan.locate(error, first) from None
            decoded = time.perf_counter()
            batched = await batcher.submit(
                places,
                pixels,
                outputs=plan.outputs,
                class_ids=plan.class_ids[part],
                deadline=job.deadline,
            )
            return Chunk(pixels, view, decoded - started, batched)

        # The queue's bound holds before a picture costs anything.
        with (
            batcher.reserve(len(images), job.priority, job.deadline) as places,
            batcher.reserve_last(plan.copies, job.deadline) if plan.copies else _NO_PLACES as last,
        ):
            if len(images) == 1:
                size = 1
                chunks = [await run_chunk(0)]
                if last is not None:
                    await self._run_masked(job, chunks[0], last)
            else:
                # Pixels are submitted together, files one by one as each is decoded.
                size = batcher.chunk_size if isinstance(images, np.ndarray) else 1
                firsts = range(0, len(images), size)
                chunks = await _gather_or_cancel([run_chunk(first) for first in firsts])
        inferred = time.perf_counter()

        # Ranking takes microseconds: less than handing it to a thread.
        make_answer = (
            await self._threads.run(model.name, lambda: plan.draw(model, chunks))
            if plan.draws
            else plan.draw(model, chunks)
        )
        return make_answer(timing=_timing(model, chunks, started, inferred))

    async def _run_masked(self, job: Job[A], chunk: Chunk, places: Reservation) -> None:
        """Run the masked copies of a picture, after the pictures of others; note their logits."""
        model, batcher = job.model, job.model.batcher
        copies = await self._threads.run(model.name, lambda: job.plan.mask(model, chunk))
        size = batcher.chunk_size
        parts = [copies[first : first + size] for first in range(0, len(copies), size)]
        done = await _gather_or_cancel(
            [
                batcher.submit(
                    places,
                    part,
                    outputs=(LOGITS_OUTPUT,),
                    class_ids=((),) * len(part),
                    deadline=job.deadline,
                )
                for part in parts
            ]
        )
        chunk.masked = np.concatenate([batched.outputs[LOGITS_OUTPUT] for batched in done])

    def shed_load(self, model: str = "") -> None:
        """Refuse a request where its queue is full, and count it as failed.

        It lets a transport refuse a request before its message is read. `model` is
        the request's model; empty, the queues of all models must be full. With a
        cache or `deduplicate` nothing is refused here, as such a request may need no
        engine. Raises OverloadedError.
        """
        if self._reuses:
            return
        serving = self.repository.serving()
        self.overloaded = any(loaded.batcher.full for loaded in serving)
        batchers = [loaded.batcher for loaded in serving if model in {"", loaded.name}]
        if not batchers or not all(batcher.full for batcher in batchers):
            return
        limit = max(batcher.policy.max_queue for batcher in batchers)
        error = OverloadedError(
            "QUEUE_FULL",
            f"the queue of {'this' if model else 'every'} model is full; the limit is {limit}",
            retry_delay=retry_delay(min(batcher.backlog_seconds for batcher in batchers)),
            metadata={"limit": limit},
        )
        self._observer.on_failure(model, "", error, 0.0)
        raise error

    async def close(self) -> None:
        """Finish the requests in flight, then release the models and the threads."""
        await self.repository.close()
        # A picture that takes long to decode must not block the event loop.
        await asyncio.to_thread(self._threads.close)

    def _admit(self, job: Job[A]) -> Admitted:
        images, batcher = job.images, job.model.batcher
        spec = job.model.bundle.manifest.input
        return self._admission.admit(
            job.model.name,
            pictures=len(images) + job.plan.copies,
            size=_bytes_of(images) + job.plan.copies * spec.height * spec.width * spec.channels,
            retry_delay=lambda: retry_delay(batcher.backlog_seconds),
        )

    async def _obtain(self, request: R, deadline: float | None) -> LoadedModel:
        """Return the model of a request, which counts as in flight while it waits for a load."""

        def admit() -> Admitted:
            return self._admission.admit(
                request.model,
                pictures=len(request.images),
                size=_bytes_of(request.images),
                retry_delay=lambda: timedelta(seconds=1),
            )

        return await self.repository.obtain(
            request.model, request.version, deadline=deadline, waiting=admit
        )

    def _note_failure(
        self, model: LoadedModel | None, error: BaseException, started: float
    ) -> None:
        self.overloaded = self.overloaded or isinstance(error, OverloadedError)
        name = version = ""
        if model is not None:
            name, version = model.name, model.version
        elif isinstance(error, NotReadyError | LoadingError):
            # The version is known and not loaded; names that callers make up are not counted.
            name, version = error.metadata.get("model", ""), error.metadata.get("version", "")
            self._observer.on_start(name, version)
        self._observer.on_failure(name, version, error, time.perf_counter() - started)


def _bytes_of(images: Images) -> int:
    return images.nbytes if isinstance(images, np.ndarray) else sum(map(size_of, images))


async def _gather_or_cancel(calls: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Await all calls; where one fails, cancel the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _timing(model: LoadedModel, chunks: Sequence[Chunk], started: float, inferred: float) -> Timing:
    """Return the times of a request: of its slowest chunk in each stage."""
    decode, batched = chunks[0].decode_seconds, chunks[0].batched
    queue, infer = batched.queue_seconds, batched.run_seconds
    for chunk in chunks[1:]:
        decode = max(decode, chunk.decode_seconds)
        queue = max(queue, chunk.batched.queue_seconds)
        infer = max(infer, chunk.batched.run_seconds)
        batched = max(batched, chunk.batched, key=lambda share: share.batch)
    runner, finished = model.runner, time.perf_counter()
    return Timing(
        decode=decode,
        queue=queue,
        infer=infer,
        encode=finished - inferred,
        total=finished - started,
        batch=batched.batch,
        batch_size=batched.batch_size,
        backend=runner.backend,
        device=runner.device,
        variant=runner.variant,
    )
