"""Identical requests are answered without the engine: from what is kept, or is running."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import CamRequest, FeatureMapRequest, RawImage, Request
from foveate_serve.engine.cache import Cache, SingleFlight
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.graph import GraphRequest
from foveate_serve.errors import DeadlineError, EngineError, OverloadedError
from foveate_serve.repository.repository import Repository
from foveate_serve.statistics import Statistics

from ...waiting import until


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return buffer.getvalue()


def raw(value: int) -> RawImage:
    return RawImage(height=8, width=8, channels=3, data=bytes([value]) * 192)


PIXELS = np.stack([np.full((8, 8, 3), value, dtype=np.uint8) for value in (9, 7)])
RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def test_the_longest_unused_goes_first() -> None:
    cache: Cache[str] = Cache(10)
    for name in "abc":
        cache.put(name, name, 3)
    assert cache.get("a") == "a"
    cache.put("d", "d", 4)
    assert [cache.get(name) for name in "abcd"] == ["a", None, "c", "d"]
    assert cache.size == 10


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache: Cache[str] = Cache(10)
    cache.put("a", "a", 3)
    cache.put("b", "b", 11)
    assert (cache.get("a"), cache.get("b"), cache.size) == ("a", None, 3)
    cache.put("a", "A", 10)
    assert (cache.get("a"), cache.size) == ("A", 10)


async def test_a_flight_outlives_those_who_leave_and_ends_with_the_last() -> None:
    flights: SingleFlight[int] = SingleFlight()
    go, ended = asyncio.Event(), []

    async def work() -> int:
        try:
            await go.wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return 7

    callers = [asyncio.create_task(flights.join("key", work)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    assert ("key" in flights, ended) == (True, [])
    go.set()
    assert await asyncio.gather(*callers[1:]) == [7, 7]
    assert "key" not in flights
    go.clear()
    last = asyncio.create_task(flights.join("key", work))
    await asyncio.sleep(0)
    last.cancel()
    await asyncio.wait([last])
    assert "key" not in flights
    await asyncio.sleep(0)
    assert ended == ["cancelled"]


@pytest.fixture
def opened(write_bundle: Callable[..., Path], gated: object) -> Callable[..., object]:
    """Return a function that opens an engine whose runner is gated."""
    root = write_bundle().parents[1]

    @asynccontextmanager
    async def open_engine(
        max_queue: int = 256, **options: object
    ) -> AsyncIterator[tuple[Engine, Statistics]]:
        statistics = Statistics()

        def make(bundle: Bundle) -> object:
            return gated

        repository = Repository(root, make, BatchPolicy(max_batch=1, max_queue=max_queue))
        await repository.open()
        gated.batches.clear()
        engine = Engine(repository, Limits(), image_threads=1, observer=statistics, **options)
        yield engine, statistics
        await engine.close()

    return open_engine


async def test_off_nothing_is_kept(opened: Callable, gated: object) -> None:
    async with opened() as (engine, statistics):
        for _ in range(2):
            assert not (await engine.classify(Request(image=RED))).timing.cached
        assert len(gated.batches) == 2
        assert statistics.of("colours", "1").cache_miss.count == 0


async def test_an_identical_request_gets_the_kept_answer(opened: Callable, gated: object) -> None:
    request = Request(
        image=RED,
        cam=CamRequest(forms=frozenset({"raw", "overlay"})),
        feature_maps=(FeatureMapRequest(layer="planes"),),
    )
    async with opened(cache_bytes=1 << 20) as (engine, statistics):
        first = await engine.classify(request)
        second = await engine.classify(request)
        assert len(gated.batches) == 1
        assert (first.timing.cached, second.timing.cached) == (False, True)
        assert second.predictions == first.predictions
        np.testing.assert_array_equal(second.cams[0].values, first.cams[0].values)
        assert second.cams[0].overlay == first.cams[0].overlay
        features = second.feature_maps[0].values
        np.testing.assert_array_equal(features, first.feature_maps[0].values)
        # A view would keep the array of its whole batch alive.
        assert second.cams[0].values.base is None
        assert features.base is None
        timing = second.timing
        assert (timing.infer, timing.batch_size, timing.variant) == (0, 0, "fp32")
        assert timing.total > 0
        done = statistics.of("colours", "1")
        assert (done.cache_hit.count, done.cache_miss.count) == (1, 1)
        assert (done.success.count, done.infer.count) == (2, 1)


@pytest.mark.parametrize(
    "other",
    [
        Request(image=BLUE),
        Request(image=picture((255, 0, 0), "BMP")),
        Request(image=RED, top_k=1),
        Request(image=RED, cam=CamRequest()),
        Request(image=RED, feature_maps=(FeatureMapRequest(layer="planes", channels=(1,)),)),
    ],
)
async def test_another_request_gets_its_own_answer(
    opened: Callable, gated: object, other: Request
) -> None:
    async with opened(cache_bytes=1 << 20) as (engine, _):
        await engine.classify(Request(image=RED))
        assert not (await engine.classify(other)).timing.cached
        assert len(gated.batches) == 2


async def test_the_default_and_what_it_stands_for_are_one_request(
    opened: Callable, gated: object
) -> None:
    async with opened(cache_bytes=1 << 20) as (engine, _):
        await engine.classify(Request(image=RED))
        same = Request(image=RED, model="colours", version="1", top_k=3)
        assert (await engine.classify(same)).timing.cached


@pytest.mark.parametrize("images", [[RED, BLUE], PIXELS], ids=["files", "pixels"])
async def test_outputs_of_the_graph_are_kept_too(
    opened: Callable, gated: object, images: list[bytes] | np.ndarray
) -> None:
    async with opened(cache_bytes=1 << 20) as (engine, _):
        request = GraphRequest(images=images, outputs=["logits"])
        first = await engine.infer(request)
        second = await engine.infer(request)
        assert (first.timing.cached, second.timing.cached) == (False, True)
        np.testing.assert_array_equal(second.outputs["logits"], first.outputs["logits"])
        for other in (images[::-1], images[:1]):
            assert not (await engine.infer(GraphRequest(images=other))).timing.cached


async def test_errors_are_not_kept(opened: Callable, gated: object) -> None:
    async with opened(cache_bytes=1 << 20, deduplicate=True) as (engine, _):
        for _ in range(2):
            with pytest.raises(EngineError):
                await engine.classify(Request(image=raw(13)))
        assert len(gated.batches) == 2


async def test_another_bundle_under_the_same_version_has_answers_of_its_own(
    opened: Callable, gated: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(cache_bytes=1 << 20) as (engine, _):
        await engine.classify(Request(image=RED))
        manifest = engine.repository.get("colours", "").bundle.path / "manifest.json"
        manifest.write_text(manifest.read_text("utf-8").replace("tests:", "other:"), "utf-8")
        monkeypatch.setattr(gated, "close", lambda: None)
        await engine.repository.reload("colours", "")
        assert not (await engine.classify(Request(image=RED))).timing.cached


async def test_identical_requests_in_flight_share_a_run(opened: Callable, gated: object) -> None:
    async with opened(deduplicate=True) as (engine, statistics):
        gated.gate.clear()
        calls = [asyncio.create_task(engine.classify(Request(image=raw(9)))) for _ in range(4)]
        calls.append(asyncio.create_task(engine.classify(Request(image=raw(10)))))
        await until(lambda: gated.entered.acquire(blocking=False))
        # The one who came first leaves.
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        gated.gate.set()
        answers = await asyncio.gather(*calls[1:])
        assert len(gated.batches) == 2
        assert len({answer.timing.batch for answer in answers}) == 2
        assert statistics.of("colours", "1").success.count == 4
        await engine.classify(Request(image=raw(9)))
        assert len(gated.batches) == 3


async def test_a_deadline_ends_a_caller_and_not_the_run(opened: Callable, gated: object) -> None:
    async with opened(deduplicate=True) as (engine, _):
        gated.gate.clear()
        loop = asyncio.get_running_loop()
        hurried = asyncio.create_task(
            engine.classify(Request(image=raw(9)), deadline=loop.time() + 0.05)
        )
        patient = asyncio.create_task(engine.classify(Request(image=raw(9))))
        with pytest.raises(DeadlineError):
            await hurried
        gated.gate.set()
        assert (await patient).predictions
        assert len(gated.batches) == 1


async def test_a_full_server_reads_what_it_may_answer_without_the_engine(
    opened: Callable, gated: object
) -> None:
    async with opened(max_queue=1, cache_bytes=1 << 20) as (engine, _):
        await engine.classify(Request(image=raw(1)))
        gated.gate.clear()
        batcher = engine.repository.get("colours", "").batcher
        calls = [asyncio.create_task(engine.classify(Request(image=raw(2))))]
        await until(lambda: gated.running_since is not None)
        calls.append(asyncio.create_task(engine.classify(Request(image=raw(3)))))
        await until(lambda: batcher.full)
        with pytest.raises(OverloadedError):
            await engine.classify(Request(image=raw(4)))
        engine.shed_load()
        assert (await engine.classify(Request(image=raw(1)))).timing.cached
        gated.gate.set()
        await asyncio.gather(*calls)
