"""A map is tried on masked copies, and every classifier has one that is made of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.imaging.masking import GRID, hidden_by_cell
from foveate_serve.batching.batcher import Batcher
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import Cam, CamRequest, RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.errors import InvalidRequestError, OverloadedError
from foveate_serve.repository.repository import Repository

from ..conftest import GatedRunner


@pytest_asyncio.fixture
async def engine(tmp_path: Path, write_bundle: Callable[..., Path]) -> AsyncIterator[Engine]:
    write_bundle()
    repository = Repository(tmp_path / "repository", create_runner, BatchPolicy())
    await repository.open()
    engine = Engine(repository, Limits(), image_threads=2)
    yield engine
    await engine.close()


def red_at_the_left() -> np.ndarray:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :3, 0] = 255
    pixels[:, 3:, 2] = 60
    return pixels


def raw(pixels: np.ndarray) -> RawImage:
    return RawImage(height=8, width=8, channels=3, data=pixels.tobytes())


async def explain(engine: Engine, cam: CamRequest, deadline: float | None = None) -> Cam:
    request = Request(image=raw(red_at_the_left()), cam=cam)
    (found,) = (await engine.classify(request, deadline=deadline)).cams
    return found


@pytest.mark.parametrize("copies", [8, 17, 32])
async def test_a_map_that_shows_what_is_used_costs_more_than_chance(
    engine: Engine, copies: int
) -> None:
    red = await explain(engine, CamRequest(class_ids=(0,), check=copies))
    assert red.check is not None
    assert red.check.copies == copies // 2 * 2
    assert red.check.drop > red.check.random_drop + 0.005
    # The map of another class shows where red is not.
    blue = await explain(engine, CamRequest(class_ids=(2,), check=copies))
    assert blue.check is not None
    assert blue.check.drop > blue.check.random_drop


async def test_the_same_picture_is_judged_alike_and_nothing_comes_unasked(engine: Engine) -> None:
    one, other = [await explain(engine, CamRequest(check=16)) for _ in range(2)]
    assert one.check == other.check
    assert (await explain(engine, CamRequest())).check is None


@pytest.mark.parametrize("against", [None, 2])
async def test_an_occlusion_is_how_far_the_logit_falls(engine: Engine, against: int | None) -> None:
    cam = CamRequest(method="occlusion", class_ids=(0,), against=against)
    found = await explain(engine, cam)
    assert (found.method, found.height, found.width) == ("occlusion", GRID, GRID)
    assert found.values is not None

    async def logit(pixels: np.ndarray) -> float:
        answer = await engine.classify(Request(image=raw(pixels), top_k=3))
        logits = {each.class_id: each.logit for each in answer.predictions}
        return logits[0] - (0.0 if against is None else logits[against])

    (spec,) = {engine.repository.get("", "").bundle.manifest.input}
    empty = np.broadcast_to(np.array(spec.border, np.uint8), (8, 8, 3))
    whole = await logit(red_at_the_left())
    copies = hidden_by_cell(red_at_the_left(), empty)
    drops = [whole - await logit(copy) for copy in copies]
    np.testing.assert_allclose(found.values.reshape(-1), drops, atol=1e-5)


@pytest.mark.parametrize(
    ("cam", "reason"),
    [
        (CamRequest(check=7), "CHECK_OUT_OF_RANGE"),
        (CamRequest(check=33), "CHECK_OUT_OF_RANGE"),
        (CamRequest(check=-1), "CHECK_OUT_OF_RANGE"),
        (CamRequest(check=8, top=2), "CHECK_IMPOSSIBLE"),
        (CamRequest(check=8, against=2), "CHECK_IMPOSSIBLE"),
        (CamRequest(check=8, method="occlusion"), "CHECK_IMPOSSIBLE"),
    ],
)
async def test_what_cannot_be_tried_is_refused(
    engine: Engine, cam: CamRequest, reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await explain(engine, cam)
    assert raised.value.reason == reason
    assert raised.value.field == "cam.check"


async def test_copies_that_take_longer_than_the_deadline_are_refused_at_once(
    engine: Engine,
) -> None:
    await explain(engine, CamRequest())
    batcher = engine.repository.get("", "").batcher
    batcher._pacing.picture_seconds = 30.0
    with pytest.raises(OverloadedError, match="the masked copies take") as raised:
        await explain(engine, CamRequest(check=8), time.monotonic() + 60)
    assert raised.value.reason == "DEADLINE_TOO_SHORT"
    assert not batcher._queue.committed


async def test_copies_run_after_the_pictures_of_others(gated: GatedRunner) -> None:
    gated.gate.clear()
    batcher = Batcher([gated], BatchPolicy(max_batch=2, lanes=1))

    async def run(number: int, *, last: bool) -> None:
        with batcher.reserve_last(1) if last else batcher.reserve() as places:
            images = np.full((1, 8, 8, 3), number, np.uint8)
            await batcher.submit(places, images, outputs=("logits",))

    tasks = [asyncio.create_task(run(1, last=False))]
    await asyncio.to_thread(gated.entered.acquire)
    for number, last in ((20, True), (21, True), (22, True), (2, False), (3, False), (4, False)):
        tasks.append(asyncio.create_task(run(number, last=last)))
        await asyncio.sleep(0)
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert gated.pictures == [1, 2, 3, 4, 20, 21, 22]
    await batcher.close()


async def test_copies_do_not_fill_the_queue_of_requests(gated: GatedRunner) -> None:
    gated.gate.clear()
    batcher = Batcher([gated], BatchPolicy(max_queue=4, lanes=1))
    with batcher.reserve_last(4):
        assert not batcher.full
        with batcher.reserve(), batcher.reserve(), batcher.reserve(), batcher.reserve():
            assert batcher.full
        with pytest.raises(OverloadedError):
            batcher.reserve_last(1)
    gated.gate.set()
    await batcher.close()
