"""Client library of Foveate: predictions, heatmaps and feature maps of pictures.

from foveate_client import Cam, Client

with Client("localhost:50051") as client:
    result = client.classify("cat.jpg", cam=Cam())
    print(result.predictions[0].label)
    result.cams[0].overlay("cat.jpg").save("cat.cam.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

from foveate.status import FieldViolation
from foveate_client._async_client import AsyncClient
from foveate_client._client import Client
from foveate_client._connection import Credentials, Retries
from foveate_client._exceptions import (
    AbortedError,
    AlreadyExistsError,
    CallError,
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    ForkedError,
    FoveateError,
    ImageError,
    InternalError,
    InvalidArgumentError,
    MissingDistributionError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
)
from foveate_client._images import ImageInput, Prepared
from foveate_client._models import (
    Accuracy,
    CamMethod,
    InputSpec,
    Layer,
    Model,
    ModelSummary,
    ModelVersion,
    Parity,
    Variant,
)
from foveate_client._options import Cam, ClassifyOptions, Features, TrustRequest
from foveate_client._repository import RepositoryClient
from foveate_client._results import (
    Classification,
    FeatureMap,
    Heatmap,
    MapCheck,
    Prediction,
    Timing,
    Trust,
    View,
)
from foveate_client._throttle import Throttling
from foveate_client._transports.base import AsyncTransport, Transport
from foveate_client._transports.threaded import ThreadedTransport

if TYPE_CHECKING:
    from foveate_client._transports.aio import AsyncGrpcTransport
    from foveate_client._transports.sync import GrpcTransport

__all__ = [
    "AbortedError",
    "Accuracy",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGrpcTransport",
    "AsyncTransport",
    "CallError",
    "Cam",
    "CamMethod",
    "CancelledError",
    "Classification",
    "ClassifyOptions",
    "Client",
    "Credentials",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FeatureMap",
    "Features",
    "FieldViolation",
    "ForkedError",
    "FoveateError",
    "GrpcTransport",
    "Heatmap",
    "ImageError",
    "ImageInput",
    "InputSpec",
    "InternalError",
    "InvalidArgumentError",
    "Layer",
    "MapCheck",
    "MissingDistributionError",
    "Model",
    "ModelSummary",
    "ModelVersion",
    "NotFoundError",
    "OutOfRangeError",
    "Parity",
    "PermissionDeniedError",
    "Prediction",
    "Prepared",
    "RepositoryClient",
    "ResourceExhaustedError",
    "Retries",
    "ThreadedTransport",
    "Throttling",
    "Timing",
    "Transport",
    "Trust",
    "TrustRequest",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "Variant",
    "View",
]

_OVER_GRPC = {"AsyncGrpcTransport": "aio", "GrpcTransport": "sync"}


def __getattr__(name: str) -> Any:
    # Importing gRPC takes longer than the rest of the library, and a fake or local client is
    # without it.
    if name in _OVER_GRPC:
        return getattr(
            importlib.import_module(f"foveate_client._transports.{_OVER_GRPC[name]}"), name
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
