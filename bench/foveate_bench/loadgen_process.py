"""The process that LoadGen runs in: `python -m foveate_bench.loadgen_process JOB`.

LoadGen calls from a thread of its own, and every answer is awaited on one event
loop. A fixed number of pictures is asked for at one time, more than fill the
engine's batches; those above it wait here, and LoadGen counts that time.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from foveate.v1 import classifier_service_pb2 as messages
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_bench.loadgen import MIN_QUERIES, Job, Outcome
from foveate_serve.assembly import make_engine
from foveate_serve.classification import RawImage, Request
from foveate_serve.errors import ServeError
from foveate_serve.settings import Settings

Classify = Callable[[int], Awaitable[object]]
"""Classifies the picture of an index."""

TRIAL_SECONDS = 1.0
"""How long the throughput is tried out before, for LoadGen to know how much to ask for;
no longer than the run itself."""

SHARE = 0.6
"""Of that throughput, what the scenario Server asks for where nothing is said."""

_SLACK = 1.2
"""Offline asks once for all: for enough that a faster run than the trial lasts long enough."""

_IN_FLIGHT = 4
"""Pictures asked for at one time, in batches of the largest size."""

_MESSAGE_BYTES = 64 << 20

DONE, FAILED = 0, 1


class SystemUnderTest:
    """Answers LoadGen's queries; `classify` and the methods below `start` belong to the loop.

    `failures` counts the pictures that were not classified, and `failure` is the
    first of them. LoadGen gets a response for them too, because it waits for one.
    """

    def __init__(self, classify: Classify, in_flight: int) -> None:
        self._classify = classify
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._workers = [asyncio.create_task(self._work()) for _ in range(in_flight)]
        self.failures = 0
        self.failure = ""

    def issue(self, samples: Sequence[mlperf_loadgen.QuerySample]) -> None:
        """Take a query from LoadGen's thread: the ids and the indices of its pictures."""
        query = [(sample.id, sample.index) for sample in samples]
        self._loop.call_soon_threadsafe(self._enqueue, query)

    def flush(self) -> None:
        """Do nothing: no picture waits for others to come."""

    async def close(self) -> None:
        """End the tasks."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _failed(self, message: str) -> None:
        self.failures += 1
        self.failure = self.failure or message

    def _enqueue(self, query: list[tuple[int, int]]) -> None:
        for sample in query:
            self._waiting.put_nowait(sample)

    async def _work(self) -> None:
        while True:
            sample, index = await self._waiting.get()
            try:
                await self._classify(index)
            except ServeError as error:
                self._failed(error.message)
            except grpc.aio.AioRpcError as error:
                self._failed(error.details() or error.code().name)
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample, 0, 0)])


def main(path: str) -> int:
    """Run a job and print its outcome, or on stderr why there is none; return the exit code."""
    # Ctrl-C ends this process at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    job = Job.model_validate_json(Path(path).read_bytes())
    try:
        outcome = asyncio.run(_run(job, np.load(job.pictures)))
    except (ServeError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED
    except grpc.aio.AioRpcError as error:
        print(error.details(), file=sys.stderr)
        return FAILED
    print(outcome.model_dump_json())
    return DONE


async def _run(job: Job, images: NDArray[np.uint8]) -> Outcome:
    in_flight = _IN_FLIGHT * job.rules.max_batch
    async with _target(job, images) as classify:
        trial = min(TRIAL_SECONDS, job.rules.seconds)
        rate = await _try_out(classify, len(images), in_flight, trial)
        system = SystemUnderTest(classify, in_flight)
        settings = _test_settings(job, rate)
        # LoadGen releases the interpreter's lock while it runs.
        await asyncio.to_thread(_test, system, settings, len(images), job.log)
        await system.close()
        return Outcome(
            failures=system.failures,
            failure=system.failure,
            target_qps=settings.server_target_qps,
        )


def _target(job: Job, images: NDArray[np.uint8]) -> AbstractAsyncContextManager[Classify]:
    if job.address is None:
        return _engine(job, images)
    return _server(job.address, job.model, images)


@asynccontextmanager
async def _engine(job: Job, images: NDArray[np.uint8]) -> AsyncIterator[Classify]:
    _, height, width, channels = images.shape
    requests = [
        Request(
            image=RawImage(height=height, width=width, channels=channels, data=image.tobytes()),
            model=job.model,
            top_k=1,
        )
        for image in images
    ]
    engine = make_engine(Settings(**job.settings))
    await engine.repository.open()
    try:
        yield lambda index: engine.classify(requests[index])
    finally:
        await engine.close()


@asynccontextmanager
async def _server(address: str, model: str, images: NDArray[np.uint8]) -> AsyncIterator[Classify]:
    _, height, width, channels = images.shape
    requests = [
        messages.ClassifyRequest(
            raw=messages.RawImage(
                height=height, width=width, channels=channels, data=image.tobytes()
            ),
            model=model,
            top_k=1,
        )
        for image in images
    ]
    options = [
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),  # the server is on this machine
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = ClassifierServiceStub(channel)
        yield lambda index: stub.Classify(requests[index])


async def _try_out(classify: Classify, pictures: int, in_flight: int, seconds: float) -> float:
    """Return the pictures a second that are classified where there are always some to do."""
    done = 0
    started = time.perf_counter()

    async def ask(index: int) -> None:
        nonlocal done
        while not done or time.perf_counter() < started + seconds:
            await classify(index)
            done += 1

    await asyncio.gather(*(ask(index % pictures) for index in range(in_flight)))
    return done / (time.perf_counter() - started)


def _test_settings(job: Job, rate: float) -> mlperf_loadgen.TestSettings:
    rules = job.rules
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, job.scenario.value)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1000 * rules.seconds)
    settings.min_query_count = rules.queries or MIN_QUERIES[job.scenario]
    settings.multi_stream_samples_per_query = rules.samples_per_query
    settings.server_target_qps = rules.target_qps or SHARE * rate
    settings.server_target_latency_ns = round(1e6 * rules.target_latency_ms)
    settings.offline_expected_qps = _SLACK * rate
    return settings


def _test(
    system: SystemUnderTest, settings: mlperf_loadgen.TestSettings, pictures: int, folder: Path
) -> None:
    def in_memory(_: Sequence[int]) -> None:
        """Have nothing to load or to unload."""

    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = str(folder)
    logs = mlperf_loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    sut = mlperf_loadgen.ConstructSUT(system.issue, system.flush)
    qsl = mlperf_loadgen.ConstructQSL(pictures, pictures, in_memory, in_memory)
    try:
        mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings, logs)
    finally:
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroySUT(sut)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
