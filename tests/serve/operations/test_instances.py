"""Several instances in a real server: their cores, what calls leave behind, the last answers."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ClassifyStreamRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_runtime.cores import deal_cores

from ...conftest import BOTH
from ...waiting import LIMIT_SECONDS, wait_until

COLOURS = frozenset({("model", "colours"), ("version", "1")})
METRICS = ("--metrics-address", "127.0.0.1:0")


def engine_affinities(process: psutil.Process) -> set[frozenset[int]]:
    """Return the cores of the threads that may not use all of the process's."""
    found = {frozenset(psutil.Process(thread.id).cpu_affinity()) for thread in process.threads()}
    return found - {frozenset(process.cpu_affinity())}


def test_instances_keep_to_their_cores(start: Callable, picture: ClassifyRequest) -> None:
    server = start("--instances", "2", "--pin-cores", "--engine-threads", "1", *METRICS)
    server.classify()
    process = psutil.Process(server.process.pid)
    assert engine_affinities(process) == set(deal_cores(2))
    assert server.metrics()["foveate_instances", COLOURS] == 2
    assert "2 instances, up to 8 in a batch, a queue of 256" in server.get("/")[1]


@BOTH
def test_calls_of_every_outcome_leave_nothing_behind(
    start: Callable, picture: ClassifyRequest
) -> None:
    server = start("--instances", "2", "--max-queue", "4", "--image-threads", "1", *METRICS)
    process = psutil.Process(server.process.pid)
    cut = ClassifyRequest(model="colours", encoded=b"no picture")

    async def calls() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = ClassifierServiceStub(channel)
            async with asyncio.timeout(LIMIT_SECONDS):
                flood = [stub.Classify(picture, timeout=60) for _ in range(40)]
                late = [stub.Classify(picture, timeout=0.0005) for _ in range(10)]
                bad = [stub.Classify(cut, timeout=60) for _ in range(10)]
                cancelled = [stub.Classify(picture, timeout=60) for _ in range(10)]
                streams = [stub.ClassifyStream() for _ in range(5)]
                for stream in streams:
                    await stream.write(ClassifyStreamRequest(request=picture))
                for call in (*cancelled, *streams[1:]):
                    call.cancel()
                await streams[0].done_writing()
                assert [answer.WhichOneof("result") async for answer in streams[0]]
                await asyncio.gather(*flood, *late, *bad, *cancelled, return_exceptions=True)

    def busy() -> dict[object, float]:
        """Return what is under way, by its metric."""
        names = {"foveate_requests_in_flight", "foveate_requests_waiting"}
        names.add("foveate_calls_in_flight")
        samples = server.metrics().items()
        return {key: value for key, value in samples if key[0] in names and value}

    def held() -> tuple[int, int]:
        return process.num_threads(), process.num_fds()

    asyncio.run(calls())  # starts what is only started once
    wait_until(lambda: not busy(), told=lambda: str(busy()))
    before = held()
    for _ in range(3):
        asyncio.run(calls())
    wait_until(lambda: not busy(), told=lambda: str(busy()))
    wait_until(
        lambda: all(now <= then for now, then in zip(held(), before, strict=True)),
        told=lambda: f"{held()}, and before {before}",
    )
    server.classify()


def test_a_stop_answers_what_the_instances_have_taken(
    start: Callable, picture: ClassifyRequest
) -> None:
    # Nothing but the end of the server ends the wait for these batches to fill in time.
    server = start("--instances", "2", "--max-delay", "5", "--max-batch", "64", *METRICS)
    with server.channel() as channel, ThreadPoolExecutor(20) as threads:
        classify = ClassifierServiceStub(channel).Classify
        calls = [threads.submit(classify, picture, timeout=60) for _ in range(20)]
        wait_until(lambda: server.metrics()["foveate_requests_waiting", COLOURS] == 20)
        assert server.stop() == 0
        assert [call.result().predictions[0].label for call in calls] == ["red"] * 20


def test_an_objective_is_found_shown_and_kept_to(start: Callable, picture: ClassifyRequest) -> None:
    server = start("--latency-objective", "0.5", "--max-batch", "16", *METRICS)
    with server.channel() as channel, ThreadPoolExecutor(16) as threads:
        classify = ClassifierServiceStub(channel).Classify

        def ask(_: int) -> grpc.StatusCode:
            call = classify.future(picture, timeout=60)
            return call.code()

        codes = Counter(threads.map(ask, range(300)))
    answered = codes.pop(grpc.StatusCode.OK)
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    samples = server.metrics()
    assert 1 <= samples["foveate_batch_limit", COLOURS] <= 16
    assert 1 <= samples["foveate_queue_limit", COLOURS] <= 256
    assert samples["foveate_batch_size_sum", COLOURS] == answered
    busy = sum(
        value
        for (name, labels), value in samples.items()
        if name == "foveate_engine_busy_seconds_total" and labels >= COLOURS
    )
    assert busy >= samples["foveate_batch_seconds_sum", COLOURS] > 0
    assert "tuned for answers within 500 ms" in server.get("/")[1]
    assert "colours/1, for answers within 500 ms: batches of" in server.log.read_text("utf-8")
