"""The REST form of the Open Inference Protocol: each route is a method of its gRPC form."""

from collections.abc import Mapping
from http import HTTPStatus

from google.rpc.code_pb2 import Code
from pydantic import JsonValue
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from foveate.inference import open_inference_pb2 as pb
from foveate_serve.rest.documents import IndexDocument, RepositoryDocument, read_document
from foveate_serve.rest.errors import failure
from foveate_serve.rest.messages import as_json
from foveate_serve.rest.tensors import read_inference, write_inference
from foveate_serve.rpc.oip.handler import InferenceHandler

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_EXTENSION = "binary_tensor_data"


class OpenInference:
    """Answers the routes below `/v2` with the handler of gRPC."""

    def __init__(self, handler: InferenceHandler) -> None:
        self._handler = handler

    async def live(self, _request: Request, _body: bytes) -> Response:
        """Report that the server is live."""
        answer = await self._handler.server_live(pb.ServerLiveRequest())
        return _truth(answer.live)

    async def ready(self, _request: Request, _body: bytes) -> Response:
        """Report whether the server takes requests."""
        answer = await self._handler.server_ready(pb.ServerReadyRequest())
        return _truth(answer.ready)

    async def model_ready(self, request: Request, _body: bytes) -> Response:
        """Report whether a model takes requests."""
        answer = await self._handler.model_ready(pb.ModelReadyRequest(**_named(request)))
        return _truth(answer.ready)

    async def server(self, _request: Request, _body: bytes) -> Response:
        """Return the server's name, version and extensions."""
        answer = await self._handler.server_metadata(pb.ServerMetadataRequest())
        answer.extensions.append(BINARY_EXTENSION)
        return JSONResponse(as_json(answer))

    async def model(self, request: Request, _body: bytes) -> Response:
        """Describe a model's tensors."""
        answer = await self._handler.model_metadata(pb.ModelMetadataRequest(**_named(request)))
        return JSONResponse(as_json(answer))

    async def config(self, request: Request, _body: bytes) -> Response:
        """Describe how a model runs."""
        answer = await self._handler.model_config(pb.ModelConfigRequest(**_named(request)))
        return JSONResponse(as_json(answer.config))

    async def statistics(self, request: Request, _body: bytes) -> Response:
        """Return the statistics of a model, or of all."""
        message = pb.ModelStatisticsRequest(**_named(request))
        return JSONResponse(as_json(await self._handler.model_statistics(message)))

    async def infer(self, request: Request, body: bytes) -> Response:
        """Run a model on the pictures of a request."""
        names = _named(request)
        message, wanted = read_inference(
            body,
            request.headers.get(HEADER_LENGTH),
            model=names.get("name", ""),
            version=names.get("version", ""),
        )
        parts, length = write_inference(await self._handler.model_infer(message), wanted)
        if length is None:
            return Response(parts[0], media_type="application/json")
        return Response(
            b"".join(parts),
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(length)},
        )

    async def index(self, _request: Request, body: bytes) -> Response:
        """List the versions of every model."""
        document = read_document(IndexDocument, body)
        answer = await self._handler.repository_index(
            pb.RepositoryIndexRequest(ready=document.ready)
        )
        return JSONResponse(as_json(answer)["models"])

    async def load(self, request: Request, body: bytes) -> Response:
        """Load the newest version of a model."""
        await self._handler.repository_model_load(
            pb.RepositoryModelLoadRequest(
                model_name=request.path_params["model"], parameters=_parameters(body)
            )
        )
        return JSONResponse({})

    async def unload(self, request: Request, body: bytes) -> Response:
        """Unload every version of a model."""
        await self._handler.repository_model_unload(
            pb.RepositoryModelUnloadRequest(
                model_name=request.path_params["model"], parameters=_parameters(body)
            )
        )
        return JSONResponse({})

    async def shared_memory(self, _request: Request, _body: bytes) -> Response:
        """Refuse what concerns shared memory."""
        raise failure(
            Code.UNIMPLEMENTED,
            "SHARED_MEMORY_UNSUPPORTED",
            "shared memory is not supported; send the elements in the request",
        )


def _named(request: Request) -> dict[str, str]:
    """Return the model and the version that the path names, as the messages call them."""
    names = {"model": "name", "version": "version"}
    return {names[key]: value for key, value in request.path_params.items() if key in names}


def _truth(value: bool) -> Response:
    # The protocol requires 4xx where the answer is no.
    return Response(status_code=HTTPStatus.OK if value else HTTPStatus.BAD_REQUEST)


def _parameters(body: bytes) -> Mapping[str, pb.ModelRepositoryParameter]:
    """Return the names of the parameters: no value of any is supported."""
    given: Mapping[str, JsonValue] = read_document(RepositoryDocument, body).parameters
    return {name: pb.ModelRepositoryParameter() for name in given}
