"""A load that does not end is given up: it is seen, and what served serves on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.errors import NotReadyError
from foveate_serve.repository.loading import LoadEndedError, Loads, LoadTimeoutError
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State

from ...waiting import LIMIT_SECONDS, until

AT_ONCE = 0.01
RED = Request(image=RawImage(height=8, width=8, channels=3, data=bytes([255, 0, 0]) * 64))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def held(gate: threading.Event) -> Callable[[], str]:
    def load() -> str:
        assert gate.wait(LIMIT_SECONDS)
        return "loaded"

    return load


async def test_a_load_returns_what_it_brings_or_raises_its_error() -> None:
    def fail() -> None:
        raise ValueError("this one")

    loads, discarded = Loads(LIMIT_SECONDS), []
    assert await loads.load(lambda: 7, discarded.append) == 7
    assert "foveate-load" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ValueError, match="this one"):
        await loads.load(fail, discarded.append)
    await loads.finish()
    assert (discarded, loads.stuck) == ([], False)


@pytest.mark.parametrize("kind", [SystemExit, StopIteration, KeyboardInterrupt])
async def test_a_load_that_ends_by_what_is_no_error_raises_one(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind

    loads = Loads(LIMIT_SECONDS)
    with pytest.raises(LoadEndedError, match=f"it ended by {kind.__name__}"):
        await loads.load(fail, lambda _: None)


async def test_what_a_load_brings_that_was_given_up_is_discarded(gate: threading.Event) -> None:
    loads, discarded = Loads(AT_ONCE), []
    with pytest.raises(LoadTimeoutError, match=r"it has not loaded within 0\.01 s"):
        await loads.load(held(gate), discarded.append)
    assert loads.stuck
    await loads.finish()  # which does not wait for it
    gate.set()
    await until(lambda: not loads.stuck)
    assert discarded == ["loaded"]


async def test_a_load_whose_caller_leaves_is_waited_for_and_discarded(
    gate: threading.Event,
) -> None:
    loads, discarded = Loads(0), []
    caller = asyncio.ensure_future(loads.load(held(gate), discarded.append))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait((caller,))
    assert caller.cancelled()
    finishing = asyncio.ensure_future(loads.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    gate.set()
    await finishing
    assert (discarded, loads.stuck) == (["loaded"], False)


async def test_a_load_that_fails_after_its_caller_has_left_is_no_news(
    gate: threading.Event,
) -> None:
    def fail() -> None:
        held(gate)()
        raise ValueError

    loads, discarded = Loads(AT_ONCE), []
    with pytest.raises(LoadTimeoutError):
        await loads.load(fail, discarded.append)
    gate.set()
    await until(lambda: not loads.stuck)
    assert discarded == []


@pytest_asyncio.fixture
async def engine(write_bundle: Callable[..., Path], gated: object) -> AsyncIterator[Engine]:
    """Open an engine that serves, and whose next load warms up the gated runner, which is shut."""
    runners = [gated, None]

    def make(bundle: Bundle) -> object:
        return (runners.pop() if runners else None) or create_runner(bundle)

    repository = Repository(
        write_bundle().parents[1], make, BatchPolicy(), load_limit=LIMIT_SECONDS
    )
    await repository.open()
    gated.gate.clear()
    repository._loads._limit = AT_ONCE
    engine = Engine(repository, Limits(), image_threads=1)
    yield engine
    gated.gate.set()
    await until(lambda: not repository.stuck)
    await engine.close()


def status(engine: Engine) -> tuple[State, str]:
    ((version,),) = (model.versions for model in engine.repository.models())
    return version.state, version.reason


async def test_the_old_version_serves_on_while_a_warm_up_hangs(
    engine: Engine, gated: object
) -> None:
    with pytest.raises(NotReadyError, match=r"failed to load: it has not loaded within 0\.01 s"):
        await engine.repository.reload("colours", "")
    assert status(engine) == (State.READY, "it has not loaded within 0.01 s")
    assert engine.repository.stuck
    # It harms nobody but the memory it holds: a server with it is well.
    assert not engine.repository.hung
    assert (await engine.classify(RED)).predictions[0].label == "red"
    gated.gate.set()
    await until(lambda: gated.closed)
    engine.repository._loads._limit = None
    await engine.repository.reload("colours", "")
    assert status(engine) == (State.READY, "")


async def test_a_version_whose_warm_up_hangs_has_failed(engine: Engine) -> None:
    await engine.repository.unload("colours", "")
    with pytest.raises(NotReadyError, match="failed to load"):
        await engine.repository.load("colours", "")
    assert status(engine) == (State.FAILED, "it has not loaded within 0.01 s")
    engine.repository._loads._limit = None
    await engine.repository.load("colours", "")
    assert (await engine.classify(RED)).predictions[0].label == "red"
