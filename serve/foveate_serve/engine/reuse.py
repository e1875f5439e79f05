"""Answers without a run of their own: wrappers around what answers a job."""

import time
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import cast

import numpy as np

from foveate_serve.classification import Answer, RawImage
from foveate_serve.engine.cache import Cache, SingleFlight
from foveate_serve.engine.fair import FairThreads
from foveate_serve.engine.job import A, Answering, Job
from foveate_serve.observer import Observer

_DIGEST_INLINE = 256 << 10
"""Hashing fewer bytes takes less time than handing them to a thread."""


class Cached:
    """Answers a job from the cache; else passes it on, and puts the answer into the cache."""

    def __init__(
        self, answer: Answering, cache: Cache[Answer], threads: FairThreads, observer: Observer
    ) -> None:
        self._answer = answer
        self._cache = cache
        self._threads = threads
        self._observer = observer

    async def __call__(self, job: Job[A]) -> A:
        """Return the answer to a job."""
        started = time.perf_counter()
        key = await _key(job, self._threads)
        cached = self._cache.get(key)
        self._observer.on_cache_lookup(
            job.model.name,
            job.model.version,
            hit=cached is not None,
            seconds=time.perf_counter() - started,
        )
        if cached is not None:
            # The key contains the plan, so the value is the answer to such a plan.
            return cast("A", cached.from_cache(time.perf_counter() - started))
        answer = await self._answer(job)
        if self._cache.get(key) is None:
            self._cache.put(key, answer.for_cache(), answer.size)
        return answer


class Deduplicated:
    """Passes a job on once for all identical jobs that are in flight at one time."""

    def __init__(self, answer: Answering, threads: FairThreads, observer: Observer) -> None:
        self._answer = answer
        self._flights: SingleFlight[Answer] = SingleFlight()
        self._threads = threads
        self._observer = observer

    async def __call__(self, job: Job[A]) -> A:
        """Return the answer to a job."""
        key = await _key(job, self._threads)
        if key in self._flights:
            self._observer.on_join(job.model.name, job.model.version)
        return cast("A", await self._flights.join(key, partial(self._start, job)))

    async def _start(self, job: Job[A]) -> A:
        with job.model.in_use():
            # Without a deadline: each caller waits until its own deadline, and the run is cancelled
            # when no caller waits any more.
            return await self._answer(replace(job, deadline=None))


async def _key(job: Job[A], threads: FairThreads) -> Hashable:
    """Return the key of a job: its model, its plan and the digests of its pictures."""
    if job.key is None:
        model, images = job.model, job.images
        contents: list[Hashable]
        if isinstance(images, np.ndarray):
            contents = [await _digest(images.tobytes(), model.name, threads), images.shape]
        else:
            contents = [
                (
                    await _digest(image.data, model.name, threads),
                    *(image.height, image.width, image.channels),
                )
                if isinstance(image, RawImage)
                else await _digest(image, model.name, threads)
                for image in images
            ]
        job.key = (model.bundle.digest, model.runner.variant, job.plan, *contents)
    return job.key


async def _digest(data: bytes | memoryview, model: str, threads: FairThreads) -> bytes:
    if len(data) < _DIGEST_INLINE:
        return sha256(data).digest()
    return await threads.run(model, lambda: sha256(data).digest())
