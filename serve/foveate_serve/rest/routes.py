"""The routes, each with its method of gRPC."""

from dataclasses import dataclass
from typing import Literal

_OIP = "/inference.GRPCInferenceService/"
_MODEL = "/v2/models/{model}"
_VERSION = f"{_MODEL}/versions/{{version}}"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route: `handler` is the method that answers it, `rpc` its method of gRPC.

    `answer` is the kind of its response, `document` that of its body, where it takes one.
    """

    method: Literal["GET", "POST"]
    path: str
    rpc: str
    handler: str
    summary: str
    document: str = ""
    answer: Literal["none", "object", "list", "infer", "classify"] = "object"


def _get(
    path: str, rpc: str, handler: str, summary: str, *, answer: Literal["none", "object"] = "object"
) -> Operation:
    return Operation(
        method="GET", path=path, rpc=_OIP + rpc, handler=handler, summary=summary, answer=answer
    )


def _infer(path: str) -> Operation:
    return Operation(
        method="POST",
        path=path,
        rpc=_OIP + "ModelInfer",
        handler="infer",
        summary="Run a model on pictures",
        document="InferDocument",
        answer="infer",
    )


def _classify(path: str) -> Operation:
    return Operation(
        method="POST",
        path=path,
        rpc="/foveate.v1.ClassifierService/Classify",
        handler="classify",
        summary="Classify the picture that is the body, and show where the model looked",
        document="picture",
        answer="classify",
    )


OPEN_INFERENCE = (
    _get("/v2", "ServerMetadata", "server", "The server and its extensions"),
    _get("/v2/health/live", "ServerLive", "live", "Whether the server is live", answer="none"),
    _get(
        "/v2/health/ready",
        "ServerReady",
        "ready",
        "Whether the server takes requests",
        answer="none",
    ),
    _get("/v2/models/stats", "ModelStatistics", "statistics", "The statistics of all models"),
    *(
        operation
        for base in (_MODEL, _VERSION)
        for operation in (
            _get(base, "ModelMetadata", "model", "A model's tensors"),
            _get(
                f"{base}/ready",
                "ModelReady",
                "model_ready",
                "Whether a model takes requests",
                answer="none",
            ),
            _get(f"{base}/config", "ModelConfig", "config", "How a model runs"),
            _get(f"{base}/stats", "ModelStatistics", "statistics", "A model's statistics"),
            _infer(f"{base}/infer"),
        )
    ),
    Operation(
        method="POST",
        path="/v2/repository/index",
        rpc=_OIP + "RepositoryIndex",
        handler="index",
        summary="The versions of every model",
        document="IndexDocument",
        answer="list",
    ),
    *(
        Operation(
            method="POST",
            path=f"/v2/repository/models/{{model}}/{verb}",
            rpc=_OIP + rpc,
            handler=verb,
            summary=summary,
            document="RepositoryDocument",
        )
        for verb, rpc, summary in (
            ("load", "RepositoryModelLoad", "Load the newest version of a model"),
            ("unload", "RepositoryModelUnload", "Unload every version of a model"),
        )
    ),
)
"""The routes of the Open Inference Protocol."""

CLASSIFY = (
    _classify("/v1/models/{model}:classify"),
    _classify("/v1/models/{model}/versions/{version}:classify"),
)
"""The routes that take a picture."""

HIDDEN = tuple(
    Operation(
        method=method,
        path=f"/v2/{memory}/{{rest:path}}",
        rpc=_OIP + "ModelInfer",
        handler="shared_memory",
        summary="Shared memory is not supported",
    )
    for memory in ("systemsharedmemory", "cudasharedmemory")
    for method in ("GET", "POST")
)
"""The routes that are known in order to be refused."""
