"""Measures a plan, one model after the other, in rounds over all of its cases."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foveate_bench.operators import Profile
from foveate_bench.plan import ModelPlan
from foveate_bench.results import (
    Accuracy,
    Case,
    Configuration,
    Latency,
    Measurement,
    OutputKind,
    Refusal,
)
from foveate_bench.worker import First, Turn, Worker, WorkerError
from foveate_runtime.backends.base import BackendError
from foveate_runtime.bundle.golden import open_golden, refusals
from foveate_runtime.evaluation.accuracy import Tally, prepared_batches


class Watcher(Protocol):
    """Shows the progress of the measurement."""

    def begin(self, text: str, total: float) -> None:
        """Take note of a new stage, whose parts add up to `total`."""
        ...

    def advance(self, amount: float) -> None:
        """Take note of a part that is done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How long it is measured: each case has `count` turns of so many seconds."""

    count: int
    seconds: float


@dataclass
class Measured:
    """What was measured so far; complete or not, it can be reported at any time."""

    accuracies: list[Accuracy] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    _loads: dict[tuple[Configuration, OutputKind], float] = field(default_factory=dict)
    _firsts: dict[tuple[Configuration, OutputKind], First] = field(default_factory=dict)
    _sizes: dict[Case, First] = field(default_factory=dict)
    _turns: dict[Case, list[Turn]] = field(default_factory=dict)

    def measurements(self) -> tuple[Measurement, ...]:
        """Return the cases that had at least one turn, in the plan's order."""
        return tuple(
            self._measurement(case, self._turns[case])
            for case in self._sizes
            if case in self._turns
        )

    def loaded(self, worker: Worker, seconds: float) -> None:
        """Note how long an engine took to load."""
        self._loads[worker.configuration, worker.kind] = seconds

    def first(self, case: Case, first: First) -> None:
        """Note the first run of a batch size; the first of a process is its first request."""
        self._firsts.setdefault((case.configuration, case.outputs), first)
        self._sizes[case] = first

    def expected(self, case: Case) -> float:
        """Return the seconds that a run took which was not the first."""
        return self._sizes[case].again_seconds

    def turn(self, case: Case, turn: Turn) -> None:
        """Note a turn."""
        self._turns.setdefault(case, []).append(turn)

    def drop(self, worker: Worker, error: Exception) -> None:
        """Note that a configuration cannot be measured with these outputs, and why."""
        what = f"{worker.configuration}, {worker.kind}"
        self.refusals.append(Refusal(what=what, reason=str(error)))

    def _measurement(self, case: Case, turns: Sequence[Turn]) -> Measurement:
        key = case.configuration, case.outputs
        times = [seconds for turn in turns for seconds in turn.seconds]
        images = case.batch * len(times)
        return Measurement(
            case=case,
            latency=Latency.of(times),
            round_medians_ms=tuple(1000 * float(np.median(turn.seconds)) for turn in turns),
            images_per_second=images / sum(times),
            cpu_seconds_per_image=sum(turn.cpu_seconds for turn in turns) / images,
            peak_memory_bytes=self._sizes[case].peak_memory_bytes,
            load_seconds=self._loads[key],
            build_seconds=self._sizes[case].build_seconds,
            first_request_seconds=self._firsts[key].seconds,
        )


def measure(
    plan: ModelPlan,
    rounds: Rounds,
    measured: Measured,
    watcher: Watcher,
    *,
    profiled: bool = False,
    checked: bool = False,
) -> None:
    """Measure the cases of one model into `measured`.

    Every configuration has a process for each kind of outputs. They are started
    one after the other, since loading would disturb loading, and run each batch
    size once; where they are to be `checked`, those whose outputs are not the bundle's
    golden answers within its tolerances are left out; then labelled pictures are
    classified; then every case has a turn in each round, in an order that changes from
    round to round; then, if they are to be `profiled`, the operators of each
    configuration are timed on its smallest batch. What an engine refuses is noted, and
    the others go on.

    Raises LabelledError where a labelled picture cannot be decoded.
    """
    with ExitStack() as stack:
        workers = _start(plan, measured, watcher, stack)
        if checked:
            workers = _right(plan, workers, measured)
        _score(plan, workers, measured, watcher)
        _time(plan, workers, rounds, measured, watcher)
        if profiled:
            _profile(plan, workers, measured, watcher)


