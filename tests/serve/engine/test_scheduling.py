"""Requests that are given up, at every stage, and models that share one server."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from skimage import data

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.cores import ANY_CORE
from foveate_runtime.imaging.decode import ImageLimits
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import CamRequest, RawImage, Request
from foveate_serve.engine import explain, pictures
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.graph import GraphRequest
from foveate_serve.errors import DeadlineError, EngineError, InvalidRequestError, OverloadedError
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.repository import Repository

from ...waiting import LIMIT_SECONDS, until

MAPS = CamRequest(forms=frozenset({"overlay"}))


class Gate:
    """A function that waits, where it is `closed`, and counts those who came."""

    def __init__(self, function: Callable) -> None:
        self._function = function
        self._open = threading.Event()
        self._open.set()
        self.entered = threading.Semaphore(0)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.entered.release()
        assert self._open.wait(2 * LIMIT_SECONDS)
        return self._function(*args, **kwargs)


class Staged:
    """An engine of two instances and one image thread, that can be held at each stage."""

    def __init__(self, engine: Engine, runners: list, decode: Gate, draw: Gate) -> None:
        self.engine, self.runners, self.decode, self.draw = engine, runners, decode, draw
        self.baseline = self.state()

    @property
    def model(self) -> LoadedModel:
        return self.engine.repository.get("colours", "")

    def state(self) -> tuple[object, ...]:
        """Return everything that a request holds while it is under way, and the threads."""
        batcher, threads = self.model.batcher, self.engine._threads
        return (
            (batcher.waiting, batcher._queue.committed, self.model._users),
            (self.engine._admission._total.pictures, self.engine._admission._total.size),
            (threads._free, dict(threads._waiting)),
            len([thread for thread in threading.enumerate() if "foveate" in thread.name]),
            len(asyncio.all_tasks()),
        )

    def open(self) -> None:
        for gate in (self.decode, self.draw):
            gate.open()
        for runner in self.runners:
            runner.gate.set()


@pytest_asyncio.fixture
async def staged(
    make_gated, write_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Staged]:
    root = write_bundle().parents[1]
    runners = [make_gated() for _ in range(2)]
    loading = iter(runners)
    policy = BatchPolicy(max_batch=1, max_queue=4, cores=(ANY_CORE,) * 2)
    repository = Repository(root, lambda bundle: next(loading), policy)
    await repository.open()
    decode, draw = Gate(pictures.prepare), Gate(explain.draw)
    monkeypatch.setattr(pictures, "prepare", decode)
    # As photographs are: on threads.
    monkeypatch.setattr(pictures, "_INLINE", ImageLimits(max_bytes=0))
    monkeypatch.setattr(pictures, "_INLINE_ALONE", ImageLimits(max_bytes=0))
    monkeypatch.setattr(explain, "draw", draw)
    engine = Engine(repository, Limits(), image_threads=1)
    # The threads of a pool come with its first work.
    await engine.classify(Request(image=png(), cam=MAPS))
    for gate in (decode, draw, *runners):
        gate.entered = threading.Semaphore(0)
    staged = Staged(engine, runners, decode, draw)
    yield staged
    staged.open()
    await engine.close()
    assert all(runner.closed for runner in runners)
    assert not [thread for thread in threading.enumerate() if "foveate" in thread.name]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a request can be: what holds it there, behind how many others, and how one sees it."""

    close: Callable[[Staged], None]
    reached: Callable[[Staged], bool]
    others: int = 0
    occupied: Callable[[Staged], bool] = lambda staged: True


def close_engines(staged: Staged) -> None:
    for runner in staged.runners:
        runner.gate.clear()


def entered(staged: Staged) -> int:
    return sum(runner.entered._value for runner in staged.runners)


STAGES = {
    "a thread to decode on": Stage(
        close=lambda staged: staged.decode.close(),
        others=2,  # one on the thread, and one ready to follow it
        occupied=lambda staged: staged.engine._threads._free == 0,
        reached=lambda staged: bool(staged.engine._threads._waiting),
    ),
    "decoding": Stage(
        close=lambda staged: staged.decode.close(),
        reached=lambda staged: staged.decode.entered.acquire(blocking=False),
    ),
    "the queue": Stage(
        close=close_engines,
        others=2,
        occupied=lambda staged: entered(staged) == 2,
        reached=lambda staged: staged.model.batcher.waiting == 1,
    ),
    "the engine": Stage(close=close_engines, reached=lambda staged: entered(staged) == 1),
    "drawing": Stage(
        close=lambda staged: staged.draw.close(),
        reached=lambda staged: staged.draw.entered.acquire(blocking=False),
    ),
}


