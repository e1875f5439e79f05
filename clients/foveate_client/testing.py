"""Fakes for the tests of code that uses the library: no server, no models.

from foveate_client import Client
from foveate_client.testing import FakeTransport, classification

transport = FakeTransport(answer=classification({"espresso": 0.9, "cup": 0.1}))
with Client(transport) as client:
    assert best_label(client, "coffee.jpg") == "espresso"
assert transport.requests[0].top_k == 1
"""

# ruff: noqa: ARG002 - a fake answers at once, whatever the timeout

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from google.rpc import code_pb2

from foveate.status import ErrorStatus, FieldViolation, StatusError
from foveate.v1 import classifier_service_pb2 as service
from foveate.v1 import explanation_pb2 as explanation
from foveate.v1 import model_pb2 as models
from foveate_client._exceptions import CallError, error_from
from foveate_client._models import CamMethod, InputSpec, Layer, Model
from foveate_client._results import Classification, FeatureMap, Heatmap, Prediction, Timing, View
from foveate_client._transports.threaded import ThreadedTransport

__all__ = [
    "Answer",
    "AsyncFakeTransport",
    "FakeTransport",
    "call_error",
    "classification",
    "model",
]

Answer: TypeAlias = Classification | CallError
"""What a fake answers a request with."""

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


class FakeTransport:
    """Answers a Client from this process, and keeps the requests.

    `answer` is the answer to every request, whatever its options: a
    Classification, or a CallError, which is raised. A function is called with
    the request (foveate.v1.ClassifyRequest) and returns one of the two. `models`
    are those that are listed and described. `requests` are the requests for a
    classification so far, oldest first, those of streams among them; `closed`
    says whether the client was closed.
    """

    def __init__(
        self,
        answer: Answer | Callable[[service.ClassifyRequest], Answer] | None = None,
        *,
        models: Sequence[Model] = (),
    ) -> None:
        self.requests: list[service.ClassifyRequest] = []
        self.closed = False
        self._answer = answer
        self._models = models

    def classify(
        self, request: service.ClassifyRequest, timeout: float
    ) -> service.ClassifyResponse:
        """Answer as set."""
        self.requests.append(request)
        answer = self._answer(request) if callable(self._answer) else self._answer
        if answer is None:
            raise AssertionError("this FakeTransport was given no answer to a classification")
        if isinstance(answer, CallError):
            raise StatusError(answer.status)
        return _response(answer)

    def classify_stream(
        self, requests: Iterable[service.ClassifyStreamRequest]
    ) -> Generator[service.ClassifyStreamResponse, None, None]:
        """Answer each request as set; an error belongs to its picture."""
        for item in requests:
            answer = service.ClassifyStreamResponse(request_id=item.request_id)
            try:
                answer.response.CopyFrom(self.classify(item.request, math.inf))
            except StatusError as error:
                answer.error.CopyFrom(error.status.to_item_error())
            yield answer

    def list_models(
        self,
        request: service.ListModelsRequest,
        timeout: float,
    ) -> service.ListModelsResponse:
        """List the models, by name."""
        versions: dict[str, list[Model]] = {}
        for item in self._models:
            versions.setdefault(item.name, []).append(item)
        return service.ListModelsResponse(
            models=[
                models.ModelSummary(
                    name=name,
                    versions=[
                        models.ModelVersion(version=x.version, state=_state(x.state)) for x in items
                    ],
                    default_version=items[0].version,
                )
                for name, items in sorted(versions.items())
            ]
        )

    def get_model(
        self, request: service.GetModelRequest, timeout: float
    ) -> service.GetModelResponse:
        """Describe one of the models; where there is none such, NOT_FOUND."""
        for item in self._models:
            if request.name in {"", item.name} and request.version in {"", item.version}:
                return service.GetModelResponse(model=_model_message(item))
        raise StatusError(
            ErrorStatus(
                code=code_pb2.Code.Value("NOT_FOUND"),
                reason="MODEL_NOT_FOUND",
                message=f"there is no model {request.name!r} here",
            )
        )

    def close(self) -> None:
        """Note that the client was closed."""
        self.closed = True


