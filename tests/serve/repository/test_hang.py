"""An engine that does not come back is noticed: those who wait are told, and its model fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.errors import EngineHungError, NotReadyError
from foveate_serve.repository import warmup, watchdog
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State

from ...waiting import until

LIMIT = 60.0
"""Far more than a run takes; where one is to hang, it has begun as long ago."""

RED = Request(image=RawImage(height=8, width=8, channels=3, data=bytes(192)))


@pytest_asyncio.fixture
async def engine(
    write_bundle: Callable[..., Path], gated: object, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    """Open an engine whose first runner is gated, and whose others are not."""
    monkeypatch.setattr(watchdog, "_LONGEST_INTERVAL", 0.005)
    root = write_bundle().parents[1]
    runners = [gated]

    def make(bundle: Bundle) -> object:
        return runners.pop() if runners else create_runner(bundle)

    repository = Repository(root, make, BatchPolicy(max_batch=1), run_limit=LIMIT)
    await repository.open()
    engine = Engine(repository, Limits(), image_threads=1)
    yield engine
    gated.gate.set()
    await engine.close()
    # That of an engine which hung and was given up ends by itself.
    await until(lambda: not any("foveate" in thread.name for thread in threading.enumerate()))


def state(engine: Engine) -> State:
    ((version,),) = (model.versions for model in engine.repository.models())
    return version.state


async def begun(gated: object, ago: float) -> None:
    """Wait for the run to begin, and make it one that began `ago` seconds earlier."""
    await until(lambda: gated.running_since is not None)
    gated._started = {thread: start - ago for thread, start in gated._started.items()}


async def hang(engine: Engine, gated: object) -> None:
    """Let one request hang in the engine, and others wait behind it."""
    gated.gate.clear()
    calls = [asyncio.create_task(engine.classify(RED)) for _ in range(3)]
    await until(lambda: engine.repository.get("colours", "").batcher.waiting == 2)
    await begun(gated, LIMIT)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, EngineHungError)
    assert not any(call.cancelled() for call in calls)


@pytest.mark.parametrize("limit", [0.0, LIMIT], ids=["unwatched", "watched"])
@pytest.mark.parametrize("bounded", [True, False], ids=["straight", "looping"])
async def test_what_might_hang_and_is_watched_runs_on_a_thread_of_its_own(
    write_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, limit: float, bounded: bool
) -> None:
    monkeypatch.setattr(warmup, "_INLINE_SECONDS", LIMIT)

    def make(bundle: Bundle) -> object:
        runner = create_runner(bundle)
        assert runner.bounded
        runner.bounded = bounded
        return runner

    root = write_bundle().parents[1]
    repository = Repository(root, make, BatchPolicy(max_batch=1), run_limit=limit)
    await repository.open()
    pace = repository.get("colours", "").batcher._pacing._pace
    assert (pace.inline_pictures > 0) is (bounded or not limit)
    await repository.close()


async def test_those_who_wait_are_told_and_the_model_fails(engine: Engine, gated: object) -> None:
    assert not engine.repository.hung
    await hang(engine, gated)
    assert (engine.repository.hung, state(engine)) == (True, State.FAILED)
    (model,) = engine.repository.models()
    assert model.versions[0].reason == "the engine has not finished a run within 60 s"
    assert model.default_version is None
    with pytest.raises(NotReadyError):
        await engine.classify(RED)


async def test_an_engine_that_comes_back_serves_again(engine: Engine, gated: object) -> None:
    warm_ups = len(gated.batches)
    await hang(engine, gated)
    gated.gate.set()
    await until(lambda: state(engine) is State.READY)
    assert (await engine.classify(RED)).predictions
    assert not engine.repository.hung
    # Who was told of the hang was not run afterwards.
    assert len(gated.batches) == warm_ups + 2


async def test_a_run_that_is_slow_and_ends_in_time_is_no_hang(
    engine: Engine, gated: object
) -> None:
    watching = engine.repository.get("colours", "")._watchdog
    for _ in range(3):
        gated.gate.clear()
        call = asyncio.create_task(engine.classify(RED))
        await begun(gated, LIMIT / 2)
        timer = watching._timer
        await until(lambda before=timer: watching._timer is not before)  # it has looked
        gated.gate.set()
        assert (await call).predictions
    assert state(engine) is State.READY


async def test_a_caller_who_leaves_is_cancelled_and_not_told_of_a_hang(
    engine: Engine, gated: object
) -> None:
    gated.gate.clear()
    call = asyncio.create_task(engine.classify(RED))
    await until(lambda: gated.running_since is not None)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_reload_replaces_an_engine_that_hangs(engine: Engine, gated: object) -> None:
    await hang(engine, gated)
    await engine.repository.reload("colours", "")
    assert (engine.repository.hung, state(engine)) == (False, State.READY)
    assert (await engine.classify(RED)).predictions


async def test_an_unload_does_not_wait_for_an_engine_that_hangs(
    engine: Engine, gated: object
) -> None:
    await hang(engine, gated)
    await engine.repository.unload("colours", "")
    assert state(engine) is State.UNLOADED
    # Its run goes on, in memory that has not been freed.
    assert not gated.closed
