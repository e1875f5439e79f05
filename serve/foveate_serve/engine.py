"""The path of a request: admission, picture, batch, answer."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate_serve import explain
from foveate_serve.bundle.manifest import LOGITS_OUTPUT, InputSpec, Manifest
from foveate_serve.classification import (
    Cam,
    FeatureMap,
    Prediction,
    RawImage,
    Request,
    Result,
    Timing,
)
from foveate_serve.errors import DeadlineError, InvalidRequestError, OverloadedError
from foveate_serve.explain import CamPlan, ExplanationLimits, FeatureMapPlan
from foveate_serve.imaging.decode import ImageError, ImageLimits
from foveate_serve.imaging.transform import View, prepare
from foveate_serve.observer import Observer
from foveate_serve.repository import Repository

T = TypeVar("T")

DEFAULT_TOP_K = 5

_RETRY_DELAY = timedelta(milliseconds=100)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine admits: per picture, per explanation, and at one time."""

    image: ImageLimits = field(default_factory=ImageLimits)
    explanation: ExplanationLimits = field(default_factory=ExplanationLimits)
    max_requests: int = 1024
    max_request_bytes: int = 256 << 20


class Engine:
    """Answers requests with the models of a repository. Used from one event loop.

    Pictures are decoded and drawn on `image_threads` threads; `observer` is told
    of every request.
    """

    def __init__(
        self,
        repository: Repository,
        limits: Limits,
        *,
        image_threads: int,
        observer: Observer | None = None,
    ) -> None:
        self.repository = repository
        self._limits = limits
        self._observer = observer or Observer()
        self._threads = ThreadPoolExecutor(image_threads, thread_name_prefix="foveate-image")
        self._requests = 0
        self._bytes = 0

    async def classify(self, request: Request, *, deadline: float | None = None) -> Result:
        """Classify one picture. `deadline` is a time of `time.monotonic`.

        Raises the errors of `foveate_serve.errors`.
        """
        left = None if deadline is None else deadline - time.monotonic()
        with self._observed() as asked:
            try:
                async with asyncio.timeout(left):
                    with self._admitted(request):
                        result = await self._classify(request, deadline, asked)
            except TimeoutError as error:
                raise DeadlineError from error
        self._observer.answered(result)
        return result

    async def close(self) -> None:
        """Finish what runs, then release the models and the threads."""
        await self.repository.close()
        self._threads.shutdown()

    @contextmanager
    def _observed(self) -> Iterator["_Asked"]:
        asked = _Asked()
        try:
            yield asked
        except BaseException as error:
            self._observer.failed(asked.model, asked.version, error)
            raise

    @contextmanager
    def _admitted(self, request: Request) -> Iterator[None]:
        size = len(request.image.data if isinstance(request.image, RawImage) else request.image)
        if self._requests >= self._limits.max_requests:
            raise OverloadedError(
                "TOO_MANY_REQUESTS",
                f"{self._requests} requests are in flight, which is the limit",
                retry_delay=_RETRY_DELAY,
                metadata={"limit": self._limits.max_requests},
            )
        # A lone picture is judged by its own limit.
        if self._requests and self._bytes + size > self._limits.max_request_bytes:
            raise OverloadedError(
                "TOO_MANY_BYTES",
                f"the requests in flight would hold {self._bytes + size} bytes; "
                f"the limit is {self._limits.max_request_bytes} bytes",
                retry_delay=_RETRY_DELAY,
                metadata={"limit": self._limits.max_request_bytes},
            )
        self._requests += 1
        self._bytes += size
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size

    async def _classify(self, request: Request, deadline: float | None, asked: "_Asked") -> Result:
        started = time.perf_counter()
        model = self.repository.get(request.model, request.version)
        with model.in_use():
            manifest = model.bundle.manifest
            asked.model, asked.version = manifest.name, str(manifest.version)
            self._observer.began(asked.model, asked.version)
            plan = _plan(request, manifest, self._limits.explanation)

            image, view = await self._image(request.image, manifest.input)
            decoded = time.perf_counter()

            batched = await model.batcher.submit(
                image, outputs=plan.outputs, class_ids=plan.class_ids, deadline=deadline
            )
            inferred = time.perf_counter()

            answer = partial(_answer, plan, batched.outputs, model.bundle.labels, image)
            # Ranking takes microseconds and is not worth a change of thread.
            predictions, cams, feature_maps = (
                await self._on_thread(answer) if plan.draws else answer()
            )
            finished = time.perf_counter()

            return Result(
                model=manifest.name,
                version=str(manifest.version),
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

    async def _image(
        self, image: bytes | RawImage, spec: InputSpec
    ) -> tuple[NDArray[np.uint8], View]:
        if isinstance(image, RawImage):
            return _raw(image, spec)
        try:
            return await self._on_thread(lambda: prepare(image, spec, self._limits.image))
        except ImageError as error:
            raise InvalidRequestError(
                error.reason,
                str(error),
                field="encoded",
                metadata={} if error.limit is None else {"limit": error.limit},
            ) from error

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@dataclass(slots=True)
class _Asked:
    """The version that a request is for, once it is found."""

    model: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A request, checked against the bundle that answers it."""

    top_k: int
    cam: CamPlan | None
    features: tuple[FeatureMapPlan, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        # The layers in one order, so that pictures asking for the same share a batch.
        features = sorted(plan.output for plan in self.features)
        return (LOGITS_OUTPUT, *([self.cam.output] if self.cam else []), *features)

    @property
    def class_ids(self) -> tuple[int, ...]:
        return self.cam.class_ids if self.cam else ()

    @property
    def draws(self) -> bool:
        return self.cam is not None and self.cam.draws


def _plan(request: Request, manifest: Manifest, limits: ExplanationLimits) -> _Plan:
    return _Plan(
        top_k=_top_k(request.top_k, manifest.classes),
        cam=explain.plan_cam(request.cam, manifest, limits),
        features=explain.plan_features(request.feature_maps, manifest, limits),
    )


def _top_k(wanted: int | None, classes: int) -> int:
    if wanted is None:
        return min(DEFAULT_TOP_K, classes)
    if not 1 <= wanted <= classes:
        raise InvalidRequestError(
            "TOP_K_OUT_OF_RANGE",
            f"top_k is {wanted}; the limit is 1 to {classes}, the number of classes",
            field="top_k",
            metadata={"minimum": 1, "limit": classes},
        )
    return wanted


def _raw(image: RawImage, spec: InputSpec) -> tuple[NDArray[np.uint8], View]:
    for name in ("height", "width", "channels"):
        have, want = getattr(image, name), getattr(spec, name)
        if have != want:
            raise InvalidRequestError(
                "SHAPE_MISMATCH",
                f"the picture's {name} is {have}; the model takes {want}",
                field=f"raw.{name}",
                metadata={"limit": want},
            )
    size = spec.height * spec.width * spec.channels
    if len(image.data) != size:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"the picture has {len(image.data)} bytes; its shape makes {size}",
            field="raw.data",
            metadata={"limit": size},
        )
    pixels = np.frombuffer(image.data, dtype=np.uint8)
    view = View(
        source_width=spec.width,
        source_height=spec.height,
        left=0.0,
        top=0.0,
        width=spec.width,
        height=spec.height,
    )
    return pixels.reshape(spec.height, spec.width, spec.channels), view


def _answer(
    plan: _Plan,
    outputs: Mapping[str, NDArray[np.float32]],
    labels: tuple[str, ...],
    image: NDArray[np.uint8],
) -> tuple[tuple[Prediction, ...], tuple[Cam, ...], tuple[FeatureMap, ...]]:
    logits = outputs[LOGITS_OUTPUT]
    # Stable, so that equal logits rank as in the graph: the lower class first.
    ranking = np.argsort(-logits, kind="stable")
    return (
        _predictions(logits, ranking[: plan.top_k], labels),
        () if plan.cam is None else explain.draw(plan.cam, outputs, ranking, labels, image),
        tuple(explain.select(features, outputs) for features in plan.features),
    )


def _predictions(
    logits: NDArray[np.float32], best: NDArray[np.int64], labels: tuple[str, ...]
) -> tuple[Prediction, ...]:
    exponentials = np.exp(logits - logits.max())
    scores = exponentials[best] / exponentials.sum()
    return tuple(
        Prediction(class_id=class_id, label=labels[class_id], score=score, logit=logit)
        for class_id, score, logit in zip(
            best.tolist(), scores.tolist(), logits[best].tolist(), strict=True
        )
    )
