"""A server that is full refuses calls by RetryInfo, before it has read them where it can."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from foveate.inference import open_inference_pb2 as pb
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from foveate.status import PUSHBACK_KEY, TRAILER, ErrorStatus
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    GetModelRequest,
    RawImage,
)
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.observer import Changes, Observer
from foveate_serve.repository.repository import Repository
from foveate_serve.rpc.handlers import RepositoryHandler
from foveate_serve.rpc.overload import METHODS, MODEL_KEY
from foveate_serve.rpc.priority import PRIORITY_KEY
from foveate_serve.rpc.server import Server
from foveate_serve.settings import Settings
from foveate_serve.statistics import Statistics

from ...conftest import TRANSPORTS
from ...waiting import until

CLASSIFY = "/foveate.v1.ClassifierService/Classify"
NO_MESSAGE = b"\xff" * 50


class Failures(Observer):
    """Notes the models of the requests that failed."""

    def __init__(self) -> None:
        self.models: list[str] = []

    def on_failure(self, model: str, version: str, error: BaseException, seconds: float) -> None:
        self.models.append(model)


class Busy:
    """A server whose model `colours` is at work on a picture until its gate opens."""

    def __init__(
        self, channel: grpc.aio.Channel, runner: object, engine: Engine, failures: Failures
    ) -> None:
        self.channel, self.runner, self.engine = channel, runner, engine
        self.failures = failures
        self.stub = ClassifierServiceStub(channel)
        self.waiting: list = []

    async def fill(self, pictures: int) -> None:
        """Send one picture that runs, and then so many that wait."""
        batcher = self.engine.repository.get("colours", "").batcher
        for expected in range(pictures + 1):
            self.waiting.append(asyncio.ensure_future(self.classify()))
            if not expected:
                await until(lambda: self.runner.entered.acquire(blocking=False))
            await until(lambda expected=expected: batcher.waiting == expected)

    async def classify(
        self,
        model: str = "colours",
        *,
        image: RawImage | None = None,
        priority: int = 0,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> str:
        request = ClassifyRequest(model=model, raw=image or raw(255), priority=priority)
        response = await self.stub.Classify(request, timeout=30, metadata=metadata)
        return response.predictions[0].label

    async def refused(
        self, message: bytes, method: str = CLASSIFY, *, model: str = ""
    ) -> ErrorStatus:
        metadata = ((MODEL_KEY, model),) if model else ()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.channel.unary_unary(method)(message, timeout=30, metadata=metadata)
        trailers = dict(raised.value.trailing_metadata() or ())
        status = ErrorStatus.from_status(Status.FromString(trailers[TRAILER]))
        if status.retry_delay is not None:
            # gRPC's own retries read the delay here, in whole milliseconds.
            milliseconds = 1000 * status.retry_delay.total_seconds()
            assert milliseconds <= int(trailers[PUSHBACK_KEY]) < milliseconds + 1
        return status


Serve = Callable[..., AbstractAsyncContextManager[Busy]]


@pytest.fixture(params=TRANSPORTS)
def serve(
    request: pytest.FixtureRequest, make_gated: Callable, write_bundle: Callable[..., Path]
) -> Serve:
    """Return a function that serves the models named, each on a runner of its own."""

    @asynccontextmanager
    async def serve(*models: str, **policy: object) -> AsyncIterator[Busy]:
        (root, *_) = (write_bundle(name=name).parents[1] for name in models)
        runners = {name: make_gated() for name in models}
        failures = Failures()
        repository = Repository(
            root,
            lambda bundle: runners[bundle.manifest.name],
            BatchPolicy(max_batch=1, **policy),
        )
        engine = Engine(repository, Limits(), image_threads=1, observer=failures)
        settings = Settings(
            repository=root, address="127.0.0.1:0", shutdown_delay=0, transport=request.param
        )
        handler = RepositoryHandler(repository, enabled=False)
        server = Server(engine, settings, Changes(), Statistics(), handler)
        address = await server.start()
        await repository.open()
        held = runners["colours"]
        held.entered = threading.Semaphore(0)  # without the runs of the warm-up
        held.gate.clear()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                busy = Busy(channel, held, engine, failures)
                yield busy
                held.gate.set()
                assert await asyncio.gather(*busy.waiting) == ["red"] * len(busy.waiting)
                assert await busy.classify() == "red"
        finally:
            held.gate.set()
            await server.drain()
            await engine.close()

    return serve


async def test_a_full_queue_answers_when_to_come_again(serve: Serve) -> None:
    async with serve("colours", max_queue=2) as busy:
        await busy.fill(2)
        message = ClassifyRequest(model="colours", raw=raw(255)).SerializeToString()
        for _ in range(3):
            status = await busy.refused(message)
            assert (status.code, status.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert status.retry_delay is not None
            assert status.retry_delay.total_seconds() >= 0.01
        assert busy.failures.models == ["colours", "", ""]


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_a_full_server_refuses_before_it_reads(serve: Serve, method: str) -> None:
    async with serve("colours", max_queue=1) as busy:
        assert (await busy.refused(NO_MESSAGE, method)).reason == "MESSAGE_MALFORMED"
        await busy.fill(1)
        # The first one that does not fit is read, and tells the server that it is full.
        await busy.refused(ClassifyRequest(model="colours", raw=raw(255)).SerializeToString())
        assert (await busy.refused(NO_MESSAGE, method)).reason == "QUEUE_FULL"
        busy.runner.gate.set()
        await asyncio.gather(*busy.waiting)
        assert (await busy.refused(NO_MESSAGE, method)).reason == "MESSAGE_MALFORMED"


async def test_while_one_model_has_room_requests_are_read(serve: Serve) -> None:
    async with serve("colours", "quiet", max_queue=1) as busy:
        await busy.fill(1)
        flooded = ClassifyRequest(model="colours", raw=raw(255)).SerializeToString()
        for _ in range(3):
            assert (await busy.refused(flooded)).reason == "QUEUE_FULL"
            assert await busy.classify("quiet") == "red"
        assert (await busy.refused(NO_MESSAGE)).reason == "MESSAGE_MALFORMED"


async def test_a_call_that_names_its_model_is_refused_unread_while_that_is_full(
    serve: Serve,
) -> None:
    async with serve("colours", "quiet", max_queue=1) as busy:
        assert (await busy.refused(NO_MESSAGE, model="colours")).reason == "MESSAGE_MALFORMED"
        await busy.fill(1)
        await busy.refused(ClassifyRequest(model="colours", raw=raw(255)).SerializeToString())
        for _ in range(2):
            status = await busy.refused(NO_MESSAGE, model="colours")
            assert (status.code, status.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert status.metadata == {"limit": "1"}
            assert status.retry_delay is not None
            # Those for others are read, and so are those whose model is not there.
            for other in ("quiet", "unknown"):
                assert (await busy.refused(NO_MESSAGE, model=other)).reason == "MESSAGE_MALFORMED"
        assert busy.failures.models == ["colours"] * 3
        busy.runner.gate.set()
        await asyncio.gather(*busy.waiting)
        assert (await busy.refused(NO_MESSAGE, model="colours")).reason == "MESSAGE_MALFORMED"


async def test_a_full_server_still_tells_of_its_models(serve: Serve) -> None:
    async with serve("colours", max_queue=1) as busy:
        await busy.fill(1)
        await busy.refused(ClassifyRequest(model="colours", raw=raw(255)).SerializeToString())
        model = (await busy.stub.GetModel(GetModelRequest(name="colours"))).model
        assert (model.batching.instances, model.batching.max_batch) == (1, 1)
        assert (model.batching.max_queue, model.batching.priorities) == (1, 1)
        assert not model.batching.HasField("latency_objective")


async def test_in_a_stream_each_picture_is_refused_for_itself(serve: Serve) -> None:
    async with serve("colours", max_queue=2) as busy:
        await busy.fill(1)
        stream = busy.stub.ClassifyStream()
        for number in range(3):
            request = ClassifyRequest(model="colours", raw=raw(255))
            await stream.write(ClassifyStreamRequest(request_id=str(number), request=request))
        await stream.done_writing()
        await until(lambda: len(busy.failures.models) == 2)
        busy.runner.gate.set()
        answers = [answer async for answer in stream]
        assert [answer.WhichOneof("result") for answer in answers] == ["response"] + ["error"] * 2
        for answer in answers[1:]:
            status = ErrorStatus.from_item_error(answer.error)
            assert (status.code, status.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert status.retry_delay is not None


async def test_the_priority_of_a_request_decides_its_place(serve: Serve) -> None:
    highest = ((PRIORITY_KEY, "1"),)
    async with serve("colours", max_queue=8, priority_queues=(2, 8)) as busy:
        await busy.fill(1)
        batcher = busy.engine.repository.get("colours", "").batcher
        inference = GRPCInferenceServiceStub(busy.channel)
        tasks = []
        for call in (
            lambda: inference.ModelInfer(infer(10)),  # a call that is made has begun
            lambda: busy.classify(image=raw(20), priority=2),
            lambda: inference.ModelInfer(infer(30, priority=1)),
            lambda: busy.classify(image=raw(40), priority=7),
            lambda: busy.classify(image=raw(50), metadata=highest),
            # That of the request counts for more than that of the call.
            lambda: busy.classify(image=raw(60), priority=2, metadata=highest),
        ):
            waiting = batcher.waiting
            tasks.append(asyncio.ensure_future(call()))
            await until(lambda waiting=waiting: batcher.waiting == waiting + 1)
        # There is room for two at the highest priority, and for more at the other.
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await busy.classify(priority=1)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError, match="priority is -1; the limit is 0 or more"):
            await busy.classify(priority=-1)
        with pytest.raises(grpc.aio.AioRpcError, match="priority is 'high'; the limit is 0 or"):
            await busy.classify(metadata=((PRIORITY_KEY, "high"),))
        del busy.runner.pictures[:]
        busy.runner.gate.set()
        await asyncio.gather(*tasks)
        # The first ran already, and the second waited at the lower priority before the others.
        assert busy.runner.pictures == [255, 30, 50, 255, 10, 20, 40, 60]


def raw(red: int) -> RawImage:
    return RawImage(height=8, width=8, channels=3, data=bytes([red, 0, 0]) * 64)


def infer(red: int, priority: int = 0) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="colours")
    message.inputs.add(name="image", datatype="UINT8", shape=(1, 8, 8, 3))
    message.raw_input_contents.append(raw(red).data)
    if priority:
        message.parameters["priority"].uint64_param = priority
    return message
