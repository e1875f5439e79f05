"""The methods of a service are made from its descriptor, and their errors become statuses."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from foveate.status import TRAILER, ErrorStatus
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_serve.errors import ForbiddenError, NotFoundError
from foveate_serve.rpc.calls import Call
from foveate_serve.rpc.interceptor import CallInterceptor
from foveate_serve.rpc.methods import method_handlers
from foveate_serve.rpc.server import CLASSIFIER
from foveate_serve.settings import TransportSettings
from foveate_serve.transports.make import make_transport

from ...conftest import TRANSPORTS

SECRET = "/secret/path"  # noqa: S105 - of a file


class Handler:
    """ClassifierService, which fails in every way."""

    async def classify(self, request: ClassifyRequest, call: Call) -> ClassifyResponse:
        left = call.time_remaining()
        assert left is not None
        return ClassifyResponse(model=f"{request.model} {left > 0}")

    async def classify_stream(
        self, requests: AsyncIterator[ClassifyStreamRequest], call: Call
    ) -> AsyncIterator[ClassifyStreamResponse]:
        async for request in requests:
            if request.request_id == "bad":
                raise NotFoundError("GONE", "it is gone")
            yield ClassifyStreamResponse(request_id=request.request_id)

    async def list_models(self, request: ListModelsRequest, call: Call) -> ListModelsResponse:
        raise ValueError(SECRET)

    async def get_model(self, request: GetModelRequest, call: Call) -> GetModelResponse:
        raise NotFoundError("GONE", "it is gone", metadata={"model": request.name})


def refuse_models(call: grpc.HandlerCallDetails) -> None:
    if call.invocation_metadata and ("refuse", "yes") in tuple(call.invocation_metadata):
        raise ForbiddenError("NO", "it is not allowed")


@pytest.fixture(params=TRANSPORTS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[tuple]:
    stopping = asyncio.Event()
    interceptor = CallInterceptor((refuse_models,))
    transport = make_transport(TransportSettings(transport=request.param), (interceptor,))
    transport.add_generic_rpc_handlers([method_handlers(CLASSIFIER, Handler(), stopping=stopping)])
    port = await transport.listen("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, stopping
    await transport.stop()


def status_of_call(error: grpc.aio.AioRpcError) -> ErrorStatus:
    return ErrorStatus.from_status(Status.FromString(dict(error.trailing_metadata())[TRAILER]))


async def test_a_method_gets_the_request_and_the_call(served: tuple) -> None:
    classify = ClassifierServiceStub(served[0]).Classify
    assert (await classify(ClassifyRequest(model="x"), timeout=60)).model == "x True"


async def test_errors_become_statuses(served: tuple) -> None:
    stub = ClassifierServiceStub(served[0])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.GetModel(GetModelRequest(name="cat"), timeout=60)
    status = status_of_call(raised.value)
    assert (status.code, status.reason) == (Code.NOT_FOUND, "GONE")
    assert status.metadata == {"model": "cat"}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ListModels(ListModelsRequest(), timeout=60)
    assert status_of_call(raised.value).code == Code.INTERNAL
    assert SECRET not in str(raised.value)


async def test_a_stream_ends_with_the_error_after_its_answers(served: tuple) -> None:
    stream = ClassifierServiceStub(served[0]).ClassifyStream(timeout=60)
    for name in ("a", "bad"):
        await stream.write(ClassifyStreamRequest(request_id=name))
    assert (await stream.read()).request_id == "a"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert status_of_call(raised.value).reason == "GONE"


async def test_a_stream_ends_when_the_server_stops(served: tuple) -> None:
    channel, stopping = served
    stream = ClassifierServiceStub(channel).ClassifyStream(timeout=60)
    await stream.write(ClassifyStreamRequest(request_id="a"))
    assert (await stream.read()).request_id == "a"
    stopping.set()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert status_of_call(raised.value).reason == "STOPPING"


@pytest.mark.parametrize("method", ["Classify", "Nothing"])
async def test_a_gate_that_raises_ends_a_call_before_its_message_is_read(
    served: tuple, method: str
) -> None:
    call = served[0].unary_unary(f"/{CLASSIFIER.full_name}/{method}")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"\xff", timeout=60, metadata=(("refuse", "yes"),))
    assert status_of_call(raised.value).reason == "NO"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"\xff", timeout=60)
    malformed = method == "Classify"
    code = grpc.StatusCode.INVALID_ARGUMENT if malformed else grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.code() is code


def test_a_method_without_a_handler_is_found_at_the_start() -> None:
    with pytest.raises(AttributeError, match="classify"):
        method_handlers(CLASSIFIER, object())
