"""Requests whose answers are known, and a client that checks every one of them."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

import grpc.aio

from benchmarks.loops import looping
from benchmarks.request_cost import read_pictures
from foveate.v1.classifier_service_pb2 import ClassifyRequest, ClassifyResponse, RawImage
from foveate.v1.explanation_pb2 import (
    HEATMAP_FORM_OVERLAY,
    HEATMAP_FORM_RAW,
    PICTURE_ENCODING_JPEG,
    CamOptions,
)
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import open_golden
from foveate_runtime.bundle.manifest import LOGITS_OUTPUT

METHOD = "/foveate.v1.ClassifierService/Classify"
TIMEOUT = 60
DIGITS = "mnist"
"""The classifier of digits in a repository."""

RAW_MAPS = CamOptions(top=5, forms=[HEATMAP_FORM_RAW])
OVERLAYS = CamOptions(top=5, forms=[HEATMAP_FORM_OVERLAY], encoding=PICTURE_ENCODING_JPEG)
"""The maps of the five best classes, as a request asks for them."""

Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, ClassifyResponse]"


@dataclass(frozen=True)
class Question:
    """A serialised request and the class that is the best one."""

    request: bytes
    best: int


def digits(bundle: Path, model: str) -> list[Question]:
    """Return the digits that a bundle keeps with torch's answers, for the model of that name."""
    golden = open_golden(Bundle.open(bundle))
    assert golden is not None
    height, width, channels = golden.images.shape[1:]
    return [
        Question(
            ClassifyRequest(
                model=model,
                raw=RawImage(height=height, width=width, channels=channels, data=image.tobytes()),
            ).SerializeToString(),
            int(logits.argmax()),
        )
        for image, logits in zip(golden.images, golden.outputs[LOGITS_OUTPUT].values, strict=True)
    ]


def photographs(
    bundle: Path, model: str, images: Path, cams: Sequence[CamOptions | None] = (None,)
) -> list[Question]:
    """Return the JPEG files below `images`, with the bare loop's answers, each with each of `cams`.

    The bare loop reads every file below the folder, so that there must be no others.
    """
    with looping("floor", bundle, images) as loop:
        best = loop.run()["best"]
    return [
        Question(ClassifyRequest(model=model, encoded=data, cam=cam).SerializeToString(), answer)
        for data, answer in zip(read_pictures(images), best, strict=True)
        for cam in cams
    ]


def calls(channels: Iterable[grpc.aio.Channel]) -> list[Call]:
    """Return the call of each channel that `ask` makes."""
    return [
        channel.unary_unary(METHOD, response_deserializer=ClassifyResponse.FromString)
        for channel in channels
    ]


async def ask(
    calls: Iterable[Call],
    questions: Iterable[Question],
    concurrency: int,
    heard: Callable[[float, ClassifyResponse], None] | None = None,
) -> None:
    """Ask every question once, so many at a time, through the `calls` in turn.

    Whoever has an answer asks the next question. `heard` is called with the
    seconds until each answer, and with it. Raises AssertionError where an answer
    is wrong.
    """
    turns, left = cycle(calls), iter(questions)

    async def caller() -> None:
        for question in left:
            started = time.perf_counter()
            answer = await next(turns)(question.request, timeout=TIMEOUT)
            if heard is not None:
                heard(time.perf_counter() - started, answer)
            best = answer.predictions[0].class_id
            assert best == question.best, f"the class {best}, which should be {question.best}"

    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
