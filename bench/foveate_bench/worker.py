"""The process of one configuration: engines timed in one process disturb each other.

Two that took turns in one process came out up to one and a half times slower.
The process does what its parent asks, one call at a time.
"""

import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate_bench.operators import Profile, profile
from foveate_bench.plan import output_names
from foveate_bench.results import Case, Configuration, OutputKind
from foveate_runtime.backends.base import Array, BackendError, Runner
from foveate_runtime.backends.registry import load_backend
from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.golden import Golden
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT, LOGITS_OUTPUT

EXPLAINED = 5
"""The classes that maps are drawn of: the best ones."""

GRACE_SECONDS = 5.0
"""In which a process that has nothing to do ends by itself."""

WARM_UP_SHARE = 0.2
"""Of the time of a turn: runs before it, so that the caches hold the engine again."""

T = TypeVar("T")


class WorkerError(Exception):
    """The process ended by itself; the message says how."""


@dataclass(frozen=True, kw_only=True)
class First:
    """The first run of a batch size, the second one, and what the process has come to.

    `build_seconds` is the runner's, `peak_memory_bytes` the most resident memory so far.
    """

    seconds: float
    again_seconds: float
    build_seconds: float | None
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The times of the runs of one turn, and the processor time of all of them together."""

    seconds: tuple[float, ...]
    cpu_seconds: float


class Worker:
    """The parent's end: each method runs in the process, and raises what the engine raises.

    They raise BackendError where the engine fails, and WorkerError where the
    process is gone.
    """

    def __init__(
        self, bundle: Path, configuration: Configuration, kind: OutputKind, images: Array
    ) -> None:
        self.configuration = configuration
        self.kind = kind
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(other, bundle, configuration, kind, images), daemon=True
        )
        self._process.start()
        # The process holds the only other end, so that its death is seen.
        other.close()

    def load(self) -> float:
        """Load the engine, and return the seconds it took, its package being imported already."""
        return self._ask(_Session.load)

    def first(self, batch: int) -> First:
        """Run a batch for the first time, and once more."""
        return self._ask(_Session.first, batch)

    def turn(self, batch: int, seconds: float) -> Turn:
        """Run a batch again and again for so long, and at least once."""
        return self._ask(_Session.turn, batch, seconds)

    def profile(self, case: Case) -> Profile:
        """Return the slowest operators of a case."""
        return self._ask(_Session.profile, case)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify uint8 [N, H, W, C]; returns float32 [N, classes]."""
        return self._ask(_Session.logits, images)

    def errors(self, golden: Golden, measure: str) -> dict[str, float]:
        """Return how far each output lies from the golden answers, as `Golden.errors` does."""
        return self._ask(_Session.errors, golden, measure)

    def close(self) -> None:
        """End the process and wait for it; one that is busy for longer is stopped."""
        self._connection.close()
        self._process.join(GRACE_SECONDS)
        self._process.terminate()
        self._process.join()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: "Callable[..., T]", *arguments: object) -> T:
        try:
            self._connection.send((method.__name__, arguments))
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise WorkerError(
                f"the process ended with the code {self._process.exitcode}"
                + (", for want of memory?" if self._process.exitcode == -signal.SIGKILL else "")
            ) from error
        if isinstance(answer, BackendError):
            raise answer
        result: T = answer
        return result


class _Session:
    """The child's end."""

    def __init__(
        self, bundle: Path, configuration: Configuration, kind: OutputKind, images: Array
    ) -> None:
        self._bundle = Bundle.open(bundle)
        self._configuration = configuration
        manifest = self._bundle.manifest
        self._outputs = output_names(kind, manifest)
        self._images = images
        ranks = -1 - np.arange(min(EXPLAINED, manifest.classes))
        self._class_ids = np.tile(ranks, (len(images), 1)) if kind == "cam" else None
        self._runner: Runner | None = None

    def load(self) -> float:
        wanted = self._configuration
        backend = load_backend(wanted.backend)
        started = time.perf_counter()
        self._runner = backend(
            self._bundle, variant=wanted.variant, device=wanted.device, threads=wanted.threads
        )
        return time.perf_counter() - started

    def first(self, batch: int) -> First:
        inputs = self._inputs(batch)
        return First(
            seconds=self._timed(inputs),
            again_seconds=self._timed(inputs),
            build_seconds=self._opened.build_seconds,
            peak_memory_bytes=_peak_memory(),
        )

    def turn(self, batch: int, seconds: float) -> Turn:
        inputs = self._inputs(batch)
        warm = time.perf_counter() + WARM_UP_SHARE * seconds
        while self._timed(inputs) < seconds and time.perf_counter() < warm:
            pass
        times: list[float] = []
        cpu = time.process_time()
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times.append(self._timed(inputs))
        return Turn(seconds=tuple(times), cpu_seconds=time.process_time() - cpu)

    def profile(self, case: Case) -> Profile:
        return profile(self._opened, case, self._inputs(case.batch), self._outputs)

    def logits(self, images: NDArray[np.uint8]) -> Array:
        return self._opened.run({IMAGE_INPUT: images}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]

    def errors(self, golden: Golden, measure: str) -> dict[str, float]:
        try:
            return golden.errors(self._opened.run, measure)
        except BundleError as error:
            raise BackendError(str(error)) from error

    @property
    def _opened(self) -> Runner:
        if self._runner is None:
            raise BackendError("the engine is not loaded")
        return self._runner

    def _inputs(self, batch: int) -> dict[str, Array]:
        inputs: dict[str, Array] = {IMAGE_INPUT: self._images[:batch]}
        if self._class_ids is not None:
            inputs[CLASS_IDS_INPUT] = self._class_ids[:batch]
        return inputs

    def _timed(self, inputs: dict[str, Array]) -> float:
        # A runner returns arrays in the processor's memory, so a device has finished by then.
        started = time.perf_counter()
        self._opened.run(inputs, self._outputs)
        return time.perf_counter() - started


def _answer(
    connection: Connection,
    bundle: Path,
    configuration: Configuration,
    kind: OutputKind,
    images: Array,
) -> None:
    """Do what the parent asks until it closes its end."""
    # Ctrl-C reaches the whole group; what it means is the parent's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session = _Session(bundle, configuration, kind, images)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = getattr(session, method)(*arguments)
        except BackendError as error:
            answer = BackendError(_explained(error))
        try:
            connection.send(answer)
        except BrokenPipeError:
            return


def _peak_memory() -> int:
    """Return the high-water mark of this process's resident memory in bytes.

    From Linux where it is told there: `getrusage` counts what the parent had
    when it started this process as well.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _explained(error: BackendError) -> str:
    """Return an engine's error for the user of this machine, with the first line of its cause."""
    cause = str(error.__cause__ or "").strip().partition("\n")[0]
    return f"{error} ({cause})" if cause else str(error)