class AsyncFakeTransport(ThreadedTransport):
    """The same for an AsyncClient; a function that answers is called in a thread."""

    def __init__(
        self,
        answer: Answer | Callable[[service.ClassifyRequest], Answer] | None = None,
        *,
        models: Sequence[Model] = (),
    ) -> None:
        self._fake = FakeTransport(answer, models=models)
        super().__init__(self._fake)

    @property
    def requests(self) -> list[service.ClassifyRequest]:
        """The requests for a classification so far, oldest first."""
        return self._fake.requests

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._fake.closed


def classification(
    scores: Mapping[str, float],
    *,
    cams: Mapping[str, npt.ArrayLike] | None = None,
    feature_maps: Mapping[str, npt.ArrayLike] | None = None,
    model: str = "fake",
    version: str = "1",
    source_size: tuple[int, int] = (224, 224),
    timing: Timing | None = None,
) -> Classification:
    """Return a result with these scores by label, the best first; class ids count from 0.

    `cams` are raw maps [height, width] by label, and `feature_maps`
    [channels, height, width] by layer. `source_size` is the width and height in
    pixels of the picture, of which the classifier saw the centre square. Raises
    ValueError where a score is not above 0 and at most 1, or a map's shape is
    another.
    """
    for label, score in scores.items():
        if not 0 < score <= 1:
            raise ValueError(f"the score of {label} must be above 0 and at most 1, not {score}")
    numbers = {label: number for number, label in enumerate(scores)}
    width, height = source_size
    side = min(width, height)
    view = View(
        source_width=width,
        source_height=height,
        left=(width - side) / 2,
        top=(height - side) / 2,
        width=side,
        height=side,
    )
    return Classification(
        model=model,
        version=version,
        predictions=tuple(
            Prediction(class_id=numbers[label], label=label, score=score, logit=math.log(score))
            for label, score in sorted(scores.items(), key=lambda item: -item[1])
        ),
        cams=tuple(
            _heatmap(numbers.setdefault(label, len(numbers)), label, values, view)
            for label, values in (cams or {}).items()
        ),
        feature_maps=tuple(
            _feature_map(layer, values) for layer, values in (feature_maps or {}).items()
        ),
        view=view,
        timing=timing,
    )


def call_error(
    code: str,
    *,
    reason: str = "",
    message: str = "",
    metadata: Mapping[str, str] | None = None,
    fields: Mapping[str, str] | None = None,
    retry_delay: timedelta | None = None,
) -> CallError:
    """Return the error of a canonical code such as "RESOURCE_EXHAUSTED", as a server would send it.

    `fields` are descriptions by the path of the field at fault. Raises
    ValueError where there is no such code.
    """
    return error_from(
        ErrorStatus(
            code=code_pb2.Code.Value(code),
            reason=reason,
            message=message,
            metadata=metadata or {},
            field_violations=tuple(
                FieldViolation(field=field, description=description)
                for field, description in (fields or {}).items()
            ),
            retry_delay=retry_delay,
        )
    )


def model(
    name: str = "fake",
    version: str = "1",
    *,
    labels: Sequence[str] = (),
    layers: Mapping[str, tuple[int, int, int]] | None = None,
    cam_methods: Mapping[str, tuple[int, int]] | None = None,
    size: int = 224,
) -> Model:
    """Return a model that is ready, for FakeTransport.

    `layers` are [channels, height, width] by name, `cam_methods` [height, width]
    by name, and `size` is the side of the classifier's square input in pixels.
    """
    return Model(
        name=name,
        version=version,
        state="ready",
        classifier="fake:classifier",
        labels=tuple(labels),
        input=InputSpec(
            height=size,
            width=size,
            channels=3,
            resize=size,
            interpolation="bilinear",
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        ),
        layers=tuple(
            Layer(name=layer, channels=channels, height=height, width=width)
            for layer, (channels, height, width) in (layers or {}).items()
        ),
        cam_methods=tuple(
            CamMethod(name=method, layer="fake", height=height, width=width)
            for method, (height, width) in (cam_methods or {}).items()
        ),
        variants=(),
        active_variant="fp32",
        backend="fake",
        device="cpu",
        created=NOON,
        parameters=0,
    )


