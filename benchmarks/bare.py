"""A bare grpc.aio server beside ours: it answers each request with bytes that were made before.

python -m benchmarks.bare serve --repository DIR --address HOST:PORT [--metrics-address HOST:PORT]

It takes the place of `foveate serve` where attacks are measured: what its clients see is what
the gRPC library and the machine bear. It asks a Foveate of its own for its models once, and
for one answer of each; an item of a stream gets the same as a call.
"""

import argparse
import asyncio
import signal
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from benchmarks.server import serving
from foveate.inference.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    GetModelRequest,
    ListModelsRequest,
    RawImage,
)
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

SERVICE = "/foveate.v1.ClassifierService/"
INFERENCE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/Check"
MOST_BYTES = 32 << 20

Method = Callable[[bytes, object], Awaitable[bytes]]
Stream = Callable[[AsyncIterable[bytes], object], AsyncIterator[bytes]]


class Answers(grpc.GenericRpcHandler):
    """The answers of a Foveate to its models' names, by method."""

    def __init__(self, address: str) -> None:
        """Ask the server at `address` for its models, and for one answer of each."""
        with grpc.insecure_channel(address) as channel:
            stub = ClassifierServiceStub(channel)
            listed = stub.ListModels(ListModelsRequest())
            self._listed = listed.SerializeToString()
            self._models: dict[str, bytes] = {}
            self._classified: dict[str, bytes] = {}
            self._streamed: dict[str, bytes] = {}
            self._inferred: dict[str, ModelInferResponse] = {}
            infer = GRPCInferenceServiceStub(channel).ModelInfer
            for summary in listed.models:
                found = stub.GetModel(GetModelRequest(name=summary.name))
                spec = found.model.input
                blank = RawImage(
                    height=spec.height,
                    width=spec.width,
                    channels=spec.channels,
                    data=bytes(spec.height * spec.width * spec.channels),
                )
                answer = stub.Classify(ClassifyRequest(model=summary.name, raw=blank))
                self._models[summary.name] = found.SerializeToString()
                self._classified[summary.name] = answer.SerializeToString()
                streamed = ClassifyStreamResponse(response=answer)
                self._streamed[summary.name] = streamed.SerializeToString()
                request = ModelInferRequest(
                    model_name=summary.name, raw_input_contents=[blank.data]
                )
                request.inputs.add(
                    name="image",
                    datatype="UINT8",
                    shape=[1, spec.height, spec.width, spec.channels],
                )
                self._inferred[summary.name] = infer(request)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of a method, or None for those that there are not."""
        methods: dict[str, Method] = {
            f"{SERVICE}ListModels": self._list,
            f"{SERVICE}GetModel": self._get,
            f"{SERVICE}Classify": self._classify,
            f"{INFERENCE}ModelInfer": self._infer,
            HEALTH: self._check,
        }
        streams: dict[str, Stream] = {
            f"{SERVICE}ClassifyStream": self._classify_stream,
            f"{INFERENCE}ModelStreamInfer": self._infer_stream,
        }
        if (method := methods.get(details.method)) is not None:
            return grpc.unary_unary_rpc_method_handler(method)
        if (stream := streams.get(details.method)) is not None:
            return grpc.stream_stream_rpc_method_handler(stream)
        return None

    async def _list(self, _request: bytes, _context: object) -> bytes:
        return self._listed

    async def _get(self, request: bytes, _context: object) -> bytes:
        return self._models[GetModelRequest.FromString(request).name]

    async def _classify(self, request: bytes, _context: object) -> bytes:
        return self._classified[ClassifyRequest.FromString(request).model]

    async def _classify_stream(
        self, requests: AsyncIterable[bytes], _context: object
    ) -> AsyncIterator[bytes]:
        async for item in requests:
            yield self._streamed[ClassifyStreamRequest.FromString(item).request.model]

    async def _infer(self, request: bytes, _context: object) -> bytes:
        return self._answer(request).SerializeToString()

    async def _infer_stream(
        self, requests: AsyncIterable[bytes], _context: object
    ) -> AsyncIterator[bytes]:
        async for item in requests:
            answer = ModelStreamInferResponse(infer_response=self._answer(item))
            yield answer.SerializeToString()

    def _answer(self, request: bytes) -> ModelInferResponse:
        """Return a model's answer with the id of the request: the protocol asks for it."""
        asked, answer = ModelInferRequest.FromString(request), ModelInferResponse()
        answer.CopyFrom(self._inferred[asked.model_name])
        answer.id = asked.id
        return answer

    async def _check(self, _request: bytes, _context: object) -> bytes:
        serving_status = health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse(status=serving_status).SerializeToString()


async def serve(address: str, answers: Answers) -> None:
    """Serve at `address` until the process is told to end."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MOST_BYTES)])
    server.add_generic_rpc_handlers((answers,))
    server.add_insecure_port(address)
    await server.start()
    print(f"a bare server on {address}", flush=True)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(server.stop(0)))
    await server.wait_for_termination()


def main() -> None:
    """Parse what `foveate serve` takes, ask a Foveate for its answers, and serve them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--metrics-address", help="taken and not used")
    options = parser.parse_args()
    with serving(options.repository) as server:
        answers = Answers(server.address)
    asyncio.run(serve(options.address, answers))


if __name__ == "__main__":
    main()
