"""A real gRPC server that answers as it is told, and real photographs."""

# ruff: noqa: N802 - the protocol names the methods

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import grpc
import numpy as np
import pytest
import skimage
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image

from foveate.status import TRAILER, ErrorStatus, StatusError
from foveate.v1 import classifier_service_pb2 as service
from foveate.v1 import explanation_pb2 as explanation
from foveate.v1 import model_pb2 as models
from foveate.v1.classifier_service_pb2_grpc import (
    ClassifierServiceServicer,
    add_ClassifierServiceServicer_to_server,
)

from ..ports import listen

LABELS = ("tabby", "tiger cat", "Egyptian cat", "lynx", "espresso", "cup")
LOGITS = np.array([2.0, 4.0, 3.0, 1.0, 0.0, -1.0])
CELLS = np.arange(-8, 41, dtype=np.float32).reshape(7, 7)
"""A map whose largest value lies in its last cell, and whose first ones are negative."""


def answer(request: service.ClassifyRequest) -> service.ClassifyResponse:
    """Answer as a server would that found a tiger cat in any picture."""
    if request.HasField("raw"):
        width, height = request.raw.width, request.raw.height
    else:
        with Image.open(io.BytesIO(request.encoded)) as image:
            width, height = image.size
    side = min(width, height)
    scores = np.exp(LOGITS) / np.exp(LOGITS).sum()
    ranking = [int(x) for x in np.argsort(-LOGITS)]
    explained = []
    if request.HasField("cam"):
        default = 0 if request.cam.class_ids else 1
        top = request.cam.top if request.cam.HasField("top") else default
        explained = [*ranking[:top], *request.cam.class_ids]
    response = service.ClassifyResponse(
        model=request.model or "pets",
        version=request.version or "3",
        predictions=[
            service.Prediction(class_id=x, label=LABELS[x], score=scores[x], logit=LOGITS[x])
            for x in ranking[: request.top_k if request.HasField("top_k") else 5]
        ],
        view=explanation.View(
            source_width=width,
            source_height=height,
            left=(width - side) / 2,
            top=(height - side) / 2,
            width=side,
            height=side,
        ),
    )
    for class_id in explained:
        # The lynx has nothing that speaks for it.
        values = -np.abs(CELLS) - 1 if LABELS[class_id] == "lynx" else CELLS
        response.cams.add(
            class_id=class_id,
            label=LABELS[class_id],
            method=request.cam.method or "cam",
            layer="features.7",
            height=7,
            width=7,
            minimum=values.min(),
            maximum=values.max(),
            values=values.astype("<f4").tobytes(),
        )
    for wanted in request.feature_maps:
        channels = list(wanted.channels) or [0, 1, 2]
        values = np.stack([CELLS * (channel + 1) for channel in channels])
        response.feature_maps.add(
            layer=wanted.layer,
            channels=channels,
            height=7,
            width=7,
            minimum=values.min(),
            maximum=values.max(),
            values=values.astype("<f4").tobytes(),
        )
    if request.timing:
        response.timing.infer.FromMilliseconds(12)
        response.timing.batch_size = 4
        response.timing.backend = "onnxruntime"
    return response


def stream_answer(
    request: service.ClassifyStreamRequest,
    classify: Callable[[service.ClassifyRequest], service.ClassifyResponse],
) -> service.ClassifyStreamResponse:
    """Answer one picture of a stream; a StatusError becomes its error."""
    name = request.request_id
    try:
        return service.ClassifyStreamResponse(request_id=name, response=classify(request.request))
    except StatusError as error:
        return service.ClassifyStreamResponse(request_id=name, error=error.status.to_item_error())


def timestamp() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime(2025, 3, 1, 12, tzinfo=UTC))
    return stamp


PETS = models.Model(
    name="pets",
    version="3",
    state=models.MODEL_STATE_READY,
    classifier="timm:resnet50",
    labels=LABELS,
    input=models.InputSpec(
        height=224,
        width=224,
        channels=3,
        resize=256,
        interpolation="bicubic",
        mean=[0.5],
        std=[0.5],
    ),
    layers=[models.Layer(name="features.3", channels=40, height=28, width=28)],
    cam_methods=[models.CamMethod(name="cam", layer="features.7", height=7, width=7)],
    variants=[
        models.Variant(
            name="fp32",
            size=20_000_000,
            parity=models.Parity(
                images=16, logits_max_abs=3e-5, top1_agreement=1, cams={"cam": 1e-6}
            ),
            accuracy=models.Accuracy(data="pets-test", images=500, top1=0.91, top5=0.99),
        ),
        models.Variant(name="int8", size=5_000_000),
    ],
    active_variant="fp32",
    backend="onnxruntime",
    device="cpu",
    create_time=timestamp(),
    parameters=25_557_032,
)


class Service(ClassifierServiceServicer):
    """Answers by its attributes, which a test may replace, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.time_left: list[float | None] = []
        self.pages: dict[str, service.ListModelsResponse] = {"": service.ListModelsResponse()}
        self.classify = answer
        self.model = models.Model()
        self.model.CopyFrom(PETS)
        self.classify_stream: Callable[
            [Iterator[service.ClassifyStreamRequest], grpc.ServicerContext],
            Iterator[service.ClassifyStreamResponse],
        ] = lambda requests, context: (stream_answer(x, self.classify) for x in requests)

    def Classify(self, request, context):
        self._note(request, context)
        try:
            return self.classify(request)
        except StatusError as error:
            abort(context, error.status)

    def ClassifyStream(self, request_iterator, context):
        return self.classify_stream(request_iterator, context)

    def ListModels(self, request, context):
        self._note(request, context)
        return self.pages[request.page_token]

    def GetModel(self, request, context):
        self._note(request, context)
        return service.GetModelResponse(model=self.model)

    def _note(self, request: object, context: grpc.ServicerContext) -> None:
        self.asked.append(request)
        self.time_left.append(context.time_remaining())


def abort(context: grpc.ServicerContext, status: ErrorStatus) -> NoReturn:
    trailers = [(TRAILER, status.to_status().SerializeToString())]
    if status.retry_delay is not None:
        milliseconds = round(1000 * status.retry_delay.total_seconds())
        trailers.append(("grpc-retry-pushback-ms", str(milliseconds)))
    context.set_trailing_metadata(trailers)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    context.abort(codes[status.code], status.message)


class Server:
    """A running server: where it is, and how it answers."""

    def __init__(self) -> None:
        self.service = Service()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        add_ClassifierServiceServicer_to_server(self.service, self._server)
        self.address = f"127.0.0.1:{listen(self._server)}"
        self._server.start()

    def stop(self) -> threading.Event:
        return self._server.stop(grace=None)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop().wait()


def photograph(name: str) -> Path:
    return Path(skimage.__file__).parent / "data" / name


@pytest.fixture
def coffee() -> Path:
    """A photograph, 600 x 400 pixels."""
    return photograph("coffee.png")


@pytest.fixture
def chelsea() -> Path:
    """A photograph, 451 x 300 pixels."""
    return photograph("chelsea.png")
