"""Client library of Foveate: predictions, heatmaps and feature maps of pictures.

from foveate_client import Cam, Client

with Client("localhost:8000") as client:
    result = client.classify("cat.jpg", cam=Cam())
    print(result.predictions[0].label)
    result.cams[0].overlay("cat.jpg").save("cat.cam.png")
"""

from foveate.status import FieldViolation
from foveate_client._async_client import AsyncClient
from foveate_client._client import Client
from foveate_client._exceptions import (
    AbortedError,
    AlreadyExistsError,
    CallError,
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
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
from foveate_client._grpc import AsyncGrpcTransport, GrpcTransport
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
from foveate_client._options import Cam, ClassifyOptions, Features
from foveate_client._results import (
    Classification,
    FeatureMap,
    Heatmap,
    Prediction,
    Timing,
    View,
)
from foveate_client._transports import AsyncTransport, Transport

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
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FeatureMap",
    "Features",
    "FieldViolation",
    "FoveateError",
    "GrpcTransport",
    "Heatmap",
    "ImageError",
    "ImageInput",
    "InputSpec",
    "InternalError",
    "InvalidArgumentError",
    "Layer",
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
    "ResourceExhaustedError",
    "Timing",
    "Transport",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "Variant",
    "View",
]