def _start(plan: ModelPlan, measured: Measured, watcher: Watcher, stack: ExitStack) -> list[Worker]:
    images = plan.batch(max(plan.batches))
    watcher.begin(
        f"{plan.bundle.manifest.name}: loading engines",
        len(plan.configurations) * len(plan.outputs),
    )
    workers = []
    for configuration in plan.configurations:
        for kind in plan.outputs:
            worker = stack.enter_context(Worker(plan.bundle.path, configuration, kind, images))
            try:
                measured.loaded(worker, worker.load())
                for case in plan.cases(configuration, kind):
                    measured.first(case, worker.first(case.batch))
            except (BackendError, WorkerError) as error:
                measured.drop(worker, error)
            else:
                workers.append(worker)
            watcher.advance(1)
    return workers


def _right(plan: ModelPlan, workers: Sequence[Worker], measured: Measured) -> list[Worker]:
    """Return the workers whose engines give the golden answers; all where there are none."""
    golden = open_golden(plan.bundle)
    if golden is None:
        return list(workers)
    right = []
    for worker in workers:
        tolerances = plan.bundle.manifest.variant(worker.configuration.variant).tolerances
        try:
            errors = {} if tolerances is None else worker.errors(golden, tolerances.measure)
        except (BackendError, WorkerError) as error:
            measured.drop(worker, error)
            continue
        wrong = [] if tolerances is None else list(refusals(errors, tolerances))
        if wrong:
            measured.drop(worker, BackendError(f"{', '.join(wrong)}: not the golden answers"))
        else:
            right.append(worker)
    return right


def _score(
    plan: ModelPlan, workers: Sequence[Worker], measured: Measured, watcher: Watcher
) -> None:
    """Classify the labelled pictures on every backend; they are decoded once for all."""
    if plan.labelled is None:
        return
    manifest = plan.bundle.manifest
    # The number of threads changes nothing about the answers, nor do the outputs.
    scored: dict[tuple[str, str, str], Worker] = {}
    for worker in workers:
        of = worker.configuration
        scored.setdefault((of.variant, of.backend, of.device), worker)
    tallies = {key: Tally() for key in scored}
    watcher.begin(f"{manifest.name}: accuracy", len(plan.labelled) * len(scored))
    for images, targets in prepared_batches(plan.labelled, manifest.input):
        for key in list(tallies):
            try:
                tallies[key].add(scored[key].logits(images), targets)
            except (BackendError, WorkerError) as error:
                measured.drop(scored[key], error)
                del tallies[key]
            watcher.advance(len(targets))
    for (variant, backend, device), tally in tallies.items():
        measured.accuracies.append(
            Accuracy(
                model=manifest.name,
                version=manifest.version,
                variant=variant,
                backend=backend,
                device=device,
                **tally.accuracy(plan.labelled.name).model_dump(),
            )
        )


def _time(
    plan: ModelPlan,
    workers: Sequence[Worker],
    rounds: Rounds,
    measured: Measured,
    watcher: Watcher,
) -> None:
    turns = [
        (worker, case)
        for worker in workers
        for case in plan.cases(worker.configuration, worker.kind)
    ]
    expected = {case: max(rounds.seconds, 2 * measured.expected(case)) for _, case in turns}
    watcher.begin(f"{plan.bundle.manifest.name}: timing", rounds.count * sum(expected.values()))
    failed: set[Worker] = set()
    for worker, case in _rounds(turns, rounds.count):
        if worker not in failed:
            try:
                measured.turn(case, worker.turn(case.batch, rounds.seconds))
            except (BackendError, WorkerError) as error:
                measured.drop(worker, error)
                failed.add(worker)
        watcher.advance(expected[case])


def _profile(
    plan: ModelPlan, workers: Sequence[Worker], measured: Measured, watcher: Watcher
) -> None:
    chosen: dict[Configuration, Worker] = {}
    for worker in workers:
        chosen.setdefault(worker.configuration, worker)
    watcher.begin(f"{plan.bundle.manifest.name}: operators", len(chosen))
    for configuration, worker in chosen.items():
        case = plan.cases(configuration, worker.kind)[0]
        try:
            measured.profiles.append(worker.profile(case))
        except (BackendError, WorkerError) as error:
            what = f"operators of {configuration}"
            measured.refusals.append(Refusal(what=what, reason=str(error)))
        watcher.advance(1)


def _rounds(turns: Sequence[tuple[Worker, Case]], count: int) -> Iterator[tuple[Worker, Case]]:
    """Yield every turn once a round, so that no case always follows the same other one."""
    for number in range(count):
        order = list(turns)
        random.Random(number).shuffle(order)  # noqa: S311 - the order of a benchmark
        yield from order
