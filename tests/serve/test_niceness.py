"""Calls go before engines, and engines before those who decode."""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from foveate_runtime.backends.base import Array
from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.fair import FairThreads
from foveate_serve.niceness import DECODER, ENGINE, raise_niceness
from foveate_serve.repository.repository import Repository

RED = Request(image=RawImage(height=8, width=8, channels=3, data=bytes([255, 0, 0]) * 64))


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def after(by: int) -> int:
    """Return the niceness of a thread of this process that has stepped back."""
    return min(niceness() + by, 19) if sys.platform == "linux" else niceness()


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_steps_back_with_those_it_starts_and_no_further_than_it_can() -> None:
    found: list[int] = []

    def work() -> None:
        raise_niceness(3)
        found.append(niceness())
        in_thread(lambda: found.append(niceness()))
        raise_niceness(100)
        found.append(niceness())

    before = niceness()
    in_thread(work)
    assert found == [after(3), after(3), after(100)]
    assert niceness() == before


async def test_decoders_have_a_higher_nice_level_than_engines() -> None:
    assert DECODER > ENGINE > 0
    threads = FairThreads(1, name="test-niceness")
    assert await threads.run("user", niceness) == after(DECODER)
    threads.close()


async def test_engines_load_and_run_behind_the_event_loop(write_bundle: Callable) -> None:
    seen: list[tuple[str, int]] = []

    class Noting(OnnxRuntimeRunner):
        def __init__(self, bundle: Bundle) -> None:
            super().__init__(bundle, variant="fp32", device="cpu", threads=1)
            seen.append(("load", niceness()))

        def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
            seen.append((threading.current_thread().name, niceness()))
            return super()._run(inputs, outputs)

    root: Path = write_bundle().parents[1]
    repository = Repository(root, Noting, BatchPolicy())
    await repository.open()
    engine = Engine(repository, Limits(), image_threads=1)
    await engine.classify(RED)
    await engine.close()
    assert dict(seen) == dict.fromkeys(("load", "foveate-load", "foveate-engine-0"), after(ENGINE))