def pass_time(seconds: float) -> None:
    """Put the clock of the event loop forward."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_a_request_that_is_given_up_leaves_nothing_behind(
    staged: Staged, stage: str, end: str
) -> None:
    held = STAGES[stage]
    held.close(staged)
    ask, request = staged.engine.classify, Request(image=png(), cam=MAPS)
    others = [asyncio.create_task(ask(request)) for _ in range(held.others)]
    await until(lambda: held.occupied(staged))
    deadline = time.monotonic() + 2 * LIMIT_SECONDS if end == "deadline" else None
    task = asyncio.create_task(ask(request, deadline=deadline))
    await until(lambda: held.reached(staged))
    if end == "cancel":
        task.cancel()
    else:
        pass_time(2 * LIMIT_SECONDS)
    with pytest.raises(asyncio.CancelledError if end == "cancel" else DeadlineError):
        await task
    staged.open()
    assert all([(await other).predictions for other in others])
    await until(lambda: staged.state() == staged.baseline)
    assert (await ask(request)).cams
    # What had not begun its run by then was never run.
    assert entered(staged) == held.others + (stage in {"the engine", "drawing"}) + 1


async def test_requests_of_every_outcome_leave_nothing_behind(staged: Staged) -> None:
    ask, infer = staged.engine.classify, staged.engine.infer
    unlucky = RawImage(height=8, width=8, channels=3, data=bytes([13]) * 192)
    for _ in range(20):
        assert (await ask(Request(image=png(), cam=MAPS))).cams
        assert len((await infer(GraphRequest(images=[png()] * 4))).outputs["logits"]) == 4
        with pytest.raises(InvalidRequestError):
            await ask(Request(image=b"no picture"))
        with pytest.raises(InvalidRequestError):
            await infer(GraphRequest(images=[png(), b"no picture", png()]))
        with pytest.raises(EngineError):
            await ask(Request(image=unlucky))
        with pytest.raises(DeadlineError):
            await ask(Request(image=png()), deadline=time.monotonic() - 1)
        floods = await asyncio.gather(
            *(ask(Request(image=png())) for _ in range(20)), return_exceptions=True
        )
        assert {type(answer) for answer in floods} >= {OverloadedError}
        await until(lambda: staged.state() == staged.baseline)


@pytest_asyncio.fixture
async def shared(write_bundle: Callable[..., Path]) -> AsyncIterator[Engine]:
    """An engine with two models, `flooded` and `quiet`, and one thread for their pictures."""
    root = write_bundle(name="flooded").parents[1]
    write_bundle(name="quiet")
    repository = Repository(root, create_runner, BatchPolicy(max_queue=100))
    await repository.open()
    engine = Engine(repository, Limits(max_requests=100), image_threads=1)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """A photograph of 600 x 400 pixels, whose decoding takes milliseconds."""
    return (Path(__file__).parents[3] / "docs" / "images" / "coffee.jpg").read_bytes()


async def test_one_models_flood_does_not_starve_another(shared: Engine, photograph: bytes) -> None:
    order: list[str] = []

    async def ask(model: str) -> None:
        await shared.classify(Request(image=photograph, model=model))
        order.append(model)

    flood = [asyncio.create_task(ask("flooded")) for _ in range(60)]
    await asyncio.sleep(0)
    for _ in range(5):
        await ask("quiet")
    await asyncio.gather(*flood)
    # Each of the five waited for the picture in work and the one behind it, not for sixty.
    assert order[:20].count("quiet") == 5


async def test_one_models_flood_does_not_shut_out_another(
    shared: Engine, photograph: bytes
) -> None:
    await shared.classify(Request(image=photograph, model="quiet"))
    flood = [
        asyncio.create_task(shared.classify(Request(image=photograph, model="flooded")))
        for _ in range(150)
    ]
    await asyncio.sleep(0)
    quiet = [
        asyncio.create_task(shared.classify(Request(image=photograph, model="quiet")))
        for _ in range(20)
    ]
    assert all([(await task).predictions for task in quiet])
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    refused = [error for error in outcomes if isinstance(error, OverloadedError)]
    # The flood had half of what the server takes on at one time.
    assert len(refused) == 100
    assert {error.reason for error in refused} == {"TOO_MANY_REQUESTS"}


async def test_only_what_takes_less_than_a_change_of_thread_is_decoded_on_the_event_loop(
    shared: Engine, photograph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[bool] = []
    prepare = pictures.prepare

    def noted(*arguments: object) -> object:
        prepared = prepare(*arguments)
        finished.append(threading.current_thread() is threading.main_thread())
        return prepared

    monkeypatch.setattr(pictures, "prepare", noted)
    black = io.BytesIO()
    Image.new("1", (1000, 1000)).save(black, "PNG")  # a million pixels
    assert len(black.getvalue()) < 4096
    baseline, progressive = io.BytesIO(), io.BytesIO()
    cat = Image.fromarray(data.chelsea())
    cat.save(baseline, "JPEG")
    cat.save(progressive, "JPEG", progressive=True)
    jpegs = (baseline.getvalue(), progressive.getvalue())
    for picture in (png(), black.getvalue(), photograph, *jpegs):
        await shared.classify(Request(image=picture, model="quiet"))
    assert finished == [True, False, False, True, False]