def _array(values: npt.ArrayLike, axes: str) -> npt.NDArray[np.float32]:
    array = np.array(values, dtype=np.float32)
    if array.ndim != axes.count(",") + 1 or array.size == 0:
        raise ValueError(f"a map has the shape [{axes}], not {list(array.shape)}")
    array.flags.writeable = False
    return array


def _heatmap(class_id: int, label: str, values: npt.ArrayLike, view: View) -> Heatmap:
    array = _array(values, "height, width")
    return Heatmap(
        class_id=class_id,
        label=label,
        method="cam",
        layer="fake",
        array=array,
        minimum=float(array.min()),
        maximum=float(array.max()),
        view=view,
    )


def _feature_map(layer: str, values: npt.ArrayLike) -> FeatureMap:
    array = _array(values, "channels, height, width")
    return FeatureMap(
        layer=layer,
        channels=tuple(range(len(array))),
        array=array,
        minimum=float(array.min()),
        maximum=float(array.max()),
    )


def _response(result: Classification) -> service.ClassifyResponse:
    view = result.view
    return service.ClassifyResponse(
        model=result.model,
        version=result.version,
        predictions=[
            service.Prediction(class_id=x.class_id, label=x.label, score=x.score, logit=x.logit)
            for x in result.predictions
        ],
        cams=[
            explanation.Cam(
                class_id=cam.class_id,
                label=cam.label,
                method=cam.method,
                layer=cam.layer,
                height=cam.array.shape[0],
                width=cam.array.shape[1],
                minimum=cam.minimum,
                maximum=cam.maximum,
                values=cam.array.astype("<f4").tobytes(),
            )
            for cam in result.cams
        ],
        feature_maps=[
            explanation.FeatureMap(
                layer=features.layer,
                channels=features.channels,
                height=features.array.shape[1],
                width=features.array.shape[2],
                minimum=features.minimum,
                maximum=features.maximum,
                values=features.array.astype("<f4").tobytes(),
            )
            for features in result.feature_maps
        ],
        view=explanation.View(
            source_width=view.source_width,
            source_height=view.source_height,
            left=view.left,
            top=view.top,
            width=view.width,
            height=view.height,
        ),
        timing=None if result.timing is None else _timing_message(result.timing),
        scores=result.scores,
    )


def _timing_message(timing: Timing) -> service.Timing:
    message = service.Timing(
        batch_size=timing.batch_size,
        backend=timing.backend,
        device=timing.device,
        variant=timing.variant,
        cached=timing.cached,
    )
    for stage in ("decode", "queue", "infer", "encode", "total"):
        getattr(message, stage).FromTimedelta(getattr(timing, stage))
    return message


def _model_message(item: Model) -> models.Model:
    message = models.Model(
        name=item.name,
        version=item.version,
        state=_state(item.state),
        classifier=item.classifier,
        labels=item.labels,
        input=models.InputSpec(**_fields(item.input)),
        layers=[models.Layer(**_fields(layer)) for layer in item.layers],
        cam_methods=[models.CamMethod(**_fields(method)) for method in item.cam_methods],
        variants=[
            models.Variant(
                name=variant.name,
                size=variant.size,
                parity=models.Parity(**_fields(variant.parity)),
                accuracy=None
                if variant.accuracy is None
                else models.Accuracy(**_fields(variant.accuracy)),
            )
            for variant in item.variants
        ],
        active_variant=item.active_variant,
        backend=item.backend,
        device=item.device,
        parameters=item.parameters,
        scores=item.scores,
        assumptions=item.assumptions,
    )
    message.create_time.FromDatetime(item.created)
    return message


def _fields(value: object) -> dict[str, Any]:
    # The values are named as the protocol's fields are.
    return vars(value)


def _state(name: str) -> models.ModelState.ValueType:
    return models.ModelState.Value(f"MODEL_STATE_{name.upper()}")
