"""A bundle of colours, and runners whose runs a test holds back."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from foveate_runtime.backends.base import Array, BackendError
from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.repository import warmup

from ..colours import colours, colours_golden, golden_bundle, write_bundle
from ..waiting import LIMIT_SECONDS


@pytest.fixture(autouse=True)
def no_run_is_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run pictures on the engine's threads, however quick the machine is."""
    monkeypatch.setattr(warmup, "_INLINE_SECONDS", 0.0)


class GatedRunner(OnnxRuntimeRunner):
    """ONNX Runtime behind a gate, noting the batches that it ran.

    A picture whose first byte is 13 makes its batch fail. `pictures` are the
    first bytes of those that ran, `affinity` the cores of the last run, `shared`
    the sizes of the batches that shared the cores with others.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, variant="fp32", device="cpu", threads=1)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[tuple[int, tuple[str, ...]]] = []
        self.closed = False
        self.pictures: list[int] = []
        self.shared: list[int] = []
        self.affinity: frozenset[int] = frozenset()

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.affinity = frozenset(os.sched_getaffinity(0))
        self.entered.release()
        if not self.gate.wait(2 * LIMIT_SECONDS):
            raise TimeoutError("the test left the gate closed")
        self.batches.append((len(inputs["image"]), tuple(outputs)))
        self.pictures += inputs["image"][:, 0, 0, 0].tolist()
        if (inputs["image"][:, 0, 0, 0] == 13).any():
            raise BackendError("unlucky")
        return super()._run(inputs, outputs)

    def _run_on_share(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        self.shared.append(len(inputs["image"]))
        return self._run(inputs, outputs)

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def make_gated(colours: Bundle) -> Iterator[Callable[[], GatedRunner]]:
    """Return a function that makes runners, whose gates are open when the test is over."""
    made: list[GatedRunner] = []

    def make() -> GatedRunner:
        made.append(GatedRunner(colours))
        return made[-1]

    yield make
    for runner in made:
        runner.gate.set()


@pytest.fixture
def gated(make_gated: Callable[[], GatedRunner]) -> GatedRunner:
    return make_gated()
