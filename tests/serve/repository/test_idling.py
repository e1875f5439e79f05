"""A model that has nothing to do gives back the memory that its runs have taken."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.repository import idling
from foveate_serve.repository.idling import IdleTrimmer
from foveate_serve.repository.repository import Repository

from ...waiting import until

RED = Request(image=RawImage(height=8, width=8, channels=3, data=bytes(192)))


class Trimmed(OnnxRuntimeRunner):
    """ONNX Runtime, counting how often it was trimmed, by which threads, and failing if told to."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, variant="fp32", device="cpu", threads=1)
        self.trims: list[threading.Thread] = []
        self.error: Exception | None = None

    def trim(self) -> None:
        self.trims.append(threading.current_thread())
        if self.error is not None:
            raise self.error
        super().trim()


@pytest_asyncio.fixture
async def engine(
    write_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    monkeypatch.setattr(idling, "IDLE_SECONDS", 0.01)
    repository = Repository(write_bundle().parents[1], Trimmed, BatchPolicy())
    await repository.open()
    engine = Engine(repository, Limits(), image_threads=1)
    yield engine
    await engine.close()


def runner_of(engine: Engine) -> Trimmed:
    runner = engine.repository.get("colours", "").runner
    assert isinstance(runner, Trimmed)
    return runner


async def test_it_is_trimmed_once_for_every_pause_and_not_on_the_event_loop(
    engine: Engine,
) -> None:
    runner = runner_of(engine)
    runner.trims.clear()  # the warm-up's
    for pauses in (1, 2):
        await engine.classify(RED)
        await until(lambda pauses=pauses: len(runner.trims) == pauses)
    assert threading.main_thread() not in runner.trims


@pytest.mark.parametrize("error", [BackendError("stuck"), MemoryError()])
async def test_an_engine_that_cannot_be_trimmed_serves_on(
    engine: Engine, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    runner = runner_of(engine)
    runner.error = error
    before = await engine.classify(RED)
    await until(lambda: "could not release its idle memory" in caplog.text)
    assert (await engine.classify(RED)).predictions == before.predictions


async def test_a_run_begins_the_pause_anew(colours: Bundle) -> None:
    with Trimmed(colours) as runner:
        idle = IdleTrimmer([runner])
        idle.on_run()
        first = idle._timer
        idle.on_run()
        assert idle._timer is first, "every run would cost a timer"
        idle._check()  # the first is due
        assert idle._timer is not first
        assert idle._timer.when() == pytest.approx(idle._last + idling.IDLE_SECONDS, abs=0.1)
        await idle.close()
        assert idle._timer.cancelled()
        assert not runner.trims


async def test_closing_waits_for_a_trim_under_way(colours: Bundle) -> None:
    with Trimmed(colours) as runner:
        idle = IdleTrimmer([runner])
        idle._last = asyncio.get_running_loop().time() - idling.IDLE_SECONDS
        idle._check()
        await idle.close()
        assert len(runner.trims) == 1
